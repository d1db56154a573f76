"""The base of the published generators: what their sizes, their checks and their forward passes have in common."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.method.models.conditioning import ClassEmbedding
from unmask.method.models.protocol import HasClasses
from unmask.pretrained.ids import check_class_labels, check_rows


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
