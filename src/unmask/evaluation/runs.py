"""Open a run to measure: its data, its weights, and the folder for the results.

A model without a training of ours (published, converted, exported) is measured against data that the caller names. Its
results go into a folder of their own, with links to the weights, so that nothing is written beside the weights.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from unmask.data.fingerprint import STRICT, DataPolicy, check_data, describe_unverified, read_record
from unmask.data.shards.dataset import META
from unmask.data.sources.choice import Arrays, Cifar10, Codes, Digits, Folder, Mnist, PictureSource, resolve_paths
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.experiments.coded import open_coded
from unmask.experiments.images import Experiment, prepare_images
from unmask.pipelines.image import Pipeline
from unmask.pipelines.load import load_image_pipeline
from unmask.pretrained.conditions import takes_prompts
from unmask.published.hub import HUB, is_on_hub
from unmask.published.opening import OpenedModel, open_model
from unmask.recipes.reading import has_config, read_config, write_config
from unmask.recipes.schema import MeasuredModel, Recipe
from unmask.recipes.spec import ModelSpec
from unmask.runtime.distributed import World, barrier
from unmask.runtime.progress import Progress
from unmask.storage.layout import CONFIG, MODEL, TOKENIZER
from unmask.storage.weights import have_same_weights
from unmask.tokenizers.base import verify_tokenizer
from unmask.tokenizers.pixels import Pixels

MEASURE_ADVICE = ("restore it", "measure against it knowingly")


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """A finished run with its data, on this rank's device; `folder` keeps the results.

    `revision` is the commit of a model of the Hub, `dtype` the type that the caller chose for the weights.
    """

    folder: Path
    experiment: Experiment
    pipeline: Pipeline
    revision: str | None = None
    dtype: torch.dtype | None = None


def open_run(
    model: OpenedModel | str | Path,
    world: World,
    *,
    data: str | Folder | None = None,
    out: Path | None = None,
    dtype: torch.dtype | None = None,
    policy: DataPolicy = STRICT,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> OpenedRun:
    """Open a model with its data, reading its configuration and its weights once.

    Args:
        model: The model, or its name.
        world: The processes of torchrun; the main one writes.
        data: For a model that is no run: what to measure it against (`find_data`).
        out: For a model that is no run: the folder for the results; runs/NAME by default.
        dtype: The type of the weights in memory.
        policy: What to do if the data of a run changed since it was trained.
        progress: Called with (what, done, total).
        say: Called with lines on the images that are measured against, when they are first read.

    Raises:
        ConfigError: The data does not fit the model, or `data` is given for a run.
        DataError: The data of the run changed, and `policy` does not accept that.
        CheckpointError: `out` holds something else.
    """
    opened = model if isinstance(model, OpenedModel) else open_model(model, world=world)
    recipe, folder = choose_folder(opened, world, data=data, out=out, progress=progress)
    place = recipe.data.path if isinstance(recipe, Recipe) and isinstance(recipe.data, Folder | Arrays | Codes) else ""
    if place and not Path(place).expanduser().exists():
        raise DataError(
            f"{place} is not there any more: if it moved, run the same unmask train command again with the new --data, "
            "which compares the data and remembers the place"
        )
    experiment = replace(prepare_images(recipe, progress, policy), say=say)
    if experiment.fingerprint is not None:
        check_data(folder, experiment.fingerprint, policy, *MEASURE_ADVICE)
    if experiment.loaded is not None:
        _ = experiment.split  # says what is there before the work
        record = read_record(folder)
        if say is not None:
            for note in describe_unverified(None if record is None else record.data, policy, recorded=False):
                say(f"note: {note}")
    pipeline = load_image_pipeline(opened, device=str(world.device), dtype=dtype)
    pipeline.empty_classes = experiment.recipe.empty_classes
    return OpenedRun(folder=folder, experiment=experiment, pipeline=pipeline, revision=opened.revision, dtype=dtype)


def choose_folder(
    opened: OpenedModel,
    world: World,
    *,
    data: str | Folder | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Recipe | MeasuredModel, Path]:
    """Return a model's recipe, and the folder for its results. See `open_run`."""
    spec = opened.require_image_spec()
    folder = opened.fetch(progress, world)
    if isinstance(spec, Recipe | MeasuredModel) and not is_on_hub(opened.name):
        if data is not None:
            raise ConfigError(f"{name_data_flag(data)} is for published and exported models: a run knows its images")
        return spec, folder
    into = out or Path("runs") / shorten_name(opened.name)
    measured = measure_against(spec, folder, opened.name, data, into)
    if world.is_main:
        link_weights(measured, folder, into)
    barrier(world)
    return measured, into


def name_data_flag(data: str | Folder) -> str:
    """Return the flag that the user gave."""
    if isinstance(data, str) or data.path:
        return "--data"
    return "--data.test" if data.train is None else "--data.train"


def shorten_name(name: str) -> str:
    """Return a folder name for the results of a model: the name of its folder, or OWNER--NAME for the Hub."""
    return name.removeprefix(HUB).replace("/", "--") if is_on_hub(name) else Path(os.path.abspath(name)).name


def find_data(spec: ModelSpec, data: str | Folder) -> PictureSource | Codes:
    """Return what `--data` means for a model: a token dataset, or for a model of pixels a folder of images.

    "digits", "mnist" and "cifar10" are the datasets of these names. ConfigError for anything else, DataError for a
    token dataset that is not there.
    """
    if isinstance(data, Folder):
        if not isinstance(spec.tokenizer, Pixels):
            raise ConfigError(
                "the sets of a token dataset are its own: give --data CODES alone, without train and test"
            )
        side = max(spec.tokenizer.size)
        return resolve_paths(replace(data, size=side, channels=spec.tokenizer.channels))
    path = Path(data).expanduser()
    if (path / META).is_file():
        return resolve_paths(Codes(path=data))
    if not isinstance(spec.tokenizer, Pixels):
        if not path.exists():
            raise DataError(f"{data}: no such folder; give --data CODES from unmask tokenize NAME")
        raise ConfigError(f"{data} is no token dataset: make one with unmask tokenize NAME")
    height, width = spec.tokenizer.size
    named: dict[str, PictureSource] = {"digits": Digits(), "cifar10": Cifar10(), "mnist": Mnist(size=min(height, 28))}
    if data in named:
        return named[data]
    if not path.is_dir():
        raise ConfigError(f"--data {data}: no such folder; give a folder of images, or {', '.join(named)}")
    return resolve_paths(Folder(path=data, size=max(height, width), channels=spec.tokenizer.channels))


def measure_against(spec: ModelSpec, folder: Path, name: str, data: str | Folder | None, out: Path) -> MeasuredModel:
    """Return the model with the data to measure it against; ConfigError if they do not fit."""
    if takes_prompts(spec.model):
        raise ConfigError(f"{name} takes prompts, and a dataset has none: it cannot be measured here")
    if data is None:
        example = "DIR, a folder of images" if isinstance(spec.tokenizer, Pixels) else "CODES from unmask tokenize NAME"
        trained = f" (it was trained on {spec.trained_on})" if spec.trained_on else ""
        raise ConfigError(f"measured against which images? {name} is no run, so give --data {example}{trained}")
    if out.resolve() == folder.resolve():
        raise ConfigError(f"{out} holds the model itself, and no results go into it: give another --out")
    verify_tokenizer(spec.tokenizer, folder / TOKENIZER, None)
    source = find_data(spec, data)
    sha256 = spec.tokenizer_sha256
    if isinstance(source, Codes):
        coded = open_coded(source.path)
        sha256, classes = coded.meta.tokenizer, coded.meta.classes
        assert not takes_prompts(spec.model)
        num_classes = spec.model.num_classes
        if len(classes) != num_classes:
            raise ConfigError(
                f"{data} has {len(classes) or 'no'} classes and the model {num_classes}: their numbers mean other "
                "things"
            )
        if not have_same_weights(folder / TOKENIZER, coded.weights):
            raise ConfigError(f"{data} was made by another tokenizer than the model's: use unmask tokenize NAME")
    fields = {name: getattr(spec.spec, name) for name in ModelSpec.__dataclass_fields__}
    return MeasuredModel(**{**fields, "tokenizer_sha256": sha256}, data=source)


def link_weights(measured: MeasuredModel, folder: Path, out: Path) -> None:
    """Write config.json into `out`, and links to the weights; CheckpointError if something else is there."""
    if has_config(out):
        there = read_config(out / CONFIG)
        data = resolve_paths(there.data) if isinstance(there, Recipe | MeasuredModel) else None
        if not isinstance(there, ModelSpec) or data != measured.data or there.model != measured.model:
            raise CheckpointError(f"{out} holds something else: give another --out")
    names = [MODEL] if isinstance(measured.tokenizer, Pixels) else [MODEL, TOKENIZER]
    links = [out / name for name in names]
    if any(link.exists() and not link.is_symlink() for link in links):
        raise CheckpointError(f"{out} holds weights of its own: give another --out")
    if any(link.exists() and not _leads_to(link, folder) for link in links):
        raise CheckpointError(f"{out} is of another model: give another --out")
    out.mkdir(parents=True, exist_ok=True)
    for link in links:
        link.unlink(missing_ok=True)
        link.symlink_to((folder / link.name).absolute())  # the file itself may be a link of a cache
    write_config(measured, out)


def _leads_to(link: Path, folder: Path) -> bool:
    """Return whether a link leads to the file in `folder`, or to the same weights elsewhere."""
    theirs = folder / link.name
    return link.resolve() == theirs.resolve() or have_same_weights(link.resolve(), theirs.resolve())
