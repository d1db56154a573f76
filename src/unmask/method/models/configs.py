"""The sizes and options of the transformer. A recipe holds them, so this file needs no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unmask.errors import CLASS_COUNTS, DEPTHS, WIDTHS, check_ranges

if TYPE_CHECKING:
    from unmask.method.models.transformer import MaskedTransformer


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The sizes and options of a `MaskedTransformer`."""

    dim: int = 128
    """Width of the model, a multiple of 2 * heads."""
    depth: int = 4
    """Number of blocks."""
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
    absolute: bool = True
    """Use learned absolute positions."""
    registers: int = 0
    """Number of learned tokens in front of the canvas."""
    num_classes: int = 0
    """Number of classes; 0 is unconditional."""
    prefix: bool = False
    """Pass the class as a token in front of the canvas instead of by adaLN-zero."""
    padded: bool = False
    """Accept rows that end early: no token attends to ABSENT (-1) tokens."""
    self_condition: bool = False
    """Read the probabilities of the model's previous prediction."""
    critic: Literal["none", "head", "separate", "only"] = "none"
    """Judge tokens: by a second head, by a separate network of equal size, or only judge and predict nothing."""

    def __post_init__(self) -> None:
        if self.self_condition and self.critic == "only":
            raise ValueError(
                'TransformerConfig(critic="only", self_condition=True): a critic predicts nothing; set one of them only'
            )
        if min(self.dim, self.depth, self.heads) < 1 or self.mlp_ratio <= 0 or self.dim % (2 * self.heads):
            raise ValueError(
                f"TransformerConfig(dim={self.dim}, depth={self.depth}, heads={self.heads}, "
                f"mlp_ratio={self.mlp_ratio}): all must be positive, and dim a multiple of 2 * heads"
            )
        if self.dim * self.mlp_ratio < 12:
            raise ValueError(
                f"TransformerConfig(mlp_ratio={self.mlp_ratio}): the MLP would be empty; the usual ratio is 4"
            )
        if min(self.registers, self.num_classes) < 0 or (self.prefix and not self.num_classes):
            raise ValueError(
                f"TransformerConfig(registers={self.registers}, num_classes={self.num_classes}, prefix={self.prefix}): "
                "counts must be at least 0, and prefix=True needs num_classes"
            )
        if not self.absolute and not (self.rotary and (self.registers or self.prefix)):
            raise ValueError(
                "TransformerConfig(absolute=False): all positions of a masked canvas would be identical; "
                "set absolute=True, or rotary=True with registers=1"
            )
        check_ranges(
            self,
            {
                "dim": WIDTHS,
                "depth": DEPTHS,
                "heads": DEPTHS,
                "mlp_ratio": (0, 64),
                "registers": (0, 16_384),
                "num_classes": CLASS_COUNTS,
            },
        )

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "MaskedTransformer":
        """Return an untrained model."""
        from unmask.method.models.transformer import MaskedTransformer

        return MaskedTransformer(self, vocab_size, grid)
