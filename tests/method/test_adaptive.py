"""Adaptive decoding: the rules against plain loops, exact law at the safe end, and rows that end on their own."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from toy_joint import JOINT, exact, fits, word_counts

from unmask.method.rand import Rand, seeded
from unmask.method.sampling.adaptive import EntropyBound, Threshold, decode_adaptive
from unmask.method.sampling.decode import choose_by_score

K, LENGTH = 7, 12
TABLE = torch.randn(K + 1, K, generator=torch.Generator().manual_seed(0))
RULES = [EntropyBound(0.7), EntropyBound(3.0), Threshold(0.5), Threshold()]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def predict(tokens: torch.Tensor, t: float) -> torch.Tensor:
    known = (tokens < K).float().mean(1)[:, None, None]
    return (TABLE[tokens].roll(1, 1) + TABLE[tokens].mean(1, keepdim=True)) * (1 + 4 * known)


def canvas() -> torch.Tensor:
    """Rows with different holes; the first has none, the last is all masked."""
    gen = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, K, (6, LENGTH), generator=gen)
    return torch.where(torch.rand(6, LENGTH, generator=gen) < torch.linspace(0, 1, 6)[:, None], K, tokens)


def run(tokens, rule, rand=None, predict=predict, **options):
    return list(decode_adaptive(predict, tokens, mask_id=K, rand=rand or seeded(0, len(tokens)), rule=rule, **options))


def chosen(rule, p: torch.Tensor, masked: torch.Tensor) -> set[int]:
    score, count = rule(p.log()[None].float(), masked[None])
    return set(choose_by_score(score, masked[None], count)[0].nonzero().flatten().tolist())


some_rows = st.tuples(st.integers(0, 10_000), st.integers(1, 10), st.floats(0.1, 6))


@given(some_rows, st.floats(0, 6))
@settings(max_examples=80)
def test_entropy_bound_against_every_prefix(row, gamma):
    seed, n, sharpness = row
    gen = torch.Generator().manual_seed(seed)
    p = (torch.randn(n, K, generator=gen) * sharpness).softmax(-1)
    masked = torch.rand(n, generator=gen) < 0.7
    entropy = stats.entropy(p.double().numpy(), axis=-1)
    order = sorted(masked.nonzero().flatten().tolist(), key=lambda i: entropy[i])

    def largest(bound: float) -> set[int]:
        prefixes = [order[:m] for m in range(len(order) + 1)]
        inside = [x for x in prefixes if not x or sum(entropy[x]) - max(entropy[x]) <= bound]
        return set(max(inside, key=len))

    assert chosen(EntropyBound(gamma), p, masked) in (largest(max(0, gamma - 1e-5)), largest(gamma + 1e-5))


@given(some_rows, st.floats(0.05, 1))
@settings(max_examples=80)
def test_threshold_against_a_plain_loop(row, tau):
    seed, n, sharpness = row
    gen = torch.Generator().manual_seed(seed)
    p = (torch.randn(n, K, generator=gen) * sharpness).softmax(-1)
    masked = torch.rand(n, generator=gen) < 0.7
    got = chosen(Threshold(tau), p, masked)
    assert all((i in got) == (bool(masked[i]) and p[i].max().item() >= tau) for i in range(n)
               if abs(p[i].max().item() - tau) > 1e-5)  # fmt: skip


def test_no_doubt_reveals_all_at_once_and_full_doubt_one_by_one():
    sure, none = torch.full((1, 5, K), -math.inf), torch.zeros(1, 5, K)
    sure[..., 2] = 0.0
    masked = torch.tensor([[True, False, True, True, True]])
    for rule in RULES:
        assert rule(sure, masked)[1].clamp(max=4).item() == 4
    assert EntropyBound(0.0)(none, masked)[1].item() == 1
    assert Threshold(0.9)(none, masked)[1].item() == 0
    states = run(torch.full((2, LENGTH), K), Threshold(0.9), predict=lambda tokens, t: torch.zeros(*tokens.shape, K))
    assert [s.revealed.sum(1).tolist() for s in states[1:]] == [[1, 1]] * LENGTH


def test_a_bound_of_zero_has_the_joint_law():
    rows = 20_000
    for rule, exactly in ((EntropyBound(0.0), True), (EntropyBound(2.0), False)):
        *_, end = decode_adaptive(exact, torch.full((rows, 3), 2), mask_id=2, rand=seeded(0, rows), rule=rule)
        assert (fits(word_counts(end.tokens), JOINT) > 1e-3) == exactly


@every_rule
def test_contract(rule):
    start = canvas()
    kept = start.clone()
    states = run(start, rule)
    assert torch.equal(start, kept)
    unknown = int((start == K).sum())
    for before, after in pairwise(states):
        assert torch.equal(after.revealed.any(1), (before.tokens == K).any(1)), "at least one of each unfinished row"
        assert (before.tokens[after.revealed] == K).all()
        assert torch.equal(after.tokens[~after.revealed], before.tokens[~after.revealed])
        assert after.t == pytest.approx(1 - int((after.tokens == K).sum()) / unknown)
        assert after.step == before.step + 1
    end = states[-1]
    assert (end.tokens < K).all()
    assert end.t == 1
    for rows in ([0, 1], [5], [3, 1]):
        assert torch.equal(run(start[rows], rule, Rand(0, torch.tensor(rows), 6))[-1].tokens, end.tokens[rows])


def test_rows_depend_on_no_other_even_when_predict_reads_the_time():
    def timed(tokens, t):
        return predict(tokens, t) * (1 + 5 * t)

    start, rule = canvas(), Threshold(0.6)
    together = run(start, rule, predict=timed)[-1].tokens
    for row in range(6):
        alone = run(start[[row]], rule, Rand(0, torch.tensor([row]), 6), predict=timed)[-1].tokens
        assert torch.equal(alone[0], together[row])


def test_bolder_rules_need_fewer_passes():
    start = torch.full((3, LENGTH), K)
    for bold, shy in ((EntropyBound(8.0), EntropyBound(0.1)), (Threshold(0.4), Threshold(0.99))):
        assert len(run(start, bold)) < len(run(start, shy)) <= LENGTH + 1


@pytest.mark.parametrize("max_steps", [1, 2, 5, LENGTH, 40])
@every_rule
def test_max_steps_bounds_the_passes(rule, max_steps):
    times = []

    def watched(tokens, t):
        times.append(t)
        return predict(tokens, t)

    states = run(canvas(), rule, predict=watched, max_steps=max_steps)
    assert (states[-1].tokens < K).all()
    assert len(times) <= max_steps
    assert times == [step / max_steps for step in range(len(times))]


def test_a_bound_on_the_passes_is_met_evenly():
    flat = run(
        torch.full((1, 10), K), Threshold(1.0), predict=lambda tokens, t: torch.zeros(*tokens.shape, K), max_steps=4
    )
    assert [int(s.revealed.sum()) for s in flat[1:]] == [3, 3, 2, 2]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.2}, {"max_steps": 2}], ids=str)
def test_every_option_changes_the_result(options):
    start = torch.full((8, LENGTH), K)
    plain, other = (run(start, EntropyBound(0.7), **o)[-1].tokens for o in ({}, options))
    assert not torch.equal(plain, other)


def test_nothing_unknown_asks_nothing():
    def unasked(tokens, t):
        raise AssertionError("nothing to predict")

    assert len(run(canvas()[:1], Threshold(), predict=unasked)) == 1


@pytest.mark.parametrize("make", [
    lambda: EntropyBound(-1.0), lambda: EntropyBound(math.nan), lambda: EntropyBound(math.inf), lambda: Threshold(0.0),
    lambda: Threshold(1.1), lambda: run(canvas(), Threshold(), max_steps=0),
    lambda: run(canvas(), Threshold(), temperature=-1.0),
])  # fmt: skip
def test_bad_numbers_are_refused(make):
    with pytest.raises(ValueError):
        make()


def test_broken_logits_raise_and_still_end():
    with pytest.raises(ValueError, match="NaN"):
        run(canvas(), EntropyBound(1.0), predict=lambda tokens, t: torch.full((*tokens.shape, K), math.nan))
