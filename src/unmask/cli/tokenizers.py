"""`unmask train-tokenizer`, `tokenize` and `evaluate-tokenizer`: from pictures to codes."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unmask import recipes
from unmask import tokenizer_experiment as experiment
from unmask.cli.parsing import disk_errors, parse, positional, value_errors
from unmask.config import dump_json
from unmask.errors import CheckpointError
from unmask.training.distributed import barrier, world
from unmask.training.log import progress_bar


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerFlags:
    recipe: Annotated[recipes.TokenizerRecipe, tyro.conf.arg(name="")]
    out: Path
    """The run folder: checkpoints, config.json, metrics.jsonl, samples, model.safetensors."""
    resume: Literal["auto", "never"] = "auto"
    """Continue from the newest checkpoint in the run folder, or refuse a folder that has one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dry_run: bool = False
    """Print the resolved configuration and the sizes, and stop."""


def train_tokenizer(arguments: list[str]) -> None:
    """train a tokenizer (a name, a .py file, or a run's config.json); the same command again continues it"""
    known = ", ".join(recipes.names(recipes.TokenizerRecipe))
    usage = f"train-tokenizer RECIPE, where RECIPE is one of {known}, a .py file or a config.json"
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: unmask {usage}; the flags depend on it: unmask train-tokenizer cifar10-tokenizer --help")
        return
    name, rest = positional(arguments, usage)
    run = Path(name).parent if Path(name).suffix == ".json" else Path("runs") / Path(name).stem
    default = TrainTokenizerFlags(recipe=recipes.load(name, recipes.TokenizerRecipe), out=run)
    rest = [re.sub(r"^--data(?==|$)", "--data.path", word) for word in rest]
    flags = parse(TrainTokenizerFlags, rest, f"train-tokenizer {name}", default)
    if flags.dry_run:
        return _describe(flags.recipe)
    if flags.resume == "never" and (flags.out / "checkpoints").exists():
        raise CheckpointError(f"{flags.out} holds a run: give another --out, or let --resume auto continue it")
    device = None if flags.device == "auto" else flags.device
    with value_errors(), disk_errors(flags.out), world(device) as here:
        for turn in (True, False):  # the main process downloads and caches first
            if here.is_main == turn:
                ready = _prepare(flags.recipe, here.is_main)
            barrier(here)
        experiment.run(ready, flags.out, here)
        if here.is_main:
            print(f"wrote {flags.out / 'model.safetensors'}; next: unmask evaluate-tokenizer {flags.out}")


def _prepare(recipe: recipes.TokenizerRecipe, speak: bool) -> experiment.TokenizerExperiment:
    with progress_bar(shown=speak) as progress:
        ready = experiment.prepare(recipe, progress)
    for bad in ready.split.bad if speak else ():
        print(f"left out {bad}", file=sys.stderr)
    return ready


def _describe(recipe: recipes.TokenizerRecipe) -> None:
    ready = _prepare(recipe, True)
    model, discriminator = experiment.build(ready.recipe)
    height, width = model.grid
    print(dump_json(ready.recipe))
    for name, network in (("tokenizer", model), ("discriminator", discriminator)):
        print(f"{name:13s} {sum(p.numel() for p in network.parameters()):,} parameters")
    print(f"tokens        {height * width} per image, a grid of {model.grid}, each one of {model.vocab_size}")
    print(f"images        {len(ready.train):,} for training, {len(ready.test):,} held out")
