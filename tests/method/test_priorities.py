"""Orders one by one: closed forms, noise that fades, and the Halton order against exact fractions."""

import math
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unmask.rand import Rand, seeded
from unmask.sampling.priorities import Confidence, Entropy, Halton, Margin, MaxLogit, Random, Raster, halton_order

ROWS, LENGTH, K = 4, 12, 6
ALL = [Confidence(), Confidence(0.0), MaxLogit(), Margin(), Entropy(), Random(), Raster(), Halton((3, 4))]


def some_logits(scale: float = 2.0) -> torch.Tensor:
    return torch.randn(ROWS, LENGTH, K, generator=torch.Generator().manual_seed(0)) * scale


def score(priority, logits: torch.Tensor, t: float = 0.25, seed: int = 0) -> torch.Tensor:
    rand = seeded(seed, len(logits))
    sample = (rand("token", logits.shape[1]) * logits.shape[2]).long()
    return priority(logits, sample, masked=torch.ones_like(sample, dtype=torch.bool), t=t, rand=rand)


@pytest.mark.parametrize("priority", ALL, ids=repr)
def test_scores_are_finite_and_nothing_is_changed(priority):
    logits = some_logits()
    kept = logits.clone()
    out = score(priority, logits)
    assert out.shape == (ROWS, LENGTH)
    assert out.isfinite().all()
    assert torch.equal(logits, kept)
    assert torch.equal(out, score(priority, logits))


@pytest.mark.parametrize("priority", ALL, ids=repr)
def test_each_order_needs_no_value_from_the_device(priority):
    """A meta tensor has no values, so anything that asks for one raises."""
    logits = torch.empty(ROWS, LENGTH, K, device="meta")
    sample = torch.empty(ROWS, LENGTH, device="meta", dtype=torch.long)
    rand = Rand(0, torch.arange(ROWS, device="meta"), ROWS)
    assert priority(logits, sample, masked=torch.ones_like(sample, dtype=torch.bool), t=0.5, rand=rand).shape == (
        ROWS,
        LENGTH,
    )


def test_margin_and_entropy_closed_forms():
    logits = some_logits()
    p = logits.double().softmax(-1)
    top = p.sort(-1, descending=True).values
    torch.testing.assert_close(score(Margin(), logits).double(), top[..., 0] - top[..., 1], atol=1e-6, rtol=1e-5)
    want = -torch.from_numpy(stats.entropy(p.numpy(), axis=-1))
    torch.testing.assert_close(score(Entropy(), logits).double(), want, atol=1e-6, rtol=1e-5)
    assert torch.equal(score(MaxLogit(), logits), logits.amax(-1))


def test_entropy_and_margin_at_their_ends():
    flat, sure = torch.zeros(1, 1, K), torch.full((1, 1, K), -math.inf)
    sure[..., 2] = 0.0
    assert score(Entropy(), flat).item() == pytest.approx(-math.log(K), rel=1e-6)
    assert score(Entropy(), sure).item() == 0
    assert score(Margin(), flat).item() == 0
    assert score(Margin(), sure).item() == 1
    assert score(Margin(), torch.zeros(1, 1, 1)).item() == 1, "one token leaves no doubt"


def test_confidence_is_the_log_probability_of_the_draw():
    logits = some_logits()
    rand = seeded(0, ROWS)
    sample = (rand("token", LENGTH) * K).long()
    want = logits.log_softmax(-1).gather(-1, sample[..., None])[..., 0]
    for priority, t in ((Confidence(0.0), 0.25), (Confidence(4.5), 1.0)):
        torch.testing.assert_close(
            priority(logits, sample, masked=torch.ones_like(sample, dtype=torch.bool), t=t, rand=rand), want
        )


def test_confidence_noise_is_gumbel_and_fades_linearly():
    logits = torch.zeros(500, 40, K)
    quiet = score(Confidence(0.0), logits)
    noises = {t: (score(Confidence(4.5), logits, t=t) - quiet).double() for t in (0.0, 0.5, 0.9)}
    assert stats.kstest((noises[0.0] / 4.5).flatten().numpy(), "gumbel_r").pvalue > 1e-3
    torch.testing.assert_close(noises[0.5], noises[0.0] / 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(noises[0.9], noises[0.0] / 10, atol=1e-5, rtol=1e-5)
    assert torch.equal(score(Confidence(4.5), logits, t=1.0), quiet), "exactly none at the last step"


@pytest.mark.parametrize("priority", [Random(), Confidence()], ids=repr)
def test_order_noise_is_not_the_token_noise(priority):
    """The same numbers for both would tie the order to the draw."""
    rand = seeded(0, 2000)
    sample = torch.zeros(2000, 1, dtype=torch.long)
    order = priority(
        torch.zeros(2000, 1, K), sample, masked=torch.ones_like(sample, dtype=torch.bool), t=0.5, rand=rand
    )
    assert stats.pearsonr(order[:, 0].numpy(), rand("token", 1)[:, 0].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("noise", [-1.0, math.inf, math.nan])
def test_confidence_refuses(noise):
    with pytest.raises(ValueError, match="noise"):
        Confidence(noise)


def test_random_is_uniform_and_new_in_each_step():
    logits = torch.zeros(20_000, 4, K)
    rand = seeded(3, 20_000)
    sample = torch.zeros(20_000, 4, dtype=torch.long)
    now, later = (
        Random()(logits, sample, masked=torch.ones_like(sample, dtype=torch.bool), t=0.5, rand=rand.at(step)).argsort(1)
        for step in (0, 1)
    )
    code = (now * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(code) == 24
    assert stats.chisquare(code.numpy()).pvalue > 1e-3
    assert (now == later).all(1).double().mean().item() == pytest.approx(1 / 24, abs=0.01)


def test_raster_goes_left_to_right():
    assert score(Raster(), some_logits()).argsort(1, descending=True).tolist() == [list(range(LENGTH))] * ROWS


# -- Halton -----------------------------------------------------------------------------------------------------------


def test_first_cells_of_the_published_order():
    cells = [divmod(i, 16) for i in halton_order((16, 16))[:6].tolist()]
    assert cells == [(8, 5), (4, 10), (12, 1), (2, 7), (10, 12), (6, 3)]


def mirrored(base: int, k: int) -> Fraction:
    """The radical inverse as an exact fraction."""
    value, weight = Fraction(0), Fraction(1)
    while k:
        weight /= base
        k, digit = divmod(k, base)
        value += weight * digit
    return value


def exact_order(grid: tuple[int, ...]) -> list[int]:
    """Cells in the order in which the Halton points enter them, without any rounding."""
    seen, k, cells = {}, 0, math.prod(grid)
    while len(seen) < cells:
        k += 1
        flat = 0
        for base, size in zip((2, 3, 5), grid, strict=False):
            flat = flat * size + math.floor(mirrored(base, k) * size)
        seen.setdefault(flat, k)
    return list(seen)


@pytest.mark.parametrize(
    "grid", [(1,), (7,), (16, 16), (1, 9), (12, 12), (9, 27), (48, 48), (2, 3, 5), (6, 6, 10), (4, 5, 6)], ids=str
)
def test_order_against_exact_fractions(grid):
    """Points on the very edge of a cell (sizes divisible by 3 and 5) must not be rounded into the cell before."""
    assert halton_order(grid).tolist() == exact_order(grid)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=2) | st.lists(st.integers(1, 12), min_size=3, max_size=3))
@settings(max_examples=40, deadline=None)
def test_every_cell_of_every_grid_comes_exactly_once(grid):
    cells = math.prod(grid)
    assert sorted(halton_order(tuple(grid)).tolist()) == list(range(cells))


def test_the_64_by_64_grid_is_complete():
    """The published code stops at 10,000 points and leaves 6 of these 4,096 cells masked."""
    assert sorted(halton_order((64, 64)).tolist()) == list(range(4096))


@pytest.mark.parametrize("grid", [(16, 16), (32, 32), (16, 24), (64, 64)], ids=str)
def test_the_first_quarter_is_well_spread(grid):
    def nearest(cells: torch.Tensor) -> float:
        at = torch.stack([cells // grid[1], cells % grid[1]], 1).double()
        return torch.cdist(at, at).fill_diagonal_(math.inf).amin(1).mean().item()

    quarter = math.prod(grid) // 4
    scattered = [
        nearest(torch.randperm(math.prod(grid), generator=torch.Generator().manual_seed(s))[:quarter]) for s in range(5)
    ]
    assert nearest(halton_order(grid)[:quarter]) > 1.08 * max(scattered)


def test_the_priority_follows_the_order():
    grid = (3, 4)
    order = score(Halton(grid), some_logits()).argsort(1, descending=True)
    assert order.tolist() == [halton_order(grid).tolist()] * ROWS


@pytest.mark.parametrize("grid", [(), (0, 4), (4, -1), (2, 2, 2, 2)])
def test_bad_grids_are_refused(grid):
    with pytest.raises(ValueError, match=r"Halton\(grid="):
        Halton(grid)


def test_a_grid_of_another_size_is_refused():
    with pytest.raises(ValueError, match="canvas"):
        score(Halton((4, 4)), some_logits())


def test_the_base_of_each_axis():
    """Rows follow base 2 and columns base 3: swapping them is another order."""
    swapped = [c * 16 + r for r, c in product(range(16), range(16))]
    assert halton_order((16, 16)).tolist() != [swapped[i] for i in halton_order((16, 16)).tolist()]
