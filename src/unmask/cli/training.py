"""`unmask train` and `unmask demo`."""

import re
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unmask import recipes
from unmask.catalogue import MODELS
from unmask.cli.parsing import disk_errors, parse, positional, value_errors
from unmask.cli.published import WeightsFlags, located
from unmask.cli.sampling import print_report
from unmask.config import dump_json
from unmask.errors import CheckpointError
from unmask.experiments import base as experiment
from unmask.experiments import images as image_experiment
from unmask.experiments import text as text_experiment
from unmask.published import adopted
from unmask.training.distributed import barrier, world
from unmask.training.log import progress_bar


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
    recipe: Annotated[recipes.Recipe, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class TrainTextFlags(RunFlags):
    recipe: Annotated[recipes.TextRecipe, tyro.conf.arg(name="")]


def train(arguments: list[str]) -> None:
    """train a recipe (a name, a .py file, or a run's config.json); the same command again continues it"""
    known = ", ".join(recipes.names())
    usage = f"train RECIPE, where RECIPE is one of {known}, a .py file or a config.json"
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: unmask {usage}; the flags depend on it: unmask train digits --help")
        return
    name, rest = positional(arguments, usage)
    run = Path(name).parent if Path(name).suffix == ".json" else Path("runs") / Path(name).stem
    recipe = recipes.load(name)
    place = "--data.path" if hasattr(recipe.data, "path") else "--data.name"
    rest = [re.sub(r"^--data(?==|$)", place, word) for word in rest]
    flags: TrainFlags | TrainTextFlags
    with value_errors():
        if isinstance(recipe, recipes.TextRecipe):
            flags = parse(TrainTextFlags, rest, f"train {name}", TrainTextFlags(recipe=recipe, out=run))
        else:
            flags = parse(TrainFlags, rest, f"train {name}", TrainFlags(recipe=recipe, out=run))
    if isinstance(flags, TrainFlags):
        with value_errors():
            made, notes = adopted(flags.recipe)
            flags = replace(flags, recipe=made)
        print("\n".join(notes), end="\n" if notes else "")
    if flags.dry_run:
        return _describe(flags.recipe)
    if flags.resume == "never" and (flags.out / "checkpoints").exists():
        raise CheckpointError(f"{flags.out} holds a run: give another --out, or let --resume auto continue it")
    _train(flags.recipe, flags.out, flags.device)


def _train(recipe: recipes.Recipe | recipes.TextRecipe, run: Path, device: str = "auto") -> None:
    with value_errors(), disk_errors(run), world(None if device == "auto" else device) as here:
        for turn in (True, False):  # the main process downloads and caches first
            if here.is_main == turn:
                ready = _prepare(recipe, run, here.is_main)
                _have_start(recipe.init, run)
            barrier(here)
        experiment.run(ready, run, here)
        if here.is_main:
            text = isinstance(recipe, recipes.TextRecipe)
            first, second = ("generate", "score") if text else ("evaluate", "sample")
            print(f"wrote {run / 'model.safetensors'}; next: unmask {first} {run}   or   unmask {second} {run}")


def _have_start(init: str | None, run: Path) -> None:
    """The published model to start from, in the cache; a run that goes on needs it no more."""
    if init in MODELS and not any((run / "checkpoints").glob("step-*")):
        located(init, WeightsFlags())


def _prepare(
    recipe: recipes.Recipe | recipes.TextRecipe, run: Path, speak: bool
) -> image_experiment.Experiment | text_experiment.TextExperiment:
    """Read the data, and name every file that was left out."""
    with progress_bar(shown=speak) as progress:
        if isinstance(recipe, recipes.TextRecipe):
            return text_experiment.prepare(recipe, run / text_experiment.TOKENS, progress)
        ready = image_experiment.prepare(recipe, progress)
    for bad in ready.loaded.bad if speak and ready.loaded else ():
        print(f"left out {bad}", file=sys.stderr)
    return ready


def _describe(recipe: recipes.Recipe | recipes.TextRecipe) -> None:
    with tempfile.TemporaryDirectory() as aside:  # text becomes tokens on the disk: a dry run leaves none behind
        _show(recipe, _prepare(recipe, Path(aside), True))


def _show(
    recipe: recipes.Recipe | recipes.TextRecipe, ready: image_experiment.Experiment | text_experiment.TextExperiment
) -> None:
    model = experiment.build(ready)
    what = "row" if isinstance(recipe, recipes.TextRecipe) else "image"
    print(dump_json(ready.recipe))
    print(f"parameters {sum(p.numel() for p in model.parameters()):,}")
    print(f"tokens     {model.length} per {what}, a grid of {model.grid}, each one of {model.vocab_size}")
    print(f"{what + 's':10s} {len(ready.train):,} for training, {len(ready.test):,} held out")
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
    recipe = recipes.find("digits", recipes.Recipe)
    steps = recipe.training.steps if flags.steps is None else flags.steps
    judge = recipe.classifier.steps if flags.classifier_steps is None else flags.classifier_steps
    every = max(1, steps // 5)
    with value_errors():
        training = replace(recipe.training, steps=steps, seed=flags.seed, evaluate_every=every, save_every=every)
        classifier = replace(recipe.classifier, steps=judge)
    _train(replace(recipe, training=training, classifier=classifier), flags.out)
    print_report(flags.out, flags.samples, flags.seed, recipe.sampling)
    print(
        "\ntry next\n"
        f"  unmask sample {flags.out} --labels 3 --num 20 --steps 4     twenty threes in four steps\n"
        f"  unmask sample {flags.out} --order halton --gif halton.gif   another order, as an animation\n"
        f"  unmask sweep {flags.out} --samples 1500 --steps 1 4 16      which order, and how many steps?\n"
        "  unmask schedule --shape cosine --tokens 256 --steps 8       how many tokens each step reveals\n"
        "  python examples/minimal.py                                  the whole method on one page"
    )
