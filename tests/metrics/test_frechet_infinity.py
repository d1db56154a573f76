"""Check the Fréchet distance extrapolated to infinitely many samples."""

import math

import numpy as np
import pytest
import torch

from unmask.errors import ConfigError
from unmask.metrics.frechet import Gaussian, compute_frechet_distance, compute_frechet_infinity, fit_gaussian


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b, rel):
    scale = b.covariance.diagonal().sqrt()
    assert a.count == b.count
    assert ((a.mean - b.mean).abs() / (scale + b.mean.abs())).max() < rel
    assert ((a.covariance - b.covariance) / torch.outer(scale, scale)).abs().max() < rel


# -- extrapolation --


def known(dim, scale, shift):
    """Return a Gaussian with a falling spectrum in rotated axes, a function that samples from a changed one, and their
    exact distance.

    Scaling every axis by `scale` and moving the mean by `shift` gives the distance |shift|^2 + (scale - 1)^2 tr C.
    """
    deviation = torch.arange(1, dim + 1).double() ** -0.5
    turn, _ = torch.linalg.qr(normal(dim, dim, dim))
    root = turn * deviation
    reference = Gaussian(mean=torch.zeros(dim).double(), covariance=root @ root.T, count=10**6)
    move = torch.full((dim,), shift / math.sqrt(dim), dtype=torch.float64)
    distance = shift**2 + (scale - 1) ** 2 * deviation.square().sum().item()
    return reference, lambda seed, count: scale * normal(seed, count, dim) @ root.T + move, distance


@pytest.mark.parametrize(("dim", "count", "scale", "shift"), [(32, 600, 1.0, 0.0), (32, 600, 1.1, 0.3), (8, 300, 1, 0)])
def test_the_intercept_is_nearer_the_closed_form_than_the_plain_distance(dim, count, scale, shift):
    reference, draw, exact = known(dim, scale, shift)
    features = [draw(seed, count) for seed in range(20)]
    plain = np.array([compute_frechet_distance(fit_gaussian(f), reference) for f in features]) - exact
    extrapolated = np.array([compute_frechet_infinity(f, reference) for f in features]) - exact
    assert plain.mean() > 4 * plain.std() / math.sqrt(20)  # the bias is there
    assert abs(extrapolated.mean()) < plain.mean() / 3
    if scale == 1:  # here the bias exceeds the noise, so single runs improve too
        assert (abs(extrapolated) < plain).mean() >= 0.9


def test_a_distance_linear_in_one_over_n_is_extrapolated_exactly(monkeypatch):
    reference, draw, _ = known(4, 1.0, 0.0)
    sizes = []

    def distance(fit, _):
        sizes.append(fit.count)
        return 7 + 30 / fit.count

    monkeypatch.setattr("unmask.metrics.frechet.compute_frechet_distance", distance)
    assert compute_frechet_infinity(draw(0, 200), reference) == pytest.approx(7, rel=1e-12)
    assert (len(sizes), sizes[0], sizes[-1]) == (15, 50, 200)  # n / 4 and n
    assert set(np.diff(sizes)) <= {10, 11}
    sizes.clear()
    assert compute_frechet_infinity(draw(0, 32), reference, points=3, smallest=10) == pytest.approx(7, rel=1e-12)
    assert sizes == [10, 21, 32]


def test_the_seed_chooses_the_subsets():
    reference, draw, _ = known(6, 1.0, 0.0)
    features = draw(1, 100)
    first = compute_frechet_infinity(features, reference)
    assert compute_frechet_infinity(features, reference) == first
    assert compute_frechet_infinity(features, reference, seed=1) != first


def test_extrapolation_names_what_is_wrong():
    reference, draw, _ = known(10, 1.0, 0.0)
    with pytest.raises(ConfigError, match="need at least 40 samples, got 39"):
        compute_frechet_infinity(draw(0, 39), reference)
    assert math.isfinite(compute_frechet_infinity(draw(0, 40), reference))
    with pytest.raises(ConfigError, match="need at least 33 samples, got 32"):
        compute_frechet_infinity(draw(0, 32), reference, points=30, smallest=4)
    with pytest.raises(ConfigError, match="points 1"):
        compute_frechet_infinity(draw(0, 50), reference, points=1)
    with pytest.raises(ConfigError, match="smallest 1"):
        compute_frechet_infinity(draw(0, 50), reference, smallest=1)
