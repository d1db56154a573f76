"""`unmask train`."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from unmask.cli.flag_types import show_default
from unmask.cli.flags import DataFlags, Device, OutputFlags, WeightsFlags, choose_device, say_on_stderr
from unmask.cli.outcomes import describe_outcome, hash_if_there
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.cli.recipes import describe_train
from unmask.cli.tokenizers import say_aside
from unmask.errors import ConfigError
from unmask.recipes import Recipe, TextRecipe, reading
from unmask.runtime.output import survive_lost_output
from unmask.runtime.torchrun import is_main_process
from unmask.storage.cache import find_cache_dir
from unmask.storage.config import dump_json
from unmask.storage.layout import MODEL

if TYPE_CHECKING:
    from unmask.method.models.protocol import Generator
    from unmask.published.opening import OpenedModel


@dataclass(frozen=True, kw_only=True)
class RunFlags(DataFlags, OutputFlags):
    out: Path
    """Run directory: checkpoints, config.json, metrics.jsonl, samples, model.safetensors."""
    resume: Literal["auto", "never"] = "auto"
    """Resume from the newest checkpoint in the run directory, or refuse a folder that has one."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    dry_run: bool = False
    """Print the resolved configuration and the sizes, and stop."""


@dataclass(frozen=True, kw_only=True)
class StartFlags(WeightsFlags):
    """Where the files of the model to start from are."""

    weights: Annotated[tuple[Path, ...], show_default("download them")] = ()
    """Files of the published model in --init, or folders that hold them; a resumed training ignores them."""


@dataclass(frozen=True, kw_only=True)
class TrainFlags(RunFlags):
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    num_classes: Annotated[int | None, show_default("as many as there are")] = None
    """Number of classes that the data must have; another number is refused before the training."""
    published: Annotated[StartFlags, tyro.conf.arg(name="")] = field(default_factory=StartFlags)


@dataclass(frozen=True, kw_only=True)
class TrainTextFlags(RunFlags):
    recipe: Annotated[TextRecipe, tyro.conf.arg(name="")]


def run_train(arguments: list[str]) -> None:
    """Run `unmask train`."""
    name, rest = split_positional(arguments, describe_train())
    run = reading.find_run(name)
    recipe = reading.load_recipe(name)
    place = next((f"--data.{name}" for name in ("path", "name") if hasattr(recipe.data, name)), None)
    if place is None and any(re.match(r"--data(=|$)", word) for word in rest):
        raise ConfigError(f"--data: {name} has its own data; for yours, take another recipe, such as folder-pixels")
    rest = rest if place is None else [re.sub(r"^--data(?==|$)", place, word) for word in rest]
    rest = [re.sub(r"^--seed(?==|$)", "--training.seed", word) for word in rest]
    flags: TrainFlags | TrainTextFlags
    with catch_value_errors():
        if isinstance(recipe, TextRecipe):
            flags = parse(TrainTextFlags, rest, f"train {name}", TrainTextFlags(recipe=recipe, out=run))
        else:
            flags = parse(TrainFlags, rest, f"train {name}", TrainFlags(recipe=recipe, out=run))
    from unmask.experiments.finetune import adopt_network, find_start
    from unmask.experiments.training import check_resume, check_run

    check_start(flags)
    if not flags.dry_run:
        check_resume(flags.out, flags.resume)
        check_run(flags.out, flags.recipe, overwrite=flags.overwrite)
    with catch_value_errors(), catch_disk_errors(find_cache_dir()):
        places = flags.published if isinstance(flags, TrainFlags) else WeightsFlags()
        say = say_on_stderr if is_main_process() else None
        start = find_start(flags.recipe, flags.out, weights=places.weights, offline=places.offline, say=say)
    notes: list[str] = []
    if isinstance(flags, TrainTextFlags):
        if start is not None:
            start.require_text_spec(f"train finetune --init {flags.recipe.init}")
    else:
        assert isinstance(recipe, Recipe)
        with catch_value_errors():
            words = [word.split("=")[0][11:].replace("-", "_") for word in rest if word.startswith("--sampling.")]
            given = [word.removeprefix("no_") for word in words]
            adopted, notes = adopt_network(flags.recipe, start, recipe, given)
        flags = replace(flags, recipe=adopted)
    if flags.dry_run:
        print("\n".join(notes), end="\n" if notes else "")
        return _describe(flags, start)
    train_from(flags, start, [f"recipe      {name}", *notes])


def check_start(flags: TrainFlags | TrainTextFlags) -> None:
    """ConfigError for flags about the model to start from if there is none."""
    if flags.recipe.init is not None or isinstance(flags, TrainTextFlags):
        return
    if flags.published.weights:
        raise ConfigError("--weights are those of the model to start from: give --init NAME as well")
    if flags.published.offline:
        raise ConfigError("--offline is about the model to start from: give --init NAME as well, or leave it out")


def train_from(
    flags: TrainFlags | TrainTextFlags, start: "OpenedModel | None" = None, notes: Sequence[str] = ()
) -> None:
    from unmask.experiments.training import run_recipe
    from unmask.runtime.distributed import join_world

    run = flags.out
    with (
        catch_value_errors(),
        catch_disk_errors(run),
        survive_lost_output(),
        join_world(choose_device(flags.device)) as here,
    ):
        before = hash_if_there(run / MODEL) if here.is_main else None
        if here.is_main:
            print("\n".join(notes), end="\n" if notes else "", flush=True)
        num_classes = flags.num_classes if isinstance(flags, TrainFlags) else None
        run_recipe(
            flags.recipe,
            run,
            here,
            start=start,
            num_classes=num_classes,
            policy=flags.policy,
            overwrite=flags.overwrite,
            say=say_aside,
        )
        if here.is_main:
            text = isinstance(flags, TrainTextFlags)
            first, second = ("generate", "score") if text else ("evaluate", "sample")
            print(describe_outcome(run / MODEL, before))
            print(f"next: unmask {first} {run}   or   unmask {second} {run}")


def _describe(flags: TrainFlags | TrainTextFlags, start: "OpenedModel | None") -> None:
    from unmask.experiments.base import build_model
    from unmask.experiments.from_pictures import use_tokenized
    from unmask.experiments.training import describe_given, open_images, prepare_data
    from unmask.storage.weights import skip_initial_weights

    given = open_images(flags.recipe, start, flags.num_classes) if isinstance(flags, TrainFlags) else None
    if given is not None:
        print(f"would tokenize {describe_given(given, flags.out)}")
        recipe = use_tokenized(given.recipe, flags.out)
        with skip_initial_weights():
            model: Generator = recipe.model.build(recipe.tokenizer.vocab_size, recipe.tokenizer.grid)  # type: ignore
        return _show(recipe, model, len(given.split.train), len(given.split.test))
    num_classes = flags.num_classes if isinstance(flags, TrainFlags) else None
    with tempfile.TemporaryDirectory() as aside:  # text becomes tokens on the disk: a dry run leaves none behind
        ready = prepare_data(flags.recipe, Path(aside), num_classes=num_classes, shown=True, say=say_on_stderr)
        _show(ready.recipe, build_model(ready), len(ready.train), len(ready.test))


def _show(recipe: Recipe | TextRecipe, model: "Generator", train: int, test: int) -> None:
    what = "row" if isinstance(recipe, TextRecipe) else "image"
    print(dump_json(recipe))
    print(f"parameters {sum(p.numel() for p in model.parameters()):,}")
    grid = "x".join(map(str, model.grid))
    print(f"tokens     {model.length} per {what}, a grid of {grid}, each one of {model.vocab_size}")
    print(f"{what + 's':10s} {train:,} for training, {test:,} held out")
    print(f"per step   {recipe.training.batch_size * model.length:,} tokens, {recipe.training.steps:,} steps")
