"""`unmask train` and `unmask demo`."""

import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unmask.cli.parsing import disk_errors, parse, positional, value_errors
from unmask.cli.published import WeightsFlags, check_text, located
from unmask.cli.sampling import print_report
from unmask.data.sources.choice import Codes
from unmask.errors import CheckpointError, ConfigError
from unmask.experiments import base as experiment
from unmask.experiments import from_pictures
from unmask.experiments import images as image_experiment
from unmask.experiments import text as text_experiment
from unmask.experiments.finetune import adopted
from unmask.method.models.protocol import Generator
from unmask.recipes import Recipe, TextRecipe, reading
from unmask.runtime.distributed import World, barrier, join_world
from unmask.runtime.progress import show_progress
from unmask.storage.config import dump_json
from unmask.storage.weights import skip_initial_weights
from unmask.training.runfolder import goes_on


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    out: Path
    """The run folder: checkpoints, config.json, metrics.jsonl, samples, model.safetensors."""
    resume: Literal["auto", "never"] = "auto"
    """Continue from the newest checkpoint in the run folder, or refuse a folder that has one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dry_run: bool = False
    """Print the resolved configuration and the sizes, and stop."""


@dataclass(frozen=True, kw_only=True)
class TrainFlags(RunFlags):
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    num_classes: int | None = None
    """How many classes the data is to have; another number is refused before anything is trained."""
    published: Annotated[WeightsFlags, tyro.conf.arg(name="")] = field(default_factory=WeightsFlags)


@dataclass(frozen=True, kw_only=True)
class TrainTextFlags(RunFlags):
    recipe: Annotated[TextRecipe, tyro.conf.arg(name="")]


def train(arguments: list[str]) -> None:
    """train a recipe (a name, a .py file, or a run's config.json); the same command again continues it"""
    known = ", ".join(reading.names())
    usage = f"train RECIPE, where RECIPE is one of {known}, a .py file or a config.json"
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: unmask {usage}; the flags depend on it: unmask train digits --help")
        return
    name, rest = positional(arguments, usage)
    run = Path(name).parent if Path(name).suffix == ".json" else Path("runs") / Path(name).stem
    recipe = reading.load(name)
    place = "--data.path" if hasattr(recipe.data, "path") else "--data.name"
    rest = [re.sub(r"^--data(?==|$)", place, word) for word in rest]
    flags: TrainFlags | TrainTextFlags
    with value_errors():
        if isinstance(recipe, TextRecipe):
            flags = parse(TrainTextFlags, rest, f"train {name}", TrainTextFlags(recipe=recipe, out=run))
        else:
            flags = parse(TrainFlags, rest, f"train {name}", TrainFlags(recipe=recipe, out=run))
    notes: list[str] = []
    if isinstance(flags, TrainTextFlags):
        check_text(flags.recipe.init or "", f"train finetune --init {flags.recipe.init}")
    else:
        check_start(flags)
        assert isinstance(recipe, Recipe)
        with value_errors():
            given = [word.split("=")[0][11:].replace("-", "_") for word in rest if word.startswith("--sampling.")]
            made, notes = adopted(flags.recipe, flags.out, recipe, given)
        flags = replace(flags, recipe=made)
    if flags.dry_run:
        print("\n".join(notes), end="\n" if notes else "")
        return _describe(flags)
    if flags.resume == "never" and (flags.out / "checkpoints").exists():
        raise CheckpointError(f"{flags.out} holds a run: give another --out, or let --resume auto continue it")
    _train(flags, notes)


def check_start(flags: TrainFlags) -> None:
    """ConfigError for flags about the model to start from where there is none."""
    if flags.recipe.init is None and flags.published.weights:
        raise ConfigError("--weights are those of the model to start from: give --init NAME as well")
    if flags.recipe.init is None and flags.published.offline:
        raise ConfigError("--offline is about the model to start from: give --init NAME as well, or leave it out")


def _train(flags: TrainFlags | TrainTextFlags, notes: Sequence[str] = ()) -> None:
    run = flags.out
    with value_errors(), disk_errors(run), join_world(None if flags.device == "auto" else flags.device) as here:
        if here.is_main:
            print("\n".join(notes), end="\n" if notes else "", flush=True)
            _have_start(flags, here)
        if isinstance(flags, TrainFlags) and from_pictures.are_given(flags.recipe):
            flags = replace(flags, recipe=from_pictures.on_codes(flags.recipe, run))
        for turn in (True, False):  # the main process downloads and caches first
            if here.is_main == turn:
                ready = _prepare(flags, run, here.is_main)
            barrier(here)
        experiment.run(ready, run, here)
        if here.is_main:
            text = isinstance(flags, TrainTextFlags)
            first, second = ("generate", "score") if text else ("evaluate", "sample")
            print(f"wrote {run / 'model.safetensors'}; next: unmask {first} {run}   or   unmask {second} {run}")


def _have_start(flags: TrainFlags | TrainTextFlags, here: World) -> None:
    """The model to start from, which a run that goes on needs no more, and with its tokenizer codes of given pictures.

    Only the main process does it; the others wait.
    """
    init, run = flags.recipe.init, flags.out
    if isinstance(flags, TrainTextFlags) or init is None:
        return
    given = _given(flags)
    if not goes_on(run):
        located(init, flags.published)
    if given is None:
        return
    print(f"tokenizing {_told(given, run)}", flush=True)
    with show_progress(shown=True) as progress:
        left_out = from_pictures.tokenize_given(given, run, here, progress)
    for bad in left_out:
        print(f"left out {bad}", file=sys.stderr)


def _given(flags: TrainFlags) -> from_pictures.Given | None:
    """The pictures that stand in the place of codes, if any do."""
    if not from_pictures.are_given(flags.recipe):
        return None
    with show_progress(shown=True) as progress:
        return from_pictures.open_given(flags.recipe, flags.out, flags.num_classes, progress)


def _told(given: from_pictures.Given, run: Path) -> str:
    num, classes = len(given.split.train) + len(given.split.test), len(given.recipe.classes)
    return (
        f"{num:,} pictures of {classes} classes in {given.source.path} with the tokenizer of {given.init} into "
        f"{run / from_pictures.CODES}"
    )


def _prepare(
    flags: TrainFlags | TrainTextFlags, into: Path, speak: bool
) -> image_experiment.Experiment | text_experiment.TextExperiment:
    """Read the data, and name every file that was left out."""
    with show_progress(shown=speak) as progress:
        if isinstance(flags, TrainTextFlags):
            return text_experiment.prepare(flags.recipe, into / text_experiment.TOKENS, progress)
        ready = image_experiment.prepare(flags.recipe, progress)
    for bad in ready.loaded.bad if speak and ready.loaded else ():
        print(f"left out {bad}", file=sys.stderr)
    where = flags.recipe.data.path if isinstance(flags.recipe.data, Codes) else "the data"
    image_experiment.check_classes(ready.classes, flags.num_classes, where)
    return ready


def _describe(flags: TrainFlags | TrainTextFlags) -> None:
    given = _given(flags) if isinstance(flags, TrainFlags) else None
    if given is not None:
        print(f"would tokenize {_told(given, flags.out)}")
        recipe = from_pictures.on_codes(given.recipe, flags.out)
        with skip_initial_weights():
            model: Generator = recipe.model.build(recipe.tokenizer.vocab_size, recipe.tokenizer.grid)  # type: ignore
        return _show(recipe, model, len(given.split.train), len(given.split.test))
    with tempfile.TemporaryDirectory() as aside:  # text becomes tokens on the disk: a dry run leaves none behind
        ready = _prepare(flags, Path(aside), True)
        _show(ready.recipe, experiment.build(ready), len(ready.train), len(ready.test))


def _show(recipe: Recipe | TextRecipe, model: Generator, train: int, test: int) -> None:
    what = "row" if isinstance(recipe, TextRecipe) else "image"
    print(dump_json(recipe))
    print(f"parameters {sum(p.numel() for p in model.parameters()):,}")
    print(f"tokens     {model.length} per {what}, a grid of {model.grid}, each one of {model.vocab_size}")
    print(f"{what + 's':10s} {train:,} for training, {test:,} held out")
    print(f"per step   {recipe.training.batch_size * model.length:,} tokens, {recipe.training.steps:,} steps")


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    out: Path = Path("runs/demo")
    steps: int | None = None
    """Training steps; fewer for a quick look."""
    classifier_steps: int | None = None
    """Training steps of the classifier that judges the samples."""
    samples: int = 1500
    """How many digits to generate for the figures of report.json."""
    seed: int = 0


def demo(arguments: list[str]) -> None:
    """learn real handwritten digits in a few minutes, draw some, repair some, and measure how good they are"""
    flags = parse(DemoFlags, arguments, "demo")
    recipe = reading.find("digits", Recipe)
    steps = recipe.training.steps if flags.steps is None else flags.steps
    judge = recipe.classifier.steps if flags.classifier_steps is None else flags.classifier_steps
    every = max(1, steps // 5)
    with value_errors():
        training = replace(recipe.training, steps=steps, seed=flags.seed, evaluate_every=every, save_every=every)
        classifier = replace(recipe.classifier, steps=judge)
    _train(TrainFlags(recipe=replace(recipe, training=training, classifier=classifier), out=flags.out))
    with join_world() as here:
        print_report(flags.out, flags.samples, flags.seed, recipe.sampling, here)
    print(
        "\ntry next\n"
        f"  unmask sample {flags.out} --labels 3 --num 20 --steps 4     twenty threes in four steps\n"
        f"  unmask sample {flags.out} --order halton --gif halton.gif   another order, as an animation\n"
        f"  unmask sweep {flags.out} --samples 1500 --steps 1 4 16      which order, and how many steps?\n"
        "  unmask schedule --shape cosine --tokens 256 --steps 8       how many tokens each step reveals\n"
        "  python examples/minimal.py                                  the whole method on one page"
    )
