"""`unmask sample` and `evaluate`: what one does with a finished run."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unmask.cli.flag_types import show_default
from unmask.cli.flags import (
    Device,
    MeasuredFlags,
    OutputFlags,
    ReferenceFlags,
    SamplingFlags,
    WeightsFlags,
    WeightType,
    check_device,
    choose_device,
    choose_sampling,
    choose_say,
    collect_settings,
    fetch_model,
    find_dtype,
)
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.cli.reports import format_report
from unmask.errors import ConfigError
from unmask.pipelines.rules import LabelRule
from unmask.published.names import MODEL_NAMES
from unmask.runtime.progress import show_progress
from unmask.storage.outputs import check_file, choose_free

if TYPE_CHECKING:
    from unmask.decoding.sampling import Sampling
    from unmask.published.opening import OpenedModel
    from unmask.runtime.distributed import World

MOST_IMAGES = 10_000


@dataclass(frozen=True, kw_only=True)
class SampleFlags(OutputFlags):
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    published: Annotated[WeightsFlags, tyro.conf.arg(name="")] = field(default_factory=WeightsFlags)
    out: Annotated[Path | None, show_default("samples.png, or the next free samples_2.png")] = None
    """Picture to write: a grid of the samples."""
    num: Annotated[int | None, show_default("100, or one per label of a published model")] = None
    """Number of images, from 1 to 10,000."""
    labels: Annotated[
        tuple[str, ...], tyro.conf.arg(aliases=["--classes"], metavar="CLASS ..."), show_default("all classes")
    ] = ()
    """Classes by name or number, repeated in turn."""
    prompts: Annotated[
        tuple[str, ...], tyro.conf.arg(aliases=["--prompt"], metavar="TEXT ..."), show_default("no text")
    ] = ()
    """For a text-to-image model, in place of labels: what to generate."""
    columns: int = 10
    """Images per row of the picture."""
    seed: int = 0
    """Seed of the samples: the same seed gives the same images."""
    gif: Annotated[Path | None, show_default("no animation")] = None
    """Also animate the decoding of the first 30 images, as .gif or .webp."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    dtype: WeightType = "auto"
    """Number type of weights: auto is bf16 where fast; int8 is faster for wide networks on a CPU, but less exact."""
    compile: bool = False
    """Compile the network first: slow to start, then faster; needs a C++ compiler on a CPU."""


def run_sample(arguments: list[str]) -> None:
    """Run `unmask sample`."""
    name, rest = split_positional(arguments, f"sample MODEL, where MODEL is {MODEL_NAMES}")
    flags = parse(SampleFlags, rest, f"sample {name}")
    import torch

    from unmask.decoding.names import describe_expected
    from unmask.evaluation.gallery import draw_decoding
    from unmask.figures import images as figures
    from unmask.method.models.partition import PartitionTransformer
    from unmask.method.models.transformer import MaskedTransformer
    from unmask.pipelines.labels import describe_ambiguity, resolve_filled_labels
    from unmask.pipelines.load import load_image_pipeline
    from unmask.pretrained.conditions import check_prompts
    from unmask.recipes.spec import collect_presets

    out = _check(flags)
    opened = flags.published.open(name)
    spec = opened.require_image_spec()
    check_prompts(spec.model, flags.prompts, name)
    with catch_value_errors():
        sampling = choose_sampling(flags.sampling, spec)
    classes = flags.prompts or spec.classes
    ids = resolve_filled_labels(flags.labels, classes, spec.empty_classes)  # before a download
    check_device(flags.device, flags.dtype)
    fetch_model(opened)
    pipeline = load_image_pipeline(opened, device=flags.device, dtype=find_dtype(flags.dtype), prompts=flags.prompts)
    few = max(1, len(flags.labels) or len(flags.prompts))
    usual = 100 if isinstance(pipeline.model, MaskedTransformer | PartitionTransformer) else few
    num = usual if flags.num is None else flags.num
    if flags.gif is not None:
        _ = pipeline.cells  # refused before anything is sampled
    if flags.compile:
        pipeline.compile()
    labels = pipeline.cycle_labels(num)
    if flags.labels:
        for label in flags.labels:
            if (said := describe_ambiguity(label, classes)) is not None:
                print(f"--labels {label} may mean {said}: the first is sampled", file=sys.stderr)
        labels = ids[torch.arange(num) % len(ids)]
    with catch_value_errors(), catch_disk_errors(out.parent):
        if flags.sampling.preset is not None and flags.sampling.preset not in collect_presets(spec):
            print(describe_expected(flags.sampling.preset))
        with show_progress(shown=True) as progress:
            images = pipeline.generate(labels, num=num, seed=flags.seed, sampling=sampling, progress=progress)
        scale = figures.choose_scale(images)
        figures.write_picture(figures.draw_grid(images, flags.columns, scale=scale), out)
        print(f"wrote {out}")
        if flags.gif is not None:
            shown = min(30, num)
            some = None if labels is None else labels[:shown]
            states = pipeline.collect_states(some, num=shown, seed=flags.seed, sampling=sampling)
            figures.write_animation(draw_decoding(pipeline, states, scale), flags.gif)
            print(f"wrote {flags.gif}")


def _check(flags: SampleFlags) -> Path:
    """Return the picture to write; ConfigError, before anything is loaded, for what cannot be drawn or written."""
    from unmask.figures import images as figures

    for name, number in (("num", flags.num), ("columns", flags.columns)):
        if number is not None and not 1 <= number <= MOST_IMAGES:
            raise ConfigError(
                f"--{name} {number}: from 1 to {MOST_IMAGES:,} on one picture; unmask evaluate draws more"
            )
    if flags.compile and flags.dtype == "int8":
        raise ConfigError("--compile does not work with --dtype int8: leave one of them out")
    out = choose_free(Path("samples.png")) if flags.out is None else flags.out
    figures.find_image_format(out)
    check_file(out, overwrite=flags.overwrite)
    if flags.gif is not None:
        figures.find_image_format(flags.gif, animated=True)
        check_file(flags.gif, overwrite=flags.overwrite)
    return out


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    network: Annotated[ReferenceFlags, tyro.conf.arg(name="")] = field(default_factory=ReferenceFlags)
    published: Annotated[MeasuredFlags, tyro.conf.arg(name="")] = field(default_factory=MeasuredFlags)
    out: Annotated[Path | None, show_default("the run, or runs/NAME of a published model")] = None
    """Folder for the results of a published model."""
    samples: int = 1500
    """Number of images to generate and measure."""
    labels: LabelRule = "shares"
    """Sample each class as often as it is held out (shares), or all equally often (balanced)."""
    seed: int = 0
    """Seed of the samples."""
    overwrite: bool = False
    """Replace files that unmask did not make, and a report on more samples."""


def run_evaluate(arguments: list[str]) -> None:
    """Run `unmask evaluate`."""
    name, rest = split_positional(arguments, f"evaluate MODEL, where MODEL is {MODEL_NAMES}")
    flags = parse(EvaluateFlags, rest, f"evaluate {name}")
    from unmask.evaluation.measuring import check_sampling
    from unmask.runtime.distributed import join_world

    with catch_value_errors(), join_world(choose_device(flags.network.device)) as here:
        opened = flags.published.open(name, here)
        sampling = check_sampling(opened.require_image_spec(), collect_settings(flags.sampling))
        if opened.is_run and flags.out is not None and flags.out != opened.folder:
            raise ConfigError("--out is for published and exported models: a run keeps its results")
        fetch_model(opened, here)
        print_report(opened, here, flags, sampling, choose_say(here))


PICTURES = {
    "model.safetensors": "averaged weights, for sampling",
    "checkpoints": "to resume the training",
    "config.json": "resolved recipe",
    "metrics.jsonl": "training curve, a JSON object per line",
    "samples.png": "samples, a class per row",
    "decode.gif": "decoding of the canvas, animated",
    "decode.png": "the same, a row per step",
    "order.png": "when each token was revealed",
    "inpaint.png": "held-out images: original, masked, inpainted",
    "loss.png": "loss over the training",
    "report.json": "all metrics and settings, as JSON",
}


def print_report(
    opened: "OpenedModel",
    here: "World",
    flags: EvaluateFlags,
    sampling: "Sampling",
    say: Callable[[str], None] | None = None,
) -> None:
    """Evaluate, print the metrics, and say where each file lies and which images could not be read.

    `say` is called with lines on the images that are measured against.
    """
    from unmask.decoding.names import describe_expected
    from unmask.evaluation.earlier import describe_replaced, read_report
    from unmask.evaluation.measuring import evaluate_opened, find_report

    path = find_report(opened, flags.out)
    folder, before = path.parent, read_report(path)
    with catch_value_errors(), catch_disk_errors(folder), show_progress(shown=here.is_main) as progress:
        numbers = evaluate_opened(
            opened,
            here,
            samples=flags.samples,
            seed=flags.seed,
            sampling=sampling,
            features=flags.network.features,
            classifier=flags.network.classifier,
            reference=flags.network.reference,
            labels=flags.labels,
            data=flags.published.source,
            out=flags.out,
            policy=flags.published.policy,
            overwrite=flags.overwrite,
            progress=progress,
            say=say,
        )
    if not here.is_main:
        return
    for one in bad if isinstance(bad := numbers.get("unreadable"), list) else ():
        print(f"left out {one}", file=sys.stderr)
    if "curve_note" in numbers:
        print(numbers["curve_note"], file=sys.stderr)
    if flags.sampling.preset is not None:
        print(describe_expected(flags.sampling.preset))
    print(format_report(numbers))
    if (replaced := describe_replaced(before, numbers)) is not None:
        print(replaced)
    print("\nwrote")
    there = {file: what for file, what in PICTURES.items() if (folder / file).exists()}
    width = max(len(str(folder / file)) for file in there)
    for file, what in there.items():
        print(f"  {folder / file!s:{width}s}  {what}")
