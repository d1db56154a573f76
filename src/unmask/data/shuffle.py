"""Shuffle the rows of an epoch: small sets by sorting noise, large ones by a permutation that needs no memory.

Sorting takes 31 bytes a row at its peak and keeps 8. A Feistel network (Luby and Rackoff 1988, doi:10.1137/0217022)
computes the place of each row by itself instead. It permutes the next even power of two; a row that lands beyond the
set is permuted again until it lies inside (cycle walking: Black and Rogaway 2002, doi:10.1007/3-540-45760-7_9).
"""

from typing import Literal

from jaxtyping import Int
from torch import Tensor

from unmask.method.rand import Rand, seeded

Shuffle = Literal["sorted", "feistel"]
"""How an epoch is shuffled. A run keeps its way, since its data order depends on it."""
LARGEST_SORTED = 1_000_000
"""Rows up to which an epoch is shuffled by sorting: 8 MB."""
ROUNDS = 6
"""Rounds of the Feistel network; 4 are a strong pseudorandom permutation if the blocks are large."""


def choose_shuffle(num_rows: int) -> Shuffle:
    """Return how a new run shuffles a set of this size."""
    return "sorted" if num_rows <= LARGEST_SORTED else "feistel"


def permute_by_sorting(num_rows: int, seed: int, epoch: int) -> Int[Tensor, "n"]:
    """Return the rows of an epoch in their order."""
    return seeded(seed, 1).at(epoch)("shuffle", num_rows)[0].argsort()


def permute_places(places: Int[Tensor, "b"], num_rows: int, seed: int, epoch: int) -> Int[Tensor, "b"]:
    """Return the rows at these places of an epoch, each in 0 to num_rows - 1; memory does not depend on num_rows."""
    bits = max(1, ((num_rows - 1).bit_length() + 1) // 2)
    rows = _apply_network(places, bits, seed, epoch)
    while (beyond := rows >= num_rows).any():
        rows[beyond] = _apply_network(rows[beyond], bits, seed, epoch)
    return rows


def _apply_network(x: Int[Tensor, "b"], bits: int, seed: int, epoch: int) -> Int[Tensor, "b"]:
    """Permute the numbers of 2 * bits bits."""
    left, right = x >> bits, x & ((1 << bits) - 1)
    for number in range(ROUNDS):
        noise = Rand(seed, right, len(right), epoch)(f"feistel {number}")
        left, right = right, left ^ (noise * (1 << bits)).long()
    return (left << bits) | right
