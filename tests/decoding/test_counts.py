"""Tokens per step in the rounding of the originals, over a grid, with their lines in float32."""

import math

import pytest
import torch

from unmask.decoding import counts
from unmask.method.schedules import Arccos, Cosine, Power

GRID = [(tokens, steps) for tokens in (32, 256, 576, 1024) for steps in (2, 3, 6, 8, 9, 12, 15, 18, 24, 30, 45, 64, 90)]
CURVES = {
    "root": (Power(0.5), lambda r: 1 - (r**0.5)),
    "linear": (Power(1.0), lambda r: 1 - r),
    "square": (Power(2.0), lambda r: 1 - (r**2)),
    "cosine": (Cosine(), lambda r: torch.cos(r * math.pi * 0.5)),
    "arccos": (Arccos(), lambda r: torch.arccos(r) / (math.pi * 0.5)),
}
every_curve = pytest.mark.parametrize("name", CURVES)


@every_curve
def test_the_report_s_densities(name):
    """Trainer/vit.py, adap_sche, and its loop, which ends when every token is known."""
    ours, theirs = CURVES[name]
    for tokens, steps in GRID:
        value = theirs(torch.linspace(1, 0, steps))
        wanted = ((value / value.sum()) * tokens).round()
        wanted[wanted == 0] = 1
        wanted[-1] += tokens - wanted.sum()
        left, revealed = tokens, []
        for count in wanted.int().tolist():
            revealed.append(min(left, max(0, count)))
            left -= revealed[-1]
        assert counts.count_valeoai_v1(tokens, steps, ours) == revealed, (tokens, steps)


@every_curve
def test_the_confidence_sampler_of_halton_maskgit(name):
    """Sampler/confidence_sampler.py, build_sequence."""
    ours, theirs = CURVES[name]
    for tokens, steps in GRID:
        r = torch.linspace(0, 1, steps)
        value = {"root": r**0.5, "linear": r, "square": r**2}.get(name, 1 - theirs(r))
        known = [max(step + 1, k) for step, k in enumerate((value * tokens).int().tolist())]
        known = [min(tokens, k) for k in known[:-1]] + [tokens]
        wanted = [b - a for a, b in zip([0, *known], known, strict=False)]
        assert counts.count_halton_confidence(tokens, steps, ours) == wanted, (tokens, steps)


def keep(tokens, wanted):
    """Google's rule, after which at least one token is left for the last step."""
    left, revealed = tokens, []
    for kept in [*wanted[:-1], None]:
        after = 0 if kept is None else max(1, min(left - 1, int(kept)))
        revealed.append(left - after)
        left = after
    return revealed


def test_titok_counts_in_float64():
    """modeling/maskgit.py, generate."""
    for tokens, steps in GRID:
        ratios = [math.acos((s + 1) / steps) / (math.pi * 0.5) for s in range(steps)]
        assert counts.count_titok(tokens, steps) == keep(tokens, [math.floor(tokens * r) for r in ratios])


def test_amused_counts_in_float32():
    """schedulers/scheduling_amused.py, step."""
    for tokens, steps in GRID:
        index = torch.arange(steps)
        wanted = (tokens * (1.0 * torch.cos((index + 1) / steps * math.pi / 2))).floor().tolist()
        assert counts.count_amused(tokens, steps) == keep(tokens, wanted), (tokens, steps)


# From google-research/maskgit under JAX on a CPU (jit, as its notebook runs it): steps at which the counts differ from
# exact arithmetic, and what it masks after that step.
UNDER_JAX = {(256, 6, 4): 127, (256, 12, 8): 127, (256, 24, 16): 127, (1024, 12, 8): 511, (576, 9, 6): 287}


@pytest.mark.parametrize(("tokens", "steps", "step"), UNDER_JAX)
def test_google_s_counts_are_those_under_jax(tokens, steps, step):
    revealed = counts.count_google(tokens, steps, Cosine())
    assert tokens - sum(revealed[:step]) == UNDER_JAX[tokens, steps, step]


def test_rows_have_their_own_counts():
    unknown = torch.tensor([256, 0, 7, 256])
    found = counts.count_rows(unknown, lambda tokens: counts.count_amused(tokens, 12), 12)
    assert found.shape == (12, 4)
    assert found.sum(0).tolist() == unknown.tolist()
    assert found[:, 0].tolist() == found[:, 3].tolist() == counts.count_amused(256, 12)
    assert counts.count_rows(unknown[:0], lambda tokens: [], 12).shape == (12, 0)
