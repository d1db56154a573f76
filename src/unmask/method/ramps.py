"""Ramps of the guidance scale: callables of t, the time of the forward pass, from 0 (all masked) towards 1 (all known).

Strong guidance harms early in decoding and helps late (arXiv 2507.08965). So the ramps start at 1: without guidance.
"""

import math
from dataclasses import dataclass

from unmask.errors import FACTORS, check_ranges


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
