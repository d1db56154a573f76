"""The losses of a learned tokenizer: pixels, features of a frozen network, and a patch discriminator (VQGAN, arXiv
2012.09841, section 3.1). Every loss is a sum over the batch of each image's mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unmask.errors import FACTORS, WIDTHS, check_ranges

Maps = Sequence[Float[Tensor, "b _ _ _"]]
Stages = Callable[[Float[Tensor, "b c h w"]], Maps]
"""A frozen network: images in [-1, 1] to feature maps, fine to coarse; the loss is their squared distance."""


@dataclass(frozen=True, kw_only=True)
class PatchGAN:
    """A discriminator that judges each patch: real or reconstructed (arXiv 1611.07004).

    Differs from the paper: group norm instead of batch norm, so that an image's score does not depend on the batch.
    """

    width: int = 64
    """Channels of the first layer; each further layer doubles them, up to 8 times."""
    layers: int = 3
    """Number of times the image is halved."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers) < 1:
            raise ValueError(f"PatchGAN(width={self.width}, layers={self.layers}): must be at least 1")
        check_ranges(self, {"width": WIDTHS, "layers": (1, 12)})

    @property
    def smallest(self) -> int:
        """Smallest height and width of an image: 3 cells after the halvings, since two more convolutions take 2."""
        return 3 << self.layers

    def build(self, channels: int) -> nn.Sequential:
        """Build the discriminator of images with that many channels."""
        dims = [self.width * min(2**i, 8) for i in range(self.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, dims[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (dim_in, dim_out) in enumerate(pairwise(dims)):
            last = i == self.layers - 1
            layers.append(nn.Conv2d(dim_in, dim_out, 4, stride=1 if last else 2, padding=1, bias=False))
            layers += [nn.GroupNorm(1, dim_out), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers, nn.Conv2d(dims[-1], 1, 4, padding=1))


@dataclass(frozen=True, kw_only=True)
class TokenizerLoss:
    """Weights of the terms of a tokenizer's loss."""

    pixel: float = 1.0
    """Weight of the L1 distance of the pixels."""
    perceptual: float = 1.0
    """Weight of the perceptual distance."""
    adversarial: float = 0.5
    """Weight of the adversarial term; the ratio of the gradients at the last layer multiplies it (eq. 7)."""
    start: float = 0.5
    """Fraction of the training after which the discriminator starts."""
    ceiling: float = 1e4
    """Largest gradient ratio of the adversarial term."""
    discriminator: PatchGAN = PatchGAN()
    """The discriminator."""

    def __post_init__(self) -> None:
        if min(self.pixel, self.perceptual, self.adversarial) < 0 or self.pixel + self.perceptual == 0:
            raise ValueError(
                f"loss: pixel {self.pixel}, perceptual {self.perceptual} and adversarial {self.adversarial} must be at "
                "least 0, and one of the first two positive"
            )
        if not 0 <= self.start <= 1 or not self.ceiling > 0:
            raise ValueError(f"loss: start {self.start} must lie in [0, 1], and ceiling {self.ceiling} be positive")
        check_ranges(self, {"pixel": FACTORS, "perceptual": FACTORS, "adversarial": FACTORS, "ceiling": FACTORS})


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
