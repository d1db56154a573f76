"""`unmask sample`, `evaluate` and `export`: what one does with a finished run."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from unmask import evaluate as evaluation
from unmask import figures, gallery, image_experiment, text_experiment
from unmask.cli.networks import ReferenceFlags, open_networks
from unmask.cli.parsing import disk_errors, named, nearest, parse, positional, value_errors
from unmask.cli.schedule import shapes
from unmask.decoding import Adaptive, Ancestral, FromCritic, Order, Parallel, ReMDM, Sampling, ValeoaiV1
from unmask.errors import ConfigError
from unmask.guidance import Interval
from unmask.pipeline import Pipeline
from unmask.presets import GOOGLE_256, GOOGLE_512, REPORT_256, REPORT_512, Preset
from unmask.recipes import TextRecipe, read_recipe
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
from unmask.schedules import Shape
from unmask.text_pipeline import TextPipeline
from unmask.training.distributed import world
from unmask.training.log import progress_bar

PRESETS = {
    "besnier-256-8": REPORT_256,
    "besnier-512-15": REPORT_512,
    "maskgit-256-8": GOOGLE_256,
    "maskgit-512-12": GOOGLE_512,
}
"""What `--preset` may say: whose, for which size, in how many steps."""


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """Anything not given is as the recipe has it."""

    preset: str | None = None
    """Sample as published, but for other flags: besnier-256-8, besnier-512-15, maskgit-256-8 or maskgit-512-12."""
    steps: int | None = None
    """Forward passes."""
    order: str | None = None
    """Who is revealed first: confidence (-without-noise), halton, random, margin, margin-repulsion, entropy,
    max-logit, raster or moment."""
    noise: float | None = None
    """Factor of the Gumbel noise on log-confidence, for the confidence order; it falls to 0."""
    schedule: str | None = None
    """Fraction still masked over time: cosine, arccos, linear, square, pow3, root, sigmoid, log or exp;
    or valeoai-v1-arccos and so on, the densities of the reproduction report."""
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
    base = pipeline.sampling if flags.preset is None else named(PRESETS, flags.preset, "preset").sampling
    given = {name: getattr(flags, name) for name in ("steps", "temperature", "top_k", "top_p", "block")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if flags.sampler is not None:
        changes |= {"sampler": named(SAMPLERS, flags.sampler, "sampler"), "remask": flags.sampler == "remask"}
    _check_read(flags, changes.get("sampler", base.sampler))
    priority = base.priority
    if flags.order is not None and not (flags.order == "confidence" and isinstance(priority, Confidence)):
        priority = named(orders(pipeline.model.grid), flags.order, "order")
    if flags.noise is not None:
        if not isinstance(priority, Confidence | Moment | FromCritic):
            raise ConfigError(f"--noise {flags.noise} is for --order confidence or moment; this order has none")
        priority = replace(priority, noise=flags.noise)
    if flags.schedule is not None:
        changes["schedule"] = named(schedules(pipeline.model.length), flags.schedule, "schedule")
    if flags.scale is not None:
        changes["scale"] = Interval(flags.scale)
    return replace(base, priority=priority, **changes)


def published(name: str) -> str:
    """What a preset is reported to reach, in one line."""
    preset: Preset = named(PRESETS, name, "preset")
    fid, score = preset.expected.fid, preset.expected.inception_score
    size = "x".join(map(str, preset.size))
    return f"preset {name}: published FID {fid:.2f}, IS {score:.1f} for ImageNet at {size} ({preset.source})"


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


def schedules(length: int) -> dict[str, Shape | ValeoaiV1]:
    """What `--schedule` may say: fractions still masked, or tokens per step as the reproduction report has them."""
    plain = shapes(length)
    densities = {f"valeoai-v1-{name}": ValeoaiV1(shape=shape) for name, shape in plain.items()}
    return {**plain, **densities}


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
    }


@dataclass(frozen=True, kw_only=True)
class SampleFlags:
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    out: Path = Path("samples.png")
    num: int = 100
    labels: tuple[str, ...] = ()
    """Classes by name or number, repeated in turn until there are `num`; by default all classes."""
    columns: int = 10
    seed: int = 0
    gif: Path | None = None
    """Also animate the decoding of the first 30, as .gif or .webp."""


def sample(arguments: list[str]) -> None:
    """generate images from a run or an export"""
    name, rest = positional(arguments, "sample RUN, where RUN is a run folder or an export")
    flags = parse(SampleFlags, rest, f"sample {name}")
    if flags.num < 1:
        raise ConfigError(f"--num {flags.num}: at least 1")
    pipeline = Pipeline.from_pretrained(name)
    labels = pipeline.labels(flags.num)
    if flags.labels:
        ids = torch.tensor([class_id(label, pipeline.classes) for label in flags.labels])
        labels = ids[torch.arange(flags.num) % len(ids)]
    with value_errors(), disk_errors(flags.out.parent):
        sampling = applied(flags.sampling, pipeline)
        if flags.sampling.preset is not None:
            print(published(flags.sampling.preset))
        with progress_bar(shown=True) as progress:
            images = pipeline.generate(labels, num=flags.num, seed=flags.seed, sampling=sampling, progress=progress)
        scale = figures.readable_scale(images)
        figures.write(figures.grid(images, flags.columns, scale=scale), flags.out)
        print(f"wrote {flags.out}")
        if flags.gif is not None:
            shown = min(30, flags.num)
            states = pipeline.history(
                None if labels is None else labels[:shown], num=shown, seed=flags.seed, sampling=sampling
            )
            figures.animate(gallery.decode_frames(pipeline, states, scale), flags.gif)
            print(f"wrote {flags.gif}")


def class_id(label: str, classes: Sequence[str]) -> int:
    """The number of a class, given as such or by its name; a name wins, as digits are called "0" to "9"."""
    if label in classes:
        return list(classes).index(label)
    try:
        return int(label)
    except ValueError as error:
        raise ConfigError(f"no class {label}{nearest(label, classes) if classes else ': give its number'}") from error


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    network: Annotated[ReferenceFlags, tyro.conf.arg(name="")] = field(default_factory=ReferenceFlags)
    samples: int = 1500
    """How many images to generate and measure."""
    seed: int = 0


def evaluate(arguments: list[str]) -> None:
    """measure a run (Frechet distance and its kin, class accuracy, copies) into report.json, and draw its pictures"""
    name, rest = positional(arguments, "evaluate RUN, where RUN is a run folder")
    flags = parse(EvaluateFlags, rest, f"evaluate {name}")
    with value_errors():
        sampling = applied(flags.sampling, Pipeline.from_pretrained(name, device="cpu"))
    print_report(Path(name), flags.samples, flags.seed, sampling, flags.network, flags.sampling.preset)


PICTURES = {
    "model.safetensors": "the averaged weights; sampling needs these, config.json and any tokenizer.safetensors",
    "checkpoints": "to continue the training",
    "config.json": "the resolved recipe",
    "metrics.jsonl": "the training curve, a JSON object per line",
    "samples.png": "a grid of samples, a class per row",
    "decode.gif": "the canvas filling in",
    "decode.png": "the same, a row per step",
    "order.png": "which cell was revealed when",
    "inpaint.png": "held-out images: original, hole, repaired",
    "loss.png": "the loss",
    "report.json": "the figures above",
}


OWN = ReferenceFlags()


def print_report(
    run: Path, num: int, seed: int, sampling: Sampling, network: ReferenceFlags = OWN, preset: str | None = None
) -> None:
    """Evaluate, print the figures, and say where each file lies and which pictures could not be read."""
    if num < 2:
        raise ConfigError(f"--samples {num}: at least 2, to have a covariance")
    device = None if network.device == "auto" else network.device
    with value_errors(), disk_errors(run), world(device) as here, progress_bar(shown=here.is_main) as progress:
        features, judge = open_networks(network, here)
        numbers = evaluation.report(
            run,
            num=num,
            seed=seed,
            world=here,
            sampling=sampling,
            features=features,
            judge=judge,
            reference=network.reference,
            progress=progress,
        )
        if not here.is_main:
            return
    for one in bad if isinstance(bad := numbers.get("unreadable"), list) else ():
        print(f"left out {one}", file=sys.stderr)
    if preset is not None:
        print(published(preset))
    print(json.dumps(numbers, indent=2))
    print("\nwrote")
    width = max(len(str(run / file)) for file in PICTURES)
    for file, what in PICTURES.items():
        print(f"  {run / file!s:{width}s}  {what}")


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    out: Path
    """The folder to write."""


def export(arguments: list[str]) -> None:
    """write model.safetensors and config.json of a run to a folder of their own"""
    name, rest = positional(arguments, "export RUN --out DIR, where RUN is a run folder")
    flags = parse(ExportFlags, rest, f"export {name}")
    text = isinstance(read_recipe(Path(name) / "config.json", None), TextRecipe)
    with disk_errors(flags.out):
        (text_experiment if text else image_experiment).export(Path(name), flags.out)
    command, pipeline = ("generate", "TextPipeline") if text else ("sample", "Pipeline")
    print(
        f"wrote {flags.out}: unmask {command} {flags.out}, or {pipeline}.from_pretrained({str(flags.out)!r}) in Python"
    )
