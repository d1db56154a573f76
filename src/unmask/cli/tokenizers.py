"""`unmask train-tokenizer` and `tokenize`: from images to tokens."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from unmask.cli.flags import DataFlags, Device, OutputFlags, WeightsFlags, say_on_stderr
from unmask.cli.outcomes import describe_outcome, hash_if_there
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.cli.recipes import describe_train_tokenizer
from unmask.data.shards.dataset import META
from unmask.data.sources.choice import Arrays, Cifar10, Digits, Folder, HubImages, Mnist, PictureSource, Shards
from unmask.errors import ConfigError, look_up
from unmask.metrics.configs import ClassifierConfig
from unmask.pretrained.networks import LearnedConfig
from unmask.published.names import MODEL_NAMES
from unmask.recipes import TokenizerRecipe, reading
from unmask.runtime.output import print_line, survive_lost_output
from unmask.runtime.torchrun import is_main_process
from unmask.storage.config import dump_json
from unmask.storage.layout import CONFIG, MODEL


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerFlags(DataFlags, OutputFlags):
    recipe: Annotated[TokenizerRecipe, tyro.conf.arg(name="")]
    out: Path
    """Run directory: checkpoints, config.json, metrics.jsonl, samples, model.safetensors."""
    resume: Literal["auto", "never"] = "auto"
    """Resume from the newest checkpoint in the run directory, or refuse a folder that has one."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    dry_run: bool = False
    """Print the resolved configuration and the sizes, and stop."""


def run_train_tokenizer(arguments: list[str]) -> None:
    """Run `unmask train-tokenizer`."""
    name, rest = split_positional(arguments, describe_train_tokenizer())
    run = reading.find_run(name)
    default = TrainTokenizerFlags(recipe=reading.find_recipe(name, TokenizerRecipe), out=run)
    rest = [re.sub(r"^--data(?==|$)", "--data.path", word) for word in rest]
    rest = [re.sub(r"^--seed(?==|$)", "--training.seed", word) for word in rest]
    flags = parse(TrainTokenizerFlags, rest, f"train-tokenizer {name}", default)
    given = [name for name in CLASSIFIERS if any(re.match(rf"--{name}\.steps(=|$)", word) for word in rest)]
    flags = replace(flags, recipe=shorten_classifiers(flags.recipe, flags.out, given))
    if flags.dry_run:
        return _describe(flags.recipe)
    from unmask.experiments.training import train_tokenizer

    with catch_value_errors(), catch_disk_errors(flags.out), survive_lost_output():
        before = None
        if is_main_process():
            before = hash_if_there(flags.out / MODEL)
            print(f"recipe      {name}", flush=True)
        run = train_tokenizer(
            flags.recipe,
            flags.out,
            resume=flags.resume,
            overwrite=flags.overwrite,
            device=flags.device,
            accept_data=flags.accept_data,
            verify_data=flags.verify_data,
            say=say_aside,
        )
        if is_main_process():
            print(describe_outcome(run / MODEL, before))
            print(f"next: unmask evaluate-tokenizer {run}   or   unmask tokenize {run}")


CLASSIFIERS = ("perceptual", "classifier")
"""The classifiers of a tokenizer's recipe: for its loss, and for `unmask evaluate-tokenizer`."""


def shorten_classifiers(recipe: TokenizerRecipe, out: Path, given: Sequence[str] = ()) -> TokenizerRecipe:
    """Return the recipe with at most as many steps of its classifiers as of the training.

    A run that is there keeps its own numbers, so that a longer training continues it.

    Args:
        recipe: The recipe.
        out: The run directory.
        given: The classifiers whose steps the user chose.
    """
    there = reading.read_config(out / CONFIG) if reading.has_config(out) else None
    changes: dict[str, Any] = {}
    for name in CLASSIFIERS:
        own, before = getattr(recipe, name), getattr(there, name, None)
        if isinstance(own, ClassifierConfig) and name not in given:
            kept = before.steps if isinstance(before, ClassifierConfig) else min(own.steps, recipe.training.steps)
            changes[name] = replace(own, steps=kept)
    return replace(recipe, **changes)


def _describe(recipe: TokenizerRecipe) -> None:
    from unmask.experiments.tokenizer import build_networks
    from unmask.experiments.training import prepare_tokenizer_data

    ready = prepare_tokenizer_data(recipe, shown=True, say=say_on_stderr)
    model, discriminator = build_networks(ready.recipe)
    height, width = model.grid
    print(dump_json(ready.recipe))
    for name, network in (("tokenizer", model), ("discriminator", discriminator)):
        print(f"{name:13s} {sum(p.numel() for p in network.parameters()):,} parameters")
    print(f"tokens        {height * width} per image, a grid of {height}x{width}, each one of {model.vocab_size}")
    print(f"images        {len(ready.train):,} for training, {len(ready.test):,} held out")


def list_sources(size: int, channels: int) -> dict[str, PictureSource]:
    """Return the sources that `--source` names."""
    return {
        "digits": Digits(),
        "mnist": Mnist(size=min(size, 28), binary=False),
        "cifar10": Cifar10(),
        "folder": Folder(path="", size=size, channels=channels),
        "arrays": Arrays(path=""),
        "hub": HubImages(name="", size=size, channels=channels),
        "shards": Shards(path="", size=size, channels=channels),
    }


@dataclass(frozen=True, kw_only=True)
class TokenizeFlags(DataFlags, OutputFlags):
    data: PictureSource
    published: Annotated[WeightsFlags, tyro.conf.arg(name="")] = field(default_factory=WeightsFlags)
    out: Path
    """Folder for the token dataset; run the same command again to resume."""
    flip: bool = True
    """Also tokenize each mirror image; training then takes either."""
    crops: int = 0
    """Also tokenize this many random crops of each image, and their mirror images."""
    processes: int = 1
    """Worker processes that read images."""
    batch: int = 64
    """Images tokenized together; fewer need less memory."""
    shard_size: int = 4096
    """Images per file."""
    seed: int = 0
    """Seed of the places of random crops."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""


def run_tokenize(arguments: list[str]) -> None:
    """Run `unmask tokenize`."""
    usage = (
        f"tokenize MODEL --out DIR [--source NAME] [--data PATH], where MODEL is a tokenizer's run, or {MODEL_NAMES}"
    )
    example = TokenizeFlags(data=Folder(path=""), out=Path("codes/RUN"))
    name, rest = split_positional(arguments, usage)
    if rest == ["--help"]:
        parse(TokenizeFlags, rest, f"tokenize {name}", example)
    opened = WeightsFlags(offline="--offline" in rest).open(name)
    config = opened.require_tokenizer()
    recipe = opened.config
    own = recipe.data if isinstance(recipe, TokenizerRecipe) else None
    data, rest = choose_source(own or Folder(path="", size=max(config.size), channels=config.channels), config, rest)
    start = TokenizeFlags(data=data, out=Path("codes") / Path(name).name)
    flags = parse(TokenizeFlags, rest, f"tokenize {name}", start)
    if opened.folder is not None and flags.published.weights:
        flags.published.open(name)  # which refuses other weights than its own
    from unmask.experiments.training import tokenize

    opened.weights, opened.offline = flags.published.weights, flags.published.offline
    with catch_value_errors(), catch_disk_errors(flags.out):
        before = hash_if_there(flags.out / META)
        meta = tokenize(
            opened,
            flags.data,
            flags.out,
            flip=flags.flip,
            crops=flags.crops,
            processes=flags.processes,
            batch=flags.batch,
            shard_size=flags.shard_size,
            seed=flags.seed,
            overwrite=flags.overwrite,
            device=flags.device,
            accept_data=flags.accept_data,
            verify_data=flags.verify_data,
            say=say_aside,
        )
    if is_main_process():
        train, test = (sum(shard.rows for shard in part) for part in (meta.train, meta.test))
        shown = " x ".join(str(n) for n in meta.grid)
        print(f"{train:,} images for training and {test:,} held out, {shown} tokens in {len(meta.views)} views each")
        print(describe_outcome(flags.out / META, before, flags.out))
        print(f"next: unmask train RECIPE --data {flags.out}")


def say_aside(line: str) -> None:
    """Print what a person should know: notes and files that were left out on stderr, the rest on stdout."""
    print_line(line, sys.stderr if line.startswith(("left out", "note: ")) else sys.stdout)


def choose_source(own: PictureSource, config: LearnedConfig, words: list[str]) -> tuple[PictureSource, list[str]]:
    """Return the source that `--source` names, or else the tokenizer's training data, and the other words."""
    data, rest = own, list(words)
    given = next((i for i, word in enumerate(rest) if re.match(r"--source(=|$)", word)), None)
    if given is not None:
        word, _, value = rest.pop(given).partition("=")
        if not value and given == len(rest):
            raise ConfigError(f"{word}: say which, as {word} folder")
        stored = own.size if isinstance(own, Folder | HubImages | Shards) else config.size[0]
        table = list_sources(stored, config.channels)
        data = look_up(table, value or rest.pop(given), "source")
    if isinstance(data, Folder | Shards) and any(re.match(r"--data(=|$)", word) for word in rest):
        # Other data than the tokenizer's: only sets that are named inside it still mean something.
        train, test = (None if one is None or os.path.isabs(one) else one for one in (data.train, data.test))
        data = replace(data, train=train, test=test)
    return data, [re.sub(r"^--data(?==|$)", find_data_flag(data), word) for word in rest]


def find_data_flag(source: PictureSource) -> str:
    """Return the flag that `--data` is short for."""
    return "--data.name" if isinstance(source, HubImages) else "--data.path"
