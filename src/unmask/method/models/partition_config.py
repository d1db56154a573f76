"""The sizes and options of the partition transformer. A recipe holds them, so this file needs no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.errors import CLASS_COUNTS, DEPTHS, WIDTHS, check_ranges

if TYPE_CHECKING:
    from unmask.method.models.partition import PartitionTransformer


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """The sizes and options of a `PartitionTransformer`."""

    dim: int = 128
    """Width of the model, a multiple of 2 * heads."""
    encoder_depth: int = 2
    """Number of blocks that read the known tokens."""
    decoder_depth: int = 2
    """Number of blocks that answer for the other places."""
    heads: int = 4
    """Number of attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP as a multiple of dim; 2/3 of it if gated."""
    gated: bool = True
    """Use a SwiGLU MLP instead of a GELU MLP."""
    qk_norm: bool = True
    """Normalize queries and keys."""
    rotary: bool = True
    """Use rotary positions."""
    registers: int = 0
    """Number of learned tokens beside the start token."""
    num_classes: int = 0
    """Number of classes; 0 is unconditional."""
    prefix: bool = False
    """Pass the class as a token in front of the canvas instead of by adaLN-zero."""
    padded: bool = False
    """Accept rows that end early: no token attends to ABSENT (-1) tokens."""

    def __post_init__(self) -> None:
        if min(self.dim, self.encoder_depth, self.decoder_depth, self.heads) < 1 or self.dim % (2 * self.heads):
            raise ValueError(
                f"PartitionConfig(dim={self.dim}, encoder_depth={self.encoder_depth}, decoder_depth="
                f"{self.decoder_depth}, heads={self.heads}): all must be positive, and dim a multiple of 2 * heads"
            )
        if self.dim * self.mlp_ratio < 12:
            raise ValueError(
                f"PartitionConfig(mlp_ratio={self.mlp_ratio}): the MLP would be empty; the usual ratio is 4"
            )
        if min(self.registers, self.num_classes) < 0 or (self.prefix and not self.num_classes):
            raise ValueError(
                f"PartitionConfig(registers={self.registers}, num_classes={self.num_classes}, prefix={self.prefix}): "
                "counts must be at least 0, and prefix=True needs num_classes"
            )
        check_ranges(
            self,
            {
                "dim": WIDTHS,
                "encoder_depth": DEPTHS,
                "decoder_depth": DEPTHS,
                "heads": DEPTHS,
                "mlp_ratio": (0, 64),
                "registers": (0, 16_384),
                "num_classes": CLASS_COUNTS,
            },
        )

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "PartitionTransformer":
        """Return an untrained model."""
        from unmask.method.models.partition import PartitionTransformer

        return PartitionTransformer(self, vocab_size, grid)
