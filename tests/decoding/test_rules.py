"""Rules of published samplers, each compared with the line of code that it reproduces."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.decoding.rules import LAGGING, SPANNING, DrawnLogit, Line, RolledHalton, StepConfidence, TitokFall
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.method.sampling.priorities import Confidence, Halton, compute_halton_order


def scores(priority, logits, sample, t, seed=0):
    rand = seeded(seed, len(sample))
    return priority(logits, sample, masked=torch.ones_like(sample, dtype=torch.bool), t=t, rand=rand)


def gumbel(rows, columns, seed=0):
    return -torch.log(-torch.log(seeded(seed, rows)("order", columns)))


LOGITS = torch.randn(3, 12, 7, generator=torch.Generator().manual_seed(0))
SAMPLE = torch.randint(7, (3, 12), generator=torch.Generator().manual_seed(1))
DRAWN = LOGITS.gather(-1, SAMPLE[..., None])[..., 0]
LOG_P = LOGITS.log_softmax(-1).gather(-1, SAMPLE[..., None])[..., 0]


@pytest.mark.parametrize("step", range(8))
def test_the_report_s_noise_is_that_of_one_step_earlier(step):
    priority = StepConfidence(LAGGING.list_values(4.5, 8))
    ratio = step / 8  # vit.py: r_temp * gumbel * (1 - indice / len(scheduler))
    expected = LOG_P + 4.5 * (1 - ratio) * gumbel(3, 12)
    torch.testing.assert_close(scores(priority, LOGITS, SAMPLE, (step + 1) / 8).float(), expected.float())


def test_the_report_s_noise_does_not_end_at_zero_as_googles_does():
    ours, theirs = (
        scores(p, LOGITS, SAMPLE, 1.0) for p in (Confidence(4.5), StepConfidence(LAGGING.list_values(4.5, 8)))
    )
    torch.testing.assert_close(ours, LOG_P)
    assert (ours - theirs).abs().max() > 0.1


@pytest.mark.parametrize("step", range(12))
def test_amused_s_noise_falls_from_the_first_step_to_the_last(step):
    noise = torch.linspace(2, 0, 12)[step]
    expected = LOG_P + noise * gumbel(3, 12)
    torch.testing.assert_close(
        scores(StepConfidence(SPANNING.list_values(2.0, 12)), LOGITS, SAMPLE, (step + 1) / 12).float(), expected.float()
    )


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_list_of_noises_stretches_over_another_number_of_steps(entries, steps):
    noises = tuple(float(i) for i in range(entries))
    flat = torch.zeros(1, 1, 2)
    used = [
        (scores(StepConfidence(noises), flat, torch.zeros(1, 1, dtype=torch.long), (s + 1) / steps) - math.log(0.5))
        / gumbel(1, 1)
        for s in range(steps)
    ]
    found = [round(x.item()) for x in used]
    assert found == sorted(found)
    assert found[-1] == entries - 1
    if steps == entries:
        assert found == list(range(entries))


@pytest.mark.parametrize("step", range(8))
def test_titok_scores_the_raw_logit_of_the_draw(step):
    ratio = (step + 1) / 8
    noise = 9.5 * (1 - ratio) * (0.5 + 0.8 * (1 - ratio))
    expected = DRAWN + noise * gumbel(3, 12)
    torch.testing.assert_close(
        scores(DrawnLogit(TitokFall().list_values(9.5, 8)), LOGITS, SAMPLE, (step + 1) / 8).float(), expected.float()
    )


def test_dividing_the_logits_and_then_ordering_by_them_is_one_noise():
    """The published script and `TitokFall` give the same order and the same distribution of samples."""
    for step, factor in enumerate(TitokFall().list_values(9.5, 8)):
        left = 1 - (step + 1) / 8
        tau = 0.5 + 0.8 * left
        published = DRAWN / tau + 9.5 * left * gumbel(3, 12)
        ours = scores(DrawnLogit(TitokFall().list_values(9.5, 8)), LOGITS, SAMPLE, (step + 1) / 8)
        torch.testing.assert_close(ours.double(), (tau * published).double(), rtol=1e-5, atol=1e-5)
        if factor:  # argmax of logits / tau + noise Gumbel draws from softmax(logits / (tau noise))
            law = (LOGITS / tau / (9.5 * left)).softmax(-1)
            torch.testing.assert_close(law, (LOGITS / factor).softmax(-1))


def test_a_raw_logit_is_not_a_probability():
    shifted = LOGITS + torch.arange(12.0)[:, None]  # the same distributions, place by place
    before, after = (scores(DrawnLogit((0.0,)), x, SAMPLE, 0.5).argsort(1) for x in (LOGITS, shifted))
    assert not torch.equal(before, after)


GRID = (4, 4)


def rolled_states(num, seed=0):
    def predict(tokens, t):
        return torch.zeros(*tokens.shape, 5)

    canvas = torch.full((num, 16), 5)
    return list(
        decode(predict, canvas, [0.75, 0.5, 0.25, 0.0], mask_id=5, rand=seeded(seed, num), priority=RolledHalton(GRID))
    )


def test_each_image_enters_the_halton_sequence_at_its_own_place_and_keeps_to_it():
    states, order = rolled_states(64), compute_halton_order(GRID)
    starts = set()
    for row in range(64):
        seen = [[int(i) for i in state.revealed[row].nonzero().flatten()] for state in states[1:]]
        start = next(s for s in range(16) if set(order.roll(-s)[:4].tolist()) == set(seen[0]))
        for step, cells in enumerate(seen):
            assert set(order.roll(-start)[4 * step : 4 * step + 4].tolist()) == set(cells)
        starts.add(start)
    assert len(starts) > 8


def test_an_unrolled_sequence_is_halton_s():
    t = torch.zeros(1, 16, dtype=torch.long)
    plain = scores(Halton(GRID), torch.zeros(1, 16, 2), t, 0.5).argsort(descending=True)
    assert torch.equal(plain[0], compute_halton_order(GRID))
    rolled = scores(RolledHalton(GRID), torch.zeros(1, 16, 2), t, 0.5).argsort(descending=True)[0]
    assert any(torch.equal(rolled, plain[0].roll(-s)) for s in range(16))


@pytest.mark.parametrize("make", [lambda: StepConfidence(()), lambda: StepConfidence((math.nan,)),
                                  lambda: DrawnLogit((-1.0,)), lambda: RolledHalton((0,))])  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(make):
    with pytest.raises(ValueError, match=r"\("):
        make()


def test_a_sequence_for_another_grid_is_refused():
    with pytest.raises(ValueError, match="16 cells"):
        scores(RolledHalton(GRID), torch.zeros(1, 9, 2), torch.zeros(1, 9, dtype=torch.long), 0.5)


def test_temperatures_fall_to_greedy():
    assert Line().list_values(1.0, 4) == (0.75, 0.5, 0.25, 0.0)
    assert Line().list_values(2.0, 1) == (0.0,)
    s = torch.arange(1, 19, dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(Line().list_values(0.7, 18), dtype=torch.float64), 0.7 * (18 - s) / 18)
    assert Line(least=1e-3).list_values(1.0, 3) == pytest.approx((2 / 3, 1 / 3, 1e-3))


def test_a_line_starts_and_ends_where_it_says():
    for first, last in ((False, False), (False, True), (True, False), (True, True)):
        values = Line(start=1.0, end=3.0, from_first=first, to_last=last).list_values(2.0, 9)
        assert (values[0] == 2.0) == first
        assert (values[-1] == 6.0) == last
        assert len({round(b - a, 9) for a, b in pairwise(values)}) == 1


@pytest.mark.parametrize("wrong", [{"start": -1.0}, {"end": -1.0}, {"least": -1.0}, {"end": 0.0, "multiplies": True}])
def test_a_line_refuses_what_nothing_can_be_divided_by(wrong):
    with pytest.raises(ValueError, match="give values of at least 0"):
        Line(**wrong)
