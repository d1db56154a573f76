"""What need not be computed is not: places that no step reveals, rows that are done, and equal rows of a first step.

Every saving is held against a plain function of the same model, which computes all: the tokens must be equal.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.method.guidance import guided
from unmask.method.masking import ABSENT
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.ramps import LinearRamp
from unmask.method.rand import seeded
from unmask.method.sampling.adaptive import EntropyBound, Threshold, decode_adaptive
from unmask.method.sampling.ancestral import decode_ancestral
from unmask.method.sampling.decode import decode
from unmask.method.sampling.priorities import Confidence, Entropy, Halton, Margin, Random, Raster
from unmask.method.schedules import Cosine, ratios

K, GRID, CLASSES = 7, (3, 4), 5
LENGTH = 12
SMALL = TransformerConfig(dim=24, depth=2, heads=2, num_classes=CLASSES)
PLAIN = replace(SMALL, num_classes=0)
VARIANTS = [
    SMALL, PLAIN, replace(SMALL, prefix=True), replace(SMALL, registers=3), replace(SMALL, rotary=False),
    replace(SMALL, gated=False, qk_norm=False), replace(SMALL, prefix=True, registers=2, depth=1),
    replace(PLAIN, padded=True),
]  # fmt: skip


def build(config: TransformerConfig = SMALL) -> MaskedTransformer:
    """A model with every parameter away from its start."""
    torch.manual_seed(0)
    model = MaskedTransformer(config, K, GRID)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.3)
    return model


def some_tokens(rows: int) -> torch.Tensor:
    return torch.randint(0, K + 1, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


ORDERS = [Halton(GRID), Random(), Raster(), Confidence(), Margin(), Entropy()]
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])
EMPTY = torch.full((6, LENGTH), K)
PARTS = torch.where(torch.arange(LENGTH) < torch.tensor([0, 1, 3, 6, 9, 12])[:, None], K, some_tokens(6) % K)
CANVASES = {"empty": EMPTY, "parts": PARTS, "one": PARTS[3:4].expand(6, -1)}
every_canvas = pytest.mark.parametrize("canvas", CANVASES.values(), ids=CANVASES)
every_scale = pytest.mark.parametrize("scale", [1.0, 0.0, 3.0, LinearRamp(3.0)], ids=str)


class Counted:
    """A model that counts the rows and places of its forward passes."""

    takes_places = True

    def __init__(self, config=SMALL):
        self.model, self.rows, self.places = build(config), [], []

    def __call__(self, tokens, condition, at=None):
        self.rows.append(len(tokens))
        self.places.append(tokens.numel() if at is None else int(at.sum()))
        assert not torch.is_grad_enabled()
        return self.model(tokens, condition, at)


def only_all(model):
    """Return a function of the same model that says nothing of places, so that all are computed."""
    return lambda tokens, condition: model(tokens, condition)


@pytest.mark.parametrize("config", VARIANTS, ids=range(len(VARIANTS)))
@given(chosen=st.lists(st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=5))
def test_the_logits_of_places_are_those_of_all(config, chosen):
    model, at = build(config), torch.tensor(chosen)
    tokens = some_tokens(len(at))
    if config.padded:
        tokens[:, 9:], at[:, 9:] = ABSENT, False
    with torch.no_grad():
        assert torch.allclose(model(tokens, None, at), model(tokens)[at], atol=1e-5)
    learnt = model(tokens, None, at)
    assert torch.allclose(learnt, model(tokens)[at], atol=1e-5)


@given(st.lists(st.booleans(), min_size=6 * LENGTH, max_size=6 * LENGTH), st.sampled_from([0.0, 1.0, 2.5]),
       st.sampled_from([0.0, 0.5]), st.sampled_from([*CANVASES]), st.booleans())  # fmt: skip
def test_guidance_of_places_is_that_of_all(chosen, scale, t, canvas, conditional):
    model, places = Counted(SMALL if conditional else PLAIN), torch.tensor(chosen).view(6, LENGTH)
    labels, scale = (LABELS, scale) if conditional else (None, 1.0)
    with torch.no_grad():
        full = guided(only_all(model), labels, scale=scale)(CANVASES[canvas], t)
        assert torch.allclose(guided(model, labels, scale=scale)(CANVASES[canvas], t, places), full[places], atol=1e-5)
        assert torch.allclose(guided(model, labels, scale=scale)(CANVASES[canvas], t), full, atol=1e-5)


@every_canvas
@every_scale
@pytest.mark.parametrize("order", ORDERS, ids=repr)
def test_decoding_gives_equal_tokens_and_computes_less(order, scale, canvas):
    def sample(model):
        predict = guided(model, LABELS, scale=scale)
        states = decode(predict, canvas, ratios(Cosine(), 5), mask_id=K, rand=seeded(3, 6), priority=order)
        return [state.tokens for state in states]

    some, everything = Counted(), Counted()
    for a, b in zip(sample(some), sample(only_all(everything)), strict=True):
        assert torch.equal(a, b)
    assert sum(some.places) < sum(everything.places)
    if isinstance(order, Halton) and scale == 1.0 and canvas is PARTS:
        assert sum(some.places) == int((canvas == K).sum()), "each place is computed once, in the step that reveals it"


@every_canvas
@every_scale
@pytest.mark.parametrize("rule", [EntropyBound(0.5), Threshold(0.4)], ids=repr)
def test_adaptive_decoding_leaves_out_rows_that_are_done(rule, scale, canvas):
    def sample(model):
        predict = guided(model, LABELS, scale=scale)
        states = decode_adaptive(predict, canvas, mask_id=K, rand=seeded(3, 6), rule=rule)
        return [state.tokens for state in states]

    some, everything = Counted(), Counted()
    tokens = sample(some)
    for a, b in zip(tokens, sample(only_all(everything)), strict=True):
        assert torch.equal(a, b)
    live = [int((before == K).any(1).sum()) for before, _ in pairwise(tokens)]
    twins = [1 if scale in (0, 1) or (step == 0 and callable(scale)) else 2 for step in range(len(live))]
    rest = [rows * twin for rows, twin in zip(live, twins, strict=True)]
    first = rest[0] if canvas is PARTS else len(LABELS.unique()) + (twins[0] == 2) if scale != 0 else 1
    assert some.rows == [first, *rest[1:]]


@every_canvas
def test_rows_that_ancestral_sampling_leaves_alone_are_not_computed(canvas):
    def sample(model):
        predict = guided(model, LABELS)
        *_, last = decode_ancestral(predict, canvas, ratios(Cosine(), 20), mask_id=K, rand=seeded(3, 6))
        return last.tokens

    some, everything = Counted(), Counted()
    assert torch.equal(sample(some), sample(only_all(everything)))
    assert sum(some.rows) < sum(everything.rows)


def test_a_first_step_computes_each_class_once_and_the_unconditional_twin_once():
    model = Counted()
    with torch.no_grad():
        guided(model, LABELS, scale=3.0)(EMPTY, 0.0)
        guided(model, LABELS, scale=3.0)(EMPTY, 0.5)
        guided(model, LABELS, scale=3.0)(PARTS, 0.0)
    assert model.rows == [len(LABELS.unique()) + 1, 12, 12]
    assert len(LABELS.unique()) < CLASSES, "otherwise the count would say nothing"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about itself
def test_nothing_is_asked_that_waits_for_a_gpu_or_compiles_again():
    model = build()
    assert model.takes_places
    assert not build().to("meta").takes_places
    model.compile()
    assert not model.takes_places
