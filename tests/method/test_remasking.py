"""Samplers that take tokens back: enumerated laws, reduction to ancestral sampling, a toy critic, token editing."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats
from test_decode_waits import NoWaiting, UnwatchedRand
from toy_joint import JOINT, enumerated, exact, fits, word_counts

from unmask.method import schedules as S
from unmask.method.rand import Rand, seeded
from unmask.method.sampling.ancestral import decode_ancestral
from unmask.method.sampling.decode import decode
from unmask.method.sampling.remasking import (
    Cap,
    ConfidenceWeighted,
    Rescale,
    compute_sigma_max,
    decode_remasking,
    edit_tokens,
)

K, LENGTH = 11, 24
TABLE = torch.randn(K + 1, K, generator=torch.Generator().manual_seed(0))
RULES = [Cap(0.3), Rescale(0.7), ConfidenceWeighted(), ConfidenceWeighted(Cap(0.9))]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def predict(tokens: torch.Tensor, t: float) -> torch.Tensor:
    return TABLE[tokens].mean(1, keepdim=True) * 4 + TABLE[tokens].roll(1, 1)


def canvas(rows: int = 5) -> torch.Tensor:
    """Rows with different holes; the first has none, the last is all masked."""
    gen = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, K, (rows, LENGTH), generator=gen)
    return torch.where(torch.rand(rows, LENGTH, generator=gen) < torch.linspace(0, 1, rows)[:, None], K, tokens)


def run(tokens, ratios, rand=None, rule=RULES[0], **options):
    return list(
        decode_remasking(predict, tokens, ratios, mask_id=K, rand=rand or seeded(0, len(tokens)), rule=rule, **options)
    )


def plateau(before, after, confidence):
    """The paper's loop: masks again only while the schedule stands still."""
    return 0.2 if before == after else 0.0


@pytest.mark.parametrize(
    ("ratios", "rule", "sigma"),
    [
        ([0.5, 0.45, 0.4, 0.35, 0.0], Cap(0.6), lambda b, a: min(0.6, 1 if b == 1 else a / (1 - b))),
        ([0.7, 0.4, 0.2, 0.0], Rescale(0.8), lambda b, a: 0.8 * (1 if b == 1 else min(1, a / (1 - b)))),
        ([0.5, 0.25, 0.25, 0.25, 0.0], plateau, lambda b, a: 0.2 if b == a else 0),
    ],
    ids=["cap", "rescale", "loop"],
)
def test_the_law_is_the_enumerated_one(ratios, rule, sigma):
    rows = 20_000
    *_, end = decode_remasking(exact, torch.full((rows, 3), 2), ratios, mask_id=2, rand=seeded(0, rows), rule=rule)
    counts = word_counts(end.tokens)
    assert fits(counts, enumerated(ratios, sigma)) > 1e-3
    assert fits(counts, enumerated(ratios, lambda before, after: 0.0)) < 1e-3, "taking back changes the law"


def test_taking_back_comes_nearer_to_the_joint_law():
    """As in the paper: with more passes at the same schedule, parallel mistakes are mended."""
    ratios = [0.5, *[0.2] * 12, 0.0]
    plain, mended = (enumerated(ratios, s) for s in (lambda b, a: 0.0, lambda b, a: 0.2 if a == b else 0.0))
    assert (mended - JOINT).abs().sum() < 0.8 * (plain - JOINT).abs().sum()


@pytest.mark.parametrize("rule", [Cap(0.0), Rescale(0.0), ConfidenceWeighted(Cap(0.0)), lambda b, a, c: 0.0])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sigma_zero_is_ancestral_sampling_bit_for_bit(rule, temperature):
    start, ratios = canvas(), S.ratios(S.Cosine(), 9)
    want = {
        s.step: s
        for s in decode_ancestral(
            predict, start, ratios, mask_id=K, rand=seeded(3, 5), temperature=temperature, top_k=5
        )
    }
    got = run(start, ratios, seeded(3, 5), rule, temperature=temperature, top_k=5)
    assert len(got) == 10
    for state in got:
        if state.step in want:
            assert torch.equal(state.tokens, want[state.step].tokens)
            assert torch.equal(state.revealed, want[state.step].revealed)
            assert state.t == want[state.step].t
        else:
            assert not state.revealed.any()


@pytest.mark.parametrize("rule", RULES[:2], ids=repr)
def test_the_number_of_masked_tokens_stays_on_schedule(rule):
    rows, ratios = 1_000, [0.8, 0.5, 0.4, 0.1, 0.0]
    states = run(torch.full((rows, LENGTH), K), ratios, rule=rule)
    for state, ratio in zip(states[1:], ratios, strict=True):
        left = int((state.tokens == K).sum())
        assert stats.binomtest(left, rows * LENGTH, ratio).pvalue > 1e-4 if ratio else left == 0


def test_sigma_of_each_rule():
    confidence = torch.tensor([[0.2, 0.9, math.inf], [math.inf] * 3])
    assert compute_sigma_max(1.0, 0.9) == 1
    assert compute_sigma_max(0.5, 0.2) == 0.4
    assert compute_sigma_max(0.9, 0.8) == 1
    assert Cap(0.1)(0.5, 0.2, confidence) == 0.1
    assert Cap(0.5)(0.5, 0.2, confidence) == 0.4
    assert Rescale(0.5)(0.5, 0.2, confidence) == 0.2
    weights = torch.tensor([math.exp(-0.2), math.exp(-0.9), 0.0])
    want = torch.stack([weights / weights.sum() * 0.4, torch.zeros(3)])
    torch.testing.assert_close(ConfidenceWeighted()(0.5, 0.2, confidence), want)
    torch.testing.assert_close(ConfidenceWeighted(Rescale(0.5))(0.5, 0.2, confidence), want / 2)


def test_confidence_is_that_of_the_draw_and_is_forgotten_with_it():
    seen = []

    def watch(before, after, confidence):
        seen.append(confidence)
        return 0.5

    start = canvas()
    states = run(start, [0.8, 0.6, 0.4, 0.2, 0.0], rule=watch)
    want = torch.full(start.shape, math.inf)
    for before, after, confidence in zip(states, states[1:], seen, strict=False):
        torch.testing.assert_close(confidence, want)
        p = predict(before.tokens, 0.0).softmax(-1).gather(-1, after.tokens.clamp(max=K - 1)[..., None])[..., 0]
        want = torch.where(after.revealed, p, torch.where(after.tokens == K, math.inf, want))
    assert any(((b.tokens < K) & (a.tokens == K)).any() for b, a in pairwise(states))


@every_rule
def test_contract(rule):
    start, ratios = canvas(), S.ratios(S.Cosine(), 6)
    kept = start.clone()
    states = run(start, ratios, rule=rule)
    end = states[-1].tokens
    assert torch.equal(start, kept)
    assert (end < K).all()
    for state in states:
        assert torch.equal(state.tokens[start < K], start[start < K]), "what was given stays, in every step"
    for rows in ([0, 1], [4], [3, 1]):
        alone = run(start[rows], ratios, Rand(0, torch.tensor(rows), 5), rule)[-1].tokens
        assert torch.equal(alone, end[rows])


@every_rule
def test_never_waits_for_the_device(rule):
    rand = UnwatchedRand(0, torch.arange(5), 5)
    states = decode_remasking(predict, canvas(), S.ratios(S.Cosine(), 4), mask_id=K, rand=rand, rule=rule)
    next(states)
    with NoWaiting():
        assert [next(states).step for _ in range(4)] == [1, 2, 3, 4]
    assert next(states, None) is None


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.3}, *({"rule": r} for r in RULES[1:])], ids=str
)
def test_every_option_changes_the_result(options):
    start = torch.full((8, LENGTH), K)
    plain, other = (run(start, S.ratios(S.Power(), 12), **o)[-1].tokens for o in ({}, options))
    assert not torch.equal(plain, other)


@pytest.mark.parametrize("rule", [Cap, Rescale])
@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_bad_eta_is_refused(rule, eta):
    with pytest.raises(ValueError, match="eta"):
        rule(eta)


@pytest.mark.parametrize("sigma", [-1.0, 5.0])
def test_a_rule_beyond_the_limits_is_cut(sigma):
    want = Cap(0.0) if sigma < 0 else Rescale(1.0)
    start, ratios = canvas(), [0.8, 0.5, 0.4, 0.1, 0.0]
    assert torch.equal(
        run(start, ratios, rule=lambda b, a, c: sigma)[-1].tokens, run(start, ratios, rule=want)[-1].tokens
    )


def test_broken_logits_raise():
    with pytest.raises(ValueError, match="NaN"):
        list(decode_remasking(lambda tokens, t: torch.full((*tokens.shape, K), math.nan), canvas(), [0.5, 0.0],
                              mask_id=K, rand=seeded(0, 5), rule=Cap(0.1)))  # fmt: skip


# -- a critic ---------------------------------------------------------------------------------------------------------


def test_a_critic_is_a_priority_that_sees_the_filled_canvas():
    """Neighbours must be equal. Independent draws break that; a critic of the whole canvas finds where, and decoding
    with `remask` draws those again. A critic network would take `sample` just as this one does."""

    def neighbours(tokens, t):
        values = torch.nn.functional.one_hot(tokens, 3)[..., :2].float()  # a masked token says nothing
        return values.roll(1, 1) + values.roll(-1, 1)

    def critic(logits, sample, *, masked, t, rand):
        assert (sample < 2).all()
        return (sample == sample.roll(1, 1)).float() + (sample == sample.roll(-1, 1)).float()

    def quarrels(remask: bool, priority) -> float:
        *_, end = decode(neighbours, torch.full((400, 16), 2), S.ratios(S.Power(), 16), mask_id=2,
                         rand=seeded(0, 400), priority=priority, remask=remask)  # fmt: skip
        assert (end.tokens < 2).all()
        return (end.tokens != end.tokens.roll(1, 1)).double().sum(1).mean().item()

    assert quarrels(True, critic) < 0.8 * quarrels(False, critic)


# -- token editing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.6])
def test_editing_against_a_plain_loop(margin):
    tokens, logits = canvas(), torch.randn(5, LENGTH, K, generator=torch.Generator().manual_seed(4)) * 2
    editable = torch.rand(5, LENGTH, generator=torch.Generator().manual_seed(5)) < 0.7
    kept, want = tokens.clone(), tokens.tolist()
    for b, row in enumerate(tokens.tolist()):
        for i, own in enumerate(row):
            p = logits[b, i].double().softmax(0).tolist()
            if editable[b, i] and own != K and max(p) - p[own] > margin:
                want[b][i] = p.index(max(p))
    got = edit_tokens(logits, tokens, editable, margin)
    assert got.tolist() == want
    assert torch.equal(tokens, kept)
    assert not torch.equal(got, tokens)
    assert torch.equal(edit_tokens(logits, tokens, editable, 1.0), tokens)
