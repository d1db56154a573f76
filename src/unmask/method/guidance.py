"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): turns a conditional model into a plain `predict`.

The guided logits are null + s (cond - null): s = 1 is the plain conditional model, s = 0 the unconditional one. Papers
that write (1 + w) cond - w null, as the MaskGIT reproduction report does, mean w = s - 1: their 3 is our 4.
Strong guidance early in decoding does harm and late guidance helps (arXiv 2507.08965), hence the ramps: callables of t,
the time of the forward pass, from 0 (all masked) towards 1 (all known). They start at 1: one step has no guidance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NULL = -1
"""The class id that stands for "no condition"; every class embedding has a row for it."""

Condition = Int[Tensor, "b"] | None
Predict = Callable[[Int[Tensor, "b l"], float], Float[Tensor, "b l k"]]
ConditionalModel = Callable[[Int[Tensor, "b l"], Condition], Float[Tensor, "b l k"]]
GuidanceRamp = Callable[[float], float]


def _finite(ramp: object, *numbers: float) -> None:
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{ramp}: the numbers must be finite; scale 1 is no guidance")


@dataclass(frozen=True)
class LinearRamp:
    """start + (scale - start) t. The linear w ramp of valeoai's report is LinearRamp(scale=w + 1); since November 2023
    its code has the time i/(T-1) where this has i/T, and so reaches the full scale in the last step."""

    scale: float
    start: float = 1.0

    def __post_init__(self) -> None:
        _finite(self, self.scale, self.start)

    def __call__(self, t: float) -> float:
        return self.start + (self.scale - self.start) * t


@dataclass(frozen=True)
class CosineRamp:
    """1 + (scale - 1) (1 - cos(pi t^power)) / 2; power 1 is the cosine ramp, others TiTok's power-cosine."""

    scale: float
    power: float = 1.0

    def __post_init__(self) -> None:
        _finite(self, self.scale, self.power)
        if self.power <= 0:
            raise ValueError(f"{self}: the power must be positive")

    def __call__(self, t: float) -> float:
        return 1 + (self.scale - 1) * (1 - math.cos(math.pi * t**self.power)) / 2


@dataclass(frozen=True)
class Interval:
    """`scale` while low <= t <= high, else 1, which saves the null forward (arXiv 2404.07724); constant by default."""

    scale: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _finite(self, self.scale)
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"Interval(low={self.low}, high={self.high}): needs 0 <= low <= high <= 1")

    def __call__(self, t: float) -> float:
        return self.scale if self.low <= t <= self.high else 1.0


def guided(
    model: ConditionalModel, condition: Condition, null: Condition = None, *, scale: float | GuidanceRamp = 1.0
) -> Predict:
    """`predict(tokens, t)` with guidance: one batched forward of both twins, or of one where the other is not needed.

    `null` is the unconditional twin of `condition`; by default every row's class id becomes NULL.
    `predict` raises ValueError when the scale is not 1 but there is no condition.
    """
    if condition is not None and null is None:
        null = torch.full_like(condition, NULL)

    def predict(tokens: Int[Tensor, "b l"], t: float) -> Float[Tensor, "b l k"]:
        s = scale(t) if callable(scale) else scale
        if s == 1:
            return model(tokens, condition)
        if condition is None or null is None:
            raise ValueError(f"guidance scale {s} needs a condition; without one leave it at 1")
        if s == 0:
            return model(tokens, null)
        cond, uncond = model(torch.cat([tokens, tokens]), torch.cat([condition, null])).chunk(2)
        return uncond + s * (cond - uncond)

    return predict


def guided_with_memory(
    model: Callable[..., Float[Tensor, "b l k"]],
    condition: Condition,
    null: Condition = None,
    *,
    scale: float | GuidanceRamp = 1.0,
) -> Predict:
    """`guided` for a self-conditioned model `(tokens, condition, *, memory) -> logits`: each step reads the last one's
    probabilities (arXiv 2208.04202). Under guidance both twins read those of the conditional one, as in muse-maskgit.

    The memory is that of one batch of samples: make a fresh one for each.
    """
    memory: Tensor | None = None

    def recalling(tokens: Int[Tensor, "b l"], both: Condition) -> Float[Tensor, "b l k"]:
        nonlocal memory
        rows = len(tokens) if condition is None else len(condition)
        twice = memory if memory is None or len(tokens) == rows else torch.cat([memory, memory])
        logits = model(tokens, both, memory=twice)
        memory = logits[:rows].softmax(-1)
        return logits

    return guided(recalling, condition, null, scale=scale)
