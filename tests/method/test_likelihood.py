"""Likelihood against brute force: all probabilities sum to 1, and the bound is the mean over all orders."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.method.likelihood import compute_exact_nll, estimate_bound
from unmask.method.masking import ABSENT
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.method.sampling.priorities import Confidence, Entropy, Halton, Margin, MaxLogit, Random, Raster
from unmask.method.schedules import Cosine, Power, ratios

K, LENGTH = 3, 4
ALL = torch.tensor(list(itertools.product(range(K), repeat=LENGTH)))
TABLE = torch.randn(LENGTH, K, LENGTH, K + 1, generator=torch.Generator().manual_seed(3))


def network(tokens, t):
    """Logits of every place from every other one; no joint distribution has these for its conditionals."""
    seen = torch.nn.functional.one_hot(tokens.clamp(min=0), K + 1).float() * (tokens != ABSENT)[..., None]
    return torch.einsum("bmj,ikmj->bik", seen, TABLE) + TABLE[:, :, 0, 0]


class Joint:
    """The true conditionals of a random joint distribution over all K^LENGTH sequences, by enumeration."""

    def __init__(self) -> None:
        self.log_p = torch.randn(len(ALL), generator=torch.Generator().manual_seed(5), dtype=torch.float64).log_softmax(
            0
        )

    def __call__(self, tokens, t):
        agrees = ((tokens[:, None] == ALL) | (tokens[:, None] == K)).all(-1)
        weight = agrees * self.log_p.exp()
        values = torch.nn.functional.one_hot(ALL, K).double()
        p = torch.einsum("bs,slk->blk", weight, values)
        return (p / p.sum(-1, keepdim=True)).clamp(min=1e-300).log()


def score(predict, tokens, steps, priority, **options):
    plan = ratios(options.pop("schedule", Power()), steps)
    return compute_exact_nll(
        predict, tokens, plan, mask_id=K, rand=seeded(0, len(tokens)), priority=priority, **options
    )


ORDERS = [Confidence(0.0), MaxLogit(), Margin(), Entropy(), Raster(), Halton((LENGTH,)), Halton((2, 2))]


@pytest.mark.parametrize("order", ORDERS, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_probabilities_of_all_sequences_sum_to_one(order, steps, temperature):
    total = (-score(network, ALL, steps, order, temperature=temperature).sum(1)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("order", [Random(), Confidence(2.0)], ids=repr)
def test_and_for_noise_that_is_the_same_whatever_the_data(order):
    one = torch.zeros(len(ALL), dtype=torch.long)
    rand = seeded(4, 1)
    same = type(rand)(rand.seed, one, 1)
    nats = compute_exact_nll(network, ALL, ratios(Cosine(), 3), mask_id=K, rand=same, priority=order)
    assert (-nats.sum(1)).exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("order", ORDERS, ids=repr)
def test_one_token_at_a_time_the_true_conditionals_give_the_true_probability(order):
    joint = Joint()
    torch.testing.assert_close(-score(joint, ALL, LENGTH, order).sum(1), joint.log_p, atol=1e-5, rtol=1e-5)


def test_tokens_drawn_together_cost_what_their_dependence_is_worth():
    """In one step the product of the marginals is all that can be had: the difference is the total correlation."""
    joint = Joint()
    p = joint.log_p.exp()
    together = (p * score(joint, ALL, 1, Raster()).sum(1)).sum()
    marginals = joint(torch.full((1, LENGTH), K), 0.0)[0].exp()
    entropies = -(marginals * marginals.log()).sum()
    assert together.item() == pytest.approx(entropies.item(), rel=1e-6)
    assert together > -(p * joint.log_p).sum()


@pytest.mark.parametrize("order", [Margin(), Entropy(), Halton((LENGTH,))], ids=repr)
def test_samples_come_as_often_as_the_likelihood_says(order):
    """The law of what `decode` draws, by counting, against `exact`: for orders that choose before they draw."""
    rows, plan = 60_000, ratios(Power(), 2)
    for state in decode(network, torch.full((rows, LENGTH), K), plan, mask_id=K, rand=seeded(7, rows), priority=order):
        drawn = state.tokens
    seen = (drawn @ torch.tensor([K**i for i in reversed(range(LENGTH))])).bincount(minlength=len(ALL))
    p = (-score(network, ALL, 2, order).sum(1)).exp()
    z = (seen - rows * p) / (rows * p * (1 - p)).sqrt()
    assert z[rows * p > 5].abs().max() < 5


def test_the_bound_is_the_mean_over_all_orders():
    tokens = ALL[::7]
    orders = []
    for order in itertools.permutations(range(LENGTH)):
        place = torch.tensor(order).argsort()
        nats = score(
            network, tokens, LENGTH, lambda logits, sample, place=place, **_: -place.float().expand(sample.shape)
        )
        orders.append(nats.sum(1))
    want = torch.stack(orders).mean(0)
    passes = 4000
    got = estimate_bound(network, tokens, mask_id=K, rand=seeded(1, len(tokens)), passes=passes)
    error = got.std(1) / math.sqrt(passes)
    assert ((got.mean(1) - want).abs() < 5 * error).all()
    joint = Joint()
    every = estimate_bound(joint, tokens, mask_id=K, rand=seeded(2, len(tokens)), passes=passes)
    assert ((every.mean(1) + joint.log_p[::7]).abs() < 5 * every.std(1) / math.sqrt(passes)).all(), (
        "tight for the truth"
    )


@given(st.integers(0, 100), st.integers(1, LENGTH))
@settings(max_examples=20, deadline=None)
def test_absent_and_known_tokens_cost_nothing(seed, length):
    tokens = ALL[torch.randperm(len(ALL), generator=torch.Generator().manual_seed(seed))[:5]].clone()
    tokens[:, length:] = ABSENT
    nats = score(network, tokens, 2, Raster())
    assert (nats[:, length:] == 0).all()
    assert (nats[:, :length] > 0).all()
    known = torch.arange(LENGTH).expand(tokens.shape) < length // 2
    given_some = score(network, tokens, 2, Raster(), known=known)
    assert (given_some[known] == 0).all()
    every = estimate_bound(network, tokens, mask_id=K, rand=seeded(seed, 5), passes=3)
    assert every.isfinite().all()
    other = tokens.masked_fill(tokens == ABSENT, 1)
    assert (
        not torch.allclose(estimate_bound(network, other, mask_id=K, rand=seeded(seed, 5), passes=3), every)
        or length == LENGTH
    )


def test_nothing_of_the_data_is_seen_before_it_is_paid_for():
    """Rows that agree in what earlier steps revealed must see the same network input: no look at the answer."""
    seen = []

    def spy(tokens, t):
        seen.append(tokens)
        return network(tokens, t)

    score(spy, ALL, LENGTH, Margin())
    for step, canvas in enumerate(seen):
        assert ((canvas == K).sum(1) == LENGTH - step).all()
    assert (seen[0] == K).all()


@pytest.mark.parametrize("order", [*ORDERS, Random()], ids=repr)
def test_every_order_scores_rows_that_end_early(order):
    tokens = ALL[::9].clone()
    tokens[:, 2:] = ABSENT
    nats = score(network, tokens, 2, order)
    assert nats.isfinite().all()
    assert (nats[:, 2:] == 0).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf])
def test_a_temperature_that_makes_no_distribution_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        score(network, ALL, 2, Raster(), temperature=temperature)
