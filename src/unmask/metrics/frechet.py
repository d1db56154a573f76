"""Fréchet distance between two sets of features, each summed up as a Gaussian (Heusel et al. 2017, arXiv 1706.08500).

With Inception features this number is called FID; with the features of `metrics/features.py` it is not comparable to
a published FID, and a report has to name the features. It falls with the number of samples: compare equal counts, or
extrapolate with `frechet_infinity` (Chong and Forsyth 2020, arXiv 1911.07023). `Moments` sums features up in a stream.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from unmask.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Mean and covariance of `count` feature vectors."""

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
            raise DataError("mean or covariance is not finite; look for NaN or overflow in the features")


def fit_gaussian(features: Float[Tensor, "n d"]) -> Gaussian:
    """Mean and unbiased covariance (divisor n - 1) in float64; raises on fewer than 2 rows or non-finite values."""
    count = len(features)
    if count < 2:
        raise ConfigError(f"a covariance needs at least 2 feature vectors, got {count}; use more samples")
    check_finite(features)
    features = features.double()
    mean = features.mean(dim=0)
    centred = features - mean
    return Gaussian(mean=mean, covariance=centred.T @ centred / (count - 1), count=count)


def check_finite(features: Float[Tensor, "n d"]) -> None:
    """DataError that names the first row with a NaN or an infinity."""
    bad = ~features.isfinite().all(dim=1)
    if bad.any():
        found = f"{int(bad.sum())} of {len(features)} feature vectors are not finite"
        raise DataError(f"{found}, first row {int(bad.nonzero()[0])}; check the image it came from")


def compute_frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Wasserstein-2 distance of two Gaussians, eq. 6 of arXiv 1706.08500; 0 exactly where both agree.

    |mu_a - mu_b|^2 + tr(Ca + Cb - 2 (Ca Cb)^(1/2)). With factors Ca = A A' and Cb = B B', the eigenvalues of Ca Cb are
    those of the symmetric A' Cb A, which are the squared singular values of A' B. Taking the singular values directly
    spares a square root of rounding noise, so rank-deficient covariances (fewer samples than dimensions) are safe.
    """
    if len(a.mean) != len(b.mean):
        raise ConfigError(f"features have {len(a.mean)} and {len(b.mean)} dimensions; embed both with one classifier")
    shift = (a.mean - b.mean).square().sum()
    overlap = torch.linalg.svdvals(_factorize(a.covariance).T @ _factorize(b.covariance)).sum()
    distance = shift + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(0.0, distance.item())  # rounding may leave -1e-15


def _factorize(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d r"]:
    """A with A A' = covariance: scaled eigenvectors, without those whose eigenvalue is rounding noise around 0."""
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
    """FD-infinity: the distance that infinitely many samples would have, sec. 3 of arXiv 1911.07023.

    The bias of N samples is a / N to first order, so the distances of `points` random subsets, N evenly spaced from
    `smallest` to n, are fitted by a line in 1 / N; its intercept is returned, and noise may take it below 0. The bias
    of the reference's own `count` remains.

    Differs from the paper: its smallest N is n / 10, of 50,000 samples of 2,048 dimensions. The bias has terms in
    (d / N)^2 too, so that with fewer samples the intercept falls short. From max(2 d, n / 4) on it does so by 3 to 4 %
    of the plain distance's bias at n = 16 d and a flat spectrum, from n / 10 on by 11 to 16 %; the noise is the same.
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
