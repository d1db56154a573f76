"""`unmask evaluate-tokenizer` and `evaluate-inpaint`: what a tokenizer keeps, and how well holes are filled."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from unmask.cli.choices import SamplingFlags, applied
from unmask.cli.editing import policy
from unmask.cli.networks import NetworkFlags, open_networks
from unmask.cli.parsing import disk_errors, named, parse, positional, value_errors
from unmask.cli.schedule import shapes
from unmask.errors import ConfigError
from unmask.evaluation import inpainting
from unmask.evaluation import tokenizer as evaluation
from unmask.evaluation.images import opened
from unmask.evaluation.reference import check_judge, in_domain
from unmask.training.distributed import world


@dataclass(frozen=True, kw_only=True)
class EvaluateTokenizerFlags:
    network: Annotated[NetworkFlags, tyro.conf.arg(name="")] = field(default_factory=NetworkFlags)
    pictures: int = 10_000
    """How many held-out pictures to look at, at most."""


def evaluate_tokenizer(arguments: list[str]) -> None:
    """measure a tokenizer (rFID, PSNR, SSIM, use of its codes) into report.json, and draw pictures beside its own"""
    name, rest = positional(arguments, "evaluate-tokenizer RUN, where RUN is the folder of a trained tokenizer")
    flags = parse(EvaluateTokenizerFlags, rest, f"evaluate-tokenizer {name}")
    if flags.pictures < 2:
        raise ConfigError(f"--pictures {flags.pictures}: at least 2, to have a covariance")
    run, device = Path(name), None if flags.network.device == "auto" else flags.network.device
    with value_errors(), disk_errors(run), world(device) as here:
        features, judge = open_networks(flags.network, here)
        numbers = evaluation.report(run, world=here, features=features or judge, num=flags.pictures)
        if here.is_main:
            print(json.dumps(numbers, indent=2))
            print(f"\nwrote {run / 'report.json'} and {run / 'reconstructions.png'}; next: unmask tokenize {run}")


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
    out: Path | None = None
    """The folder for the table and the pictures; by default RUN/inpainting."""


def evaluate_inpaint(arguments: list[str]) -> None:
    """put holes into held-out pictures, fill them with several schedules and early stops, and measure the results"""
    name, rest = positional(arguments, "evaluate-inpaint RUN, where RUN is a run folder")
    flags = parse(EvaluateInpaintFlags, rest, f"evaluate-inpaint {name}")
    run = Path(name)
    out = flags.out or run / "inpainting"
    if flags.images < 2:
        raise ConfigError(f"--images {flags.images}: at least 2, to have a covariance")
    if flags.sampling.schedule is not None:
        raise ConfigError(f"--schedule {flags.sampling.schedule}: say which to compare, --schedules cosine linear")
    if flags.sampling.preset is not None:
        raise ConfigError(
            f"--preset {flags.sampling.preset} is of one schedule, and several are compared: leave it out"
        )
    device = None if flags.network.device == "auto" else flags.network.device
    with value_errors(), disk_errors(out), world(device) as here:
        experiment, pipeline = opened(run, here)
        table = shapes(pipeline.model.length)
        schedules = {shape: named(table, shape, "schedule") for shape in flags.schedules}
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
