"""Sampling settings as data: recipes hold them, flags change them, samplers consume them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float, Int

from unmask.decoding import counts
from unmask.decoding.rules import (
    AnnealedConfidence,
    AnnealedLogit,
    Bindable,
    DrawnLogit,
    FilteredConfidence,
    LastPassRamp,
    RolledHalton,
    Rule,
    StepConfidence,
)
from unmask.errors import FACTORS, ConfigError, check_ranges
from unmask.lazy import Tensor, torch
from unmask.method.critic import CriticScore
from unmask.method.guidance import Condition, GuidanceRamp, Predict
from unmask.method.models.protocol import Generator
from unmask.method.ramps import CosineRamp, Interval, LinearRamp
from unmask.method.rand import Rand
from unmask.method.sampling.adaptive import EntropyBound, Threshold, decode_adaptive
from unmask.method.sampling.ancestral import decode_ancestral
from unmask.method.sampling.blocks import Sampler, decode_blocks
from unmask.method.sampling.decode import Priority, State, decode
from unmask.method.sampling.extra_priorities import MarginRepulsion, Moment, compute_moment_temperatures
from unmask.method.sampling.priorities import Confidence, Entropy, Halton, Margin, MaxLogit, Random, Raster
from unmask.method.sampling.remasking import Cap, ConfidenceWeighted, Rescale, decode_remasking
from unmask.method.schedules import Arccos, Cosine, Power, Shape, ratios, ratios_from_counts

Order = (
    Confidence | Moment | Halton | Random | Margin | MarginRepulsion | Entropy | MaxLogit | Raster
    | StepConfidence | AnnealedConfidence | DrawnLogit | AnnealedLogit | FilteredConfidence | RolledHalton
)  # fmt: skip
Guidance = Interval | LinearRamp | CosineRamp | LastPassRamp
"""Guidance scales over the time of the forward passes."""
MOST_STEPS = 100_000
"""More than any canvas has tokens; a mistyped larger number would fill the memory with its plan."""
Placed = Halton | RolledHalton | MarginRepulsion
"""The unmasking orders that know the grid of the canvas."""


@dataclass(frozen=True, kw_only=True)
class FromCritic:
    """Order by the token critic of the model (arXiv 2209.04439): the tokens that it trusts most come first.

    Use it with `Sampling.remask`, so that the critic can mask revealed tokens again.
    """

    noise: float = 1.0
    """Factor of the noise, as in `critic.CriticScore`."""
    subtracts: bool = False
    """Subtract the noise, as x-transformers, which adds it to the score of the tokens to mask."""

    def __post_init__(self) -> None:
        check_ranges(self, {"noise": FACTORS})


@dataclass(frozen=True, kw_only=True)
class ValeoaiV1:
    """Reveal the counts of `counts.count_valeoai_v1`."""

    shape: Shape = Arccos()
    """Curve of the tokens that a step reveals, not of those that stay masked."""

    def count(self, tokens: int, steps: int) -> list[int]:
        """Return the tokens that each step reveals."""
        return counts.count_valeoai_v1(tokens, steps, self.shape)


@dataclass(frozen=True)
class HaltonCounts:
    """Reveal the counts of `counts.count_halton`, which Halton-MaskGIT uses with the Halton order."""

    def count(self, tokens: int, steps: int) -> list[int]:
        """Return the tokens that each step reveals."""
        return counts.count_halton(tokens, steps)


@dataclass(frozen=True, kw_only=True)
class GoogleCounts:
    """Reveal the counts of `counts.count_google`, of each row's own unknown tokens."""

    shape: Shape = Cosine()
    """Fraction still masked."""

    def count(self, tokens: int, steps: int) -> list[int]:
        """Return the tokens that each step reveals."""
        return counts.count_google(tokens, steps, self.shape)


@dataclass(frozen=True)
class AmusedCounts:
    """Reveal the counts of `counts.count_amused`, of each row's own unknown tokens."""

    def count(self, tokens: int, steps: int) -> list[int]:
        """Return the tokens that each step reveals."""
        return counts.count_amused(tokens, steps)


@dataclass(frozen=True)
class TitokCounts:
    """Reveal the counts of `counts.count_titok`, of each row's own unknown tokens."""

    def count(self, tokens: int, steps: int) -> list[int]:
        """Return the tokens that each step reveals."""
        return counts.count_titok(tokens, steps)


@dataclass(frozen=True, kw_only=True)
class XTransformersCounts:
    """Reveal the counts of `counts.count_x_transformers`, of each row's own unknown tokens."""

    shape: Shape = Power()
    """Fraction still masked."""

    def count(self, tokens: int, steps: int) -> list[int]:
        """Return the tokens that each step reveals."""
        return counts.count_x_transformers(tokens, steps, self.shape)


@dataclass(frozen=True)
class ListedCounts:
    """Reveal these counts: a curve through the fractions that they leave masked, straight between the steps.

    With other steps, or another number of unknown tokens, the same curve gives other counts.
    """

    counts: tuple[int, ...]
    """Tokens that each step reveals, at least 1; `unmask tune` finds them."""

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"{self}: give one or more counts of at least 1")
        check_ranges(self, {"counts": (1, 1 << 31)})

    def __call__(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        left = torch.tensor([1.0, *ratios_from_counts(self.counts)], dtype=t.dtype, device=t.device)
        at = t.clamp(0, 1) * len(self.counts)
        step = at.long().clamp(max=len(self.counts) - 1)
        return left[step] + (at - step) * (left[step + 1] - left[step])


PerRow = GoogleCounts | AmusedCounts | TitokCounts | XTransformersCounts
"""Schedules that count the unknown tokens of each row; the other counts are those of the whole canvas."""
Reveal = Shape | ListedCounts | ValeoaiV1 | HaltonCounts | PerRow
"""Schedules: how many tokens each step reveals."""


@dataclass(frozen=True)
class Parallel:
    """Use `sampling.decode`: the schedule gives the number of tokens per step, the priority chooses them."""


@dataclass(frozen=True)
class Ancestral:
    """Use `sampling.ancestral`: each token is revealed independently, as the schedule says; no priority."""


@dataclass(frozen=True)
class ReMDM:
    """Use `sampling.remasking.remdm`: ancestral, and some revealed tokens are masked again; no priority."""

    rule: Cap | Rescale | ConfidenceWeighted = Rescale(0.1)
    """Which revealed tokens are masked again."""


@dataclass(frozen=True)
class Adaptive:
    """Use `sampling.adaptive`: the model decides how many tokens a step reveals, in at most `steps`; no schedule."""

    rule: EntropyBound | Threshold = EntropyBound(0.1)
    """When a token is certain enough to be revealed."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling settings: each field is an argument of a sampler or of `guided`, as data.

    Examples:
        >>> slow = unmask.Sampling(steps=32, temperature=0.9, priority=unmask.Halton((8, 8)))
        >>> images = unmask.load("runs/demo").generate(num=2, sampling=unmask.Sampling(steps=2))
    """

    steps: int = 8
    """Forward passes of the (guided) model, from 1 to 100,000."""
    schedule: Reveal = Cosine()
    """How many tokens each step reveals."""
    priority: Order | FromCritic = Confidence()
    """Unmasking order: which tokens are revealed first."""
    temperature: float | tuple[float, ...] = 1.0
    """Divisor of the logits, one for all steps or one per step. Moment has temperatures too; both are multiplied."""
    annealing: Rule | None = None
    """How `temperature` changes over the steps, as a factor of it; unset keeps it constant."""
    scale: Guidance = Interval(scale=1.0)
    """Guidance scale; 1 is no guidance, and Interval(s) is the constant scale s."""
    top_k: int | None = None
    """Sample from the top_k most likely tokens; unset samples from all."""
    top_p: float | None = None
    """Sample from the most likely tokens with this total probability, in (0, 1]; unset samples from all."""
    remask: bool = False
    """Let Parallel mask revealed tokens again."""
    sampler: Parallel | Ancestral | ReMDM | Adaptive = Parallel()
    """Algorithm that reveals the tokens."""
    block: int = 0
    """Sample from left to right in blocks of this many tokens, with `steps` for all blocks together; 0 is one block."""

    def __post_init__(self) -> None:
        many = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"sampling: steps={self.steps} must be from 1 to {MOST_STEPS:,}")
        if not all(0 <= x < float("inf") for x in many):
            raise ValueError(f"sampling: temperature {', '.join(map(str, many))} must be finite and at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"sampling: top_k={self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"sampling: top_p={self.top_p} must lie in (0, 1]")
        if isinstance(self.temperature, tuple) and len(many) != self.steps:
            raise ValueError(f"sampling: {len(many)} temperatures for {self.steps} steps: give one, or one per step")
        if self.annealing is not None and isinstance(self.temperature, tuple):
            raise ValueError(f"sampling: {self.annealing} anneals one temperature, not {len(many)}: give one")
        self._check_sampler()
        check_ranges(self, {"temperature": FACTORS, "top_k": (1, 1 << 31), "block": (0, 1 << 31)})

    def _check_sampler(self) -> None:
        """Raise ValueError for fields that do not work together."""
        if self.block < 0:
            raise ValueError(f"sampling: block={self.block} must be at least 1, or 0 for no blocks")
        uses_order = isinstance(self.sampler, Parallel)
        if self.block and uses_order and isinstance(self.priority, Placed):
            raise ValueError(
                f"sampling: {self.priority} orders the whole canvas: with block={self.block} use another order, such "
                "as confidence"
            )
        if self.remask and not uses_order:
            raise ValueError(f"sampling: remask is for the sampler Parallel, not {self.sampler}")
        if self.remask and isinstance(self.priority, Halton | RolledHalton | Raster):
            raise ValueError(
                f"sampling: {self.priority} never masks a token again: use another order with remask, e.g. confidence"
            )
        several = isinstance(self.temperature, tuple) or isinstance(self.priority, Moment) or self.annealing is not None
        if isinstance(self.sampler, Adaptive) and several:
            raise ValueError(
                "sampling: Adaptive takes one temperature, because its number of steps is not known before: give one"
            )
        if self.block and isinstance(self.temperature, tuple):
            raise ValueError(f"sampling: block={self.block} takes one temperature, not one per step")

    def fit_to(self, grid: tuple[int, ...]) -> "Sampling":
        """Return the settings for a canvas of another grid, which some unmasking orders know."""
        if isinstance(self.priority, Placed):
            return replace(self, priority=replace(self.priority, grid=grid))
        return self

    @property
    def unguided(self) -> bool:
        """True if the guidance scale is 1 in every step."""
        start = self.scale.start if isinstance(self.scale, LinearRamp | LastPassRamp) else 1.0
        return self.scale.scale == start == 1

    @property
    def guidance(self) -> GuidanceRamp:
        """The guidance scale as a function of the time of a forward pass, from 0 to (T-1)/T."""
        return self.scale.bind(self.steps) if isinstance(self.scale, LastPassRamp) else self.scale

    def ratios(self, tokens: int) -> list[float]:
        """Return the fraction still masked after each step, for a canvas of `tokens` tokens."""
        return self._ratios(tokens, self.steps)

    def _ratios(self, tokens: int, steps: int) -> list[float]:
        if isinstance(self.schedule, ValeoaiV1 | HaltonCounts | PerRow):
            return ratios_from_counts(self.schedule.count(tokens, steps))
        return ratios(self.schedule, steps)

    def run(
        self,
        predict: Predict,
        tokens: Int[Tensor, "b l"],
        *,
        mask_id: int,
        rand: Rand,
        priority: Priority | Bindable,
        plan: Sequence[float] | None = None,
    ) -> Iterator[State]:
        """Yield each step of the sampler, starting with the canvas.

        Args:
            priority: The unmasking order of this config for the model at hand, from `resolve_priority`.
            plan: Ratios to use instead of those of the schedule.

        Raises:
            ValueError: There are more blocks than steps.
        """
        num_blocks = -(-tokens.shape[1] // self.block) if self.block else 1
        if num_blocks > self.steps:
            raise ValueError(
                f"{self.steps} steps for {num_blocks} blocks of {self.block}: each block needs at least one step"
            )
        sampler = self._start(num_blocks, mask_id, rand, priority, plan)
        return decode_blocks(sampler, predict, tokens, size=self.block) if self.block else sampler(predict, tokens)

    def _start(
        self, num_blocks: int, mask_id: int, rand: Rand, priority: Priority | Bindable, given: Sequence[float] | None
    ) -> Sampler:
        kind, top_k, top_p = self.sampler, self.top_k, self.top_p

        def sampler(predict: Predict, tokens: Int[Tensor, "b l"]) -> Iterator[State]:
            block = (
                -(-tokens.shape[1] // self.block) if self.block else 1
            )  # the number of the block that ends the canvas so far
            steps = block * self.steps // num_blocks - (block - 1) * self.steps // num_blocks
            warmth = self._temperatures(steps)
            if isinstance(kind, Adaptive):
                assert not isinstance(warmth, tuple)
                return decode_adaptive(predict, tokens, mask_id=mask_id, rand=rand, rule=kind.rule, max_steps=steps,
                                       temperature=warmth, top_k=top_k, top_p=top_p)  # fmt: skip
            plan = given or self._ratios(tokens.shape[1], steps)
            if isinstance(kind, Ancestral):
                return decode_ancestral(predict, tokens, plan, mask_id=mask_id, rand=rand, temperature=warmth,
                                        top_k=top_k, top_p=top_p)  # fmt: skip
            if isinstance(kind, ReMDM):
                return decode_remasking(predict, tokens, plan, mask_id=mask_id, rand=rand, rule=kind.rule,
                                        temperature=warmth, top_k=top_k, top_p=top_p)  # fmt: skip
            rows = None if given else self._count_rows(tokens, mask_id, steps)
            revealed = plan if rows is None else rows
            order = self.bind_order(priority, steps)
            return decode(predict, tokens, revealed, mask_id=mask_id, rand=rand, priority=order, temperature=warmth,
                          top_k=top_k, top_p=top_p, remask=self.remask)  # fmt: skip

        return sampler

    def bind_order(self, priority: Priority | Bindable, steps: int) -> Priority:
        """Return the order for this many steps; one without a rule over the steps is returned unchanged."""
        if not isinstance(priority, Bindable):
            return priority
        return priority.bind(self.list_temperatures(steps), self.top_k, self.top_p)

    def list_temperatures(self, steps: int) -> tuple[float, ...]:
        """Return the temperature of each of `steps` steps, without the factor of the order Moment."""
        if isinstance(self.temperature, tuple):
            return self.temperature
        if self.annealing is not None:
            return self.annealing.list_values(self.temperature, steps)
        return (self.temperature,) * steps

    def _count_rows(self, tokens: Int[Tensor, "b l"], mask_id: int, steps: int) -> Int[Tensor, "steps b"] | None:
        """Return the counts of each row, for schedules that count its own unknown tokens."""
        if not isinstance(self.schedule, PerRow):
            return None
        schedule = self.schedule
        return counts.count_rows((tokens == mask_id).sum(1), lambda unknown: schedule.count(unknown, steps), steps)

    def _temperatures(self, steps: int) -> float | tuple[float, ...]:
        if isinstance(self.priority, Moment):
            factors = compute_moment_temperatures(self.priority.noise, steps)
            return tuple(a * b for a, b in zip(self.list_temperatures(steps), factors, strict=True))
        return self.temperature if self.annealing is None else self.list_temperatures(steps)


def resolve_priority(priority: Order | FromCritic, model: Generator, labels: Condition = None) -> Priority | Bindable:
    """Return the priority for a model: `priority` itself, or the scores of the model's critic on the filled canvas.

    Raises:
        ConfigError: The model has no critic.
    """
    if isinstance(priority, FromCritic):
        from unmask.method.models.transformer import MaskedTransformer

        if not isinstance(model, MaskedTransformer) or model.config.critic == "none":
            raise ConfigError(
                "this model has no critic: choose another order, or train a model with the objective WithCritic"
            )
        return CriticScore(
            lambda canvas: model(canvas, labels, judge=True), priority.noise, subtracts=priority.subtracts
        )
    return priority
