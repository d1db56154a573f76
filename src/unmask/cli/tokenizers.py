"""`unmask train-tokenizer`, `tokenize` and `evaluate-tokenizer`: from pictures to codes."""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unmask.cli.parsing import disk_errors, parse, positional, value_errors
from unmask.cli.published import WeightsFlags, located_once
from unmask.data.shards.tokenizing import CENTER, FLIP, View
from unmask.data.sources.choice import Arrays, Cifar10, Digits, Folder, HubImages, Mnist, Shards, Source
from unmask.decoding.names import look_up
from unmask.errors import CheckpointError, ConfigError
from unmask.experiments import coded
from unmask.experiments import tokenizer as experiment
from unmask.metrics.features import ClassifierConfig
from unmask.pretrained import lone_tokenizer
from unmask.pretrained.networks import LearnedConfig, LearnedModel
from unmask.published.store import described, is_catalogued
from unmask.published.store import located as existing
from unmask.recipes import TokenizerRecipe, reading
from unmask.runtime.distributed import World, barrier, join_world
from unmask.runtime.progress import show_progress
from unmask.storage.config import dump_json, load_json
from unmask.storage.layout import TOKENIZER
from unmask.tokenizers.base import open_tokenizer
from unmask.tokenizers.pixels import Pixels


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerFlags:
    recipe: Annotated[TokenizerRecipe, tyro.conf.arg(name="")]
    out: Path
    """The run folder: checkpoints, config.json, metrics.jsonl, samples, model.safetensors."""
    resume: Literal["auto", "never"] = "auto"
    """Continue from the newest checkpoint in the run folder, or refuse a folder that has one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dry_run: bool = False
    """Print the resolved configuration and the sizes, and stop."""


def train_tokenizer(arguments: list[str]) -> None:
    """train a tokenizer (a name, a .py file, or a run's config.json); the same command again continues it"""
    known = ", ".join(reading.names(TokenizerRecipe))
    usage = f"train-tokenizer RECIPE, where RECIPE is one of {known}, a .py file or a config.json"
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: unmask {usage}; the flags depend on it: unmask train-tokenizer cifar10-tokenizer --help")
        return
    name, rest = positional(arguments, usage)
    run = Path(name).parent if Path(name).suffix == ".json" else Path("runs") / Path(name).stem
    default = TrainTokenizerFlags(recipe=reading.find(name, TokenizerRecipe), out=run)
    rest = [re.sub(r"^--data(?==|$)", "--data.path", word) for word in rest]
    flags = parse(TrainTokenizerFlags, rest, f"train-tokenizer {name}", default)
    if flags.dry_run:
        return _describe(flags.recipe)
    if flags.resume == "never" and (flags.out / "checkpoints").exists():
        raise CheckpointError(f"{flags.out} holds a run: give another --out, or let --resume auto continue it")
    device = None if flags.device == "auto" else flags.device
    with value_errors(), disk_errors(flags.out), join_world(device) as here:
        for turn in (True, False):  # the main process downloads and caches first
            if here.is_main == turn:
                ready = _prepare(flags.recipe, here.is_main)
            barrier(here)
        first = ready.recipe.perceptual
        if here.is_main and isinstance(first, ClassifierConfig) and not (flags.out / experiment.PERCEPTUAL).exists():
            print(f"first a classifier for the perceptual loss: {first.steps:,} steps (--perceptual.steps)", flush=True)
        experiment.run(ready, flags.out, here)
        if here.is_main:
            print(f"wrote {flags.out / 'model.safetensors'}; next: unmask evaluate-tokenizer {flags.out}")


def _prepare(recipe: TokenizerRecipe, speak: bool) -> experiment.TokenizerExperiment:
    with show_progress(shown=speak) as progress:
        ready = experiment.prepare(recipe, progress)
    for bad in ready.split.bad if speak else ():
        print(f"left out {bad}", file=sys.stderr)
    return ready


def _describe(recipe: TokenizerRecipe) -> None:
    ready = _prepare(recipe, True)
    model, discriminator = experiment.build(ready.recipe)
    height, width = model.grid
    print(dump_json(ready.recipe))
    for name, network in (("tokenizer", model), ("discriminator", discriminator)):
        print(f"{name:13s} {sum(p.numel() for p in network.parameters()):,} parameters")
    print(f"tokens        {height * width} per image, a grid of {model.grid}, each one of {model.vocab_size}")
    print(f"images        {len(ready.train):,} for training, {len(ready.test):,} held out")


def sources(size: int, channels: int) -> dict[str, Source]:
    """What `--source` may say."""
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
class TokenizeFlags:
    data: Source
    published: Annotated[WeightsFlags, tyro.conf.arg(name="")] = field(default_factory=WeightsFlags)
    out: Path
    """The folder for the codes; the same command again goes on where it was stopped."""
    flip: bool = True
    """Whether to tokenize each picture's mirror image too; training then takes either."""
    crops: int = 0
    """Also tokenize this many random crops of each picture, and their mirror images; pictures must be stored larger."""
    processes: int = 1
    batch: int = 64
    shard_size: int = 4096
    """Pictures per file."""
    seed: int = 0
    """Where the random crops lie."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


def tokenize(arguments: list[str]) -> None:
    """turn pictures into codes once, with a trained tokenizer, so that training reads codes only"""
    usage = "tokenize RUN --out DIR [--source NAME] [--data PATH], where RUN is a tokenizer or one of unmask models"
    name, rest = positional(arguments, usage)
    if rest == ["--help"]:
        parse(TokenizeFlags, rest, "tokenize RUN", TokenizeFlags(data=Folder(path=""), out=Path("codes/RUN")))
    config, own = described_tokenizer(name)
    data, rest = chosen_source(own, config, rest)
    flags = parse(
        TokenizeFlags, rest, f"tokenize {name}", TokenizeFlags(data=data, out=Path("codes") / Path(name).name)
    )
    device = None if flags.device == "auto" else flags.device
    with (
        value_errors(),
        disk_errors(flags.out),
        join_world(device) as here,
        show_progress(shown=here.is_main) as progress,
    ):
        meta, bad = coded.make_codes(
            flags.data,
            opened_tokenizer(name, config, flags.published, here),
            flags.out,
            views=views(flags),
            shard_size=flags.shard_size,
            seed=flags.seed,
            batch=flags.batch,
            processes=flags.processes,
            world=here,
            progress=progress,
        )
    for one in bad:
        print(f"left out {one}", file=sys.stderr)
    if here.is_main:
        train, test = (sum(shard.rows for shard in part) for part in (meta.train, meta.test))
        shown = " x ".join(str(n) for n in meta.grid)
        print(f"{train:,} pictures for training and {test:,} held out, {shown} codes in {len(meta.views)} views each")
        print(f"wrote {flags.out}; next: unmask train RECIPE --data {flags.out}")


def described_tokenizer(name: str) -> tuple[LearnedConfig, Source]:
    """A tokenizer's configuration, and where its pictures are: of its own run, alone, or beside its generator.

    Of a published model nothing is fetched for it.
    """
    folder = Path(name) if is_catalogued(name) else existing(name)
    config = folder / "config.json"
    if not is_catalogued(name) and not config.is_file():
        raise CheckpointError(f"{folder}: no config.json there; give the folder of a trained tokenizer")
    data = None if is_catalogued(name) else load_json(config)
    if isinstance(data, dict) and "loss" in data:
        recipe = reading.read_recipe(config, TokenizerRecipe)
        return recipe.tokenizer, recipe.data
    if data is None or (isinstance(data, dict) and "model" in data):
        theirs = described(name)
        assert theirs is not None
        if isinstance(theirs.tokenizer, Pixels):
            raise ConfigError(f"{folder} has no tokenizer to run: its tokens are pixels")
        own: LearnedConfig = theirs.tokenizer
    else:
        own = lone_tokenizer.read_tokenizer_config(folder)
    return own, Folder(path="", size=max(own.size), channels=own.channels)


def opened_tokenizer(name: str, config: LearnedConfig, flags: WeightsFlags, here: World) -> LearnedModel:
    """The tokenizer that `described_tokenizer` told of, with its weights."""
    folder = located_once(name, flags, here)
    beside = is_catalogued(name) or "model" in load_json(folder / "config.json")
    return open_tokenizer(config, folder / (TOKENIZER if beside else lone_tokenizer.WEIGHTS))  # type: ignore[return-value]


def chosen_source(own: Source, config: LearnedConfig, words: list[str]) -> tuple[Source, list[str]]:
    """What `--source` names, or else what the tokenizer was trained on; and the other words."""
    data, rest = own, list(words)
    given = next((i for i, word in enumerate(rest) if re.match(r"--source(=|$)", word)), None)
    if given is not None:
        word, _, value = rest.pop(given).partition("=")
        if not value and given == len(rest):
            raise ConfigError(f"{word}: say which, as {word} folder")
        stored = own.size if isinstance(own, Folder | HubImages | Shards) else config.size[0]
        table = sources(stored, config.channels)
        data = look_up(table, value or rest.pop(given), "source")
    return data, [re.sub(r"^--data(?==|$)", place(data), word) for word in rest]


def place(source: Source) -> str:
    """The flag that `--data` is short for."""
    return "--data.name" if isinstance(source, HubImages) else "--data.path"


def views(flags: TokenizeFlags) -> tuple[View, ...]:
    """The centre, and what else was asked for."""
    if flags.crops < 0:
        raise ConfigError(f"--crops {flags.crops}: at least 0")
    crops = [View(name=f"crop{i}", random=True) for i in range(flags.crops)]
    mirrored = [View(name=f"crop{i}-flip", random=True, flip=True) for i in range(flags.crops) if flags.flip]
    return (CENTER, *((FLIP,) if flags.flip else ()), *crops, *mirrored)
