"""The law of decoded samples: exact for orders that do not look at the draw; `draw` and its filters alone."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode, keep_likeliest, sample_tokens
from unmask.method.sampling.priorities import Confidence, Entropy, Halton, Margin, MaxLogit, Random, Raster


def last(states) -> torch.Tensor:
    *_, end = states
    return end.tokens


# -- the law of the samples -------------------------------------------------------------------------------------------

JOINT = torch.tensor([0.22, 0.03, 0.02, 0.17, 0.05, 0.29, 0.13, 0.09], dtype=torch.float64)


def conditionals() -> torch.Tensor:
    """log p(x_i = v | known tokens) of the joint law over {0, 1}^3, for each of the 27 canvases."""
    table = torch.zeros(3, 3, 3, 3, 2, dtype=torch.float64)
    words = [[w >> 2 & 1, w >> 1 & 1, w & 1] for w in range(8)]
    for canvas in torch.cartesian_prod(*[torch.arange(3)] * 3).tolist():
        for p, word in zip(JOINT.tolist(), words, strict=True):
            if all(c in (2, w) for c, w in zip(canvas, word, strict=True)):
                for i in range(3):
                    table[(*canvas, i, word[i])] += p
    return (table / table.sum(-1, keepdim=True)).log()


TABLE = conditionals()


def exact(tokens, t):
    return TABLE[tokens[:, 0], tokens[:, 1], tokens[:, 2]].float()


def word_counts(priority, rows: int = 20_000, **options) -> torch.Tensor:
    out = last(decode(exact, torch.full((rows, 3), 2), [2 / 3, 1 / 3, 0.0], mask_id=2, rand=seeded(0, rows),
                      priority=priority, **options))  # fmt: skip
    return (out * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8)


@pytest.mark.parametrize("priority", [MaxLogit(), Margin(), Entropy(), Random(), Raster(), Halton((3,))], ids=repr)
def test_one_token_a_step_follows_the_models_law(priority):
    """Chain rule: whatever the order, if it is chosen without looking at the draw, the samples follow the joint law."""
    counts = word_counts(priority)
    assert stats.chisquare(counts.numpy(), (JOINT / JOINT.sum() * counts.sum()).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_confidence_order_does_not(noise):
    """The negative control: choosing by the drawn token's probability favours likely draws and so sharpens the law."""
    counts = word_counts(Confidence(noise))
    assert stats.chisquare(counts.numpy(), (JOINT / JOINT.sum() * counts.sum()).numpy()).pvalue < 1e-12


def test_nor_do_three_tokens_at_once():
    rows = 20_000
    out = last(decode(exact, torch.full((rows, 3), 2), [0.0], mask_id=2, rand=seeded(0, rows), priority=Random()))
    counts = (out * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8)
    assert stats.chisquare(counts.numpy(), (JOINT * rows).numpy()).pvalue < 1e-12


@pytest.mark.parametrize("noise", [0.7, 4.5])
def test_confidence_draws_positions_in_proportion_to_a_power_of_p(noise):
    """One revealed: softmax(log p / tau) with tau = noise (1 - t). Two revealed: the same without replacement."""
    best = torch.tensor([0.9, 0.7, 0.5, 0.35], dtype=torch.float64)
    rest = (1 - best)[:, None] / 4
    logits = torch.cat([best[:, None], rest.expand(4, 4)], 1).log().float()
    rows = 20_000

    def first_step(count: int) -> torch.Tensor:
        states = decode(lambda tokens, t: logits.expand(rows, 4, 5), torch.full((rows, 4), 5),
                        [1 - count / 4, 0.0], mask_id=5, rand=seeded(1, rows), priority=Confidence(noise),
                        temperature=0.0)  # fmt: skip
        next(states)
        return (next(states).revealed.long() * torch.tensor([1, 2, 4, 8])).sum(1).bincount(minlength=16)

    weight = best ** (1 / (noise * 0.5))
    weight = weight / weight.sum()
    one = first_step(1)[[1, 2, 4, 8]]
    assert stats.chisquare(one.numpy(), (weight * rows).numpy()).pvalue > 1e-3
    two, pairs = first_step(2), list(combinations(range(4), 2))
    odds = weight / (1 - weight)
    law = [float(odds[i] * weight[j] + odds[j] * weight[i]) for i, j in pairs]
    got = [int(two[2**i + 2**j]) for i, j in pairs]
    assert sum(got) == rows
    assert stats.chisquare(got, np.array(law) * rows).pvalue > 1e-3


# -- one draw ---------------------------------------------------------------------------------------------------------


def draws(logits: torch.Tensor, u: torch.Tensor, temperature: float = 1.0, top_k=None, top_p=None) -> torch.Tensor:
    """One token per u from one distribution."""
    return sample_tokens(logits.expand(1, len(u), -1), temperature, top_k, top_p, u[None])[0]


def grid(n: int) -> torch.Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0.3, 1.0, 2.5]))
@settings(max_examples=40, deadline=None)
def test_draw_inverts_the_distribution_function(seed, categories, temperature):
    """Over a stratified grid of u the counts are the probabilities, to one cell per category."""
    logits = torch.randn(categories, generator=torch.Generator().manual_seed(seed)) * 3
    p = (logits.double() / temperature).softmax(-1)
    counts = draws(logits, grid(20_000), temperature).bincount(minlength=categories)
    assert (counts - p * 20_000).abs().max() <= 2


def test_draw_by_chi_square():
    logits = torch.randn(20, generator=torch.Generator().manual_seed(0))
    counts = draws(logits, seeded(0, 1)("token", 50_000)[0]).bincount(minlength=20)
    assert stats.chisquare(counts.numpy(), logits.double().softmax(-1).numpy() * 50_000).pvalue > 1e-3


def edge(logits: torch.Tensor, category: int) -> float:
    """The smallest u that draws `category` or a later one, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(52):
        middle = (low + high) / 2
        reached = int(draws(logits, torch.tensor([middle], dtype=torch.float64))[0]) >= category
        low, high = (low, middle) if reached else (middle, high)
    return high


@pytest.mark.parametrize("rare", [1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("place", [0, 7, 15])
def test_a_rare_category_is_as_wide_as_its_probability(rare, place):
    """In single precision the steps of the distribution function near 1 are 6e-8: too coarse for these."""
    p = torch.full((17,), (1 - rare) / 16, dtype=torch.float64)
    p[place] = rare
    logits = p.log().float()
    width = edge(logits, place + 1) - edge(logits, place)
    assert width == pytest.approx(rare, rel=1e-4)


def test_rare_tokens_of_a_large_vocabulary():
    """16,384 tokens, each interval as wide as its float64 probability, down to 1e-10."""
    logits = torch.randn(16_384, generator=torch.Generator().manual_seed(0)) * 3
    p = logits.double().softmax(-1)
    for place in (5, 8_000, 16_000, int(p[15_000:].argmin()) + 15_000):
        assert edge(logits, place + 1) - edge(logits, place) == pytest.approx(p[place].item(), rel=1e-4)
    assert p[15_000:].min() < 1e-9


@pytest.mark.parametrize("zero", [[0], [4], [0, 4], [1, 2, 3], [0, 1, 2, 3]])
def test_forbidden_categories_are_never_drawn(zero):
    logits = torch.tensor([0.3, -1.0, 0.5, 0.0, 0.2])
    logits[zero] = -math.inf
    u = torch.tensor([2.0**-54, 2.0**-30, 1 - 2.0**-53, 1 - 2.0**-30], dtype=torch.float64)
    seen = set(draws(logits, torch.cat([u, grid(999)])).tolist())
    assert seen == set(range(5)) - set(zero)


def test_a_large_step_of_the_distribution_function_is_met_at_either_side():
    logits = torch.tensor([0.5, 0.5]).log()
    assert draws(logits, torch.tensor([0.5 - 2.0**-52, 0.5, 0.5 + 2.0**-52], dtype=torch.float64)).tolist() == [0, 1, 1]


@pytest.mark.parametrize("temperature", [1e-2, 1e-6, pytest.param(1e-38)])
def test_a_tiny_temperature_is_nearly_argmax(temperature):
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) * 20
    got = sample_tokens(logits[None], temperature, None, None, seeded(0, 1)("token", 50))[0]
    assert (got == logits.argmax(-1)).double().mean() > 0.9


# -- top-k and top-p --------------------------------------------------------------------------------------------------


def brute_force(logits: list[float], top_k: int | None, top_p: float | None) -> list[int]:
    """The kept categories: first the k largest with their ties, then the smallest set of mass >= p of what is left."""
    kept = list(range(len(logits)))
    if top_k is not None:
        kth = sorted(logits, reverse=True)[min(top_k, len(logits)) - 1]
        kept = [i for i in kept if logits[i] >= kth]
    if top_p is not None:
        mass = {i: math.exp(logits[i]) for i in kept}
        order, total, so_far = sorted(kept, key=lambda i: (-logits[i], i)), sum(mass.values()), 0.0
        kept = []
        for i in order:
            if so_far / total >= top_p - 1e-9:
                break
            kept.append(i)
            so_far += mass[i]
    return sorted(kept)


@given(
    st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=8),
    st.none() | st.integers(1, 10),
    st.none() | st.floats(0.01, 0.99),
)
@settings(max_examples=150, deadline=None)
def test_filters_against_brute_force(logits, top_k, top_p):
    x = torch.tensor(logits)
    before = x.clone()
    out = keep_likeliest(x[None, None], top_k, top_p)[0, 0]
    kept = [i for i, v in enumerate(out.tolist()) if v > -math.inf]
    want = brute_force(logits, top_k, top_p)
    near = brute_force(logits, top_k, None if top_p is None else top_p + 1e-6)
    assert kept in (want, near)
    assert torch.equal(x, before), "the caller's logits stay as they were"
    assert torch.equal(out[kept], x[kept])


def test_the_token_that_crosses_p_stays():
    logits = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]]).log()
    for p, kept in ((0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1e-9, 1)):
        assert int(keep_likeliest(logits, None, p).isfinite().sum()) == kept


def test_ties_at_the_kth_place_stay():
    kept = keep_likeliest(torch.tensor([[[1.0, 2.0, 2.0, 0.0]]]), 1)
    assert kept[0, 0].isfinite().tolist() == [False, True, True, False]


def test_top_p_one_keeps_everything():
    logits = torch.randn(64, 1, 4096, generator=torch.Generator().manual_seed(0)) * 4
    assert torch.equal(keep_likeliest(logits, None, 1.0), logits)


def test_filters_come_after_the_temperature():
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    assert set(draws(logits, grid(1000), 1.0, None, 0.5).tolist()) == {0}
    assert set(draws(logits, grid(1000), 5.0, None, 0.5).tolist()) == {0, 1}
    assert set(draws(logits, grid(1000), 1.0, 2, None).tolist()) == {0, 1}


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.01}, {"top_p": math.nan}])
def test_bad_filters_are_refused(options):
    with pytest.raises(ValueError, match="top_"):
        keep_likeliest(torch.zeros(1, 1, 3), **options)
