"""`unmask evaluate-tokenizer` and `evaluate-inpaint`: what a tokenizer keeps, and how well holes are filled."""

import json
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from unmask.cli.choices import SamplingFlags, applied
from unmask.cli.editing import policy
from unmask.cli.networks import PHOTOS, NetworkFlags, open_networks
from unmask.cli.parsing import disk_errors, parse, positional, value_errors
from unmask.cli.published import MEASURABLE, MeasuredFlags, WeightsFlags, located, measured
from unmask.cli.tokenizers import described_tokenizer, opened_tokenizer
from unmask.data.augment import PictureSet
from unmask.data.sources.choice import Folder
from unmask.decoding.names import look_up, shapes
from unmask.errors import ConfigError
from unmask.evaluation import inpainting
from unmask.evaluation import tokenizer as evaluation
from unmask.evaluation.images import opened
from unmask.evaluation.reference import check_judge
from unmask.metrics.in_domain import in_domain
from unmask.pretrained.networks import LearnedConfig
from unmask.runtime.distributed import World, join_world
from unmask.runtime.progress import show_progress


@dataclass(frozen=True, kw_only=True)
class EvaluateTokenizerFlags:
    network: Annotated[NetworkFlags, tyro.conf.arg(name="")] = field(default_factory=NetworkFlags)
    published: Annotated[WeightsFlags, tyro.conf.arg(name="")] = field(default_factory=WeightsFlags)
    data: Path | None = None
    """For a published or converted tokenizer: a folder of pictures. A trained one has its own."""
    out: Path | None = None
    """And the folder for the figures; runs/NAME-tokenizer by default."""
    pictures: int = 10_000
    """How many held-out pictures to look at, at most."""


def evaluate_tokenizer(arguments: list[str]) -> None:
    """measure a tokenizer (rFID, PSNR, SSIM, use of its codes) into report.json, and draw pictures beside its own"""
    usage = "evaluate-tokenizer RUN, where RUN is the folder of a trained tokenizer or one of unmask models"
    name, rest = positional(arguments, usage)
    flags = parse(EvaluateTokenizerFlags, rest, f"evaluate-tokenizer {name}")
    if flags.pictures < 2:
        raise ConfigError(f"--pictures {flags.pictures}: at least 2, to have a covariance")
    config, own = described_tokenizer(name)
    elsewhere = own if isinstance(own, Folder) and not own.path else None
    if elsewhere is None and (flags.data, flags.out) != (None, None):
        raise ConfigError(
            "--data and --out are for published tokenizers: a run has its pictures, and keeps its figures"
        )
    if elsewhere is None:
        located(name, flags.published)  # which refuses other weights than its own
    elif flags.data is None:
        raise ConfigError(f"measured on which pictures? {name} was trained elsewhere: give --data DIR")
    run = Path(name) if elsewhere is None else flags.out or Path("runs") / f"{Path(name).name}-tokenizer"
    device = None if flags.network.device == "auto" else flags.network.device
    with value_errors(), disk_errors(run), join_world(device) as here:
        features, judge = open_networks(flags.network, here)
        if elsewhere is not None:
            pictures = _pictures(replace(elsewhere, path=str(flags.data)), config, here)
            classifier = replace(
                PHOTOS, channels=config.channels, num_classes=max(2, len(pictures[0].pictures.classes))
            )
            model = opened_tokenizer(name, config, flags.published, here)
            run.mkdir(parents=True, exist_ok=True)
            measure = partial(evaluation.report_on, model, pictures, run, classifier=classifier)
        else:
            measure = partial(evaluation.report, run)
        with show_progress(shown=here.is_main) as progress:
            numbers = measure(world=here, features=features or judge, num=flags.pictures, progress=progress)
        if here.is_main:
            print(json.dumps(numbers, indent=2))
            print(f"\nwrote {run / 'report.json'} and {run / 'reconstructions.png'}; next: unmask tokenize {name}")


def _pictures(source: Folder, config: LearnedConfig, here: World) -> tuple[PictureSet, PictureSet]:
    """Those that a classifier may learn from, and those held out; what cannot be read is named."""
    with show_progress(shown=here.is_main) as progress:
        split = source.load(progress)
    for bad in split.bad if here.is_main else ():
        print(f"left out {bad}", file=sys.stderr)
    train, test = (PictureSet(pictures=part, size=config.size, flip=False) for part in (split.train, split.test))
    return train, test


@dataclass(frozen=True, kw_only=True)
class EvaluateInpaintFlags:
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    network: Annotated[NetworkFlags, tyro.conf.arg(name="")] = field(default_factory=NetworkFlags)
    images: int = 2000
    """How many held-out pictures to put holes into, at most: by turns the right half, the lower half, the middle."""
    schedules: tuple[str, ...] = ("cosine", "linear", "square")
    stops: tuple[int, ...] = (5, 10, 15)
    """Also end after so many of the steps, the last of which fills all that is left; always also after the last."""
    labels: bool = True
    """Tell the model the true class."""
    cells: str = "any"
    """Which tokens to draw anew: those with any or all of their pixels in the hole, or a share such as 0.5."""
    dilate: int = 0
    seed: int = 0
    published: Annotated[MeasuredFlags, tyro.conf.arg(name="")] = field(default_factory=MeasuredFlags)
    out: Path | None = None
    """The folder for the table and the pictures; RUN/inpainting by default, where a published model's RUN is runs/NAME.
    """


def evaluate_inpaint(arguments: list[str]) -> None:
    """put holes into held-out pictures, fill them with several schedules and early stops, and measure the results"""
    name, rest = positional(arguments, f"evaluate-inpaint RUN, where RUN is {MEASURABLE}")
    flags = parse(EvaluateInpaintFlags, rest, f"evaluate-inpaint {name}")
    if flags.images < 2:
        raise ConfigError(f"--images {flags.images}: at least 2, to have a covariance")
    if flags.sampling.schedule is not None:
        raise ConfigError(f"--schedule {flags.sampling.schedule}: say which to compare, --schedules cosine linear")
    if flags.sampling.preset is not None:
        raise ConfigError(
            f"--preset {flags.sampling.preset} is of one schedule, and several are compared: leave it out"
        )
    device = None if flags.network.device == "auto" else flags.network.device
    with value_errors(), join_world(device) as here:
        run = measured(name, flags.published, flags.out, here)
        _fill(flags, run, flags.out or run / "inpainting", here)


def _fill(flags: EvaluateInpaintFlags, run: Path, out: Path, here: World) -> None:
    with disk_errors(out):
        experiment, pipeline = opened(run, here)
        _ = pipeline.cells  # refused before anything is measured
        table = shapes(pipeline.model.length)
        schedules = {shape: look_up(table, shape, "schedule") for shape in flags.schedules}
        sampling = replace(applied(flags.sampling, pipeline), steps=flags.sampling.steps or 20)
        features, judge = open_networks(flags.network, here)
        check_judge(judge, experiment.classes)
        if judge is None and experiment.classes:
            config = experiment.recipe.classifier
            judge = in_domain(experiment.real("train"), config, run / "classifier.safetensors", here)
        if not here.is_main:
            return  # one process does it: the pictures are few
        rows = inpainting.run(
            experiment,
            pipeline,
            features or judge,
            judge,
            out,
            num=flags.images,
            schedules=schedules,
            sampling=sampling,
            stops=(*(stop for stop in flags.stops if stop < sampling.steps), sampling.steps),
            labelled=flags.labels,
            cells=policy(flags.cells, flags.dilate),
            seed=flags.seed,
        )
        print(inpainting.markdown(rows))
        print(f"wrote {out / 'table.md'}, {out / 'table.csv'} and {out / 'repaired.png'}")
