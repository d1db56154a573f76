"""Ancestral sampling against the enumerated law; one forward pass per event; and a token of probability 1e-7."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats
from toy_joint import JOINT, enumerated, exact, fits, word_counts

from unmask.method import schedules as S
from unmask.method.rand import Rand, seeded
from unmask.method.sampling.ancestral import decode_ancestral
from unmask.method.sampling.decode import decode, sample_tokens
from unmask.method.sampling.priorities import Random

K, LENGTH = 11, 24
TABLE = torch.randn(K + 1, K, generator=torch.Generator().manual_seed(0))


def predict(tokens: torch.Tensor, t: float) -> torch.Tensor:
    return TABLE[tokens].mean(1, keepdim=True) * 4 + TABLE[tokens].roll(1, 1)


def canvas(rows: int = 5) -> torch.Tensor:
    """Rows with different holes; the first has none, the last is all masked."""
    gen = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, K, (rows, LENGTH), generator=gen)
    return torch.where(torch.rand(rows, LENGTH, generator=gen) < torch.linspace(0, 1, rows)[:, None], K, tokens)


def run(tokens, ratios, rand=None, predict=predict, **options):
    return list(decode_ancestral(predict, tokens, ratios, mask_id=K, rand=rand or seeded(0, len(tokens)), **options))


@pytest.mark.parametrize("ratios", [[0.0], [0.6, 0.0], [0.9, 0.5, 0.5, 0.1, 0.0]], ids=str)
def test_the_law_is_the_enumerated_one(ratios):
    rows = 20_000
    *_, end = decode_ancestral(exact, torch.full((rows, 3), 2), ratios, mask_id=2, rand=seeded(0, rows))
    law = enumerated(ratios, lambda before, after: 0.0)
    assert fits(word_counts(end.tokens), law) > 1e-3
    assert fits(word_counts(end.tokens), JOINT) < 1e-9, "tokens drawn together do not see each other"


@pytest.mark.parametrize("fine", [True, False])
def test_one_token_a_pass_has_the_joint_law(fine):
    rows, start = 4_000, torch.full((4_000, 3), 2)
    if fine:
        *_, end = decode_ancestral(exact, start, S.ratios(S.Power(), 500), mask_id=2, rand=seeded(0, rows))
    else:
        *_, end = decode(exact, start, S.ratios(S.Power(), 3), mask_id=2, rand=seeded(0, rows), priority=Random())
    assert fits(word_counts(end.tokens), JOINT) > 1e-3


def test_how_many_stay_masked_is_binomial():
    ratios, rows = [0.7, 0.25, 0.0], 4_000
    states = run(torch.full((rows, LENGTH), K), ratios)
    for state, ratio in zip(states[1:], ratios, strict=True):
        masked = (state.tokens == K).sum(1).bincount(minlength=LENGTH + 1).double()
        law = torch.from_numpy(stats.binom(LENGTH, ratio).pmf(range(LENGTH + 1)))
        common = law * rows > 5
        if ratio:
            seen = torch.cat([masked[common], masked[~common].sum()[None]])
            want = torch.cat([law[common], law[~common].sum()[None]]) * rows
            assert stats.chisquare(seen.numpy(), want.numpy()).pvalue > 1e-3
        else:
            assert masked[0] == rows


def test_one_forward_pass_per_event():
    times = []

    def watched(tokens, t):
        times.append(t)
        return predict(tokens, t)

    states = run(torch.full((1, LENGTH), K), S.ratios(S.Cosine(), 100_000), predict=watched)
    assert len(times) == LENGTH, "with this many steps no two tokens share one"
    assert [int(s.revealed.sum()) for s in states[1:]] == [1] * LENGTH
    u = seeded(0, 1)("reveal", LENGTH)[0].sort(descending=True).values
    falls = torch.arccos(u) * 2 / math.pi  # the cosine schedule passes u at this time
    assert times == pytest.approx(falls.tolist(), abs=2e-5)
    assert [s.t for s in states[1:]] == pytest.approx(falls.tolist(), abs=2e-5)


def test_contract():
    start, ratios = canvas(), S.ratios(S.Cosine(), 6)
    kept = start.clone()
    states = run(start, ratios)
    assert torch.equal(start, kept)
    for before, after in pairwise(states):
        assert after.revealed.any()
        assert (before.tokens[after.revealed] == K).all()
        assert torch.equal(after.tokens[~after.revealed], before.tokens[~after.revealed])
    end = states[-1].tokens
    assert (end < K).all()
    assert torch.equal(end[start < K], start[start < K])
    for rows in ([0, 1], [4], [3, 1]):
        alone = run(start[rows], ratios, Rand(0, torch.tensor(rows), 5))[-1].tokens
        assert torch.equal(alone, end[rows])
    assert len(run(start[:1], ratios)) == 1, "nothing unknown asks nothing"


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 3.0}, {"top_k": 2}, {"top_p": 0.3}], ids=str)
def test_every_option_changes_the_result(options):
    start = torch.full((4, LENGTH), K)
    plain, other = (run(start, [0.7, 0.4, 0.0], **o)[-1].tokens for o in ({}, options))
    assert not torch.equal(plain, other)


@pytest.mark.parametrize("ratios", [[], [0.5], [0.2, 0.4, 0.0], [1.2, 0.0], [math.nan, 0.0], [0.5, -0.1, 0.0]], ids=str)
def test_bad_ratios_are_refused(ratios):
    with pytest.raises(ValueError, match="ratios"):
        run(canvas(), ratios)


def test_counts_given_to_decode_must_add_up():
    with pytest.raises(ValueError, match="add up"):
        list(decode(predict, torch.full((1, LENGTH), K), torch.tensor([[3], [4]]), mask_id=K, rand=seeded(0, 1)))


# -- a token of probability 1e-7 --------------------------------------------------------------------------------------

RARE = 1e-7
TRIALS = 2_000_000  # all within a share 2^-14 of the noise, so as telling as 3e10 draws


def is_rare_enough(hits: int) -> bool:
    """Exact binomial test: within that share of the noise the rare token has the probability RARE * 2^14."""
    return bool(stats.binomtest(hits, TRIALS, RARE * 2**14).pvalue > 1e-3)


@pytest.mark.parametrize("place", [0, 1])
def test_a_token_of_1e_7_comes_at_its_rate(place):
    """Noise only from the end at which the rare token lies."""
    p = torch.tensor([1 - RARE, RARE] if place else [RARE, 1 - RARE], dtype=torch.float64)
    u = seeded(0, 1)("token", TRIALS) * 2.0**-14
    u = 1 - u if place else u
    hits = int((sample_tokens(p.log().float().expand(1, TRIALS, 2), 1.0, None, None, u) == place).sum())
    assert is_rare_enough(hits), hits


def test_single_precision_gumbel_noise_fails_that_test():
    """Uniforms of 24 bits, as `torch.rand` makes: the rare token needs a Gumbel above 16.1, and 16.6 is the largest."""
    log_p = torch.tensor([RARE, 1 - RARE], dtype=torch.float64).log().float()
    noise = seeded(0, 1)
    cells = (noise("rare", TRIALS)[0] * 2**10).floor() + 1  # the top 2^-14 of the 2^24 values below 1
    top = (1 - cells * 2.0**-24).float()
    other = (noise("other", TRIALS)[0] * 2**24).floor().clamp(min=1).float() * 2.0**-24
    rare, common = (lp - torch.log(-torch.log(u)) for lp, u in zip(log_p, (top, other), strict=True))
    hits = int((rare > common).sum())
    assert not is_rare_enough(hits)
    assert hits < 0.85 * TRIALS * RARE * 2**14, "a quarter of them is missing"
