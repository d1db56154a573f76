"""Priorities of published code bases whose samplers differ from ours; each cites its source.

Tokens per step are in `decoding/counts.py`, guidance is in `method/guidance.py`; `decoding/presets.py` combines them.
"""

import math
from dataclasses import dataclass

import torch

from unmask.errors import FACTORS, SIDES, check_ranges
from unmask.method.rand import Rand
from unmask.method.sampling.priorities import Canvas, Confidence, Logits, Mask, PriorityScore, compute_halton_order


@dataclass(frozen=True)
class StepConfidence:
    """`Confidence` with one noise factor per step, for code bases whose noise does not fall as 1 - (i + 1)/T."""

    noises: tuple[float, ...]
    """Noise factor of each step, finite and at least 0."""

    def __post_init__(self) -> None:
        _check_noises(self, self.noises)
        check_ranges(self, {"noises": FACTORS})

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        return Confidence(_get_noise(self.noises, t))(logits, sample, masked=masked, t=0.0, rand=rand)


def _check_noises(rule: object, noises: tuple[float, ...]) -> None:
    if not noises or not all(0 <= noise < math.inf for noise in noises):
        raise ValueError(f"{rule}: give one or more finite noise factors of at least 0")


def stretch(values: tuple[float, ...], steps: int) -> tuple[float, ...]:
    """Stretch a list of one value per step to another number of steps."""
    return tuple(_get_noise(values, (step + 1) / steps) for step in range(steps))


def _get_noise(noises: tuple[float, ...], t: float) -> float:
    """Return the factor of the step that ends at t; with another number of steps the list is stretched."""
    return noises[max(0, math.ceil(t * len(noises) - 1e-9) - 1)]


def make_lagging_noise(noise: float, steps: int) -> tuple[float, ...]:
    """Return noise (1 - i/T), which is never 0, as valeoai/Maskgit-pytorch (32062fa, Trainer/vit.py)."""
    return tuple(noise * (1 - step / steps) for step in range(steps))


def make_linear_noise(noise: float, steps: int, last: float = 0.0) -> tuple[float, ...]:
    """Return factors from `noise` down to `last` in equal steps, as aMUSEd (diffusers, scheduling_amused.py)."""
    return tuple(torch.linspace(noise, last, steps, dtype=torch.float64).tolist())


@dataclass(frozen=True)
class DrawnLogit:
    """Order by the raw logit of the sampled token + noise Gumbel, as TiTok (bytedance/1d-tokenizer).

    The logit is not normalised, so a position where all logits are large comes before one where the sample is certain.
    """

    noises: tuple[float, ...]
    """Noise factor of each step, finite and at least 0."""

    def __post_init__(self) -> None:
        _check_noises(self, self.noises)
        check_ranges(self, {"noises": FACTORS})

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        drawn = logits.gather(-1, sample[..., None])[..., 0]
        gumbel = -torch.log(-torch.log(rand("order", sample.shape[1])))
        return drawn + _get_noise(self.noises, t) * gumbel


def make_titok_noise(noise: float, steps: int) -> tuple[float, ...]:
    """Return noise (1 - r) (0.5 + 0.8 (1 - r)), r = (i + 1)/T, as the script of TiTok's published scores.

    Use it as the temperature and as the noise of the order. `softmax_temperature_annealing` of TiTok divides the logits
    by 0.5 + 0.8 (1 - r). Then the largest logit + noise (1 - r) Gumbel decides the token and also the order. With
    undivided logits, both are these factors.
    """
    left = [1 - (step + 1) / steps for step in range(steps)]
    return tuple(noise * x * (0.5 + 0.8 * x) for x in left)


@dataclass(frozen=True)
class RolledHalton:
    """Halton sequence that starts at a random cell for each image (valeoai/Halton-MaskGIT, randomize=True)."""

    grid: tuple[int, ...]
    """Cells along each of the one to three axes of the canvas."""

    def __post_init__(self) -> None:
        if not (1 <= len(self.grid) <= 3 and min(self.grid) >= 1):
            raise ValueError(f"RolledHalton(grid={self.grid}): give one to three axes of at least one cell")
        check_ranges(self, {"grid": SIDES})

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        order, cells = compute_halton_order(self.grid), sample.shape[1]
        if len(order) != cells:
            raise ValueError(f"{self} has {len(order)} cells, but the canvas has {cells}: give the grid of the canvas")
        offset = (rand.at(0)("roll", 1) * cells).long()  # the same for all steps
        return -((order.argsort().to(sample.device) + offset) % cells).float()
