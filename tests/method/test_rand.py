"""Stateless noise: against a pure-integer splitmix64, for independence from the cut of a batch, and for uniformity."""

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unmask.method.rand import Rand, _mix, seeded

M64 = 2**64 - 1
GOLDEN, MUL1, MUL2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def signed(x: int) -> int:
    """The int64 with the same bits."""
    return (x & M64) - (2**64 if x & 2**63 else 0)


def mix(z: int) -> int:
    """splitmix64's finaliser on Python integers."""
    z &= M64
    z = (z ^ (z >> 30)) * MUL1 & M64
    z = (z ^ (z >> 27)) * MUL2 & M64
    return z ^ (z >> 31)


def unmix(z: int) -> int:
    """The inverse of `mix`."""
    z = z ^ (z >> 31) ^ (z >> 62)
    z = z * pow(MUL2, -1, 2**64) & M64
    z = z ^ (z >> 27) ^ (z >> 54)
    z = z * pow(MUL1, -1, 2**64) & M64
    return z ^ (z >> 30) ^ (z >> 60)


def key_of(seed: int, step: int, stream: str) -> int:
    """The stream's key, as the module's prose says it: three words hashed in a row."""
    key = 0
    for word in (seed, step, zlib.crc32(stream.encode())):
        key = mix(key + word * MUL1 + GOLDEN)
    return key


def bits_of(seed: int, step: int, stream: str, row: int, column: int) -> int:
    """The 64 bits behind one uniform."""
    state = mix(row * MUL2 + key_of(seed, step, stream) + GOLDEN)
    return mix(mix(state + (column + 1) * GOLDEN))


def test_published_splitmix64_sequence():
    """The first outputs for seed 1234567 of Vigna's splitmix64.c, as many test suites list them."""
    want = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    got = [_mix(torch.tensor(signed(1234567 + i * GOLDEN))).item() & M64 for i in range(1, 6)]
    assert got == want
    assert [mix(1234567 + i * GOLDEN) for i in range(1, 6)] == want


@given(st.integers(0, M64))
@settings(max_examples=200, deadline=None)
def test_finaliser_equals_python_integers(z):
    assert _mix(torch.tensor(signed(z))).item() & M64 == mix(z)
    assert unmix(mix(z)) == z


@given(
    st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40), st.text(max_size=6), st.integers(0, 2**50)
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_uniforms_equal_python_integers(seed, step, stream, row):
    u = Rand(seed, torch.tensor([row]), 1, step)(stream, 5)[0].tolist()
    bits = [bits_of(seed, step, stream, row, column) >> 11 for column in range(5)]
    assert u == pytest.approx([(b + 0.5) * 2.0**-53 for b in bits], abs=2.0**-53)


def test_a_pinned_draw():
    """Noise is part of every published sample: a change of these numbers changes all of them."""
    pinned = [(bits_of(7, 3, "order", row, column) >> 11) * 2.0**-53 for row in (0, 1) for column in range(3)]
    assert seeded(7, 2).at(3)("order", 3).flatten().tolist() == pytest.approx(pinned, abs=1e-15)


def test_deterministic_and_shaped():
    rand = seeded(1, 4)
    assert torch.equal(rand("a", 5, 3), seeded(1, 4)("a", 5, 3))
    assert rand("a").shape == (4,)
    assert rand("a", 5, 3).shape == (4, 5, 3)
    assert rand("a", 5, 3).dtype == torch.float64
    assert torch.equal(rand("a", 15).view(4, 5, 3), rand("a", 5, 3))
    assert torch.equal(rand("a", 3), rand("a", 9)[:, :3]), "a longer draw begins with the shorter one"
    assert rand("a", 0).shape == (4, 0)


def test_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    first = seeded(3, 8)("x", 10)
    before = torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(first, seeded(3, 8)("x", 10))
    torch.manual_seed(0)
    assert torch.equal(before, torch.get_rng_state())


@given(st.permutations(range(12)), st.integers(1, 11))
@settings(max_examples=30, deadline=None)
def test_rows_do_not_depend_on_cut_or_order(order, cut):
    whole = seeded(5, 12)("mask", 7)
    rows = torch.tensor(order)
    parts = [Rand(5, part, 12)("mask", 7) for part in (rows[:cut], rows[cut:])]
    assert torch.equal(torch.cat(parts), whole[rows])


def test_batch_size_and_first_row_do_not_matter():
    assert torch.equal(seeded(5, 4, first=8)("x", 6), seeded(5, 12)("x", 6)[8:])
    assert torch.equal(seeded(5, 1000)("x", 6)[:3], seeded(5, 3)("x", 6))


def test_seed_step_stream_and_row_all_matter():
    base = Rand(0, torch.arange(4), 4)
    draws = [
        base("a", 16), base("b", 16), base("", 16), base.at(1)("a", 16), base.at(2)("a", 16),
        *(seeded(s, 4)("a", 16) for s in (1, -1, 2**62, -(2**63))), seeded(0, 4, first=4)("a", 16),
    ]  # fmt: skip
    numbers = torch.cat([d.flatten() for d in draws])
    assert numbers.unique().numel() == numbers.numel()
    assert base.step == 0, "at() makes a new one"
    assert base.at(5).at(0)("a", 4).equal(base("a", 4))


def test_seed_and_step_do_not_trade_places():
    assert not torch.equal(Rand(1, torch.arange(2), 2, 2)("a", 4), Rand(2, torch.arange(2), 2, 1)("a", 4))


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_seed_must_fit(seed):
    with pytest.raises(ValueError, match="64-bit"):
        seeded(seed, 1)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: seeded(0, 1)("u", 50_000),
        lambda: seeded(0, 50_000)("u"),
        lambda: torch.cat([seeded(s, 1)("u", 1) for s in range(1000)]),
        lambda: torch.cat([seeded(0, 1).at(s)("u", 1) for s in range(1000)]),
        lambda: torch.cat([seeded(0, 1)(f"stream {s}", 1) for s in range(1000)]),
    ],
    ids=["columns", "rows", "seeds", "steps", "streams"],
)
def test_uniform_along_every_axis(draw):
    u = draw().flatten().numpy()
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert stats.kstest(np.diff(u), stats.triang(0.5, loc=-1, scale=2).cdf).pvalue > 1e-3
    assert u.min() > 0
    assert u.max() < 1


@pytest.mark.parametrize("axis", ["seed", "row", "step", "column"])
@pytest.mark.parametrize("apart", [1, 2, 64])
def test_no_correlation_between_neighbours(axis, apart):
    n = 20_000
    a = seeded(11, 1)("u", n + apart)[0, :n]
    b = {
        "seed": lambda: seeded(11 + apart, 1)("u", n)[0],
        "row": lambda: seeded(11, 1, first=apart)("u", n)[0],
        "step": lambda: seeded(11, 1).at(apart)("u", n)[0],
        "column": lambda: seeded(11, 1)("u", n + apart)[0, apart:],
    }[axis]()
    assert stats.pearsonr(a.numpy(), b.numpy()).pvalue > 1e-4
    assert stats.spearmanr((a - 0.5).abs().numpy(), (b - 0.5).abs().numpy()).pvalue > 1e-4
    cells = torch.stack([(a * 8).long(), (b * 8).long()])
    table = torch.zeros(8, 8).index_put_((cells[0], cells[1]), torch.ones(n), accumulate=True)
    assert stats.chisquare(table.flatten().numpy()).pvalue > 1e-4


def test_every_bit_is_a_fair_coin():
    """Down to 2^-52, in the lower and the upper half of the interval; single precision would stop at 2^-24."""
    u = seeded(2, 1)("bits", 40_000)[0]
    for half in (u[u < 0.5], u[u >= 0.5]):
        n = len(half)
        scaled = (half * 2.0**52).floor().long()
        for bit in range(51):
            ones = int(((scaled >> bit) & 1).sum())
            assert abs(ones - n / 2) < 5 * math.sqrt(n / 4), f"bit {bit}"


def row_for(bits: int, seed: int, stream: str) -> int:
    """The row whose first column of `stream` is made of exactly these 64 bits: the hash run backwards."""
    state = unmix(unmix(bits)) - GOLDEN & M64
    return signed((unmix(state) - key_of(seed, 0, stream) - GOLDEN) * pow(MUL2, -1, 2**64) & M64)


@pytest.mark.parametrize("bits", [0, 1, 2**63, M64 - 2**12, M64 >> 1])
def test_the_hash_runs_backwards(bits):
    assert bits_of(4, 0, "edge", row_for(bits, 4, "edge"), 0) == bits


def test_zero_bits_are_still_above_zero():
    u = Rand(4, torch.tensor([row_for(0, 4, "edge")]), 1)("edge", 1).item()
    assert 0 < u <= 2.0**-52


def test_one_bits_are_still_below_one():
    u = Rand(4, torch.tensor([row_for(M64, 4, "edge")]), 1)("edge", 1).item()
    assert u < 1


def test_no_value_of_the_rows_is_asked_for():
    """A meta tensor has no values, so a draw that made the host wait for its rows would raise."""
    assert Rand(0, torch.arange(4, device="meta"), 4)("x", 5).shape == (4, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CPU and GPU see the same noise: no CUDA device here")
def test_cpu_and_gpu_see_the_same_numbers():
    assert torch.equal(seeded(3, 50, device="cuda")("x", 70).cpu(), seeded(3, 50)("x", 70))
