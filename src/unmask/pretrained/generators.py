"""The base of the published generators: what their sizes, their checks and their forward passes have in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.errors import CLASS_COUNTS, DEPTHS, WIDTHS, check_ranges
from unmask.method.models.conditioning import ClassEmbedding
from unmask.method.models.protocol import HasClasses
from unmask.pretrained.ids import check_class_labels, check_rows


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


class GridGenerator(nn.Module):
    """A network over a canvas of tokens; raises ValueError for an impossible vocabulary or grid.

    `vocab_size` is K, `grid` is the shape of the canvas, and `length` is the number of its cells.
    """

    def __init__(self, vocab_size: int, grid: tuple[int, ...]):
        super().__init__()
        if vocab_size < 1 or not 1 <= len(grid) <= 3 or min(grid) < 1:
            raise ValueError(
                f"vocab_size {vocab_size} and grid {grid}: give at least 1 token, and 1 to 3 axes of at least 1 cell"
            )
        self.vocab_size, self.grid = vocab_size, grid
        self.length = torch.Size(grid).numel()

    @property
    def mask_id(self) -> int:
        """The input row of a masked token: K, one past the last value."""
        return self.vocab_size


class ClassGenerator(GridGenerator, ABC):
    """A network conditioned on a class: `model(tokens, condition)` returns logits [b, l, K].

    With a bool `at` [b, l] it returns only those rows, [n, K]. The condition is class ids, NULL (-1), or None. Logits
    are float32 or wider. A subclass implements `predict`.
    """

    config: HasClasses

    def __init__(self, dim: int, num_classes: int, vocab_size: int, grid: tuple[int, ...]):
        super().__init__(vocab_size, grid)
        self.embedding = nn.Embedding(vocab_size + 1, dim)
        self.start_embedding()
        self.classes = ClassEmbedding(num_classes, dim)

    def start_embedding(self) -> None:
        """Draw the initial weights of the token embedding."""
        nn.init.normal_(self.embedding.weight, std=0.02)

    def check_condition(self, condition: Int[Tensor, "b"] | None) -> None:
        """Raise ValueError for a class that the network does not know."""
        check_class_labels(condition, self.config.num_classes)

    def forward(
        self,
        tokens: Int[Tensor, "b l"],
        condition: Int[Tensor, "b"] | None = None,
        at: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "..."]:
        check_rows(tokens, self.grid, self.mask_id)
        self.check_condition(condition)
        return widen(self.predict(tokens, self.classes(condition, tokens), at))

    @abstractmethod
    def predict(
        self, tokens: Int[Tensor, "b l"], label: Float[Tensor, "b dim"], at: Bool[Tensor, "b l"] | None
    ) -> Float[Tensor, "..."]:
        """Return the logits for checked tokens and the embedding of each row's class."""


def widen(x: Tensor) -> Tensor:
    """Convert to float32, unless the tensor is wider already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
