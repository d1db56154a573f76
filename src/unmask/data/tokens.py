"""Batches of tokens as a pure function of the step: the sample in a row depends on (seed, step, row) only.

So resuming needs one integer, and world size, micro-batches and worker count cannot change the order of the data.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from unmask.data.shuffle import Shuffle, choose_shuffle, permute_by_sorting, permute_places
from unmask.errors import DataError
from unmask.method.rand import Rand

MAX_LOGITS = 1 << 26
"""Largest number of logits in a forward pass without gradients: 256 MiB in float32."""

MAX_CACHED_TOKENS = 2048
"""Tokens per such pass on a CPU; with more, each token takes up to 1.5 times as long (benchmarks/memory.py)."""


def count_rows_at_once(most: int, length: int, vocab_size: int, device: torch.device) -> int:
    """Return how many rows to process at once: `most`, or fewer if their logits exceed the limit or a CPU's cache."""
    tokens = min(MAX_LOGITS // vocab_size, MAX_CACHED_TOKENS if device.type == "cpu" else MAX_LOGITS)
    return max(1, min(most, tokens // length))


@runtime_checkable
class Tokens(Protocol):
    """Numbered rows of tokens, in memory or on disk; or of images, in the training of a tokenizer."""

    def __len__(self) -> int: ...

    def read_rows(
        self, index: Int[Tensor, "b"], device: torch.device, u: Float[Tensor, "b"] | None = None
    ) -> tuple[Shaped[Tensor, "b ..."], Int[Tensor, "b"] | None]:
        """Read the chosen rows and their classes to `device`; noise `u` in [0, 1) picks one of several views."""


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """Tokens in memory."""

    tokens: Int[Tensor, "n l"]
    """One row of tokens per sample."""
    condition: Int[Tensor, "n"] | None = None
    """One class id per row, or None without classes."""

    def __post_init__(self) -> None:
        if len(self.tokens) == 0:
            raise DataError("the dataset is empty: there is nothing to train on")
        if self.condition is not None and len(self.condition) != len(self.tokens):
            raise DataError(f"{len(self.tokens)} samples but {len(self.condition)} labels: give one label per sample")

    def __len__(self) -> int:
        return len(self.tokens)

    def read_rows(
        self, index: Int[Tensor, "b"], device: torch.device, u: Float[Tensor, "b"] | None = None
    ) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b"] | None]:
        """Return the chosen rows on `device`, tokens as int64. Each row has one view, so `u` has no effect."""
        condition = None if self.condition is None else self.condition[index].to(device)
        return self.tokens[index].long().to(device), condition


class Batches:
    """`batches(step, rows)` returns those rows of the global batch of that step.

    Every epoch is a new permutation, a function of (seed, epoch). Batches continue across the end of an epoch, so each
    sample is seen exactly once per epoch whatever the batch size. If a sample has several views, (seed, epoch, sample)
    decides which one is shown. `shuffle` is how an epoch is permuted; None chooses it by the number of rows.
    """

    def __init__(
        self, data: Tokens, batch_size: int, seed: int, device: torch.device, *, shuffle: Shuffle | None = None
    ):
        self.data, self.batch_size, self.seed, self.device = data, batch_size, seed, device
        self.shuffle = shuffle or choose_shuffle(len(data))
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))

    def __call__(self, step: int, rows: Int[Tensor, "b"]) -> tuple[Shaped[Tensor, "b ..."], Int[Tensor, "b"] | None]:
        place = step * self.batch_size + rows
        epoch, offset = place // len(self.data), place % len(self.data)
        index, u = torch.empty_like(place), torch.empty_like(place, dtype=torch.float64)
        for e in epoch.unique().tolist():
            here = epoch == e
            index[here] = self._read_order(e, offset[here])
            u[here] = Rand(self.seed, index[here], len(self.data), e)("view")
        return self.data.read_rows(index, self.device, u)

    def _read_order(self, epoch: int, places: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
        if self.shuffle == "feistel":
            return permute_places(places, len(self.data), self.seed, epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, permute_by_sorting(len(self.data), self.seed, epoch))
        return self._epoch[1][places]


@dataclass(frozen=True)
class Unlabelled:
    """A dataset without its classes."""

    data: Tokens

    def __len__(self) -> int:
        return len(self.data)

    def read_rows(
        self, index: Int[Tensor, "b"], device: torch.device, u: Float[Tensor, "b"] | None = None
    ) -> tuple[Int[Tensor, "b l"], None]:
        """Read the chosen rows, without classes."""
        return self.data.read_rows(index, device, u)[0], None
