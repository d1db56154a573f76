"""Rules of published code bases whose samplers differ from ours; each cites its source.

A rule is a formula for any number of steps T, not a list. `Sampling.run` binds an order that has a rule to the steps,
temperatures and filter of a run. Tokens per step are in `decoding/counts.py`, guidance is in `method/guidance.py`;
`decoding/presets.py` combines them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from unmask.errors import FACTORS, SIDES, check_ranges
from unmask.lazy import torch
from unmask.method.ramps import LinearRamp
from unmask.method.rand import Rand
from unmask.method.sampling.decode import keep_likeliest, sample_tokens
from unmask.method.sampling.priorities import Canvas, Confidence, Logits, Mask, PriorityScore, compute_halton_order


@dataclass(frozen=True, kw_only=True)
class Line:
    """start (1 - r) + end r in step i = 0..T-1, where r runs evenly over the steps, from 0, to 1, or both."""

    start: float = 1.0
    """Value at r = 0."""
    end: float = 0.0
    """Value at r = 1."""
    from_first: bool = False
    """The first step has r = 0."""
    to_last: bool = True
    """The last step has r = 1."""
    multiplies: bool = False
    """The source multiplies logits by this value, so the temperature is divided by it."""
    least: float = 0.0
    """The product of the value and its factor is at least this."""

    def __post_init__(self) -> None:
        if min(self.start, self.end, self.least) < 0 or (self.multiplies and min(self.start, self.end) == 0):
            raise ValueError(f"{self}: give values of at least 0, and above 0 where they multiply the logits")
        check_ranges(self, {"start": FACTORS, "end": FACTORS, "least": FACTORS})

    def list_values(self, factor: float, steps: int) -> tuple[float, ...]:
        """Return `factor` times the line for each step; r is i/T, i/(T-1), (i+1)/T or (i+1)/(T+1)."""
        first = 0 if self.from_first else 1
        most = steps if self.to_last else steps + 1
        values = []
        for step in range(steps):
            r = (step + first) / max(1, most - 1 + first)
            value = self.start * (1 - r) + self.end * r
            values.append(max(self.least, factor / value if self.multiplies else factor * value))
        return tuple(values)


@dataclass(frozen=True)
class TitokFall:
    """(1 - r) (0.5 + 0.8 (1 - r)) with r = (i + 1)/T, as the script of TiTok's published scores.

    Use it for the temperature and for the noise of the order. `softmax_temperature_annealing` of TiTok divides the
    logits by 0.5 + 0.8 (1 - r). Then the largest logit + noise (1 - r) Gumbel decides the token and also the order.
    With undivided logits, both are the noise times this factor.
    """

    def list_values(self, factor: float, steps: int) -> tuple[float, ...]:
        """Return `factor` times the value of each step."""
        left = [1 - (step + 1) / steps for step in range(steps)]
        return tuple(factor * x * (0.5 + 0.8 * x) for x in left)


Rule = Line | TitokFall
"""How a factor changes over the steps."""
LAGGING = Line(from_first=True, to_last=False)
"""1 - i/T, which is never 0: valeoai/Maskgit-pytorch until November 2023 (32062fa, Trainer/vit.py)."""
SPANNING = Line(from_first=True)
"""1 - i/(T-1), from 1 to 0: the same code since d80c394, and aMUSEd (diffusers, scheduling_amused.py)."""


@dataclass(frozen=True, kw_only=True)
class LastPassRamp:
    """start + (scale - start) i/(T-1): a linear guidance ramp that reaches `scale` in the last forward pass.

    valeoai/Maskgit-pytorch has it since November 2023 (d80c394).
    """

    scale: float
    """Guidance scale of the last forward pass."""
    start: float = 1.0
    """Guidance scale of the first forward pass; 1 is no guidance."""

    def __post_init__(self) -> None:
        LinearRamp(self.scale, self.start)

    def bind(self, steps: int) -> LinearRamp:
        """Return the ramp in terms of the time i/T of the forward passes."""
        return LinearRamp(self.start + (self.scale - self.start) * steps / max(1, steps - 1), self.start)


@dataclass(frozen=True, kw_only=True)
class AnnealedConfidence:
    """`Confidence` with a noise that follows a rule over the steps."""

    noise: float
    """Factor of the Gumbel noise where the rule is 1, at least 0."""
    rule: Line
    """How the noise falls."""
    tempered: bool = False
    """Take the confidence from the logits divided by the temperature, as valeoai/Maskgit-pytorch."""

    def __post_init__(self) -> None:
        _check_noises(self, (self.noise,))
        check_ranges(self, {"noise": FACTORS})

    def bind(self, temperatures: Sequence[float], top_k: int | None, top_p: float | None) -> "StepConfidence":
        """Return the order for a run with these temperatures, one per step."""
        noises = self.rule.list_values(self.noise, len(temperatures))
        return StepConfidence(noises, tuple(temperatures) if self.tempered else None)


@dataclass(frozen=True)
class StepConfidence:
    """`Confidence` with one noise factor per step, for code bases whose noise does not fall as 1 - (i + 1)/T."""

    noises: tuple[float, ...]
    """Noise factor of each step, finite and at least 0."""
    temperatures: tuple[float, ...] | None = None
    """Divisor of the logits in each step before the confidence; unset divides by 1."""

    def __post_init__(self) -> None:
        _check_noises(self, self.noises)
        if self.temperatures is not None:
            _check_noises(self, self.temperatures)
        check_ranges(self, {"noises": FACTORS, "temperatures": FACTORS})

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        if self.temperatures is not None and (warmth := _get_noise(self.temperatures, t)) != 1:
            logits = logits / max(warmth, COLDEST)
        return Confidence(_get_noise(self.noises, t))(logits, sample, masked=masked, t=0.0, rand=rand)


COLDEST = 1e-6
"""Temperature 0 as a divisor of logits."""


def _check_noises(rule: object, noises: tuple[float, ...]) -> None:
    if not noises or not all(0 <= noise < math.inf for noise in noises):
        raise ValueError(f"{rule}: give one or more finite noise factors of at least 0")


def stretch(values: tuple[float, ...], steps: int) -> tuple[float, ...]:
    """Stretch a list of one value per step to another number of steps."""
    return tuple(_get_noise(values, (step + 1) / steps) for step in range(steps))


def _get_noise(noises: tuple[float, ...], t: float) -> float:
    """Return the factor of the step that ends at t; with another number of steps the list is stretched."""
    return noises[max(0, math.ceil(t * len(noises) - 1e-9) - 1)]


@dataclass(frozen=True, kw_only=True)
class AnnealedLogit:
    """Order by the raw logit of the sampled token + noise Gumbel, with a noise that follows a rule (TiTok)."""

    noise: float
    """Factor of the Gumbel noise where the rule is 1, at least 0."""
    rule: TitokFall = TitokFall()
    """How the noise falls."""

    def __post_init__(self) -> None:
        _check_noises(self, (self.noise,))
        check_ranges(self, {"noise": FACTORS})

    def bind(self, temperatures: Sequence[float], top_k: int | None, top_p: float | None) -> "DrawnLogit":
        """Return the order for a run with these temperatures, one per step."""
        return DrawnLogit(self.rule.list_values(self.noise, len(temperatures)))


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


@dataclass(frozen=True, kw_only=True)
class FilteredConfidence:
    """Order by p - 1 of the sampled token among the likeliest ones, as lucidrains/x-transformers.

    The filter (top_k, top_p) comes before the confidence, so a token can be certain only because others were cut.
    """

    redrawn: bool = False
    """With remasking, score each revealed token by another sample at its position, as `can_mask_prev_unmasked`."""

    def bind(self, temperatures: Sequence[float], top_k: int | None, top_p: float | None) -> "BoundFilteredConfidence":
        """Return the order for a run with these temperatures, one per step, and this filter."""
        return BoundFilteredConfidence(self.redrawn, tuple(temperatures), top_k, top_p)


@dataclass(frozen=True)
class BoundFilteredConfidence:
    """`FilteredConfidence` with the temperatures and the filter of a run."""

    redrawn: bool
    temperatures: tuple[float, ...]
    top_k: int | None
    top_p: float | None

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        if self.redrawn:  # the noise is a function of the step, so this repeats the draw of the masked tokens
            warmth, u = _get_noise(self.temperatures, t), rand("token", sample.shape[1])
            sample = sample_tokens(logits, warmth, self.top_k, self.top_p, u)
        p = keep_likeliest(logits, self.top_k, self.top_p).softmax(-1)
        return -(1 - p.gather(-1, sample[..., None])[..., 0])  # not p - 1: float32 rounds as the original


Bindable = AnnealedConfidence | AnnealedLogit | FilteredConfidence
"""Orders that `Sampling.run` binds to its steps."""


@dataclass(frozen=True)
class RolledHalton:
    """Halton sequence that starts at a random cell for each image (valeoai/Halton-MaskGIT, randomize=True)."""

    grid: tuple[int, ...]
    """Cells along each of the one to three axes of the canvas."""
    needs_logits: ClassVar[bool] = False

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
