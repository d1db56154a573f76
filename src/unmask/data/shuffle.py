"""Shuffle the rows of an epoch: small sets by sorting noise, large ones by a permutation that needs no memory.

Sorting takes 31 bytes a row at its peak and keeps 8. A Feistel network (Luby and Rackoff 1988, doi:10.1137/0217022)
computes the place of each row by itself instead. It permutes the next even power of two; a row that lands beyond the
set is permuted again until it lies inside (cycle walking: Black and Rogaway 2002, doi:10.1007/3-540-45760-7_9).
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt64
from torch import Tensor

from unmask.method.rand import seeded

Shuffle = Literal["sorted", "feistel"]
"""How an epoch is shuffled. A run keeps its way, since its data order depends on it."""
LARGEST_SORTED = 1_000_000
"""Rows up to which an epoch is shuffled by sorting: 8 MB."""
FEISTEL_ROUNDS = 6
"""Rounds of the Feistel network; 4 are a strong pseudorandom permutation if the blocks are large."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio: the step of splitmix64."""


def choose_shuffle(num_rows: int) -> Shuffle:
    """Return how a new run shuffles a set of this size."""
    return "sorted" if num_rows <= LARGEST_SORTED else "feistel"


def permute_by_sorting(num_rows: int, seed: int, epoch: int) -> Int[Tensor, "n"]:
    """Return the rows of an epoch in their order."""
    return seeded(seed, 1).at(epoch)("shuffle", num_rows)[0].argsort()


def permute_places(places: Int[Tensor, "b"], num_rows: int, seed: int, epoch: int) -> Int[Tensor, "b"]:
    """Return the rows at these places of an epoch, each in 0 to num_rows - 1; memory does not depend on num_rows."""
    bits = max(1, ((num_rows - 1).bit_length() + 1) // 2)
    keys = _make_keys(seed, epoch)
    rows = _apply_network(places.numpy().astype(np.uint64), bits, keys)
    while (beyond := rows >= num_rows).any():
        rows[beyond] = _apply_network(rows[beyond], bits, keys)
    return torch.from_numpy(rows.astype(np.int64))


def _apply_network(x: UInt64[np.ndarray, "b"], bits: int, keys: UInt64[np.ndarray, "r"]) -> UInt64[np.ndarray, "b"]:
    """Permute the numbers of 2 * bits bits. NumPy starts small operations five times as fast as torch."""
    half, top = np.uint64(bits), np.uint64(64 - bits)
    left, right = x >> half, x & np.uint64((1 << bits) - 1)
    for key in keys:
        left, right = right, left ^ (_mix(right + key) >> top)
    return (left << half) | right


def _make_keys(seed: int, epoch: int) -> UInt64[np.ndarray, "r"]:
    """Return one key per round, a function of seed and epoch."""
    key = np.zeros(1, np.uint64)
    for word in (seed, epoch):
        key = _mix(key + np.uint64(word % 2**64) + GOLDEN)
    return _mix(key + np.arange(1, FEISTEL_ROUNDS + 1, dtype=np.uint64) * GOLDEN)


def _mix(z: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """Apply the finaliser of splitmix64, as `method/rand.py` does with torch; products of arrays wrap."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
