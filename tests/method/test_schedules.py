"""Schedules against the published per-step counts, and the laws that every schedule and every count list obeys."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.decoding import counts as C
from unmask.method import schedules as S
from unmask.method.schedules import Arccos, Cosine, Exp, Log, Power, Sigmoid, compute_likelihood_weight

# Counts read off the code of each system, over a grid of tokens and steps: style/curve/N.../T... -> tokens per step.
GOLDEN = json.loads((Path(__file__).parent / "golden_schedules.json").read_text())

CURVES: dict[str, Callable[[int], S.Schedule]] = {
    "uniform": lambda n: S.Power(1.0),
    "linear": lambda n: S.Power(1.0),
    "pow2": lambda n: S.Power(2.0),
    "square": lambda n: S.Power(2.0),
    "pow3": lambda n: S.Power(3.0),
    "pow0.5": lambda n: S.Power(0.5),
    "root": lambda n: S.Power(0.5),
    "cosine": lambda n: S.Cosine(),
    "arccos": lambda n: S.Arccos(),
    "log": S.Log,
    "exp": S.Exp,
}
CURVED = {
    "google_style": C.count_google,
    "valeoai_v1": C.count_valeoai_v1,
    "halton_repo_confidence": C.count_halton_confidence,
    "x_transformers": C.count_x_transformers,
    "muse_lucidrains": C.count_muse,
}
PLAIN = {
    "halton_sampler": C.count_halton,
    "nanofm": C.count_nanofm,
    "llada": C.count_llada,
    "ml4m": C.count_fourm,
    "amused": C.count_amused,
    "titok": C.count_titok,
}


def counts_of(key: str) -> list[int]:
    """The counts that our code gives for a key such as "google_style/cosine/N256/T8"."""
    style, *curve, n, steps = key.split("/")
    tokens = int(n[1:])
    if style in PLAIN:
        return PLAIN[style](tokens, int(steps[1:]))
    return CURVED[style](tokens, int(steps[1:]), CURVES[curve[0]](tokens))


@pytest.mark.parametrize("key", GOLDEN)
def test_golden_vectors(key):
    assert counts_of(key) == GOLDEN[key]


def test_all_golden_vectors_are_there():
    assert len(GOLDEN) == 181


# -- curves ------------------------------------------------------------------------------------------------------------

ALL = [
    S.Cosine(), S.Power(1.0), S.Power(2.0), S.Power(3.0), S.Power(0.5), S.Power(0.01), S.Power(50.0), S.Arccos(),
    S.Log(2), S.Log(256), S.Log(4096), S.Exp(2), S.Exp(256), S.Exp(4096),
]  # fmt: skip
SIGMOIDS = [S.Sigmoid(), S.Sigmoid(-8.0, 2.0, 0.5), S.Sigmoid(0.0, 1.0, 9.0)]
EVERY = [*ALL, *SIGMOIDS]


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_schedule_runs_from_one_to_zero_and_never_rises(schedule):
    t = torch.cat([torch.linspace(0, 1, 4001, dtype=torch.float64), torch.tensor([1e-300, 1e-12, 1 - 1e-12])]).sort()[0]
    g = schedule(t)
    assert g.dtype == torch.float64
    assert g[0] == 1
    assert abs(g[-1]) < 1e-15
    assert (g.diff() <= 1e-15).all()
    assert g.min() >= 0
    assert g.max() <= 1


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_float_and_tensor_agree_and_shapes_are_kept(schedule):
    t = torch.tensor([[0.0, 0.1, 0.5], [0.7, 0.99, 1.0]], dtype=torch.float64)
    g = schedule(t)
    assert g.shape == t.shape
    assert [float(schedule(x)) for x in t.flatten().tolist()] == g.flatten().tolist()
    assert float(schedule(-0.5)) == 1
    assert abs(float(schedule(1.5))) < 1e-15
    assert schedule(t.float()).dtype == torch.float64


def test_schedules_do_not_change_their_argument():
    t = torch.tensor([-0.5, 0.3, 1.5], dtype=torch.float64)
    for schedule in ALL:
        schedule(t)
    assert t.tolist() == [-0.5, 0.3, 1.5]


@given(st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_closed_forms(t):
    assert float(S.Cosine()(t)) == pytest.approx(math.cos(math.pi * t / 2), abs=1e-15)
    assert float(S.Arccos()(t)) == pytest.approx(math.acos(t) * 2 / math.pi, abs=1e-15)
    assert float(S.Power(2.0)(t)) == pytest.approx(1 - t * t, abs=1e-15)
    if t > 1 / 256:
        assert float(S.Log(256)(t)) == pytest.approx(-math.log(t) / math.log(256), abs=1e-14)
        assert float(S.Exp(256)(t)) == pytest.approx(1 - 256 ** -(1 - t), abs=1e-14)


def test_sigmoid_closed_form():
    def sig(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    for t in (0.0, 0.2, 0.5, 0.99, 1.0):
        assert float(S.Sigmoid()(t)) == pytest.approx((sig(3) - sig(6 * t - 3)) / (sig(3) - sig(-3)), abs=1e-13)


@given(st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_cosine_and_arccos_are_inverse_functions(t):
    assert float(S.Arccos()(S.Cosine()(t))) == pytest.approx(t, abs=1e-7)
    assert float(S.Cosine()(S.Arccos()(t))) == pytest.approx(t, abs=1e-7)


def test_means_and_tails_tell_cosine_from_arccos():
    t = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    for schedule, tail in ((S.Cosine(), 0.28713), (S.Arccos(), 0.15643)):
        g = schedule(t)
        assert g.mean().item() == pytest.approx(2 / math.pi, abs=1e-5)
        assert (g > 0.9).double().mean().item() == pytest.approx(tail, abs=2e-5)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_power_refuses(bad):
    with pytest.raises(ValueError, match="exponent"):
        S.Power(bad)


@pytest.mark.parametrize("kind", [S.Log, S.Exp])
def test_log_and_exp_refuse_one_token(kind):
    with pytest.raises(ValueError, match="at least 2"):
        kind(1)


@pytest.mark.parametrize("bad", [{"start": 3.0, "end": -3.0}, {"start": 1.0, "end": 1.0}, {"temperature": 0.0}])
def test_sigmoid_refuses(bad):
    with pytest.raises(ValueError, match="Sigmoid"):
        S.Sigmoid(**bad)


# -- count styles ------------------------------------------------------------------------------------------------------

STYLES = [
    *((f"{name}-{curve}", lambda n, t, f=f, c=curve: f(n, t, CURVES[c](max(n, 2))))
      for name, f in CURVED.items() for curve in ("linear", "square", "root", "cosine", "arccos", "log", "exp")),
    *PLAIN.items(),
]  # fmt: skip


@pytest.mark.parametrize("style", [f for _, f in STYLES], ids=[name for name, _ in STYLES])
def test_every_style_sums_to_the_tokens(style):
    for tokens in (1, 2, 3, 5, 17, 64, 100, 257):
        for steps in (1, 2, 3, 4, 7, 12, 18, 64, 100, 300):
            counts = style(tokens, steps)
            assert len(counts) == steps, (tokens, steps, counts)
            assert sum(counts) == tokens, (tokens, steps, counts)
            assert min(counts) >= 0, (tokens, steps, counts)
            assert all(type(c) is int for c in counts)


@pytest.mark.parametrize("style", [f for _, f in STYLES], ids=[name for name, _ in STYLES])
def test_every_style_refuses_no_tokens_and_no_steps(style):
    for tokens, steps in ((0, 4), (4, 0), (-1, 4)):
        with pytest.raises(ValueError, match="at least 1"):
            style(tokens, steps)


def test_equal_names_mean_different_counts():
    """Google's and x-transformers' rules agree until one of them stalls; every other pair differs."""
    assert C.count_google(256, 8, S.Cosine()) == C.count_x_transformers(256, 8, S.Cosine())
    assert C.count_google(32, 12, S.Log(32)) != C.count_x_transformers(32, 12, S.Log(32))
    styles = (C.count_google, C.count_valeoai_v1, C.count_halton_confidence, C.count_muse)
    assert len({tuple(style(256, 8, S.Cosine())) for style in styles}) == 4
    assert len({tuple(style(256, 8, S.Arccos())) for style in styles} | {tuple(C.count_halton(256, 8))}) == 5


# -- ratios and the counts that a sampler reveals ----------------------------------------------------------------------


def revealed(unknown: list[int], ratios: list[float]) -> list[list[int]]:
    """count_reveals as plain lists, one per row."""
    return S.count_reveals(torch.tensor(unknown), ratios).T.tolist()


def brute_force(n, ratios):
    """The rule of `count_reveals`, one step at a time: at least one each, and one left for each step to come."""
    steps, left, counts = len(ratios), n, []
    for step, ratio in enumerate(ratios, 1):
        if n < steps:
            after = n - n * step // steps
        else:
            after = max(steps - step, min(left - 1, math.floor(n * ratio + 1e-6)))
        counts.append(left - after)
        left = after
    return counts


def test_ratios_values():
    assert S.ratios(S.Power(1.0), 4) == [0.75, 0.5, 0.25, 0.0]
    assert S.ratios(S.Cosine(), 1) == [0.0]
    with pytest.raises(ValueError, match="steps"):
        S.ratios(S.Cosine(), 0)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=8), st.integers(1, 40), st.sampled_from(ALL))
@settings(max_examples=150, deadline=None)
def test_count_reveals_law(unknown, steps, schedule):
    ratios = S.ratios(schedule, steps)
    for n, counts in zip(unknown, revealed(unknown, ratios), strict=True):
        assert sum(counts) == n
        assert len(counts) == steps
        assert min(counts) >= (n >= steps), "with tokens enough no step idles"
        assert n >= steps or max(counts) <= 1, "with fewer they come one by one"
        assert n == 0 or counts[-1] >= 1, "and the last step always has one"
        assert counts == brute_force(n, ratios)


@pytest.mark.parametrize(("tokens", "steps"), [(256, 8), (256, 12), (256, 18), (1024, 15), (576, 32), (49, 8)])
@pytest.mark.parametrize("curve", ["uniform", "pow2", "pow0.5", "cosine", "arccos"])
def test_count_reveals_equal_google_where_it_does_not_stall(tokens, steps, curve):
    """In exact arithmetic; the code rounds to float32 (`test_counts.py`)."""
    schedule = CURVES[curve](tokens)
    left, counts = tokens, []
    for step in range(1, steps + 1):
        after = max(1, min(left - 1, math.floor(tokens * float(schedule(step / steps)) + 1e-9))) if step < steps else 0
        counts.append(left - after)
        left = after
    assert revealed([tokens], S.ratios(schedule, steps))[0] == counts


def test_no_token_is_lost_to_rounding():
    """k / N times N can floor to k - 1; here each step must reveal exactly one, and each two-step split must hold."""
    lossy = 0
    for n in range(1, 301):
        kept = [k / n for k in range(n - 1, -1, -1)]
        lossy += any(math.floor(k / n * n) != k for k in range(n))
        assert revealed([n], kept)[0] == [1] * n
        splits = (
            torch.stack([S.count_reveals(torch.tensor([n]), [k / n, 0.0])[:, 0] for k in range(1, n, 7)])
            if n > 1
            else None
        )
        assert n == 1 or splits[:, 0].tolist() == [n - k for k in range(1, n, 7)]
    assert lossy > 0, "the test would show nothing if no product were rounded"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_ratios_from_counts_round_trip(counts):
    assert revealed([sum(counts)], S.ratios_from_counts(counts))[0] == counts


@pytest.mark.parametrize("style", [f for _, f in STYLES], ids=[name for name, _ in STYLES])
def test_every_style_survives_the_round_trip(style):
    for tokens, steps in ((256, 8), (256, 18), (49, 16), (1024, 32), (17, 8)):
        counts = style(tokens, steps)
        if min(counts) > 0:
            assert revealed([tokens], S.ratios_from_counts(counts))[0] == counts


@pytest.mark.parametrize("bad", [[], [0, 0], [3, -1, 2]])
def test_ratios_from_counts_refuses(bad):
    with pytest.raises(ValueError):
        S.ratios_from_counts(bad)


@pytest.mark.parametrize(
    "bad", [[], [0.5], [0.2, 0.5, 0.0], [1.5, 0.0], [-0.1, 0.0], [math.nan, 0.0], [0.5, math.nan], [0.5, math.nan, 0.0]]
)
def test_count_reveals_refuses(bad):
    with pytest.raises(ValueError, match="ratios"):
        S.count_reveals(torch.tensor([4, 5]), bad)


def test_count_reveals_leaves_its_argument_alone():
    unknown = torch.tensor([7, 0, 3])
    S.count_reveals(unknown, [0.5, 0.0])
    assert unknown.tolist() == [7, 0, 3]


SLOPES = {
    Cosine(): lambda t: math.pi / 2 * math.tan(math.pi * t / 2),
    Power(1.0): lambda t: 1 / (1 - t),
    Power(2.0): lambda t: 2 * t / (1 - t * t),
    Power(0.5): lambda t: 0.5 * t**-0.5 / (1 - t**0.5),
    Arccos(): lambda t: 1 / (math.sqrt(1 - t * t) * math.acos(t)),
    Log(64): lambda t: 1 / (-t * math.log(t)) if t > 1 / 64 else 0.0,
    Exp(64): lambda t: math.log(64) / (64 ** (1 - t) - 1),
}


@pytest.mark.parametrize("schedule", SLOPES, ids=repr)
@given(t=st.floats(0.02, 0.98))
@settings(max_examples=30, deadline=None)
def test_the_likelihood_weight_has_its_closed_form(schedule, t):
    got = compute_likelihood_weight(schedule, torch.tensor([t, t]))
    assert got.tolist() == pytest.approx([SLOPES[schedule](t)] * 2, rel=1e-5)


@pytest.mark.parametrize("schedule", [*SLOPES, Sigmoid()], ids=repr)
def test_the_likelihood_weight_is_the_fall_of_the_logarithm(schedule):
    """By finite differences; and under no_grad, as in validation."""
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    with torch.no_grad():
        got = compute_likelihood_weight(schedule, t)
    want = (schedule(t - 1e-6).log() - schedule(t + 1e-6).log()) / 2e-6
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
