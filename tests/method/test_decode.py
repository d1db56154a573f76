"""The decoding loop against truths that are known: what may change, and how many a step reveals."""

import math
from itertools import pairwise

import pytest
import torch

from unmask.decoding import counts as C
from unmask.method import schedules as S
from unmask.method.rand import Rand, seeded
from unmask.method.sampling.adaptive import Threshold, decode_adaptive
from unmask.method.sampling.ancestral import decode_ancestral
from unmask.method.sampling.decode import State, decode, sample_tokens
from unmask.method.sampling.priorities import Confidence, Entropy, Halton, Margin, MaxLogit, Random, Raster
from unmask.method.sampling.remasking import Rescale, decode_remasking

K, GRID = 11, (4, 6)
LENGTH = GRID[0] * GRID[1]
PRIORITIES = [Confidence(), Confidence(0.0), MaxLogit(), Margin(), Entropy(), Random(), Raster(), Halton(GRID)]
every_priority = pytest.mark.parametrize("priority", PRIORITIES, ids=repr)


class Predict:
    """Logits that depend on the whole row, so that what was revealed before matters. Counts its calls."""

    def __init__(self, sharpness: float = 2.0) -> None:
        gen = torch.Generator().manual_seed(0)
        self.table = torch.randn(K + 1, K, generator=gen) * sharpness
        self.place = torch.randn(LENGTH, K, generator=gen) * sharpness
        self.times: list[float] = []

    def __call__(self, tokens: torch.Tensor, t: float) -> torch.Tensor:
        self.times.append(t)
        return self.place + self.table[tokens].mean(1, keepdim=True) + self.table[tokens].roll(1, 1)


def truth_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, K, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def holes(rows: int, seed: int = 0, share: float = 0.5) -> torch.Tensor:
    """True where a token is unknown; every row has its own number of holes."""
    u = torch.rand(rows, LENGTH, generator=torch.Generator().manual_seed(seed))
    return u < torch.linspace(0, 1, rows)[:, None] * 2 * share


def last(states) -> torch.Tensor:
    *_, end = states
    return end.tokens


def run(predict, tokens, ratios, seed: int = 0, **options) -> list[State]:
    options.setdefault("mask_id", K)
    return list(decode(predict, tokens, ratios, rand=seeded(seed, len(tokens)), **options))


# -- the oracle contract: what every order must do -------------------------------------------------------------------


@every_priority
@pytest.mark.parametrize("steps", [1, 2, 7, LENGTH, 3 * LENGTH])
def test_a_known_truth_is_decoded_exactly(priority, steps):
    truth, unknown = truth_of(9), holes(9)
    start = torch.where(unknown, K, truth)

    def oracle(tokens, t):
        return torch.nn.functional.one_hot(truth, K).float() * 50

    states = run(oracle, start, S.ratios(S.Cosine(), steps), priority=priority)
    assert torch.equal(states[-1].tokens, truth)
    assert torch.equal(states[0].tokens, start)
    want = S.count_reveals(unknown.sum(1), S.ratios(S.Cosine(), steps))
    busy = want.any(1).nonzero().flatten().tolist()
    assert len(states) == len(busy) + 1
    for step, (before, after) in zip(busy, pairwise(states), strict=True):
        assert torch.equal(after.revealed.sum(1), want[step])
        assert (before.tokens[after.revealed] == K).all(), "only unknown tokens are revealed"
        assert torch.equal(after.tokens[~after.revealed], before.tokens[~after.revealed])
        assert (after.tokens[after.revealed] < K).all()
        assert after.step == step + 1
        assert after.t == pytest.approx((step + 1) / steps)


@every_priority
def test_known_tokens_and_the_callers_tensors_are_left_alone(priority):
    truth, unknown = truth_of(6), holes(6)
    start = torch.where(unknown, K, truth)
    kept, logits = start.clone(), []

    def predict(tokens, t):
        out = Predict()(tokens, t)
        logits.append((out, out.clone(), tokens, tokens.clone()))
        return out

    rand = seeded(0, 6)
    rows = rand.rows.clone()
    states = list(decode(predict, start, S.ratios(S.Power(2.0), 5), mask_id=K, rand=rand, priority=priority, top_k=4,
                         top_p=0.9))  # fmt: skip
    assert torch.equal(states[-1].tokens[~unknown], truth[~unknown])
    assert (states[-1].tokens < K).all()
    assert torch.equal(start, kept)
    assert torch.equal(rand.rows, rows)
    for out, out_kept, tokens, tokens_kept in logits:
        assert torch.equal(out, out_kept)
        assert torch.equal(tokens, tokens_kept)


@every_priority
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rows_do_not_know_of_each_other(priority, temperature):
    """Rows with different holes in one batch come out as if decoded alone, in pairs, or in another order."""
    start = torch.where(holes(6, 3), K, truth_of(6, 3))
    ratios, predict = S.ratios(S.Arccos(), 7), Predict()

    def rows_alone(rows: list[int]) -> torch.Tensor:
        rand = Rand(4, torch.tensor(rows), 6)
        return last(decode(predict, start[rows], ratios, mask_id=K, rand=rand, priority=priority,
                           temperature=temperature))  # fmt: skip

    together = rows_alone([0, 1, 2, 3, 4, 5])
    assert torch.equal(torch.cat([rows_alone([r]) for r in range(6)]), together)
    assert torch.equal(torch.cat([rows_alone([0, 1]), rows_alone([2, 3, 4, 5])]), together)
    assert torch.equal(rows_alone([5, 2, 0]), together[[5, 2, 0]])


@every_priority
def test_same_seed_same_sample_whatever_the_batch(priority):
    ratios, predict = S.ratios(S.Cosine(), 6), Predict()
    start = torch.full((8, LENGTH), K)
    big = run(predict, start, ratios, 1, priority=priority)[-1].tokens
    assert torch.equal(run(predict, start, ratios, 1, priority=priority)[-1].tokens, big)
    assert torch.equal(run(predict, start[:3], ratios, 1, priority=priority)[-1].tokens, big[:3])
    assert not torch.equal(run(predict, start, ratios, 2, priority=priority)[-1].tokens, big)
    assert not torch.equal(big[0], big[1]), "rows have their own noise"


STYLES = {
    "google": lambda n, t: C.count_google(n, t, S.Cosine()),
    "valeoai_v1": lambda n, t: C.count_valeoai_v1(n, t, S.Arccos()),
    "halton": C.count_halton,
    "halton_confidence": lambda n, t: C.count_halton_confidence(n, t, S.Arccos()),
    "x_transformers": lambda n, t: C.count_x_transformers(n, t, S.Power(1.0)),
    "muse": lambda n, t: C.count_muse(n, t, S.Cosine()),
    "nanofm": C.count_nanofm,
    "llada": C.count_llada,
    "fourm": C.count_fourm,
}


@pytest.mark.parametrize("style", STYLES)
def test_each_style_reveals_exactly_its_counts(style):
    counts = STYLES[style](LENGTH, 5)
    assert min(counts) >= 1, "chosen so that no step is empty"
    states = run(Predict(), torch.full((3, LENGTH), K), S.ratios_from_counts(counts))
    assert [s.revealed.sum(1).tolist() for s in states[1:]] == [[c] * 3 for c in counts]


def test_counts_with_empty_steps_still_end_and_reveal_all():
    states = run(Predict(), torch.full((2, LENGTH), K), S.ratios_from_counts([4, 0, 0, 20]))
    assert [int(s.revealed[0].sum()) for s in states[1:]] == [4, 1, 1, 18]


def test_one_step_asks_once():
    predict = Predict()
    states = run(predict, torch.full((2, LENGTH), K), [0.0])
    assert predict.times == [0.0]
    assert len(states) == 2
    assert states[-1].revealed.all()
    assert states[-1].t == 1


def test_times_are_step_over_steps():
    predict = Predict()
    run(predict, torch.full((2, LENGTH), K), S.ratios(S.Power(1.0), 4))
    assert predict.times == [0.0, 0.25, 0.5, 0.75]


def test_noise_is_new_in_each_step():
    """Each step draws from the uniforms of its own step, and hands the same step to the priority."""
    predict, seen = Predict(), []

    def spy(logits, sample, *, masked, t, rand):
        seen.append((logits, sample, masked, t, rand))
        return -torch.arange(LENGTH).float().expand(sample.shape)

    run(predict, torch.full((3, LENGTH), K), S.ratios(S.Cosine(), 4), priority=spy)
    for step, (logits, sample, masked, t, rand) in enumerate(seen):
        u = seeded(0, 3).at(step)("token", LENGTH)
        assert torch.equal(sample[masked], sample_tokens(logits, 1.0, None, None, u)[masked])
        assert (sample < K).all(), "the priority sees the canvas with every masked token drawn"
        assert (rand.step, t) == (step, (step + 1) / 4)


def test_more_steps_than_unknown_wastes_no_pass_and_ends_at_the_end():
    tokens = truth_of(3)
    tokens[0, :2] = K
    tokens[2, 5:10] = K
    predict = Predict()
    states = run(predict, tokens, S.ratios(S.Cosine(), 50))
    assert len(predict.times) == 6, "2 tokens at steps 25 and 50, and 5 at 10, 20, 30, 40 and 50"
    assert predict.times == pytest.approx([0.18, 0.38, 0.48, 0.58, 0.78, 0.98])
    assert (states[-1].tokens < K).all()
    assert [s.revealed.sum(1).tolist() for s in states[1:]] == [[0, 0, 1]] * 2 + [[1, 0, 0]] + [[0, 0, 1]] * 2 + [
        [1, 0, 1]
    ]
    assert (states[-1].step, states[-1].t) == (50, 1.0)


def test_noise_has_fallen_to_nothing_at_the_last_step_also_of_a_small_hole():
    seen = []

    def watch(logits, sample, *, masked, t, rand):
        seen.append(t)
        return logits.amax(-1)

    tokens = truth_of(2)
    tokens[1, 3:6] = K
    run(Predict(), tokens, S.ratios(S.Cosine(), 8), priority=watch)
    assert seen == [3 / 8, 6 / 8, 1.0]


def test_remasking_keeps_the_best_of_all_that_was_ever_drawn():
    """A score that falls with time: what was revealed first would stay, unless the new draws may take its place."""
    tokens = truth_of(2)
    tokens[0, 4:16] = K
    tokens[1] = K
    known, ratios = tokens < K, S.ratios(S.Power(1.0), 4)

    def turning(logits, sample, *, masked, t, rand):
        place = torch.arange(LENGTH) if round(4 * t) % 2 else -torch.arange(LENGTH)
        return place.float().expand(sample.shape)

    fixed = run(Predict(), tokens, ratios, priority=turning)
    free = run(Predict(), tokens, ratios, priority=turning, remask=True)
    for one, other in zip(fixed, free, strict=True):
        assert torch.equal((one.tokens == K).sum(1), (other.tokens == K).sum(1)), "the counts are the schedule's"
        assert torch.equal(other.tokens[known], tokens[known]), "what was given stays"
    assert (fixed[1].tokens[1] < K).nonzero().flatten().tolist() == list(range(18, 24))
    assert (free[1].tokens[1] < K).nonzero().flatten().tolist() == list(range(18, 24))
    assert (fixed[2].tokens[1] < K).nonzero().flatten().tolist() == [*range(6), *range(18, 24)]
    assert (free[2].tokens[1] < K).nonzero().flatten().tolist() == list(range(12))
    assert (free[-1].tokens < K).all()


@pytest.mark.parametrize("sampler", ["decode", "adaptive", "ancestral", "remasking"])
def test_the_network_is_asked_without_gradients(sampler):
    """Also between the steps, where the caller runs, gradients are on or off as the caller has them."""
    asked = []

    def predict(tokens, t):
        asked.append(torch.is_grad_enabled())
        return torch.zeros(*tokens.shape, K, requires_grad=True)

    tokens, rand = torch.full((2, LENGTH), K), seeded(0, 2)
    plan = S.ratios(S.Cosine(), 3)
    states = {
        "decode": lambda: decode(predict, tokens, plan, mask_id=K, rand=rand),
        "adaptive": lambda: decode_adaptive(predict, tokens, mask_id=K, rand=rand, rule=Threshold(0.5)),
        "ancestral": lambda: decode_ancestral(predict, tokens, plan, mask_id=K, rand=rand),
        "remasking": lambda: decode_remasking(predict, tokens, plan, mask_id=K, rand=rand, rule=Rescale(0.5)),
    }[sampler]()
    for _ in states:
        assert torch.is_grad_enabled()
    assert asked
    assert not any(asked)


def test_nothing_unknown_asks_nothing():
    tokens, predict = truth_of(3), Predict()
    states = run(predict, tokens, S.ratios(S.Cosine(), 8))
    assert predict.times == []
    assert len(states) == 1
    assert torch.equal(states[0].tokens, tokens)


def test_an_empty_batch():
    states = run(Predict(), torch.zeros(0, LENGTH, dtype=torch.long), [0.5, 0.0])
    assert [s.tokens.shape for s in states] == [(0, LENGTH)]


# -- temperature, top-k, top-p ----------------------------------------------------------------------------------------


def test_temperature_zero_is_argmax():
    predict, start = Predict(), torch.full((4, LENGTH), K)
    for before, state in pairwise(run(predict, start, S.ratios(S.Cosine(), 6), temperature=0.0)):
        best = Predict()(before.tokens, 0.0).argmax(-1)
        assert torch.equal(state.tokens[state.revealed], best[state.revealed])


def test_a_list_of_temperatures_is_used_step_by_step():
    start, ratios = torch.full((4, LENGTH), K), S.ratios(S.Cosine(), 4)
    plain = run(Predict(), start, ratios, temperature=1.0)
    assert torch.equal(run(Predict(), start, ratios, temperature=[1.0] * 4)[-1].tokens, plain[-1].tokens)
    late = run(Predict(), start, ratios, temperature=[1.0, 1.0, 1.0, 5.0])
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(late[:4], plain, strict=False))
    assert not torch.equal(late[-1].tokens, plain[-1].tokens)


@pytest.mark.parametrize("temperature", [-1.0, math.inf, math.nan, [1.0], [1.0, -1.0], [1.0, 1.0, 1.0]])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        run(Predict(), torch.full((1, LENGTH), K), [0.5, 0.0], temperature=temperature)


@pytest.mark.parametrize("options", [
    {"temperature": 3.0}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.3}, {"priority": Confidence(0.0)},
    {"priority": Confidence(20.0)}, {"priority": Raster()}, {"priority": Random()}, {"priority": Halton(GRID)},
    {"priority": Margin()}, {"priority": Entropy()}, {"priority": MaxLogit()}, {"seed": 1},
])  # fmt: skip
def test_every_option_changes_the_result(options):
    start, ratios = torch.full((4, LENGTH), K), S.ratios(S.Cosine(), 6)
    plain, other = (run(Predict(0.7), start, ratios, **o)[-1].tokens for o in ({}, options))
    assert not torch.equal(plain, other)
