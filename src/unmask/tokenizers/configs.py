"""What a recipe states of a learned tokenizer: network, quantizer, losses, files of LPIPS. It needs no torch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import DEPTHS, FACTORS, SIDES, WIDTHS, ConfigError, check_ranges

if TYPE_CHECKING:
    from torch import nn

    from unmask.tokenizers.lpips import Lpips
    from unmask.tokenizers.quantizers import Codebook, FiniteScalar, LookupFree
    from unmask.tokenizers.vqgan import Autoencoder

VGG = "https://download.pytorch.org/models/vgg16-397923af.pth"
LPIPS_LINEAR = "https://github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1/vgg.pth"
MAX_VOCAB = 1 << 18
MAX_LEVELS = 1000  # from 1001 on, the published margin of FSQ's bound (0.1%) reaches beyond the outermost level


@dataclass(frozen=True, kw_only=True)
class FSQ:
    """Round each of len(levels) latent channels to one of its levels: nothing is learned, so nothing can collapse."""

    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Number of levels of each latent channel; their product is the vocabulary."""

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2 or max(self.levels) > MAX_LEVELS:
            raise ValueError(f"FSQ(levels={self.levels}): 2 to {MAX_LEVELS} levels per channel needed")
        if self.vocab_size > MAX_VOCAB:
            raise ValueError(
                f"FSQ(levels={self.levels}): {self.vocab_size} codes, and at most {MAX_VOCAB} are possible"
            )

    @property
    def dim(self) -> int:
        return len(self.levels)

    @property
    def vocab_size(self) -> int:
        return math.prod(self.levels)

    def build(self) -> "FiniteScalar":
        """Build the quantizer."""
        from unmask.tokenizers.quantizers import FiniteScalar

        return FiniteScalar(self)


@dataclass(frozen=True, kw_only=True)
class VQ:
    """A learned codebook; a latent becomes its nearest vector. It starts at the k-means centres of the first batch."""

    vocab_size: int = 1024
    """Number of vectors in the codebook."""
    dim: int = 8
    """Numbers per vector."""
    normalize: bool = True
    """Put latents and codebook on the unit sphere, so that nearest means nearest by angle (arXiv 2110.04627)."""
    decay: float = 0.99
    """The codebook follows the mean of its latents with this decay; 0 learns it by gradient."""
    commitment: float = 0.25
    """Weight of the loss that pulls latents to their vectors."""
    revive: float = 0.03
    """Move a vector onto a latent of the batch if it is used less often than this per step, on average."""

    def __post_init__(self) -> None:
        if not 2 <= self.vocab_size <= MAX_VOCAB or self.dim < 1:
            raise ValueError(f"VQ(vocab_size={self.vocab_size}, dim={self.dim}): 2 to {MAX_VOCAB} codes of 1 or more")
        if not 0 <= self.decay < 1 or self.commitment < 0 or self.revive < 0:
            raise ValueError(f"{self}: decay in [0, 1), commitment and revive at least 0 needed")
        check_ranges(self, {"dim": WIDTHS, "commitment": FACTORS, "revive": FACTORS})

    def build(self) -> "Codebook":
        """Build the quantizer."""
        from unmask.tokenizers.quantizers import Codebook

        return Codebook(self)


@dataclass(frozen=True, kw_only=True)
class LFQ:
    """Keep only the signs of `bits` latent channels: 2^bits tokens without a table."""

    bits: int = 10
    """Number of latent channels; the vocabulary has 2^bits tokens."""
    entropy: float = 0.1
    """Weight of the loss for certain latents and for the use of all tokens (eq. 4 of arXiv 2310.05737)."""
    diversity: float = 1.0
    """Weight, within that loss, of using all tokens."""
    sharpness: float = 1.0
    """Inverse temperature of that loss."""
    commitment: float = 0.25
    """Weight of the loss that pulls latents to their signs."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 18:
            raise ValueError(f"LFQ(bits={self.bits}): 1 to 18 bits, that is at most {MAX_VOCAB} codes")
        if min(self.entropy, self.diversity, self.commitment) < 0 or not self.sharpness > 0:
            raise ValueError(f"{self}: weights must be at least 0, and the sharpness positive")
        check_ranges(self, {"entropy": FACTORS, "diversity": FACTORS, "commitment": FACTORS, "sharpness": FACTORS})

    @property
    def dim(self) -> int:
        return self.bits

    @property
    def vocab_size(self) -> int:
        return 1 << self.bits

    def build(self) -> "LookupFree":
        """Build the quantizer."""
        from unmask.tokenizers.quantizers import LookupFree

        return LookupFree(self)


@dataclass(frozen=True, kw_only=True)
class VQGAN:
    """A convolutional tokenizer with one level per multiplier, each half as high and wide as the one before."""

    size: tuple[int, int] = (256, 256)
    """Height and width of the images, in pixels."""
    channels: int = 3
    """Number of channels of the images."""
    patch: int = 1
    """Gather pixels into patches of this side first; cheap, so that small machines can train on small images."""
    width: int = 128
    """Channels of a level with multiplier 1."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channels of each level, as multiples of the width, from fine to coarse."""
    blocks: int = 2
    """Residual blocks per level of the encoder."""
    decoder_blocks: int = 3
    """Residual blocks per level of the decoder."""
    attention: tuple[int, ...] = (16,)
    """Heights, in cells, of the levels that have attention."""
    middle_attention: bool = True
    """Use attention in the middle of encoder and decoder."""
    z_channels: int = 256
    """Channels of the latents outside the quantizer."""
    groups: int = 32
    """Groups of the group norms; CPUs are up to 20 times faster with 16 channels or more in each group."""
    quantizer: FSQ | VQ | LFQ = FSQ()
    """How latent vectors become tokens."""

    def __post_init__(self) -> None:
        counts = (self.channels, self.patch, self.width, self.blocks, self.decoder_blocks, self.z_channels)
        if min(*self.size, *counts) < 1:
            raise ValueError(f"{self}: sizes and counts must be at least 1")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"VQGAN(multipliers={self.multipliers}): one or more, each at least 1")
        if self.groups < 1 or self.width % self.groups:
            raise ValueError(
                f"VQGAN(width={self.width}, groups={self.groups}): the width must be a multiple of the groups"
            )
        if any(n % self.factor for n in self.size):
            raise ValueError(
                f"VQGAN(size={self.size}): must be a multiple of {self.factor}, which is patch {self.patch} times "
                f"2 for each of {len(self.multipliers)} levels but one"
            )
        check_ranges(
            self,
            {
                "size": SIDES,
                "channels": (1, 64),
                "patch": SIDES,
                "width": WIDTHS,
                "multipliers": DEPTHS,
                "blocks": (1, 64),
                "decoder_blocks": (1, 64),
                "z_channels": WIDTHS,
            },
        )
        heights = [self.size[0] // self.patch >> i for i in range(len(self.multipliers))]
        if set(self.attention) - set(heights):
            raise ValueError(f"VQGAN(attention={self.attention}): the levels are {heights} cells high")

    @property
    def factor(self) -> int:
        """Pixels per side of a cell."""
        return self.patch << (len(self.multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        return self.size[0] // self.factor, self.size[1] // self.factor

    @property
    def vocab_size(self) -> int:
        return self.quantizer.vocab_size

    def build(self) -> "Autoencoder":
        """Build the tokenizer."""
        from unmask.tokenizers.vqgan import Autoencoder

        return Autoencoder(self)


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

    def build(self, channels: int) -> "nn.Sequential":
        """Build the discriminator of images with that many channels."""
        from unmask.tokenizers.losses import build_discriminator

        return build_discriminator(self, channels)


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


@dataclass(frozen=True, kw_only=True)
class LpipsFiles:
    """Paths of the two published files."""

    vgg: str = ""
    """VGG16's weights, vgg16-397923af.pth."""
    linear: str = ""
    """Weights of LPIPS v0.1, vgg.pth."""

    def check(self) -> None:
        """Raise ConfigError if a file is missing, before any work."""
        for path, flag, source in ((self.vgg, "vgg", VGG), (self.linear, "linear", LPIPS_LINEAR)):
            if not path or not Path(path).expanduser().is_file():
                raise ConfigError(f"LPIPS needs --perceptual.{flag} FILE, of {source}: {path or 'none'} is not there")

    def load(self) -> "Lpips":
        """Load LPIPS from the two files."""
        from unmask.tokenizers.lpips import load_lpips

        self.check()
        return load_lpips(Path(self.vgg).expanduser(), Path(self.linear).expanduser())
