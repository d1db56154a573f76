"""Guidance: the one formula under both conventions, the number of forwards it costs, and the ramps' closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.method.guidance import NULL, guided
from unmask.method.ramps import CosineRamp, Interval, LinearRamp

ROWS, LENGTH, VALUES, CLASSES = 3, 5, 7, 4


class Spy:
    """A conditional model that remembers its calls; each row's logits depend on its own tokens and class only."""

    def __init__(self) -> None:
        gen = torch.Generator().manual_seed(0)
        self.by_class = torch.randn(CLASSES + 1, VALUES, generator=gen)
        self.by_token = torch.randn(VALUES + 1, VALUES, generator=gen)
        self.calls: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def __call__(self, tokens: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        self.calls.append((tokens, condition))
        rows = torch.full((len(tokens),), NULL) if condition is None else condition
        return self.by_token[tokens] * (1 + self.by_class[rows][:, None])

    @property
    def batch_sizes(self) -> list[int]:
        return [len(tokens) for tokens, _ in self.calls]


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, VALUES + 1, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def classes() -> torch.Tensor:
    return torch.tensor([2, 0, 3])


@given(st.floats(-3, 12))
@settings(max_examples=40, deadline=None)
def test_both_conventions_agree(w):
    """valeoai writes (1 + w) c - w u, Muse u + s (c - u): equal for s = 1 + w."""
    tokens = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % (VALUES + 1)
    classes = torch.tensor([2, 0, 3])
    model = Spy()
    c, u = model(tokens, classes), model(tokens, None)
    got = guided(model, classes, scale=1.0 + w)(tokens, 0.5)
    torch.testing.assert_close(got, (1 + w) * c - w * u, atol=2e-4, rtol=1e-4)


def test_w_is_not_s(tokens, classes):
    model = Spy()
    c, u = model(tokens, classes), model(tokens, None)
    assert not torch.allclose(guided(model, classes, scale=3.0)(tokens, 0.5), (1 + 3) * c - 3 * u)


def test_scale_one_is_the_plain_model_and_costs_no_null_forward(tokens, classes):
    model = Spy()
    got = guided(model, classes)(tokens, 0.3)
    assert model.batch_sizes == [ROWS]
    assert torch.equal(got, model(tokens, classes))


def test_scale_zero_is_the_unconditional_model_and_costs_one_forward(tokens, classes):
    model = Spy()
    got = guided(model, classes, scale=0.0)(tokens, 0.3)
    assert model.batch_sizes == [ROWS]
    assert model.calls[0][1].tolist() == [NULL] * ROWS
    assert torch.equal(got, model(tokens, None))


@pytest.mark.parametrize("scale", [2.0, 0.5, -1.0, 10.0])
def test_other_scales_cost_one_batched_forward(scale, tokens, classes):
    model = Spy()
    guided(model, classes, scale=scale)(tokens, 0.3)
    assert model.batch_sizes == [2 * ROWS]
    both, condition = model.calls[0]
    assert torch.equal(both, torch.cat([tokens, tokens]))
    assert condition.tolist() == [*classes.tolist(), *[NULL] * ROWS]


def test_another_null_is_used(tokens, classes):
    """A negative prompt is nothing but another unconditional twin."""
    model, null = Spy(), torch.tensor([1, 1, 1])
    got = guided(model, classes, null, scale=2.0)(tokens, 0.0)
    c, u = model(tokens, classes), model(tokens, null)
    torch.testing.assert_close(got, 2 * c - u)
    assert not torch.allclose(got, guided(model, classes, scale=2.0)(tokens, 0.0))


def test_nothing_of_the_caller_is_changed(tokens, classes):
    kept = tokens.clone(), classes.clone()
    guided(Spy(), classes, scale=2.0)(tokens, 0.0)
    assert torch.equal(tokens, kept[0])
    assert torch.equal(classes, kept[1])


def test_without_a_condition(tokens):
    model = Spy()
    got = guided(model, None)(tokens, 0.4)
    assert model.calls[0][1] is None
    assert torch.equal(got, model(tokens, None))
    for scale in (2.0, 0.0, LinearRamp(3.0), CosineRamp(3.0), Interval(2.0)):
        with pytest.raises(ValueError, match="needs a condition"):
            guided(model, None, scale=scale)(tokens, 0.4)
    for nothing in (1.0, LinearRamp(1.0), Interval(2.0, low=0.5), lambda t: 1.0):
        assert torch.equal(guided(model, None, scale=nothing)(tokens, 0.4), got)


@pytest.mark.parametrize("kind", [LinearRamp, CosineRamp, Interval])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_ramps_refuse_numbers_that_are_not_finite(kind, bad):
    with pytest.raises(ValueError, match="finite"):
        kind(bad)


def test_a_ramp_is_asked_at_each_time(tokens, classes):
    model, asked = Spy(), []

    def ramp(t: float) -> float:
        asked.append(t)
        return 1 + t

    predict = guided(model, classes, scale=ramp)
    c, u = model(tokens, classes), model(tokens, None)
    model.calls.clear()
    for t in (0.0, 0.25, 0.75):
        torch.testing.assert_close(predict(tokens, t), u + (1 + t) * (c - u))
    assert asked == [0.0, 0.25, 0.75]
    assert model.batch_sizes == [ROWS, 2 * ROWS, 2 * ROWS], "at scale 1 the null forward is saved"


def test_interval_saves_forwards_outside(tokens, classes):
    model = Spy()
    predict = guided(model, classes, scale=Interval(4.0, 0.25, 0.75))
    for t in (0.0, 0.24, 0.25, 0.5, 0.75, 0.76):
        predict(tokens, t)
    assert model.batch_sizes == [ROWS, ROWS, 2 * ROWS, 2 * ROWS, 2 * ROWS, ROWS]


@given(st.floats(0, 1), st.floats(-2, 15), st.floats(-2, 5))
@settings(max_examples=60, deadline=None)
def test_linear_ramp(t, scale, start):
    ramp = LinearRamp(scale, start)
    assert ramp(0.0) == start
    assert ramp(1.0) == pytest.approx(scale)
    assert ramp(t) == pytest.approx((1 - t) * start + t * scale, abs=1e-12)
    assert LinearRamp(scale)(0.0) == 1


@given(st.integers(1, 64), st.floats(0, 20), st.floats(0.1, 5))
@settings(max_examples=60, deadline=None)
def test_cosine_ramp_is_titoks_power_cosine(steps, scale, power):
    """TiTok: scale_pow = (1 - cos(pi (step / T)^power)) / 2; cfg = scale_pow (scale - 1) + 1."""
    ramp = CosineRamp(scale, power)
    for step in range(steps):
        scale_pow = (1 - math.cos(((step / steps) ** power) * math.pi)) * 1 / 2
        assert ramp(step / steps) == pytest.approx((scale - 1) * scale_pow + 1, abs=1e-12)
    assert ramp(0.0) == 1
    assert ramp(1.0) == pytest.approx(scale)


def test_the_power_of_a_cosine_ramp_matters():
    assert CosineRamp(5.0)(0.5) == pytest.approx(3.0)
    assert CosineRamp(5.0, 3.0)(0.5) < 1.2


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.0, 1.1), (0.6, 0.4), (math.nan, 1.0)])
def test_interval_refuses(low, high):
    with pytest.raises(ValueError, match="low <= high"):
        Interval(2.0, low, high)
