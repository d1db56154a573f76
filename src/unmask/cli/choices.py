"""How to decode, by the names and numbers that flags may give: what `--order`, `--sampler` and their like may say."""

from dataclasses import dataclass, replace
from typing import Any

from unmask.decoding.names import SAMPLERS, SAMPLINGS, look_up, orders, schedules
from unmask.decoding.rules import DrawnLogit, StepConfidence, stretch
from unmask.decoding.sampling import (
    Adaptive,
    Ancestral,
    FromCritic,
    Order,
    Parallel,
    ReMDM,
    Sampling,
)
from unmask.errors import ConfigError
from unmask.method.guidance import Interval
from unmask.method.sampling.priorities import (
    Confidence,
    Moment,
)
from unmask.pipelines.image import Pipeline
from unmask.pipelines.text import TextPipeline


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """Anything not given is as the recipe has it."""

    preset: str | None = None
    """Sample as published, but for other flags: besnier-256-8, besnier-512-15, maskgit-256-8, maskgit-512-12,
    halton-tiny-256-32, halton-small-256-32, halton-base-256-32, halton-small-384-32, halton-base-384-32,
    halton-large-384-32, titok-l32-256-8, titok-b64-256-8, titok-s128-256-64; or by our own rule: ours-8, ours-16."""
    steps: int | None = None
    """Forward passes."""
    order: str | None = None
    """Who is revealed first: confidence (-without-noise), halton, random, margin, margin-repulsion, entropy,
    max-logit, raster, moment or halton-rolled."""
    noise: float | None = None
    """Factor of the Gumbel noise on log-confidence, for the confidence order; it falls to 0."""
    schedule: str | None = None
    """Fraction still masked over time: cosine, arccos, linear, square, pow3, root, sigmoid, log or exp;
    or valeoai-v1-arccos and so on, the densities of the reproduction report; or halton-maskgit, that code's counts."""
    temperature: float | None = None
    """Logits are divided by it: below 1 sharper, 0 greedy."""
    scale: float | None = None
    """Guidance: null + scale (conditional - null); 1 is none. Papers that write w mean scale - 1."""
    sampler: str | None = None
    """parallel, remask (what was revealed may be taken back), ancestral, remdm-cap, remdm-rescale, remdm-confidence,
    entropy-bound or threshold (the model decides how many tokens a step reveals)."""
    block: int | None = None
    """Go from left to right in blocks of so many tokens."""
    top_k: int | None = None
    """Draw from this many of the likeliest tokens only."""
    top_p: float | None = None
    """Draw from the smallest set of tokens with this much probability only."""


def applied(flags: SamplingFlags, pipeline: Pipeline | TextPipeline) -> Sampling:
    """The run's own sampling, or a published one, with the given flags put in."""
    base = pipeline.sampling if flags.preset is None else look_up(SAMPLINGS, flags.preset, "preset")
    base = base.on(pipeline.model.grid)
    given = {name: getattr(flags, name) for name in ("steps", "temperature", "top_k", "top_p", "block")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if isinstance(base.temperature, tuple) and flags.steps and flags.temperature is None:
        changes["temperature"] = stretch(base.temperature, flags.steps)
    if flags.sampler is not None:
        changes |= {"sampler": look_up(SAMPLERS, flags.sampler, "sampler"), "remask": flags.sampler == "remask"}
    _check_read(flags, changes.get("sampler", base.sampler))
    priority = base.priority
    if flags.order is not None and not (flags.order == "confidence" and isinstance(priority, Confidence)):
        priority = look_up(orders(pipeline.model.grid), flags.order, "order")
    if flags.noise is not None:
        priority = _noisy(priority, flags.noise)
    if flags.schedule is not None:
        changes["schedule"] = look_up(schedules(pipeline.model.length), flags.schedule, "schedule")
    if flags.scale is not None:
        changes["scale"] = Interval(flags.scale)
    return replace(base, priority=priority, **changes)


def _noisy(priority: Order | FromCritic, noise: float) -> Order | FromCritic:
    """The same order with another factor of noise: of a list of factors, the first."""
    if isinstance(priority, StepConfidence | DrawnLogit) and priority.noises[0] > 0:
        return replace(priority, noises=tuple(noise * (factor / priority.noises[0]) for factor in priority.noises))
    if not isinstance(priority, Confidence | Moment | FromCritic):
        raise ConfigError(f"--noise {noise} is for --order confidence or moment; this order has none")
    return replace(priority, noise=noise)


def _check_read(flags: SamplingFlags, sampler: Parallel | Ancestral | ReMDM | Adaptive) -> None:
    """ConfigError for a flag that the chosen sampler would not look at."""
    ordered, planned = isinstance(sampler, Parallel), not isinstance(sampler, Adaptive)
    for name, given, read in (
        ("order", flags.order, ordered),
        ("noise", flags.noise, ordered),
        ("schedule", flags.schedule, planned),
    ):
        if given is not None and not read:
            kind = type(sampler).__name__
            raise ConfigError(f"--{name} {given}: the sampler {kind} does not look at it: add --sampler parallel")
