"""Fréchet distance between two sets of features, each summed up as a Gaussian (Heusel et al. 2017, arXiv 1706.08500).

With Inception features this number is called FID; with the features of `metrics/features.py` it is not comparable to
a published FID, and a report has to name the features. It falls with the number of samples: compare equal counts.
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
    bad = ~features.isfinite().all(dim=1)
    if bad.any():
        found = f"{int(bad.sum())} of {count} feature vectors are not finite"
        raise DataError(f"{found}, first row {int(bad.nonzero()[0])}; check the image it came from")
    features = features.double()
    mean = features.mean(dim=0)
    centred = features - mean
    return Gaussian(mean=mean, covariance=centred.T @ centred / (count - 1), count=count)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Wasserstein-2 distance of two Gaussians, eq. 6 of arXiv 1706.08500; 0 exactly where both agree.

    |mu_a - mu_b|^2 + tr(Ca + Cb - 2 (Ca Cb)^(1/2)). With factors Ca = A A' and Cb = B B', the eigenvalues of Ca Cb are
    those of the symmetric A' Cb A, which are the squared singular values of A' B. Taking the singular values directly
    spares a square root of rounding noise, so rank-deficient covariances (fewer samples than dimensions) are safe.
    """
    if len(a.mean) != len(b.mean):
        raise ConfigError(f"features have {len(a.mean)} and {len(b.mean)} dimensions; embed both with one classifier")
    shift = (a.mean - b.mean).square().sum()
    overlap = torch.linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    distance = shift + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(0.0, distance.item())  # rounding may leave -1e-15


def _factor(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d r"]:
    """A with A A' = covariance: scaled eigenvectors, without those whose eigenvalue is rounding noise around 0."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()
