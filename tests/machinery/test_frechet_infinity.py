"""Streaming moments, the Fréchet distance extrapolated to endless samples, and feature statistics in files."""

import math
import stat

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.errors import CheckpointError, ConfigError, DataError, DiskError
from unmask.metrics.frechet import (
    Gaussian,
    Moments,
    fit_gaussian,
    frechet_distance,
    frechet_infinity,
    load_gaussian,
    save_gaussian,
)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b, rel):
    scale = b.covariance.diagonal().sqrt()
    assert a.count == b.count
    assert ((a.mean - b.mean).abs() / (scale + b.mean.abs())).max() < rel
    assert ((a.covariance - b.covariance) / torch.outer(scale, scale)).abs().max() < rel


# -- streaming --


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    dim=st.integers(1, 12),
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    offset=st.floats(-100, 100),
)
def test_moments_in_blocks_are_the_fit_of_all(seed, dim, cuts, offset):
    blocks = [normal(seed + i, size, dim) + offset for i, size in enumerate([3, *cuts])]
    moments = Moments.empty(dim)
    for block in blocks:
        moments = moments.add(block)
    close(moments.gaussian(), fit_gaussian(torch.cat(blocks)), 1e-10)


def test_moments_leave_what_they_were_made_from():
    empty = Moments.empty(3)
    one = empty.add(normal(0, 5, 3))
    kept = one.tensor().clone()
    two = one.add(normal(1, 4, 3))
    assert (empty.count, one.count, two.count) == (0, 5, 9)
    assert empty.tensor().eq(0).all()
    assert torch.equal(one.tensor(), kept)


def test_the_sum_of_flat_moments_is_that_of_all_samples():
    # What an all-reduce does: every rank contributes one row, one of them has seen nothing.
    features = normal(2, 60, 7).float()
    parts = [Moments.empty(7).add(part) for part in (features[:13], features[13:], features[:0])]
    rows = torch.stack([part.tensor() for part in parts])
    assert rows.dtype == torch.float64
    assert rows.shape == (3, 1 + 7 + 49)
    total = Moments.from_tensor(rows.sum(0))
    close(total.gaussian(), fit_gaussian(features), 1e-10)
    merged = parts[0].merge(parts[1]).merge(parts[2])
    torch.testing.assert_close(merged.tensor(), total.tensor())
    row = total.tensor()
    again = Moments.from_tensor(row)
    row.zero_()  # a buffer that is used again does not reach into them
    assert again.count == 60
    assert torch.equal(again.tensor(), total.tensor())


def test_an_origin_keeps_the_digits_of_a_far_mean():
    features = normal(3, 500, 4) + 1e7
    expected = fit_gaussian(features)
    origin = features[0].clone()
    moments = Moments.empty(4, origin=origin).add(features[:200]).add(features[200:])
    close(moments.gaussian(), expected, 1e-10)
    close(Moments.from_tensor(moments.tensor(), origin).gaussian(), expected, 1e-10)
    from_zero = Moments.empty(4).add(features).gaussian()  # the control: the trap is real
    assert (from_zero.covariance - expected.covariance).abs().max() > 1e-4


def test_moments_name_what_is_wrong():
    with pytest.raises(ConfigError, match="dim 0"):
        Moments.empty(0)
    with pytest.raises(ConfigError, match="dim 2 and an origin of 3"):
        Moments.empty(2, origin=torch.zeros(3).double())
    with pytest.raises(ConfigError, match="at least 2 feature vectors, got 1"):
        Moments.empty(2).add(torch.zeros(1, 2)).gaussian()
    with pytest.raises(DataError, match="first row 1"):
        Moments.empty(1).add(torch.tensor([[0.0], [math.nan]]))
    with pytest.raises(ConfigError, match="2 and 3 dimensions"):
        Moments.empty(2).merge(Moments.empty(3))
    with pytest.raises(ConfigError, match="one origin"):
        Moments.empty(2).merge(Moments.empty(2, origin=torch.ones(2).double()))
    for size in (0, 1, 2, 8, 14):
        with pytest.raises(ConfigError, match=f"^{size} numbers"):
            Moments.from_tensor(torch.zeros(size).double())


# -- extrapolation --


def known(dim, scale, shift):
    """A Gaussian with a falling spectrum in rotated axes: exact reference, how to draw from it moved, and the distance.

    Scaling every axis by `scale` and moving the mean by `shift` costs |shift|^2 + (scale - 1)^2 tr C.
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
    plain = np.array([frechet_distance(fit_gaussian(f), reference) for f in features]) - exact
    extrapolated = np.array([frechet_infinity(f, reference) for f in features]) - exact
    assert plain.mean() > 4 * plain.std() / math.sqrt(20)  # the bias is there
    assert abs(extrapolated.mean()) < plain.mean() / 3
    if scale == 1:  # there the bias is larger than the noise, so that single runs gain too
        assert (abs(extrapolated) < plain).mean() >= 0.9


def test_a_distance_linear_in_one_over_n_is_extrapolated_exactly(monkeypatch):
    reference, draw, _ = known(4, 1.0, 0.0)
    sizes = []

    def distance(fit, _):
        sizes.append(fit.count)
        return 7 + 30 / fit.count

    monkeypatch.setattr("unmask.metrics.frechet.frechet_distance", distance)
    assert frechet_infinity(draw(0, 200), reference) == pytest.approx(7, rel=1e-12)
    assert (len(sizes), sizes[0], sizes[-1]) == (15, 50, 200)  # n / 4 and n
    assert set(np.diff(sizes)) <= {10, 11}
    sizes.clear()
    assert frechet_infinity(draw(0, 32), reference, points=3, smallest=10) == pytest.approx(7, rel=1e-12)
    assert sizes == [10, 21, 32]


def test_the_seed_chooses_the_subsets():
    reference, draw, _ = known(6, 1.0, 0.0)
    features = draw(1, 100)
    first = frechet_infinity(features, reference)
    assert frechet_infinity(features, reference) == first
    assert frechet_infinity(features, reference, seed=1) != first


def test_extrapolation_names_what_is_wrong():
    reference, draw, _ = known(10, 1.0, 0.0)
    with pytest.raises(ConfigError, match="need at least 40 samples, got 39"):
        frechet_infinity(draw(0, 39), reference)
    assert math.isfinite(frechet_infinity(draw(0, 40), reference))
    with pytest.raises(ConfigError, match="need at least 33 samples, got 32"):
        frechet_infinity(draw(0, 32), reference, points=30, smallest=4)
    with pytest.raises(ConfigError, match="points 1"):
        frechet_infinity(draw(0, 50), reference, points=1)
    with pytest.raises(ConfigError, match="smallest 1"):
        frechet_infinity(draw(0, 50), reference, smallest=1)


# -- files --


def test_statistics_come_back_exactly(tmp_path):
    fit = fit_gaussian(normal(4, 30, 5))
    path = tmp_path / "stats.npz"
    save_gaussian(fit, path)
    back = load_gaussian(path)
    assert torch.equal(back.mean, fit.mean)
    assert torch.equal(back.covariance, fit.covariance)
    assert back.count == load_gaussian(path, 30).count == 30
    with np.load(path, allow_pickle=False) as file:  # as the common tools read it
        np.testing.assert_array_equal(file["mu"], fit.mean.numpy())
        np.testing.assert_array_equal(file["sigma"], fit.covariance.numpy())
    save_gaussian(back, str(tmp_path / "no_ending"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["no_ending", "stats.npz"]


def test_statistics_of_another_tool_need_a_count(tmp_path):
    path = tmp_path / "theirs.npz"
    np.savez(path, mu=np.zeros(3, np.float32), sigma=np.eye(3))
    assert load_gaussian(path, 50_000).count == 50_000
    assert load_gaussian(path, 50_000).mean.dtype == torch.float64
    with pytest.raises(CheckpointError, match="give count"):
        load_gaussian(path)


def sound(**changed):
    return {"mu": np.zeros(3), "sigma": np.eye(3), "count": 10, **changed}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"mu": np.zeros(3)}, "sigma"),
        (sound(sigma=np.eye(4)), r"\(4, 4\)"),
        (sound(mu=np.zeros((3, 1))), r"\(3, 1\)"),
        (sound(mu=np.array(["a", "b", "c"])), "<U1"),
        (sound(mu=np.array([None, None, None])), "npz"),
        (sound(sigma=np.triu(np.ones((3, 3)))), "symmetric"),
        (sound(sigma=np.full((3, 3), math.nan)), "finite"),
        (sound(sigma=np.full((3, 3), math.inf)), "finite"),
        (sound(mu=np.zeros(0), sigma=np.zeros((0, 0))), r"\(0,\)"),
        (sound(mu=np.full(3, math.inf)), "finite"),
        (sound(count=1), "got 1"),
        (sound(count=2.5), "float64"),
        (sound(count=np.arange(3)), r"\(3,\)"),
        (sound(count=11), "count is 11 there, 10 was given"),
    ],
)
def test_unsound_statistics_are_refused_in_one_line(tmp_path, arrays, reason):
    np.savez(tmp_path / "bad.npz", **arrays)
    count = 10 if "10 was given" in reason else None
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_gaussian(tmp_path / "bad.npz", count)
    assert "\n" not in str(caught.value)
    assert "bad.npz" in str(caught.value)


def test_damaged_statistics_are_refused_in_one_line(tmp_path):
    path = tmp_path / "stats.npz"
    save_gaussian(fit_gaussian(normal(5, 30, 6)), path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    for damaged in (b"", whole[: len(whole) // 2], b"\x80\x04K\x01.", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"stats\.npz") as caught:
            load_gaussian(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="absent"):
        load_gaussian(tmp_path / "absent.npz")


def test_a_failed_write_is_a_disk_error(tmp_path):
    with pytest.raises(DiskError, match=r"cannot write .*nowhere"):
        save_gaussian(fit_gaussian(normal(6, 9, 2)), tmp_path / "nowhere" / "stats.npz")
    path = tmp_path / "stats.npz"
    save_gaussian(fit_gaussian(normal(6, 9, 2)), path)
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
