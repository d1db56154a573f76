"""`unmask sample`, `evaluate` and `export`: what one does with a finished run."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from unmask.cli.choices import SamplingFlags, applied
from unmask.cli.networks import ReferenceFlags, open_networks
from unmask.cli.parsing import disk_errors, parse, positional, value_errors
from unmask.cli.published import MEASURABLE, MeasuredFlags, WeightsFlags, check_prompts, located, measured
from unmask.decoding.names import describe_expected
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.evaluation import gallery
from unmask.evaluation import images as evaluation
from unmask.experiments import images as image_experiment
from unmask.experiments import text as text_experiment
from unmask.figures import images as figures
from unmask.method.models.transformer import MaskedTransformer
from unmask.pipelines.image import Pipeline
from unmask.pipelines.labels import class_ids
from unmask.recipes.reading import read_recipe
from unmask.recipes.schema import TextRecipe
from unmask.runtime.distributed import World, join_world
from unmask.runtime.progress import show_progress

MOST = 10_000


@dataclass(frozen=True, kw_only=True)
class SampleFlags:
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    published: Annotated[WeightsFlags, tyro.conf.arg(name="")] = field(default_factory=WeightsFlags)
    out: Path = Path("samples.png")
    num: int | None = None
    """By default 100, or, of a published network, one per label."""
    labels: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--classes"])] = ()
    """Classes by name or number, repeated in turn until there are `num`; by default all classes."""
    prompts: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--prompt"])] = ()
    """For a model of texts, in place of labels: what to draw."""
    columns: int = 10
    seed: int = 0
    gif: Path | None = None
    """Also animate the decoding of the first 30, as .gif or .webp."""
    compile: bool = False
    """torch.compile the network first: slow to start, faster from then on; needs a C++ compiler on a CPU."""


def sample(arguments: list[str]) -> None:
    """generate images from a run, an export or a published model"""
    name, rest = positional(
        arguments, "sample RUN, where RUN is a run folder, an export, one of unmask models or hf-hub:OWNER/NAME"
    )
    flags = parse(SampleFlags, rest, f"sample {name}")
    few = max(1, len(flags.labels) or len(flags.prompts))
    _check(flags)
    check_prompts(name, flags.prompts)
    pipeline = Pipeline.from_pretrained(located(name, flags.published), prompts=flags.prompts)
    usual = 100 if isinstance(pipeline.model, MaskedTransformer) else few
    num = usual if flags.num is None else flags.num
    if flags.gif is not None:
        _ = pipeline.cells  # refused before anything is drawn
    if flags.compile:
        pipeline.compile()
    labels = pipeline.labels(num)
    if flags.labels:
        ids = class_ids(flags.labels, pipeline.classes)
        labels = ids[torch.arange(num) % len(ids)]
    with value_errors(), disk_errors(flags.out.parent):
        sampling = applied(flags.sampling, pipeline)
        if flags.sampling.preset is not None:
            print(describe_expected(flags.sampling.preset))
        with show_progress(shown=True) as progress:
            images = pipeline.generate(labels, num=num, seed=flags.seed, sampling=sampling, progress=progress)
        scale = figures.readable_scale(images)
        figures.write(figures.grid(images, flags.columns, scale=scale), flags.out)
        print(f"wrote {flags.out}")
        if flags.gif is not None:
            shown = min(30, num)
            states = pipeline.history(
                None if labels is None else labels[:shown], num=shown, seed=flags.seed, sampling=sampling
            )
            figures.animate(gallery.decode_frames(pipeline, states, scale), flags.gif)
            print(f"wrote {flags.gif}")


def _check(flags: SampleFlags) -> None:
    """ConfigError for what could be neither drawn on one picture nor written, before anything is loaded."""
    for name, number in (("num", flags.num), ("columns", flags.columns)):
        if number is not None and not 1 <= number <= MOST:
            raise ConfigError(f"--{name} {number}: from 1 to {MOST:,} on one picture; unmask evaluate draws more")
    figures.image_format(flags.out)
    if flags.gif is not None:
        figures.image_format(flags.gif, animated=True)


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    network: Annotated[ReferenceFlags, tyro.conf.arg(name="")] = field(default_factory=ReferenceFlags)
    published: Annotated[MeasuredFlags, tyro.conf.arg(name="")] = field(default_factory=MeasuredFlags)
    out: Path | None = None
    """For a published model: the folder for the figures; runs/NAME by default."""
    samples: int = 1500
    """How many images to generate and measure."""
    seed: int = 0


def evaluate(arguments: list[str]) -> None:
    """measure a run (Frechet distance and its kin, class accuracy, copies) into report.json, and draw its pictures"""
    name, rest = positional(arguments, f"evaluate RUN, where RUN is {MEASURABLE}")
    flags = parse(EvaluateFlags, rest, f"evaluate {name}")
    device = None if flags.network.device == "auto" else flags.network.device
    with value_errors(), join_world(device) as here:
        run = measured(name, flags.published, flags.out, here)
        if flags.out not in (None, run):
            raise ConfigError("--out is for published models: a run keeps its figures")
        sampling = chosen_sampling(flags.sampling, run)
        print_report(run, flags.samples, flags.seed, sampling, here, flags.network, flags.sampling.preset)


def chosen_sampling(flags: SamplingFlags, run: Path) -> Sampling:
    """How to sample a run, refused before anything is drawn; the model that this takes leaves the memory."""
    pipeline = Pipeline.from_pretrained(run, device="cpu")
    sampling = applied(flags, pipeline)
    pipeline.predict(pipeline.labels(1), sampling)
    return sampling


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
    run: Path,
    num: int,
    seed: int,
    sampling: Sampling,
    here: World,
    network: ReferenceFlags = OWN,
    preset: str | None = None,
) -> None:
    """Evaluate, print the figures, and say where each file lies and which pictures could not be read."""
    if num < 2:
        raise ConfigError(f"--samples {num}: at least 2, to have a covariance")
    with value_errors(), disk_errors(run), show_progress(shown=here.is_main) as progress:
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
        print(describe_expected(preset))
    print(json.dumps(numbers, indent=2))
    print("\nwrote")
    there = {file: what for file, what in PICTURES.items() if (run / file).exists()}
    width = max(len(str(run / file)) for file in there)
    for file, what in there.items():
        print(f"  {run / file!s:{width}s}  {what}")


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    published: Annotated[WeightsFlags, tyro.conf.arg(name="")] = field(default_factory=WeightsFlags)
    out: Path
    """The folder to write."""


def export(arguments: list[str]) -> None:
    """write model.safetensors and config.json of a run, or of a published model, to a folder of their own"""
    name, rest = positional(
        arguments, "export RUN --out DIR, where RUN is a run folder, one of unmask models or hf-hub:OWNER/NAME"
    )
    flags = parse(ExportFlags, rest, f"export {name}")
    run = located(name, flags.published)
    text = isinstance(read_recipe(run / "config.json", None), TextRecipe)
    with disk_errors(flags.out):
        (text_experiment if text else image_experiment).export(run, flags.out)
    command, pipeline = ("generate", "TextPipeline") if text else ("sample", "Pipeline")
    print(
        f"wrote {flags.out}: unmask {command} {flags.out}, or {pipeline}.from_pretrained({str(flags.out)!r}) in Python"
    )
