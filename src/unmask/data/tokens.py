"""Batches of tokens as a pure function of the step: which sample stands in which row depends on (seed, step, row) only.

So resuming needs one integer, and the world size, micro-batches and worker count cannot change the order of the data.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.errors import DataError
from unmask.rand import seeded


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """Tokens [n, l] and, where there are classes, one class id per row."""

    tokens: Int[Tensor, "n l"]
    condition: Int[Tensor, "n"] | None = None

    def __post_init__(self) -> None:
        if len(self.tokens) == 0:
            raise DataError("the data set is empty: there is nothing to train on")
        if self.condition is not None and len(self.condition) != len(self.tokens):
            raise DataError(f"{len(self.tokens)} samples but {len(self.condition)} labels: give one label per sample")

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Int[Tensor, "b"], device: torch.device) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b"] | None]:
        """The chosen rows on `device`, tokens as int64."""
        condition = None if self.condition is None else self.condition[index].to(device)
        return self.tokens[index].long().to(device), condition


class Batches:
    """`batches(step, rows)` gives those rows of the global batch of that step.

    Every epoch is a new permutation, a function of (seed, epoch); batches run on across the end of an epoch, so each
    sample is seen exactly once per epoch whatever the batch size.
    """

    def __init__(self, data: TokenSet, batch_size: int, seed: int, device: torch.device):
        self.data, self.batch_size, self.seed, self.device = data, batch_size, seed, device
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))

    def __call__(self, step: int, rows: Int[Tensor, "b"]) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b"] | None]:
        place = step * self.batch_size + rows
        epoch, offset = place // len(self.data), place % len(self.data)
        index = torch.empty_like(place)
        for e in epoch.unique().tolist():
            here = epoch == e
            index[here] = self._permutation(e)[offset[here]]
        return self.data.rows(index, self.device)

    def _permutation(self, epoch: int) -> Int[Tensor, "n"]:
        if self._epoch[0] != epoch:
            noise = seeded(self.seed, 1).at(epoch)("shuffle", len(self.data))[0]
            self._epoch = (epoch, noise.argsort())
        return self._epoch[1]
