"""How to decode, as data: what a recipe holds, a flag changes and a sampler consumes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Int
from torch import Tensor

from unmask.decoding import counts
from unmask.decoding.rules import DrawnLogit, RolledHalton, StepConfidence
from unmask.errors import ConfigError
from unmask.method.critic import CriticScore
from unmask.method.guidance import Condition, CosineRamp, Interval, LinearRamp, Predict
from unmask.method.models.protocol import Generator
from unmask.method.models.transformer import MaskedTransformer
from unmask.method.rand import Rand
from unmask.method.sampling.adaptive import EntropyBound, Threshold, adaptive
from unmask.method.sampling.ancestral import ancestral
from unmask.method.sampling.blocks import Sampler, blocks
from unmask.method.sampling.decode import Priority, State, decode
from unmask.method.sampling.priorities import (
    Confidence,
    Entropy,
    Halton,
    Margin,
    MarginRepulsion,
    MaxLogit,
    Moment,
    Random,
    Raster,
    moment_temperatures,
)
from unmask.method.sampling.remasking import Cap, ConfidenceWeighted, Rescale, remdm
from unmask.method.schedules import Arccos, Cosine, Shape, ratios, ratios_from_counts

Order = (
    Confidence | Moment | Halton | Random | Margin | MarginRepulsion | Entropy | MaxLogit | Raster
    | StepConfidence | DrawnLogit | RolledHalton
)  # fmt: skip
MOST_STEPS = 100_000
"""More than any canvas has tokens: a slip of the hand would fill the memory with its plan."""
Placed = Halton | RolledHalton | MarginRepulsion
"""The orders that know the grid of the canvas."""


@dataclass(frozen=True, kw_only=True)
class FromCritic:
    """What the model's own token critic trusts most comes first (arXiv 2209.04439); `noise` as in `critic.CriticScore`.

    Meant for `Sampling.remask`, so that the critic may take back what was revealed.
    """

    noise: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ValeoaiV1:
    """The counts of `counts.valeoai_v1`: `shape` says how many tokens a step reveals, not how many stay masked."""

    shape: Shape = Arccos()


@dataclass(frozen=True)
class HaltonCounts:
    """The counts of `counts.halton`, which that code base has for the Halton order."""


Reveal = Shape | ValeoaiV1 | HaltonCounts
"""What says how many tokens each step reveals."""


@dataclass(frozen=True)
class Parallel:
    """`sampling.decode`: so many tokens a step as the schedule says, chosen by the priority."""


@dataclass(frozen=True)
class Ancestral:
    """`sampling.ancestral`: each token by its own coin, as the schedule says; no priority."""


@dataclass(frozen=True)
class ReMDM:
    """`sampling.remasking.remdm`: ancestral, and revealed tokens are masked again by the rule; no priority."""

    rule: Cap | Rescale | ConfidenceWeighted = Rescale(0.1)


@dataclass(frozen=True)
class Adaptive:
    """`sampling.adaptive`: the model decides how many tokens a step reveals, in `steps` at most; no schedule."""

    rule: EntropyBound | Threshold = EntropyBound(0.1)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to decode: each field is an argument of a sampler or of `guided`, as data. Interval(s) is a constant scale s.

    `block` > 0 goes from left to right in blocks of so many tokens, `steps` in all; `remask` is for Parallel. The order
    Moment brings the temperatures of its steps (`moment_temperatures`), which `temperature` multiplies.
    """

    steps: int = 8
    schedule: Reveal = Cosine()
    priority: Order | FromCritic = Confidence()
    temperature: float | tuple[float, ...] = 1.0
    scale: Interval | LinearRamp | CosineRamp = Interval(scale=1.0)
    top_k: int | None = None
    top_p: float | None = None
    remask: bool = False
    sampler: Parallel | Ancestral | ReMDM | Adaptive = Parallel()
    block: int = 0

    def __post_init__(self) -> None:
        many = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"sampling: steps={self.steps}: from 1 to {MOST_STEPS:,}")
        if not all(0 <= x < float("inf") for x in many):
            raise ValueError(f"sampling: temperature={many} must be finite and >= 0")
        if (self.top_k is not None and self.top_k < 1) or (self.top_p is not None and not 0 < self.top_p <= 1):
            raise ValueError(f"sampling: top_k={self.top_k} must be at least 1, and top_p={self.top_p} lie in (0, 1]")
        if isinstance(self.temperature, tuple) and len(many) != self.steps:
            raise ValueError(f"sampling: {len(many)} temperatures for {self.steps} steps: give one, or one per step")
        self._check_sampler()

    def _check_sampler(self) -> None:
        """ValueError for parts that do not go together."""
        if self.block < 0:
            raise ValueError(f"sampling: block={self.block} must be at least 1, or 0 for none")
        uses_order = isinstance(self.sampler, Parallel)
        if self.block and uses_order and isinstance(self.priority, Placed):
            raise ValueError(
                f"sampling: {self.priority} is of the whole canvas: for block={self.block} take another order, such as "
                "confidence"
            )
        if self.remask and not uses_order:
            raise ValueError(f"sampling: remask is for the sampler Parallel, not {self.sampler}")
        if self.remask and isinstance(self.priority, Halton | RolledHalton | Raster):
            raise ValueError(
                f"sampling: {self.priority} never changes its mind: with remask take another order, such as confidence"
            )
        several = isinstance(self.temperature, tuple) or isinstance(self.priority, Moment)
        if isinstance(self.sampler, Adaptive) and several:
            raise ValueError("sampling: Adaptive takes one temperature, as its number of steps is not known before")
        if self.block and isinstance(self.temperature, tuple):
            raise ValueError(f"sampling: block={self.block} takes one temperature, not one per step")

    def on(self, grid: tuple[int, ...]) -> "Sampling":
        """The same on another canvas, for the orders that know its grid."""
        if isinstance(self.priority, Placed):
            return replace(self, priority=replace(self.priority, grid=grid))
        return self

    @property
    def unguided(self) -> bool:
        """Whether the guidance scale is 1 in every step."""
        start = self.scale.start if isinstance(self.scale, LinearRamp) else 1.0
        return self.scale.scale == start == 1

    def ratios(self, tokens: int) -> list[float]:
        """The fractions still masked after each step, for a canvas of so many tokens."""
        return self._ratios(tokens, self.steps)

    def _ratios(self, tokens: int, steps: int) -> list[float]:
        if isinstance(self.schedule, ValeoaiV1):
            return ratios_from_counts(counts.count_valeoai_v1(tokens, steps, self.schedule.shape))
        if isinstance(self.schedule, HaltonCounts):
            return ratios_from_counts(counts.count_halton(tokens, steps))
        return ratios(self.schedule, steps)

    def run(
        self,
        predict: Predict,
        tokens: Int[Tensor, "b l"],
        *,
        mask_id: int,
        rand: Rand,
        priority: Priority,
        plan: Sequence[float] | None = None,
    ) -> Iterator[State]:
        """Every step of the sampler, the canvas first; `priority` is what the order of this config means here.

        `plan`: other ratios than those of the schedule.
        """
        num_blocks = -(-tokens.shape[1] // self.block) if self.block else 1
        if num_blocks > self.steps:
            raise ValueError(f"{self.steps} steps for {num_blocks} blocks of {self.block}: each needs at least one")
        sampler = self._start(num_blocks, mask_id, rand, priority, plan)
        return blocks(sampler, predict, tokens, size=self.block) if self.block else sampler(predict, tokens)

    def _start(
        self, num_blocks: int, mask_id: int, rand: Rand, priority: Priority, given: Sequence[float] | None
    ) -> Sampler:
        kind, top_k, top_p = self.sampler, self.top_k, self.top_p

        def sampler(predict: Predict, tokens: Int[Tensor, "b l"]) -> Iterator[State]:
            block = -(-tokens.shape[1] // self.block) if self.block else 1  # the canvas ends with it
            steps = block * self.steps // num_blocks - (block - 1) * self.steps // num_blocks
            warmth = self._temperatures(steps)
            if isinstance(kind, Adaptive):
                assert not isinstance(warmth, tuple)
                return adaptive(predict, tokens, mask_id=mask_id, rand=rand, rule=kind.rule, max_steps=steps,
                                temperature=warmth, top_k=top_k, top_p=top_p)  # fmt: skip
            plan = given or self._ratios(tokens.shape[1], steps)
            if isinstance(kind, Ancestral):
                return ancestral(predict, tokens, plan, mask_id=mask_id, rand=rand, temperature=warmth, top_k=top_k,
                                 top_p=top_p)  # fmt: skip
            if isinstance(kind, ReMDM):
                return remdm(predict, tokens, plan, mask_id=mask_id, rand=rand, rule=kind.rule, temperature=warmth,
                             top_k=top_k, top_p=top_p)  # fmt: skip
            return decode(predict, tokens, plan, mask_id=mask_id, rand=rand, priority=priority, temperature=warmth,
                          top_k=top_k, top_p=top_p, remask=self.remask)  # fmt: skip

        return sampler

    def _temperatures(self, steps: int) -> float | tuple[float, ...]:
        if not isinstance(self.priority, Moment):
            return self.temperature
        own = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,) * steps
        return tuple(a * b for a, b in zip(own, moment_temperatures(self.priority.noise, steps), strict=True))


def resolve_priority(priority: Order | FromCritic, model: Generator, labels: Condition = None) -> Priority:
    """The priority that a recipe means: itself, or one that asks the model's critic of the filled canvas."""
    if isinstance(priority, FromCritic):
        if not isinstance(model, MaskedTransformer) or model.config.critic == "none":
            raise ConfigError("this model has no critic to order by: train one with the objective WithCritic")
        return CriticScore(lambda canvas: model(canvas, labels, judge=True), priority.noise)
    return priority
