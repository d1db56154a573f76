"""The sizes of the published networks, as a recipe states them. They need no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.errors import CLASS_COUNTS, DEPTHS, SIDES, WIDTHS, check_ranges
from unmask.tokenizers.configs import FSQ, LFQ, VQ, VQGAN

if TYPE_CHECKING:
    from unmask.pretrained.amused import UVit2D
    from unmask.pretrained.amused_vqvae import AmusedAutoencoder
    from unmask.pretrained.google import GoogleTransformer
    from unmask.pretrained.halton_maskgit import HaltonTransformer
    from unmask.pretrained.maskgit_vqgan import MaskGITAutoencoder
    from unmask.pretrained.titok import TiTokModel
    from unmask.pretrained.titok_bert import TiTokBertModel
    from unmask.pretrained.titok_uvit import TiTokUViTModel
    from unmask.pretrained.valeoai import ValeoaiTransformer

NUM_GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class GeneratorSizes:
    """Sizes of a published transformer that is conditioned on a class."""

    dim: int = 768
    """Width of the network."""
    depth: int = 24
    """Number of transformer blocks."""
    heads: int = 16
    """Number of attention heads; dim must be a multiple of it."""
    mlp_dim: int = 3072
    """Hidden width of the MLPs."""
    num_classes: int = 1000
    """Number of classes."""

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads, self.mlp_dim, self.num_classes) < 1 or self.dim % self.heads:
            raise ValueError(f"{self}: all must be at least 1, and dim must be a multiple of heads")
        check_ranges(
            self, {"dim": WIDTHS, "depth": DEPTHS, "heads": DEPTHS, "mlp_dim": WIDTHS, "num_classes": CLASS_COUNTS}
        )

    @property
    def has_null_class(self) -> bool:
        """True if the network accepts NULL ("no class"), which guidance and unlabelled images need."""
        return True


@dataclass(frozen=True, kw_only=True)
class ValeoaiMaskGIT(GeneratorSizes):
    """Sizes of the network. The authors trained it with dropout 0.1; this version has no dropout."""

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "ValeoaiTransformer":
        """Build the network with random weights."""
        from unmask.pretrained.valeoai import ValeoaiTransformer

        return ValeoaiTransformer(self, vocab_size, grid)


@dataclass(frozen=True, kw_only=True)
class HaltonMaskGIT:
    """Sizes of the network. Each head is dim // heads wide, so attention leaves the rest of `dim` out."""

    dim: int = 768
    """Width of the network."""
    depth: int = 12
    """Number of transformer blocks."""
    heads: int = 12
    """Number of attention heads, at most dim."""
    hidden: int = 2048
    """Width of the gated MLPs. The published ones have two thirds of 4 dim, rounded up to a multiple of 256."""
    num_classes: int = 1000
    """Number of classes."""

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads, self.hidden, self.num_classes) < 1 or self.heads > self.dim:
            raise ValueError(f"{self}: all must be at least 1, and dim must be at least heads")
        check_ranges(
            self, {"dim": WIDTHS, "depth": DEPTHS, "heads": DEPTHS, "hidden": WIDTHS, "num_classes": CLASS_COUNTS}
        )

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "HaltonTransformer":
        """Build the network with random weights."""
        from unmask.pretrained.halton_maskgit import HaltonTransformer

        return HaltonTransformer(self, vocab_size, grid)


@dataclass(frozen=True, kw_only=True)
class GoogleMaskGIT(GeneratorSizes):
    """Sizes of the network. The published weights are conditional only, and the authors sampled without guidance."""

    null_class: bool = False
    """Accept NULL ("no class"): it starts as the mean of all classes, and training with dropped labels teaches it."""

    @property
    def has_null_class(self) -> bool:
        """True if the network accepts NULL: the published one does not."""
        return self.null_class

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "GoogleTransformer":
        """Build the network with random weights."""
        from unmask.pretrained.google import GoogleTransformer

        return GoogleTransformer(self, vocab_size, grid)


@dataclass(frozen=True, kw_only=True)
class TiTokBert(GeneratorSizes):
    """Sizes of the network."""

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "TiTokBertModel":
        """Build the network with random weights."""
        from unmask.pretrained.titok_bert import TiTokBertModel

        return TiTokBertModel(self, vocab_size, grid)


@dataclass(frozen=True, kw_only=True)
class TiTokUViT(GeneratorSizes):
    """Sizes of the network."""

    dim: int = 1024
    """Width of the network."""
    depth: int = 20
    """Number of blocks before and after the middle block together; it must be even."""
    mlp_dim: int = 4096
    """Hidden width of the MLPs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth % 2:
            raise ValueError(f"TiTokUViT(depth={self.depth}): must be even, as half of the blocks skip to the others")

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "TiTokUViTModel":
        """Build the network with random weights."""
        from unmask.pretrained.titok_uvit import TiTokUViTModel

        return TiTokUViTModel(self, vocab_size, grid)


@dataclass(frozen=True, kw_only=True)
class Amused:
    """Sizes of the network: a transformer with one convolutional stage before it and one after it."""

    dim: int = 1024
    """Width of the transformer."""
    depth: int = 22
    """Number of transformer layers."""
    heads: int = 16
    """Number of attention heads of the transformer; dim must be a multiple of it."""
    mlp_dim: int = 2816
    """Hidden width of the transformer's gated MLPs."""
    block_dim: int = 768
    """Width of the convolutional blocks."""
    blocks: int = 3
    """Number of blocks of each convolutional stage."""
    block_heads: int = 12
    """Number of attention heads of the convolutional blocks; block_dim must be a multiple of it."""
    text_dim: int = 768
    """Width of the text encoder's hidden states."""
    pooled_dim: int = 768
    """Width of the text encoder's pooled embedding."""
    micro_dim: int = 256
    """Number of sinusoids for each number about the image; it must be even."""
    halved: bool = False
    """Halve the grid's height and width for the transformer."""
    spare: int = 63
    """Rows of the published token table between its last code and its mask."""

    def __post_init__(self) -> None:
        counts = (self.dim, self.depth, self.heads, self.mlp_dim, self.block_dim, self.blocks, self.block_heads)
        if min(*counts, self.text_dim, self.pooled_dim, self.micro_dim) < 1 or self.spare < 0:
            raise ValueError(f"{self}: sizes and counts must be at least 1, and spare must be at least 0")
        if self.dim % self.heads or self.block_dim % self.block_heads:
            raise ValueError(
                f"Amused(dim={self.dim}, heads={self.heads}, block_dim={self.block_dim}, "
                f"block_heads={self.block_heads}): each width must be a multiple of its heads"
            )
        if self.micro_dim % 2:
            raise ValueError(f"Amused(micro_dim={self.micro_dim}): must be even, half cosines and half sines")
        check_ranges(
            self,
            {
                "dim": WIDTHS,
                "depth": DEPTHS,
                "heads": DEPTHS,
                "mlp_dim": WIDTHS,
                "block_dim": WIDTHS,
                "blocks": DEPTHS,
                "block_heads": DEPTHS,
                "text_dim": WIDTHS,
                "pooled_dim": WIDTHS,
                "micro_dim": WIDTHS,
                "spare": (0, 1 << 24),
            },
        )

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "UVit2D":
        """Build the network with random weights."""
        from unmask.pretrained.amused import UVit2D

        return UVit2D(self, vocab_size, grid)


@dataclass(frozen=True, kw_only=True)
class AmusedVQ(VQGAN):
    """Sizes of the network. It has no attention, so the same weights serve every image size."""

    multipliers: tuple[int, ...] = (1, 2, 2, 4, 6)
    attention: tuple[int, ...] = ()
    middle_attention: bool = False
    z_channels: int = 64
    quantizer: FSQ | VQ | LFQ = VQ(vocab_size=8192, dim=64, normalize=False, decay=0.0)

    def build(self) -> "AmusedAutoencoder":
        """Build the network with random weights."""
        from unmask.pretrained.amused_vqvae import AmusedAutoencoder

        return AmusedAutoencoder(self)


@dataclass(frozen=True, kw_only=True)
class MaskGITVQGAN:
    """Sizes of the tokenizer, which takes RGB images."""

    size: tuple[int, int] = (256, 256)
    """Height and width of the images in pixels."""
    width: int = 128
    """Number of channels of a level with multiplier 1; it must be a multiple of 32."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """For each level, its number of channels as a multiple of width."""
    blocks: int = 2
    """Number of residual blocks per level and in the middle, in encoder and decoder."""
    codes: int = 1024
    """Number of codes."""
    dim: int = 256
    """Numbers per code."""

    def __post_init__(self) -> None:
        if not self.multipliers or min(*self.size, *self.multipliers, self.blocks, self.codes, self.dim) < 1:
            raise ValueError(f"{self}: sizes and counts must be at least 1")
        if self.width < 1 or self.width % NUM_GROUPS:
            raise ValueError(
                f"MaskGITVQGAN(width={self.width}): must be a multiple of the {NUM_GROUPS} groups of its norms"
            )
        if any(n % self.factor for n in self.size):
            raise ValueError(
                f"MaskGITVQGAN(size={self.size}): must be a multiple of {self.factor}: each of the "
                f"{len(self.multipliers)} levels except one halves height and width"
            )
        check_ranges(
            self,
            {
                "size": SIDES,
                "width": WIDTHS,
                "multipliers": DEPTHS,
                "blocks": (1, 64),
                "codes": (1, 1 << 24),
                "dim": WIDTHS,
            },
        )

    @property
    def factor(self) -> int:
        """Side of a cell in pixels."""
        return 1 << (len(self.multipliers) - 1)

    @property
    def channels(self) -> int:
        return 3

    @property
    def vocab_size(self) -> int:
        return self.codes

    @property
    def grid(self) -> tuple[int, int]:
        return self.size[0] // self.factor, self.size[1] // self.factor

    def build(self) -> "MaskGITAutoencoder":
        """Build the network with random weights."""
        from unmask.pretrained.maskgit_vqgan import MaskGITAutoencoder

        return MaskGITAutoencoder(self)


@dataclass(frozen=True, kw_only=True)
class TiTok:
    """Sizes of the two transformers, of the codebook and of the pixel decoder."""

    num_latents: int = 32
    """Number of tokens per image."""
    width: int = 1024
    """Width of both transformers."""
    depth: int = 24
    """Number of blocks of each transformer."""
    heads: int = 16
    """Number of attention heads; width must be a multiple of it."""
    vocab_size: int = 4096
    """Number of codes."""
    token_dim: int = 12
    """Numbers per code."""
    pixels: MaskGITVQGAN = MaskGITVQGAN()
    """The tokenizer whose decoder makes the image; it also decides the image size and the cells."""

    def __post_init__(self) -> None:
        counts = (self.num_latents, self.width, self.depth, self.heads, self.vocab_size, self.token_dim)
        if min(counts) < 1 or self.width % self.heads:
            raise ValueError(f"{self}: counts must be at least 1, and width must be a multiple of heads")
        check_ranges(
            self,
            {
                "num_latents": SIDES,
                "width": WIDTHS,
                "depth": DEPTHS,
                "heads": DEPTHS,
                "vocab_size": (1, 1 << 24),
                "token_dim": WIDTHS,
            },
        )

    @property
    def grid(self) -> tuple[int]:
        return (self.num_latents,)

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.size

    @property
    def channels(self) -> int:
        return self.pixels.channels

    def build(self) -> "TiTokModel":
        """Build the network with random weights."""
        from unmask.pretrained.titok import TiTokModel

        return TiTokModel(self)
