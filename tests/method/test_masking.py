"""Masks: exact counts, the laws of both rules, complementary pairs and strata."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unmask.method.masking import (
    ABSENT,
    exclude_absent,
    mask_bernoulli,
    mask_count,
    mask_exact,
    split_complementary,
    stratify_times,
)
from unmask.method.rand import Rand, seeded
from unmask.method.schedules import Cosine, Power


def noise(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return seeded(seed, rows)("mask", tokens)


@given(st.lists(st.integers(-3, 20), min_size=1, max_size=6), st.integers(1, 15), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_mask_count_is_exact_and_takes_the_smallest(count, tokens, seed):
    u = noise(len(count), tokens, seed)
    mask = mask_count(torch.tensor(count), u)
    for row, (wanted, m) in enumerate(zip(count, mask, strict=True)):
        k = min(max(wanted, 1), tokens)
        assert m.nonzero()[:, 0].tolist() == sorted(u[row].argsort()[:k].tolist())


def test_ties_do_not_change_the_count():
    assert mask_count(torch.tensor([2, 3]), torch.full((2, 5), 0.5)).sum(1).tolist() == [2, 3]


@given(st.integers(1, 1024), st.data())
@settings(max_examples=60, deadline=None)
def test_mask_exact_rounds_up(tokens, data):
    ratio = data.draw(st.floats(0, 1))
    got = mask_exact(torch.tensor([ratio], dtype=torch.float64), noise(1, tokens)).sum().item()
    assert got == min(tokens, max(1, math.ceil(ratio * tokens - 1e-6)))


def test_mask_exact_adds_no_token_by_rounding():
    for tokens in (1, 3, 7, 49, 64, 100, 256, 1023, 1024, 4096):
        k = torch.arange(1, tokens + 1)
        ratio = k.double() / tokens
        u = torch.linspace(0, 1, tokens, dtype=torch.float64)
        for i in range(0, tokens, max(1, tokens // 64)):
            assert mask_exact(ratio[i : i + 1], u[None]).sum().item() == i + 1


def test_ratios_uniform_in_the_unit_interval_make_every_count_equally_likely():
    """Power(1) with mask_exact is nanoMaskGIT's rule, n ~ U{1..L}: exact over a grid, by chi-square over noise."""
    tokens, each = 49, 20
    grid = (torch.arange(tokens * each, dtype=torch.float64) + 0.5) / (tokens * each)
    counts = mask_exact(Power(1.0)(grid), noise(len(grid), tokens)).sum(1)
    assert counts.bincount(minlength=tokens + 1).tolist() == [0] + [each] * tokens
    t = seeded(1, 49_000)("time")
    counts = mask_exact(Power(1.0)(t), noise(len(t), tokens, 1)).sum(1)
    assert stats.chisquare(counts.bincount(minlength=tokens + 1)[1:].numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("ratio", "chosen"), [(0.2, 1), (0.4, 2), (0.6, 3), (1.0, 5)])
def test_every_subset_is_equally_likely(ratio, chosen):
    rows, tokens = 20_000, 5
    mask = mask_exact(torch.full((rows,), ratio, dtype=torch.float64), noise(rows, tokens, 3))
    assert (mask.sum(1) == chosen).all()
    code = (mask.long() * 2 ** torch.arange(tokens)).sum(1).bincount(minlength=2**tokens)
    subsets = [sum(2**i for i in s) for s in combinations(range(tokens), chosen)]
    assert code[subsets].sum() == rows
    if len(subsets) > 1:
        assert stats.chisquare(code[subsets].numpy()).pvalue > 1e-3


def test_bernoulli_law():
    """Each subset has probability r^m (1 - r)^(l - m), except that the empty one is shared out as single tokens."""
    rows, tokens, ratio = 40_000, 4, 0.3
    mask = mask_bernoulli(torch.full((rows,), ratio, dtype=torch.float64), noise(rows, tokens, 5))
    counts = (mask.long() * 2 ** torch.arange(tokens)).sum(1).bincount(minlength=16)
    law = torch.tensor([ratio ** bin(s).count("1") * (1 - ratio) ** (4 - bin(s).count("1")) for s in range(16)])
    law[[1, 2, 4, 8]] += law[0] / 4
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy(), (law[1:] / law[1:].sum() * rows).numpy()).pvalue > 1e-3


def test_bernoulli_differs_from_exact_and_meets_the_ends():
    ratio = torch.full((500,), 0.5, dtype=torch.float64)
    assert len(mask_bernoulli(ratio, noise(500, 20)).sum(1).unique()) > 5
    assert len(mask_exact(ratio, noise(500, 20)).sum(1).unique()) == 1
    assert mask_bernoulli(torch.ones(5, dtype=torch.float64), noise(5, 9)).all()
    none = mask_bernoulli(torch.zeros(5, dtype=torch.float64), noise(5, 9))
    assert torch.equal(none, mask_count(torch.ones(5, dtype=torch.long), noise(5, 9)))


@pytest.mark.parametrize("rule", [mask_exact, mask_bernoulli])
@given(ratio=st.floats(0, 1), tokens=st.integers(1, 40), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_no_row_is_without_a_target(rule, ratio, tokens, seed):
    u = noise(6, tokens, seed)
    before = u.clone()
    mask = rule(torch.full((6,), ratio, dtype=torch.float64), u)
    assert mask.any(1).all()
    assert mask.dtype == torch.bool
    assert torch.equal(u, before)


@given(st.integers(2, 30), st.floats(0, 1), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_complementary_targets_each_token_once(tokens, ratio, seed):
    u = noise(5, tokens, seed)
    mask = mask_exact(torch.full((5,), ratio, dtype=torch.float64), u)
    kept = mask.clone()
    first, second = split_complementary(mask, u)
    assert (first ^ second).all(), "each token is a target exactly once"
    assert first.any(1).all()
    assert second.any(1).all()
    assert torch.equal(mask, kept)
    partial = ~mask.all(1)
    assert torch.equal(first[partial], mask[partial])
    full = mask.all(1)
    assert (first[full].sum(1) == tokens - 1).all()
    assert torch.equal(second[full].long().argmax(1), u[full].argmax(1))


def test_complementary_needs_two_tokens():
    with pytest.raises(ValueError, match="at least 2"):
        split_complementary(torch.ones(1, 1, dtype=torch.bool), torch.rand(1, 1))


@given(st.integers(1, 64), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_one_time_per_stratum_of_the_global_batch(num_rows, seed):
    rand = seeded(seed, num_rows)
    t = stratify_times(rand("time"), rand.rows, num_rows)
    assert sorted((t * num_rows).floor().long().tolist()) == list(range(num_rows))
    assert t.min() > 0
    assert t.max() < 1


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_strata_do_not_depend_on_ranks_or_micro_batches(parts):
    def times(rand: Rand) -> torch.Tensor:
        return stratify_times(rand("time"), rand.rows, rand.num_rows)

    whole = times(seeded(9, 12))
    cut = [times(Rand(9, rows, 12)) for rows in torch.arange(12).chunk(parts)]
    assert torch.equal(torch.cat(cut), whole)
    dealt = [times(Rand(9, torch.arange(r, 12, parts), 12)) for r in range(parts)]
    assert torch.equal(torch.cat(dealt).sort()[0], whole)


def test_strata_lower_the_variance_of_the_mean_ratio():
    def mean(seed: int, strata: bool) -> float:
        rand = seeded(seed, 32)
        t = rand("time")
        return Cosine()(stratify_times(t, rand.rows, 32) if strata else t).mean().item()

    spread = {s: torch.tensor([mean(seed, s) for seed in range(50)]).std().item() for s in (True, False)}
    assert spread[True] < spread[False] / 10


@given(st.integers(0, 10_000), st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_absent_places_are_never_masked_and_do_not_count(seed, length):
    """A row with gaps behaves as the shorter row without them: the same rule, the same tokens."""
    rand = seeded(seed, 6)
    here = torch.arange(length) < 1 + (rand("length") * length).long()[:, None]
    tokens = torch.where(here, 0, ABSENT)
    u, ratio = exclude_absent(rand("mask", length), tokens), rand("ratio")
    for rule in (mask_exact, mask_bernoulli):
        mask = rule(ratio, u)
        assert not (mask & ~here).any()
        assert mask.any(1).all()
        for row in range(6):
            own = rule(ratio[row : row + 1], u[row : row + 1, here[row]])
            assert torch.equal(mask[row, here[row]], own[0])
        one, other = split_complementary(mask, u)
        assert not (one & other).any()
        assert torch.equal(one | other, here)
