"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): turn a conditional model into a plain `predict`.

The guided logits are null + s (cond - null): s = 1 is the plain conditional model, s = 0 the unconditional one. Papers
that write (1 + w) cond - w null, such as the MaskGIT reproduction report, mean w = s - 1: their 3 is our 4.
Strong guidance harms early in decoding and helps late (arXiv 2507.08965). Hence the ramps: callables of t, the time of
the forward pass, from 0 (all masked) towards 1 (all known). They start at 1, so the first step has no guidance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int

from unmask.errors import FACTORS, check_ranges
from unmask.lazy import Tensor, torch

NULL = -1
"""The class id for "no condition"; every class embedding has a row for it."""

Condition = Int[Tensor, "b"] | None
Predict = Callable[[Int[Tensor, "b l"], float], Float[Tensor, "b l k"]]
"""`predict(tokens, t) -> logits`: all that a sampler sees of a model; t is 0 where all is masked."""
ConditionalModel = Callable[..., Float[Tensor, "..."]]
GuidanceRamp = Callable[[float], float]


def _check_finite(ramp: object, *numbers: float) -> None:
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{ramp}: all numbers must be finite; use scale 1 for no guidance")


@dataclass(frozen=True)
class LinearRamp:
    """start + (scale - start) t. The linear w ramp of valeoai's report is LinearRamp(scale=w + 1).

    Since November 2023 its code uses the time i/(T-1) instead of i/T, so it reaches the full scale in the last step.
    """

    scale: float
    """Guidance scale at t = 1."""
    start: float = 1.0
    """Guidance scale at t = 0; 1 is no guidance."""

    def __post_init__(self) -> None:
        _check_finite(self, self.scale, self.start)
        check_ranges(self, {"scale": (-1e9, 1e9), "start": (-1e9, 1e9)})

    def __call__(self, t: float) -> float:
        return self.start + (self.scale - self.start) * t


@dataclass(frozen=True)
class CosineRamp:
    """1 + (scale - 1) (1 - cos(pi t^power)) / 2."""

    scale: float
    """Guidance scale at t = 1."""
    power: float = 1.0
    """Positive: 1 is the cosine ramp, other values are TiTok's power-cosine."""

    def __post_init__(self) -> None:
        _check_finite(self, self.scale, self.power)
        if self.power <= 0:
            raise ValueError(f"{self}: power must be positive; 1 is the cosine ramp")
        check_ranges(self, {"scale": (-1e9, 1e9), "power": FACTORS})

    def __call__(self, t: float) -> float:
        return 1 + (self.scale - 1) * (1 - math.cos(math.pi * t**self.power)) / 2


@dataclass(frozen=True)
class Interval:
    """`scale` while low <= t <= high, else 1, which saves the null forward pass (arXiv 2404.07724)."""

    scale: float
    """Guidance scale inside the interval; 1 is no guidance."""
    low: float = 0.0
    """First time with guidance, at least 0."""
    high: float = 1.0
    """Last time with guidance, at most 1; the defaults guide always."""

    def __post_init__(self) -> None:
        _check_finite(self, self.scale)
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"Interval(low={self.low}, high={self.high}): must satisfy 0 <= low <= high <= 1")
        check_ranges(self, {"scale": (-1e9, 1e9)})

    def __call__(self, t: float) -> float:
        return self.scale if self.low <= t <= self.high else 1.0


def guided(
    model: ConditionalModel, condition: Condition, null: Condition = None, *, scale: float | GuidanceRamp = 1.0
) -> Predict:
    """Return `predict(tokens, t)` with guidance: one forward pass of both twins as a batch, or of the one it needs.

    `null` is the unconditional twin of `condition`; by default every row's class id becomes NULL.
    `predict` raises ValueError if the scale is not 1 and there is no condition. If the model `takes_places`, so does
    `predict(tokens, t, places)`: it returns the logits of the places that are True alone, [n, K] row by row.
    """
    if condition is not None and null is None:
        null = torch.full_like(condition, NULL)

    def predict(
        tokens: Int[Tensor, "b l"], t: float, places: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "..."]:
        s = scale(t) if callable(scale) else scale
        at, twice = ((), ()) if places is None else ((places,), (torch.cat([places, places]),))
        if s == 1:
            return model(tokens, condition, *at)
        if condition is None or null is None:
            raise ValueError(f"guidance scale {s} needs a condition; without a condition leave the scale at 1")
        if s == 0:
            return model(tokens, null, *at)
        cond, uncond = model(torch.cat([tokens, tokens]), torch.cat([condition, null]), *twice).chunk(2)
        return uncond + s * (cond - uncond)

    predict.takes_places = getattr(model, "takes_places", False)  # type: ignore[attr-defined]
    return predict
