"""The terms of a tokenizer's loss: closed forms, what gradients do not touch, and that every image is on its own."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.tokenizers.losses import (
    PatchGAN,
    TokenizerLoss,
    compute_hinge_loss,
    measure_perceptual_distance,
    sum_image_means,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def discriminator(config: PatchGAN, channels: int = 3) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return config.build(channels)


# -- sums over images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (1, 7), (6,)])
def test_per_image_sums_means(shape):
    x = noise(*shape)
    if len(shape) == 1:
        x = x[:, None]
    torch.testing.assert_close(sum_image_means(x), torch.stack([row.mean() for row in x]).sum())


def test_per_image_of_nothing_is_nothing():
    assert sum_image_means(torch.zeros(0, 3, 2, 2)) == 0


def test_hinge_is_the_formula():
    real, fake = noise(5, 1, 3, 4), noise(5, 1, 3, 4, seed=1)
    total = 0.0
    for r, f in zip(real, fake, strict=True):
        total += sum(max(0.0, 1 - float(x)) for x in r.flatten()) / 12 / 2
        total += sum(max(0.0, 1 + float(x)) for x in f.flatten()) / 12 / 2
    assert float(compute_hinge_loss(real, fake)) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("real", "fake", "loss"), [(1.0, -1.0, 0.0), (3.0, -9.0, 0.0), (0.0, 0.0, 2.0), (-1.0, 1.0, 4.0)]
)
def test_hinge_asks_for_a_margin_and_no_more(real, fake, loss):
    x = torch.ones(2, 1, 3, 3)
    assert float(compute_hinge_loss(real * x, fake * x)) == loss


# -- features ----------------------------------------------------------------------------------------------------------

KERNELS = (noise(4, 3, 3, 3, seed=7), noise(6, 4, 3, 3, seed=8))


def stages(images: Tensor) -> list[Tensor]:
    fine = F.conv2d(images, KERNELS[0], padding=1).relu()
    return [fine, F.conv2d(fine, KERNELS[1], stride=2, padding=1)]


def test_perceptual_distance_is_the_formula():
    a, b = noise(3, 3, 6, 4), noise(3, 3, 6, 4, seed=1)
    total = torch.zeros(())
    for x, y in zip(stages(a), stages(b), strict=True):
        for image in range(3):
            for row in range(x.shape[2]):
                for column in range(x.shape[3]):
                    p, q = (m[image, :, row, column] for m in (x, y))
                    total += (p - q).square().sum() / (x.shape[2] * x.shape[3]) / 2
    torch.testing.assert_close(measure_perceptual_distance(stages, a, b), total)


def test_perceptual_distance_is_a_sum_of_squares():
    a, b = noise(3, 3, 6, 4), noise(3, 3, 6, 4, seed=1)
    assert measure_perceptual_distance(stages, a, a) == 0
    distance = measure_perceptual_distance(stages, a, b)
    assert distance > 0
    torch.testing.assert_close(measure_perceptual_distance(lambda x: [3 * m for m in stages(x)], a, b), 9 * distance)
    doubled = [torch.cat([x, x]) for x in (a, b)]
    torch.testing.assert_close(measure_perceptual_distance(stages, *doubled), 2 * distance)


def test_perceptual_gradients_go_to_the_reconstruction_only():
    a, b = (noise(2, 3, 6, 4, seed=s).requires_grad_() for s in (0, 1))
    measure_perceptual_distance(stages, a, b).backward()
    assert b.grad is None
    assert a.grad.abs().sum() > 0
    before, direction = a.detach(), noise(2, 3, 6, 4, seed=2)
    eps = 1e-3
    slope = [measure_perceptual_distance(stages, before + sign * eps * direction, b.detach()) for sign in (1, -1)]
    assert float(slope[0] - slope[1]) / (2 * eps) == pytest.approx(float((a.grad * direction).sum()), rel=0.02)


def test_half_precision_features_are_compared_in_float32():
    a, b = noise(2, 3, 6, 4), noise(2, 3, 6, 4, seed=1)
    half = measure_perceptual_distance(lambda x: [m.bfloat16() for m in stages(x)], a, b)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, measure_perceptual_distance(stages, a, b), rtol=1e-2, atol=0)


# -- the discriminator -------------------------------------------------------------------------------------------------


def test_patchgan_has_the_published_shape():
    """Five convolutions with 64 to 512 channels, 30x30 verdicts on 256x256, each on 70x70 pixels."""
    with torch.device("meta"):
        network = PatchGAN().build(3)
        assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    convolutions = [m for m in network if isinstance(m, nn.Conv2d)]
    assert [tuple(m.weight.shape[:2]) for m in convolutions] == [(64, 3), (128, 64), (256, 128), (512, 256), (1, 512)]
    reach = 1
    for m in reversed(convolutions):
        reach = (reach - 1) * m.stride[0] + m.kernel_size[0]
    assert reach == 70


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_image_is_the_smallest(layers):
    config = PatchGAN(width=4, layers=layers)
    network, least = discriminator(config), config.smallest
    assert network(noise(2, 3, least, least + 1)).shape == (2, 1, 1, 1)
    with pytest.raises(RuntimeError):
        network(noise(2, 3, least - 1, least))


def test_a_verdict_is_an_images_own():
    network = discriminator(PatchGAN(width=8, layers=2))
    images, others = noise(4, 3, 16, 12), noise(4, 3, 16, 12, seed=1)
    together = network(images)
    mixed = network(torch.cat([others[:1], images[1:2], 100 * others[2:]]))
    assert torch.equal(mixed[1], together[1])
    torch.testing.assert_close(network(images[1:2])[0], together[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{"width": 0}, {"layers": 0}])
def test_patchgan_refuses(changes):
    with pytest.raises(ValueError, match="at least 1"):
        PatchGAN(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pixel": -1.0}, "pixel -1"),
        ({"adversarial": -0.5}, "adversarial -0.5"),
        ({"pixel": 0.0, "perceptual": 0.0}, "one of the first two positive"),
        ({"start": 1.5}, "start 1.5"),
        ({"ceiling": 0.0}, "ceiling 0"),
    ],
)
def test_weights_that_cannot_work_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(TokenizerLoss(), **changes)
