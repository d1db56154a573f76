"""Nearest neighbours, to detect memorization: are samples closer to the training images than unseen real images are?

Distances are Euclidean, over pixels or over features.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.errors import ConfigError, DataError


def find_nearest_neighbours(
    queries: Float[Tensor, "n d"], references: Float[Tensor, "m d"], chunk: int = 1024
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """Return distance and index of each query's nearest reference, the first of a tie. Memory grows with chunk^2."""
    if len(references) == 0:
        raise ConfigError("0 references to search; pass at least one")
    if chunk < 1:
        raise ConfigError(f"chunk must be at least 1, got {chunk}")
    if not (queries.isfinite().all() and references.isfinite().all()):
        raise DataError(
            "queries or references hold NaN or infinity, which have no distance; check how they were computed"
        )
    distance = queries.new_full((len(queries),), float("inf"))
    index = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    for row in range(0, len(queries), chunk):
        rows = slice(row, row + chunk)
        for start in range(0, len(references), chunk):
            near, where = _search_block(queries[rows], references[start : start + chunk])
            closer = near < distance[rows]
            index[rows] = torch.where(closer, where + start, index[rows])
            distance[rows] = torch.where(closer, near, distance[rows])
    return distance, index


def _search_block(
    queries: Float[Tensor, "n d"], references: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    # |q|^2 + |r|^2 - 2 q.r would be faster, but would give a copy a distance of 1e-3 instead of 0.
    distances = torch.cdist(queries, references, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.min(dim=1)


def compare_with_training_set(
    samples: Float[Tensor, "n d"], train: Float[Tensor, "m d"], held_out: Float[Tensor, "k d"]
) -> dict[str, float]:
    """Compare the distances to the training set of samples and of held-out real images, to detect memorization.

    Returns:
        `samples` and `held_out` are median distances to the nearest training image. `ratio` is the first over the
        second: near 1 for new images, near 0 for copies, above 1 for images unlike the data, inf if the held-out median
        is 0. `exact_copies` and `held_out_exact_copies` are the fractions at distance 0. Small discrete images repeat
        in real data too.
    """
    if len(samples) == 0 or len(held_out) == 0:
        raise ConfigError(f"got {len(samples)} samples and {len(held_out)} held-out images; both need at least 1")
    of_samples, _ = find_nearest_neighbours(samples, train)
    of_held_out, _ = find_nearest_neighbours(held_out, train)
    median, held_out_median = of_samples.quantile(0.5), of_held_out.quantile(0.5)
    return {
        "samples": median.item(),
        "held_out": held_out_median.item(),
        "ratio": (median / held_out_median).item() if held_out_median > 0 else float("inf"),
        "exact_copies": (of_samples == 0).double().mean().item(),
        "held_out_exact_copies": (of_held_out == 0).double().mean().item(),
    }
