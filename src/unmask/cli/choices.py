"""How to decode, by the names and numbers that flags may give: what `--order`, `--sampler` and their like may say."""

from dataclasses import dataclass, replace
from typing import Any

from unmask import presets
from unmask.cli.parsing import named
from unmask.cli.schedule import shapes
from unmask.decoding import (
    Adaptive,
    Ancestral,
    FromCritic,
    HaltonCounts,
    Order,
    Parallel,
    ReMDM,
    Reveal,
    Sampling,
    ValeoaiV1,
)
from unmask.errors import ConfigError
from unmask.guidance import Interval
from unmask.pipeline import Pipeline
from unmask.presets import GOOGLE_256, GOOGLE_512, REPORT_256, REPORT_512, Preset
from unmask.pretrained.rules import DrawnLogit, RolledHalton, StepConfidence, stretched
from unmask.sampling.adaptive import EntropyBound, Threshold
from unmask.sampling.priorities import (
    Confidence,
    Entropy,
    Halton,
    Margin,
    MarginRepulsion,
    MaxLogit,
    Moment,
    Random,
    Raster,
)
from unmask.sampling.remasking import Cap, ConfidenceWeighted, Rescale
from unmask.text_pipeline import TextPipeline

PRESETS = {
    "besnier-256-8": REPORT_256,
    "besnier-512-15": REPORT_512,
    "maskgit-256-8": GOOGLE_256,
    "maskgit-512-12": GOOGLE_512,
    "halton-tiny-256-32": presets.HALTON_TINY_256,
    "halton-small-256-32": presets.HALTON_SMALL_256,
    "halton-base-256-32": presets.HALTON_BASE_256,
    "halton-small-384-32": presets.HALTON_SMALL_384,
    "halton-base-384-32": presets.HALTON_BASE_384,
    "halton-large-384-32": presets.HALTON_LARGE_384,
    "titok-l32-256-8": presets.TITOK_L32,
    "titok-b64-256-8": presets.TITOK_B64,
    "titok-s128-256-64": presets.TITOK_S128,
}
"""Published ones: whose, for which size, in how many steps."""
OURS = {"ours-8": presets.ours(8), "ours-16": presets.ours(16)}
SAMPLINGS: dict[str, Sampling] = {name: preset.sampling for name, preset in PRESETS.items()} | OURS
"""What `--preset` may say."""


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
    base = pipeline.sampling if flags.preset is None else named(SAMPLINGS, flags.preset, "preset")
    base = base.on(pipeline.model.grid)
    given = {name: getattr(flags, name) for name in ("steps", "temperature", "top_k", "top_p", "block")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if isinstance(base.temperature, tuple) and flags.steps and flags.temperature is None:
        changes["temperature"] = stretched(base.temperature, flags.steps)
    if flags.sampler is not None:
        changes |= {"sampler": named(SAMPLERS, flags.sampler, "sampler"), "remask": flags.sampler == "remask"}
    _check_read(flags, changes.get("sampler", base.sampler))
    priority = base.priority
    if flags.order is not None and not (flags.order == "confidence" and isinstance(priority, Confidence)):
        priority = named(orders(pipeline.model.grid), flags.order, "order")
    if flags.noise is not None:
        priority = _noisy(priority, flags.noise)
    if flags.schedule is not None:
        changes["schedule"] = named(schedules(pipeline.model.length), flags.schedule, "schedule")
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


def expected(name: str) -> str:
    """What a preset is reported to reach, in one line."""
    if name in OURS:
        return f"preset {name}: our own, of which nothing is published"
    preset: Preset = named(PRESETS, name, "preset")
    fid, score = preset.expected.fid, preset.expected.inception_score
    size = "x".join(map(str, preset.size))
    judged = "" if score is None else f", IS {score:.1f}"
    return f"preset {name}: published FID {fid:.2f}{judged} for ImageNet at {size} ({preset.source})"


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


SAMPLERS: dict[str, Parallel | Ancestral | ReMDM | Adaptive] = {
    "parallel": Parallel(),
    "remask": Parallel(),
    "ancestral": Ancestral(),
    "remdm-cap": ReMDM(Cap(0.02)),
    "remdm-rescale": ReMDM(Rescale(0.1)),
    "remdm-confidence": ReMDM(ConfidenceWeighted()),
    "entropy-bound": Adaptive(EntropyBound(0.1)),
    "threshold": Adaptive(Threshold(0.9)),
}
"""What `--sampler` may say."""


def schedules(length: int) -> dict[str, Reveal]:
    """What `--schedule` may say: fractions still masked, or tokens per step as the reproduction report has them."""
    plain = shapes(length)
    densities = {f"valeoai-v1-{name}": ValeoaiV1(shape=shape) for name, shape in plain.items()}
    return {**plain, **densities, "halton-maskgit": HaltonCounts()}


def orders(grid: tuple[int, ...]) -> dict[str, Order]:
    """What `--order` may say."""
    return {
        "confidence": Confidence(),
        "confidence-without-noise": Confidence(0.0),
        "halton": Halton(grid),
        "random": Random(),
        "margin": Margin(),
        "margin-repulsion": MarginRepulsion(radius=4 if len(grid) == 1 else 1, grid=grid),
        "entropy": Entropy(),
        "max-logit": MaxLogit(),
        "raster": Raster(),
        "moment": Moment(),
        "halton-rolled": RolledHalton(grid),
    }
