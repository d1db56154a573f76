"""Kernel distance between two sets of features (Bińkowski et al. 2018, arXiv 1801.01401).

It is the squared maximum mean discrepancy (MMD) under a cubic kernel. With Inception features this metric is called
KID. The estimate has no bias: sets of different sizes are comparable, and two sets of one distribution may give a
value below 0.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from unmask.errors import ConfigError
from unmask.metrics.frechet import check_finite


def compute_unbiased_mmd(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], block: int = 2048) -> float:
    """Compute the unbiased MMD^2 over all rows, eq. 4 of arXiv 1801.01401. Memory grows with block^2."""
    if min(len(real), len(fake)) < 2 or block < 1:
        counts = f"{len(real)} and {len(fake)} samples with block {block}"
        raise ConfigError(f"got {counts}; the distance needs at least 2 samples of each, and a block of 1 or more")
    check_finite(real)
    check_finite(fake)
    real, fake = real.double(), fake.double()
    cross = _sum_kernel(real, fake, block) / (len(real) * len(fake))
    return (_average_pairs(real, block) + _average_pairs(fake, block) - 2 * cross).item()


def compute_kernel_distance(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Compute the kernel distance as published KIDs do: `compute_unbiased_mmd` over random subsets of both sets.

    Rows are drawn without replacement within a subset.

    Args:
        real: Features of real images.
        fake: Features of samples.
        subsets: Number of subsets.
        size: Rows of each set in a subset.
        seed: Seed of the subsets.

    Returns:
        Mean and standard deviation (divisor `subsets`) over the subsets. It is the deviation of one subset, not of the
        mean.

    Raises:
        ConfigError: If either set has fewer than `size` rows.
    """
    if subsets < 1 or size < 2:
        raise ConfigError(f"subsets {subsets}, size {size}: use at least 1 subset of at least 2 samples")
    if min(len(real), len(fake)) < size:
        got = f"got {len(real)} real and {len(fake)} fake"
        raise ConfigError(f"subsets of {size} need at least {size} samples of each, {got}; add samples or lower size")
    rand = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        a, b = (part[torch.randperm(len(part), generator=rand)[:size].to(part.device)] for part in (real, fake))
        values.append(compute_unbiased_mmd(a, b))
    distances = torch.tensor(values, dtype=torch.float64)
    return distances.mean().item(), distances.std(correction=0).item()


def _compute_kernel(dot: Float64[Tensor, "..."], dim: int) -> Float64[Tensor, "..."]:
    return (dot / dim + 1) ** 3


def _sum_kernel(a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"], block: int) -> Float64[Tensor, ""]:
    """Sum the kernel over all pairs."""
    total = a.new_zeros(())
    for rows in a.split(block):
        for columns in b.split(block):
            total += _compute_kernel(rows @ columns.T, a.shape[1]).sum()
    return total


def _average_pairs(a: Float64[Tensor, "n d"], block: int) -> Float64[Tensor, ""]:
    """Average the kernel over pairs of different rows. The diagonal would bias the estimate."""
    diagonal = _compute_kernel(a.square().sum(dim=1), a.shape[1]).sum()
    return (_sum_kernel(a, a, block) - diagonal) / (len(a) * (len(a) - 1))
