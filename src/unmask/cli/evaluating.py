"""`unmask evaluate-tokenizer` and `evaluate-inpaint`: what a tokenizer keeps, and how well holes are filled."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unmask.cli.flag_types import show_default
from unmask.cli.flags import (
    CELL_CHOICES,
    DataFlags,
    MeasuredFlags,
    NetworkFlags,
    SamplingFlags,
    WeightsFlags,
    choose_device,
    choose_sampling,
    choose_say,
    fetch_model,
)
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.cli.reports import format_tokenizer_report
from unmask.cli.tables import format_table
from unmask.decoding.choices import SHAPE_CHOICES
from unmask.errors import ConfigError, look_up
from unmask.published.names import MODEL_NAMES
from unmask.runtime.progress import show_progress
from unmask.storage.layout import CLASSIFIER, REPORT
from unmask.storage.outputs import check_results

if TYPE_CHECKING:
    from unmask.data.augment import PictureSet
    from unmask.data.sources.choice import Folder
    from unmask.decoding.sampling import Sampling
    from unmask.method.schedules import Shape
    from unmask.pretrained.networks import LearnedConfig
    from unmask.published.opening import OpenedModel
    from unmask.runtime.distributed import World


@dataclass(frozen=True, kw_only=True)
class EvaluateTokenizerFlags:
    network: Annotated[NetworkFlags, tyro.conf.arg(name="")] = field(default_factory=NetworkFlags)
    published: Annotated[WeightsFlags, tyro.conf.arg(name="")] = field(default_factory=WeightsFlags)
    known: Annotated[DataFlags, tyro.conf.arg(name="")] = field(default_factory=DataFlags)
    data: Annotated[Path | None, show_default("the images of the run")] = None
    """Folder of images, needed for a published or converted tokenizer."""
    train: Annotated[str | None, tyro.conf.arg(name="data.train", metavar="DIR"), show_default("by its name")] = None
    """Folder of images to train on, inside --data or elsewhere."""
    test: Annotated[str | None, tyro.conf.arg(name="data.test", metavar="DIR"), show_default("by its name")] = None
    """Folder of images to hold out, inside --data or elsewhere."""
    out: Annotated[Path | None, show_default("the run, or runs/NAME-tokenizer")] = None
    """Folder for the results of a published or converted tokenizer."""
    pictures: int = 10_000
    """Held-out images to measure on, at most; at least 2."""
    overwrite: bool = False
    """Replace files that unmask did not make, and a report on more images."""


def run_evaluate_tokenizer(arguments: list[str]) -> None:
    """Run `unmask evaluate-tokenizer`."""
    usage = f"evaluate-tokenizer MODEL, where MODEL is the run of a tokenizer, or {MODEL_NAMES}"
    name, rest = split_positional(arguments, usage)
    flags = parse(EvaluateTokenizerFlags, rest, f"evaluate-tokenizer {name}")
    from unmask.cli.networks import PHOTOS
    from unmask.data.sources.choice import Folder
    from unmask.evaluation import tokenizer as evaluation
    from unmask.evaluation.earlier import check_report, describe_replaced, read_report
    from unmask.evaluation.runs import shorten_name
    from unmask.pretrained.lone_tokenizer import LearnedModel
    from unmask.recipes.schema import TokenizerRecipe
    from unmask.runtime.distributed import join_world
    from unmask.tokenizers.base import open_tokenizer

    if flags.pictures < 2:
        raise ConfigError(f"--pictures {flags.pictures}: at least 2, to have a covariance")
    opened = flags.published.open(name)
    config = opened.require_tokenizer()
    own = isinstance(opened.config, TokenizerRecipe)
    elsewhere = {"--data": flags.data, "--data.train": flags.train, "--data.test": flags.test, "--out": flags.out}
    given = [flag for flag, value in elsewhere.items() if value is not None]
    if own and given:
        raise ConfigError(f"{given[0]} is for published tokenizers: a run has its images, and keeps its results")
    if not own and flags.data is None and flags.train is None:
        raise ConfigError(f"measured on which images? {name} is no run of a tokenizer: give --data DIR")
    run = Path(name) if own else flags.out or Path("runs") / f"{shorten_name(name)}-tokenizer"
    check_results(flags.out, evaluation.TOKENIZER_FILES, overwrite=flags.overwrite)
    before, advice = read_report(run / REPORT), "" if own else "or give another --out"
    check_report(run / REPORT, "num_pictures", flags.pictures, "--pictures", overwrite=flags.overwrite, advice=advice)
    with catch_value_errors(), catch_disk_errors(run), join_world(choose_device(flags.network.device)) as here:
        features, judge = flags.network.open(here)
        if own:
            measure = partial(evaluation.measure_tokenizer_run, run, policy=flags.known.policy, say=choose_say(here))
        else:
            path, side = "" if flags.data is None else str(flags.data), max(config.size)
            source = Folder(path=path, size=side, channels=config.channels, train=flags.train, test=flags.test)
            pictures = _pictures(source, config, here)
            classes = max(2, len(pictures[0].pictures.classes))
            classifier = replace(PHOTOS, channels=config.channels, num_classes=classes)
            fetch_model(opened, here)
            model: LearnedModel = open_tokenizer(config, opened.find_tokenizer_weights())  # type: ignore[assignment]
            run.mkdir(parents=True, exist_ok=True)
            measure = partial(evaluation.measure_tokenizer, model, pictures, run, classifier=classifier)
        with show_progress(shown=here.is_main) as progress:
            numbers = measure(world=here, features=features or judge, num=flags.pictures, progress=progress)
        if here.is_main:
            print(format_tokenizer_report(numbers))
            if (replaced := describe_replaced(before, numbers)) is not None:
                print(replaced)
            print(
                f"\nwrote {run / 'reconstructions.png'}\nwrote {run / 'report.json'}: all metrics and settings, as JSON"
            )
            print(f"next: unmask tokenize {name}")


def _pictures(source: "Folder", config: "LearnedConfig", here: "World") -> "tuple[PictureSet, PictureSet]":
    """Return the images that a classifier may learn from, and those held out; name what cannot be read."""
    from unmask.data.augment import PictureSet
    from unmask.experiments.training import say_split

    with show_progress(shown=here.is_main) as progress:
        split = source.load(progress)
    if (say := choose_say(here)) is not None:
        say_split(split, say)
    train, test = (PictureSet(pictures=part, size=config.size, flip=False) for part in (split.train, split.test))
    return train, test


INPAINTING_STEPS = 20
"""Forward passes unless --steps says otherwise, whatever the model's own sampling."""


@dataclass(frozen=True, kw_only=True)
class EvaluateInpaintFlags:
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    network: Annotated[NetworkFlags, tyro.conf.arg(name="")] = field(default_factory=NetworkFlags)
    images: int = 2000
    """Held-out images to mask, at most: in turn the right half, the lower half, the middle."""
    schedules: Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{SHAPE_CHOICES} ...")] = (
        "cosine",
        "linear",
        "square",
    )
    """Schedules to compare: the fraction still masked over time."""
    stops: tuple[int, ...] = (5, 10, 15)
    """Also measure an end after this many of the steps, where the last one fills the rest."""
    labels: bool = True
    """Give the model the true class of each image."""
    cells: Annotated[str, tyro.conf.arg(metavar=CELL_CHOICES)] = "any"
    """Which tokens to sample: those with any pixel in the region, with all, or with this share of them."""
    dilate: int = 0
    """Also sample this many cells around them; 1 suits a convolutional tokenizer."""
    seed: int = 0
    """Seed of the samples."""
    published: Annotated[MeasuredFlags, tyro.conf.arg(name="")] = field(default_factory=MeasuredFlags)
    out: Annotated[Path | None, show_default("RUN/inpainting, or runs/NAME/inpainting of a published model")] = None
    """Folder for the table and the pictures."""
    overwrite: bool = False
    """Replace files that unmask did not make, and a report on more images."""


def run_evaluate_inpaint(arguments: list[str]) -> None:
    """Run `unmask evaluate-inpaint`."""
    name, rest = split_positional(arguments, f"evaluate-inpaint MODEL, where MODEL is {MODEL_NAMES}")
    flags = parse(EvaluateInpaintFlags, rest, f"evaluate-inpaint {name}")
    from unmask.decoding.names import list_shapes
    from unmask.evaluation import inpainting
    from unmask.runtime.distributed import join_world

    if flags.images < 2:
        raise ConfigError(f"--images {flags.images}: at least 2, to have a covariance")
    if flags.sampling.schedule is not None:
        raise ConfigError(f"--schedule {flags.sampling.schedule}: say which to compare, --schedules cosine linear")
    if flags.sampling.preset is not None:
        raise ConfigError(f"--preset {flags.sampling.preset} has one schedule, and several are compared: leave it out")
    check_results(flags.out, inpainting.INPAINTING_FILES, overwrite=flags.overwrite)
    with catch_value_errors(), join_world(choose_device(flags.network.device)) as here:
        opened = flags.published.open(name, here)
        spec = opened.require_image_spec()
        steps = INPAINTING_STEPS if flags.sampling.steps is None else flags.sampling.steps
        sampling = choose_sampling(replace(flags.sampling, steps=steps), spec)
        table = list_shapes(spec.length)
        schedules = {shape: look_up(table, shape, "schedule") for shape in flags.schedules}
        fetch_model(opened, here)
        _measure(flags, opened, sampling, schedules, here)


def _measure(
    flags: EvaluateInpaintFlags,
    opened: "OpenedModel",
    sampling: "Sampling",
    schedules: "dict[str, Shape]",
    here: "World",
) -> None:
    from unmask.cli.editing import choose_cells
    from unmask.evaluation import inpainting
    from unmask.evaluation.earlier import check_report, describe_replaced, read_report
    from unmask.evaluation.reference import check_judge
    from unmask.evaluation.runs import open_run
    from unmask.metrics.in_domain import prepare_classifier_features

    with catch_disk_errors(flags.out or Path("runs")):
        run = open_run(
            opened,
            here,
            data=flags.published.source,
            out=flags.out,
            policy=flags.published.policy,
            say=choose_say(here),
        )
        experiment, pipeline, out = run.experiment, run.pipeline, flags.out or run.folder / "inpainting"
        _ = pipeline.cells  # refused before anything is measured
        path, before = out / REPORT, read_report(out / REPORT)
        check_report(
            path, "num_pictures", flags.images, "--images", overwrite=flags.overwrite, advice="or give another --out"
        )
        features, judge = flags.network.open(here)
        check_judge(judge, experiment.classes)
        if judge is None and experiment.classes:
            config = experiment.recipe.classifier
            judge = prepare_classifier_features(
                experiment.read_pictures("train"), config, run.folder / CLASSIFIER, here
            )
        if not here.is_main:
            return  # one process does it: the pictures are few
        rows = inpainting.measure_inpainting(
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
            cells=choose_cells(flags.cells, flags.dilate),
            seed=flags.seed,
        )
        head, *body = inpainting.list_cells(rows)
        print(format_table([INPAINTING_TITLES.get(name, name) for name in head], body))
        print("FD: Frechet distance; L1: mean error; masked: of the masked region alone")
        if (replaced := describe_replaced(before, read_report(path))) is not None:
            print(replaced)
        print(f"\nwrote into {out}: table.md, table.csv, repaired.png, report.json")


INPAINTING_TITLES = {
    "frechet": "FD",
    "frechet_holes": "masked FD",
    "l1_holes": "masked L1",
    "class_accuracy": "class accuracy",
}
"""Titles of the metrics for the terminal."""
