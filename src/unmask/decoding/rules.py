"""Where the samplers of published code bases differ from ours, as priorities: each is one code base's rule, cited.

Tokens per step are in `decoding/counts.py`, guidance in `method/guidance.py`; `decoding/presets.py` combines them.
"""

import math
from dataclasses import dataclass

import torch

from unmask.method.rand import Rand
from unmask.method.sampling.priorities import Canvas, Confidence, Logits, Mask, Score, halton_order


@dataclass(frozen=True)
class StepConfidence:
    """`Confidence` with a noise factor for each step, where others do not let it fall as 1 - (i + 1)/T."""

    noises: tuple[float, ...]

    def __post_init__(self) -> None:
        _check(self, self.noises)

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> Score:
        return Confidence(_at(self.noises, t))(logits, sample, masked=masked, t=0.0, rand=rand)


def _check(rule: object, noises: tuple[float, ...]) -> None:
    if not noises or not all(0 <= noise < math.inf for noise in noises):
        raise ValueError(f"{rule}: needs one or more finite factors >= 0")


def stretch(values: tuple[float, ...], steps: int) -> tuple[float, ...]:
    """A list of one value per step, for another number of steps."""
    return tuple(_at(values, (step + 1) / steps) for step in range(steps))


def _at(noises: tuple[float, ...], t: float) -> float:
    """The factor of the step that ends at t; another number of steps stretches the list."""
    return noises[max(0, math.ceil(t * len(noises) - 1e-9) - 1)]


def make_lagging_noise(noise: float, steps: int) -> tuple[float, ...]:
    """noise (1 - i/T): the reproduction report's (valeoai/Maskgit-pytorch 32062fa, Trainer/vit.py), never 0."""
    return tuple(noise * (1 - step / steps) for step in range(steps))


def make_linear_noise(noise: float, steps: int, last: float = 0.0) -> tuple[float, ...]:
    """From `noise` in the first step to `last` in the last one: aMUSEd's (diffusers, scheduling_amused.py)."""
    return tuple(torch.linspace(noise, last, steps, dtype=torch.float64).tolist())


@dataclass(frozen=True)
class DrawnLogit:
    """The raw logit of the drawn token + noise Gumbel, a factor for each step: TiTok's (bytedance/1d-tokenizer).

    Not normalised, so a place where all logits are large comes before one where the draw is sure.
    """

    noises: tuple[float, ...]

    def __post_init__(self) -> None:
        _check(self, self.noises)

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> Score:
        drawn = logits.gather(-1, sample[..., None])[..., 0]
        gumbel = -torch.log(-torch.log(rand("order", sample.shape[1])))
        return drawn + _at(self.noises, t) * gumbel


def make_titok_noise(noise: float, steps: int) -> tuple[float, ...]:
    """noise (1 - r) (0.5 + 0.8 (1 - r)), r = (i + 1)/T: the script of TiTok's published scores, for draws and order.

    Its `softmax_temperature_annealing` divides the logits by 0.5 + 0.8 (1 - r); then the token is drawn by the largest
    logit + noise (1 - r) Gumbel, and places are ordered by that rule too. On logits that are not divided both are this.
    """
    left = [1 - (step + 1) / steps for step in range(steps)]
    return tuple(noise * x * (0.5 + 0.8 * x) for x in left)


@dataclass(frozen=True)
class RolledHalton:
    """The Halton sequence entered at a random place for each image (valeoai/Halton-MaskGIT, randomize=True)."""

    grid: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (1 <= len(self.grid) <= 3 and min(self.grid) >= 1):
            raise ValueError(f"RolledHalton(grid={self.grid}): needs one to three axes of at least one cell")

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> Score:
        order, cells = halton_order(self.grid), sample.shape[1]
        if len(order) != cells:
            raise ValueError(f"{self} has {len(order)} cells, but the canvas has {cells}")
        offset = (rand.at(0)("roll", 1) * cells).long()  # one for all steps
        return -((order.argsort().to(sample.device) + offset) % cells).float()
