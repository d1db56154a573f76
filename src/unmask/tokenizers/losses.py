"""The losses of a learned tokenizer: pixels, features of a frozen network, and a patch discriminator (VQGAN, arXiv
2012.09841, section 3.1). Every loss is a sum over the batch of each image's mean."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unmask.tokenizers.configs import PatchGAN
from unmask.tokenizers.configs import TokenizerLoss as TokenizerLoss

Maps = Sequence[Float[Tensor, "b _ _ _"]]
Stages = Callable[[Float[Tensor, "b c h w"]], Maps]
"""A frozen network: images in [-1, 1] to feature maps, fine to coarse; the loss is their squared distance."""


def build_discriminator(config: PatchGAN, channels: int) -> nn.Sequential:
    """Build the discriminator of images with that many channels."""
    dims = [config.width * min(2**i, 8) for i in range(config.layers + 1)]
    layers: list[nn.Module] = [nn.Conv2d(channels, dims[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for i, (dim_in, dim_out) in enumerate(pairwise(dims)):
        last = i == config.layers - 1
        layers.append(nn.Conv2d(dim_in, dim_out, 4, stride=1 if last else 2, padding=1, bias=False))
        layers += [nn.GroupNorm(1, dim_out), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(dims[-1], 1, 4, padding=1))


def sum_image_means(x: Float[Tensor, "b *n"]) -> Float[Tensor, ""]:
    """Return the sum over images of each image's mean."""
    return x.flatten(1).mean(1).sum()


def measure_perceptual_distance(
    stages: Stages, a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]
) -> Float[Tensor, ""]:
    """Return the squared distance of the features of two batches, summed over channels, mean over cells and stages.

    LPIPS (arXiv 1801.03924, eq. 1), with the weights of `stages`. `b` is the target and gets no gradient.
    """
    with torch.no_grad():
        targets = [x.float() for x in stages(b)]
    total = a.new_zeros(())
    for x, target in zip(stages(a), targets, strict=True):
        total = total + sum_image_means((x.float() - target).square().sum(1))
    return total / len(targets)


def compute_hinge_loss(real: Float[Tensor, "b _ h w"], fake: Float[Tensor, "b _ h w"]) -> Float[Tensor, ""]:
    """Return the discriminator's hinge loss: real patches above 1, reconstructed ones below -1 (arXiv 1705.02894)."""
    return (sum_image_means(F.relu(1 - real.float())) + sum_image_means(F.relu(1 + fake.float()))) / 2
