"""Orders one by one: closed forms, noise that fades, and the Halton order against exact fractions."""

import math
from fractions import Fraction
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unmask.method.rand import Rand, seeded
from unmask.method.sampling.decode import decode
from unmask.method.sampling.extra_priorities import MarginRepulsion, Moment, compute_moment_temperatures
from unmask.method.sampling.priorities import (
    Confidence,
    Entropy,
    Halton,
    Margin,
    MaxLogit,
    Random,
    Raster,
    compute_halton_order,
)

ROWS, LENGTH, K = 4, 12, 6
ALL = [Confidence(), Confidence(0.0), MaxLogit(), Margin(), Entropy(), Random(), Raster(), Halton((3, 4)),
       Moment(), Moment(0.0), MarginRepulsion(1, (3, 4))]  # fmt: skip


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
    cells = [divmod(i, 16) for i in compute_halton_order((16, 16))[:6].tolist()]
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
    assert compute_halton_order(grid).tolist() == exact_order(grid)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=2) | st.lists(st.integers(1, 12), min_size=3, max_size=3))
@settings(max_examples=40, deadline=None)
def test_every_cell_of_every_grid_comes_exactly_once(grid):
    cells = math.prod(grid)
    assert sorted(compute_halton_order(tuple(grid)).tolist()) == list(range(cells))


def test_the_64_by_64_grid_is_complete():
    """The published code stops at 10,000 points and leaves 6 of these 4,096 cells masked."""
    assert sorted(compute_halton_order((64, 64)).tolist()) == list(range(4096))


@pytest.mark.parametrize("grid", [(16, 16), (32, 32), (16, 24), (64, 64)], ids=str)
def test_the_first_quarter_is_well_spread(grid):
    def nearest(cells: torch.Tensor) -> float:
        at = torch.stack([cells // grid[1], cells % grid[1]], 1).double()
        return torch.cdist(at, at).fill_diagonal_(math.inf).amin(1).mean().item()

    quarter = math.prod(grid) // 4
    scattered = [
        nearest(torch.randperm(math.prod(grid), generator=torch.Generator().manual_seed(s))[:quarter]) for s in range(5)
    ]
    assert nearest(compute_halton_order(grid)[:quarter]) > 1.08 * max(scattered)


def test_the_priority_follows_the_order():
    grid = (3, 4)
    order = score(Halton(grid), some_logits()).argsort(1, descending=True)
    assert order.tolist() == [compute_halton_order(grid).tolist()] * ROWS


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
    assert compute_halton_order((16, 16)).tolist() != [swapped[i] for i in compute_halton_order((16, 16)).tolist()]


# -- the moment order -------------------------------------------------------------------------------------------------


def some_law(n: int, k: int, seed: int = 0, sharpness: float = 2.0) -> torch.Tensor:
    logits = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * sharpness
    return logits.softmax(-1)


def law_of_confidence(p: torch.Tensor, alpha: float) -> torch.Tensor:
    """Of the first token: draw all places, then choose one in proportion to p(draw)^(1/alpha). All draws enumerated."""
    n, k = p.shape
    law = torch.zeros(n, k, dtype=torch.float64)
    for values in product(range(k), repeat=n):
        drawn = p[torch.arange(n), torch.tensor(values)]
        law[torch.arange(n), torch.tensor(values)] += drawn.prod() * drawn ** (1 / alpha) / (drawn ** (1 / alpha)).sum()
    return law


def law_of_moment(p: torch.Tensor, alpha: float) -> torch.Tensor:
    """Of the first token: p_i(v)^beta over all places and values."""
    power = p ** (1 + 1 / alpha)
    return power / power.sum()


def first_tokens(p: torch.Tensor, priority, temperature: float, rows: int = 60_000) -> torch.Tensor:
    """How often the first step (t = 1/2 after it) revealed each value at each place."""
    n, k = p.shape
    states = decode(lambda tokens, t: p.log().float().expand(rows, n, k), torch.full((rows, n), k), [1 - 1 / n, 0.0],
                    mask_id=k, rand=seeded(1, rows), priority=priority, temperature=[temperature, 1.0])  # fmt: skip
    next(states)
    state = next(states)
    return (state.revealed.long().argmax(1) * k + state.tokens.amin(1)).bincount(minlength=n * k)


@pytest.mark.parametrize("noise", [1.0, 2.0, 4.5])
def test_laws_of_the_first_token(noise):
    """Both samplers against their own enumerated law, and against the law of the other: with 2 masked they differ."""
    p = torch.tensor([[0.94, 0.03, 0.03], [0.5, 0.3, 0.2]], dtype=torch.float64)
    laws = [law_of_confidence(p, noise / 2), law_of_moment(p, noise / 2)]
    seen = [
        first_tokens(p, Confidence(noise), 1.0),
        first_tokens(p, Moment(noise), compute_moment_temperatures(noise, 2)[0]),
    ]
    for counts, law in zip(seen, laws, strict=True):
        assert stats.chisquare(counts.numpy(), (law.flatten() * counts.sum()).numpy()).pvalue > 1e-3
    for counts, law in zip(seen, reversed(laws), strict=True):
        assert stats.chisquare(counts.numpy(), (law.flatten() * counts.sum()).numpy()).pvalue < 1e-3


def test_moment_and_confidence_meet_as_more_places_are_masked():
    """One token of n: the laws differ by O(1/n), and are equal where no place can draw a better or a worse token."""
    apart = []
    for copies in (1, 2, 4, 6):
        p = torch.tensor([[0.9, 0.1], [0.6, 0.4]], dtype=torch.float64).repeat(copies, 1)
        apart.append(float((law_of_confidence(p, 1.0) - law_of_moment(p, 1.0)).abs().sum()))
    assert apart[0] > 0.03
    assert all(later < 0.75 * sooner for sooner, later in pairwise(apart))
    assert apart[-1] * 12 < 1.3 * apart[0] * 2
    even = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4], dtype=torch.float64)
    torch.testing.assert_close(law_of_confidence(even, 0.7), law_of_moment(even, 0.7))


def test_moment_temperatures():
    assert compute_moment_temperatures(4.0, 4) == pytest.approx([3 / 4, 2 / 3, 1 / 2, 1.0])
    assert compute_moment_temperatures(4.5, 1) == [1.0]
    p, t = some_law(1, 5), 0.5
    alpha = 4.0 * (1 - t)
    tempered = (p.log() / compute_moment_temperatures(4.0, 4)[1]).softmax(-1)
    torch.testing.assert_close(tempered, p ** (1 + 1 / alpha) / (p ** (1 + 1 / alpha)).sum())


def test_moment_falls_to_the_likeliest_first():
    logits = some_logits()
    best = logits.log_softmax(-1).amax(-1)
    assert torch.equal(score(Moment(0.0), logits), best)
    assert torch.equal(score(Moment(4.5), logits, t=1.0), best)
    torch.testing.assert_close(score(Moment(4.5), logits, t=1 - 1e-9).float(), best, atol=1e-5, rtol=1e-5)
    forbidden = logits.clone()
    forbidden[..., 1:] = -math.inf
    assert score(Moment(4.5), forbidden).isfinite().all()


# -- margins that keep a distance -------------------------------------------------------------------------------------


def greedy(margin: list[float], masked: list[bool], radius: int, grid: tuple[int, ...]) -> list[int]:
    """The masked places in the order they should be revealed: those taken greedily, then the others, all by margin."""
    where = list(product(*[range(n) for n in grid]))
    order = sorted((i for i in range(len(margin)) if masked[i]), key=lambda i: (-margin[i], i))
    taken: list[int] = []
    for i in order:
        if all(max(abs(a - b) for a, b in zip(where[i], where[j], strict=True)) > radius for j in taken):
            taken.append(i)
    return taken + [i for i in order if i not in taken]


@pytest.mark.parametrize("grid", [(40,), (6, 8), (3, 4, 5), (1, 9), (1,)], ids=str)
@pytest.mark.parametrize("radius", [0, 1, 2, 5, 100])
@pytest.mark.parametrize("ties", [False, True])
def test_repulsion_against_a_greedy_loop(grid, radius, ties):
    gen = torch.Generator().manual_seed(radius)
    cells = math.prod(grid)
    logits = torch.randn(6, cells, 4, generator=gen)
    if ties:
        logits = logits[:, :1].expand(6, cells, 4).clone()
        logits[:, : cells // 2] *= 2
    masked = torch.rand(6, cells, generator=gen) < torch.linspace(0.2, 1, 6)[:, None]
    rand = seeded(0, 6)
    got = MarginRepulsion(radius, grid)(logits, masked.long(), masked=masked, t=0.5, rand=rand)
    margin = Margin()(logits, masked.long(), masked=masked, t=0.5, rand=rand)
    for row in range(6):
        count = int(masked[row].sum())
        order = got[row].masked_fill(~masked[row], -math.inf).argsort(descending=True, stable=True)[:count]
        assert order.tolist() == greedy(margin[row].tolist(), masked[row].tolist(), radius, grid)


def test_repulsion_beyond_the_rounds_still_keeps_what_it_took_apart():
    """A slope of 200 margins is decided from its top, two cells a round; the rest comes next, in order."""
    best = torch.linspace(0.9, 0.6, 200, dtype=torch.float64)
    logits = torch.stack([best, 1 - best], dim=-1).log().float()[None]
    order = score(MarginRepulsion(1, (200,)), logits)[0].argsort(descending=True)
    assert order[:32].tolist() == list(range(0, 64, 2))
    assert order[32:168].tolist() == list(range(64, 200))
    assert order[168:].tolist() == list(range(1, 64, 2))


def test_repulsion_of_radius_zero_is_the_margin_order():
    logits = some_logits()
    got, want = (score(p, logits).argsort(1, descending=True) for p in (MarginRepulsion(0, (12,)), Margin()))
    assert torch.equal(got, want)


def test_neighbours_are_not_revealed_together():
    logits = torch.randn(50, 64, 8, generator=torch.Generator().manual_seed(0))
    states = decode(lambda tokens, t: logits, torch.full((50, 64), 8), [7 / 8, 0.0], mask_id=8, rand=seeded(0, 50),
                    priority=MarginRepulsion(1, (8, 8)))  # fmt: skip
    next(states)
    places = next(states).revealed.nonzero()[:, 1].view(50, 8)
    at = torch.stack([places // 8, places % 8], -1).float()
    apart = torch.cdist(at, at, p=math.inf) + torch.eye(8) * 9
    assert apart.min() >= 2


@pytest.mark.parametrize("make", [
    lambda: Moment(-1.0), lambda: Moment(math.inf), lambda: MarginRepulsion(-1, (4,)), lambda: MarginRepulsion(1, ()),
    lambda: MarginRepulsion(1, (0, 3)), lambda: MarginRepulsion(1, (2, 2, 2, 2)),
    lambda: score(MarginRepulsion(1, (4, 4)), some_logits()),
])  # fmt: skip
def test_new_orders_refuse(make):
    with pytest.raises(ValueError):
        make()
