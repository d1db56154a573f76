"""The sizes at which every package is built: the same numbers for all."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """A square canvas of tokens, and a transformer for it."""

    dim: int
    depth: int
    heads: int
    codes: int
    """K, the number of token values without the mask."""
    side: int
    """Tokens along one side of the canvas."""
    batch: int
    steps: int = 8

    @property
    def cells(self) -> int:
        """Tokens of one canvas."""
        return self.side**2

    @property
    def hidden(self) -> int:
        """Width of a plain MLP. A gated one has 2/3 of it, and as many weights."""
        return 4 * self.dim


SIZES = {
    "tiny": Size(dim=32, depth=1, heads=2, codes=16, side=4, batch=2, steps=4),
    "mnist": Size(dim=128, depth=4, heads=4, codes=16, side=7, batch=64),
    "small": Size(dim=256, depth=6, heads=4, codes=1024, side=8, batch=16),
    "base": Size(dim=768, depth=24, heads=16, codes=1024, side=16, batch=1),
}
