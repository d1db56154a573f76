"""What the decoding loop refuses: foreign tokens, logits of another width, and logits that are no distribution."""

import math

import pytest
import torch

from unmask.method import schedules as S
from unmask.method.rand import seeded
from unmask.method.sampling.decode import State, decode
from unmask.method.sampling.priorities import Confidence, Entropy, Halton, Margin, MaxLogit, Random, Raster

K, LENGTH = 11, 24
PRIORITIES = [Confidence(), Confidence(0.0), MaxLogit(), Margin(), Entropy(), Random(), Raster(), Halton((4, 6))]
every_priority = pytest.mark.parametrize("priority", PRIORITIES, ids=repr)
TABLE = torch.randn(K + 1, K, generator=torch.Generator().manual_seed(0))


def predict(tokens: torch.Tensor, t: float) -> torch.Tensor:
    return TABLE[tokens]


def truth_of(rows: int) -> torch.Tensor:
    return torch.randint(0, K, (rows, LENGTH), generator=torch.Generator().manual_seed(0))


def run(predict, tokens, ratios, **options) -> list[State]:
    return list(decode(predict, tokens, ratios, mask_id=K, rand=seeded(0, len(tokens)), **options))


@pytest.mark.parametrize("bad", [K + 1, -1])
def test_tokens_outside_the_vocabulary_are_refused(bad):
    tokens = truth_of(2)
    tokens[1, 3] = bad
    with pytest.raises(ValueError, match="mask_id"):
        run(predict, tokens, [0.0])


@pytest.mark.parametrize("width", [K - 1, K + 1])
def test_logits_of_another_width_are_refused(width):
    """K + 1 logits would let the mask be drawn, the bug of several code bases."""
    with pytest.raises(ValueError, match="shape"):
        run(lambda tokens, t: torch.zeros(*tokens.shape, width), torch.full((2, LENGTH), K), [0.5, 0.0])


@every_priority
def test_nan_logits_raise_at_the_end_and_reveal_no_known_token(priority):
    tokens = truth_of(2)
    tokens[:, :6] = K

    def broken(tokens, t):
        return torch.full((*tokens.shape, K), math.nan)

    states = decode(broken, tokens, [0.5, 0.0], mask_id=K, rand=seeded(0, 2), priority=priority)
    *_, end = next(states), next(states), next(states)
    assert torch.equal(end.tokens[:, 6:], tokens[:, 6:])
    with pytest.raises(ValueError, match="NaN"):
        next(states)


def test_one_nan_in_one_step_is_enough():
    def broken(tokens, t):
        logits = predict(tokens, t)
        if t == 0.25:
            logits[1, 3, 2] = math.nan
        return logits

    with pytest.raises(ValueError, match="NaN"):
        run(broken, torch.full((2, LENGTH), K), S.ratios(S.Cosine(), 4))


@pytest.mark.parametrize("value", [pytest.param(math.inf), pytest.param(-math.inf)])
def test_logits_without_a_distribution_raise(value):
    with pytest.raises(ValueError):
        run(lambda tokens, t: torch.full((*tokens.shape, K), value), torch.full((2, LENGTH), K), [0.5, 0.0])


def test_minus_infinity_forbids_a_token():
    def some(tokens, t):
        logits = predict(tokens, t)
        logits[..., :7] = -math.inf
        return logits

    for priority in PRIORITIES:
        out = run(some, torch.full((16, LENGTH), K), S.ratios(S.Cosine(), 4), priority=priority)[-1].tokens
        assert out.min() == 7, priority
