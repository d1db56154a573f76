"""Where the samplers of published code bases differ from ours, as priorities: each is one code base's rule, cited.

Tokens per step are in `unmask.counts`, guidance in `unmask.guidance`, and `unmask.presets` puts them together.
"""

import math
from dataclasses import dataclass

import torch

from unmask.rand import Rand
from unmask.sampling.priorities import Canvas, Confidence, Logits, Mask, Score, halton_order


@dataclass(frozen=True)
class StepConfidence:
    """`Confidence` with a noise factor for each step, where others do not let it fall as 1 - (i + 1)/T.

    Of a list of n factors the one for the time t of the step is taken, so another number of steps stretches the list.
    """

    noises: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.noises or not all(0 <= noise < math.inf for noise in self.noises):
            raise ValueError(f"StepConfidence(noises={self.noises}): one or more finite numbers >= 0")

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> Score:
        step = max(0, math.ceil(t * len(self.noises) - 1e-9) - 1)
        return Confidence(self.noises[step])(logits, sample, masked=masked, t=0.0, rand=rand)


def lagging(noise: float, steps: int) -> tuple[float, ...]:
    """noise (1 - i/T): the reproduction report's (valeoai/Maskgit-pytorch 32062fa, Trainer/vit.py), never 0."""
    return tuple(noise * (1 - step / steps) for step in range(steps))


def spanning(noise: float, steps: int, last: float = 0.0) -> tuple[float, ...]:
    """From `noise` in the first step to `last` in the last one: aMUSEd's (diffusers, scheduling_amused.py)."""
    return tuple(torch.linspace(noise, last, steps, dtype=torch.float64).tolist())


@dataclass(frozen=True)
class DrawnLogit:
    """The raw logit of the drawn token + noise (1 - t) Gumbel: TiTok's (bytedance/1d-tokenizer, maskgit.py).

    Not normalised, so a place where all logits are large comes before one where the draw is sure.
    """

    noise: float

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"DrawnLogit(noise={self.noise}): must be a finite number >= 0")

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> Score:
        drawn = logits.gather(-1, sample[..., None])[..., 0]
        gumbel = -torch.log(-torch.log(rand("order", sample.shape[1])))
        return drawn + self.noise * (1 - t) * gumbel


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
