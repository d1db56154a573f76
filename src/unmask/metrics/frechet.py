"""Fréchet distance between two sets of features, each described by a Gaussian (Heusel et al. 2017, arXiv 1706.08500).

With Inception features this metric is called FID. With the features of `metrics/features.py` it is not comparable to a
published FID, and a report must name the features. The distance falls with the number of samples: compare equal counts,
or extrapolate with `compute_frechet_infinity` (Chong and Forsyth 2020, arXiv 1911.07023).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from unmask.errors import ConfigError, NonFiniteError


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """The mean and covariance of `count` feature vectors."""

    mean: Float64[Tensor, "d"]
    covariance: Float64[Tensor, "d d"]
    count: int

    def __post_init__(self):
        if self.covariance.shape != (len(self.mean), len(self.mean)):
            shape = tuple(self.covariance.shape)
            raise ConfigError(f"covariance has shape {shape}, mean has {len(self.mean)} dimensions; fit both together")
        if self.count < 2:
            raise ConfigError(f"a covariance needs at least 2 feature vectors, got {self.count}; use more samples")
        if not (self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise NonFiniteError("mean or covariance is not finite; look for NaN or overflow in the features")


def fit_gaussian(features: Float[Tensor, "n d"]) -> Gaussian:
    """Fit mean and unbiased covariance (divisor n - 1) in float64.

    Raises:
        ConfigError: If there are fewer than 2 rows.
        NonFiniteError: If a value is not finite.
    """
    count = len(features)
    if count < 2:
        raise ConfigError(f"a covariance needs at least 2 feature vectors, got {count}; use more samples")
    check_finite(features)
    features = features.double()
    mean = features.mean(dim=0)
    centred = features - mean
    return Gaussian(mean=mean, covariance=centred.T @ centred / (count - 1), count=count)


def check_finite(features: Float[Tensor, "n d"]) -> None:
    """Raise NonFiniteError that names the first row with a NaN or an infinity, if there is one."""
    bad = ~features.isfinite().all(dim=1)
    if bad.any():
        found = f"{int(bad.sum())} of {len(features)} feature vectors are not finite"
        raise NonFiniteError(f"{found}, first row {int(bad.nonzero()[0])}; check the image it came from")


def compute_frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Compute the squared Wasserstein-2 distance of two Gaussians, eq. 6 of arXiv 1706.08500; 0 if both are equal.

    |mu_a - mu_b|^2 + tr(Ca + Cb - 2 (Ca Cb)^(1/2)). Let Ca = A A' and Cb = B B'. The eigenvalues of Ca Cb equal the
    eigenvalues of the symmetric A' Cb A, which are the squared singular values of A' B. These are used directly,
    without a root of rounding noise. So rank-deficient covariances (fewer samples than dimensions) are safe.
    """
    if len(a.mean) != len(b.mean):
        raise ConfigError(f"features have {len(a.mean)} and {len(b.mean)} dimensions; embed both with one classifier")
    shift = (a.mean - b.mean).square().sum()
    overlap = torch.linalg.svdvals(_factorize(a.covariance).T @ _factorize(b.covariance)).sum()
    distance = shift + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(0.0, distance.item())  # rounding may leave -1e-15


def _factorize(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d r"]:
    """Return A with A A' = covariance: scaled eigenvectors, without eigenvalues that are rounding noise around 0."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def compute_frechet_infinity(
    features: Float[Tensor, "n d"],
    reference: Gaussian,
    *,
    points: int = 15,
    seed: int = 0,
    smallest: int | None = None,
) -> float:
    """Extrapolate the Fréchet distance to infinitely many samples (FD-infinity), sec. 3 of arXiv 1911.07023.

    The bias of N samples is a / N to first order. So a line in 1 / N is fitted to the distances of random subsets, and
    its intercept is the result. Noise may take it below 0. The bias from the reference's own `count` remains.

    Differs from the paper: its smallest N is n / 10, with 50,000 samples of 2,048 dimensions. The bias also has terms
    in (d / N)^2, so with fewer samples the intercept is too low. At n = 16 d and a flat spectrum it is too low by 3 to
    4 % of the plain distance's bias if the smallest N is max(2 d, n / 4), and by 11 to 16 % if it is n / 10. The noise
    is the same.

    Args:
        features: Features of the samples.
        reference: Gaussian of the real features.
        points: Number of random subsets.
        seed: Seed of the subsets.
        smallest: Size of the smallest subset; sizes are evenly spaced up to n. Default: max(2 d, n / 4).

    Raises:
        ConfigError: If there are too few samples for these subsets.
    """
    count, dim = features.shape
    least = max(2 * dim, count // 4) if smallest is None else smallest
    if points < 2 or least < 2:
        raise ConfigError(f"points {points}, smallest {least}: both must be at least 2")
    needed = max(2 * least, least + points - 1)
    if count < needed:
        why = f"{points} sizes from {least} up need at least {needed} samples"
        raise ConfigError(f"{why}, got {count}; use more samples, or the plain distance")
    rand = torch.Generator().manual_seed(seed)
    sizes = [least + (count - least) * i // (points - 1) for i in range(points)]
    distances = []
    for size in sizes:
        chosen = torch.randperm(count, generator=rand)[:size].to(features.device)
        distances.append(compute_frechet_distance(fit_gaussian(features[chosen]), reference))
    inverse, distance = (torch.tensor(v, dtype=torch.float64) for v in ([1 / size for size in sizes], distances))
    centred = inverse - inverse.mean()
    slope = centred @ distance / centred.square().sum()
    return (distance.mean() - slope * inverse.mean()).item()
