"""Published models by name. The first use of one fetches its files, or takes those at hand, and converts them once into
a folder of ours in the cache; from then on it is like any export."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from unmask.catalogue import MODELS, File
from unmask.coded import open_coded, write_tokenizer_config
from unmask.config import to_json, write_json
from unmask.data.decoding import one_line
from unmask.data.images import Progress
from unmask.data.mnist import cache_dir
from unmask.data.sources import Codes, settled
from unmask.decoding import Sampling
from unmask.errors import CheckpointError, ConfigError
from unmask.models.transformer import TransformerConfig
from unmask.pipeline import TEXT_PARTS, TOKENIZER, Pipeline
from unmask.pretrained.amused import Amused
from unmask.pretrained.conversion import Converted
from unmask.pretrained.download import fetch, mismatch
from unmask.pretrained.families import FAMILIES, Family, Size, convert_file
from unmask.pretrained.google import GoogleMaskGIT
from unmask.recipes import Recipe, read_recipe

MODEL, REPORT = "model.safetensors", "conversion.txt"


def load(
    name: str | Path,
    *,
    weights: Sequence[str | Path] = (),
    prompts: Sequence[str] = (),
    offline: bool = False,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Pipeline:
    """A published model by its name, or a run or an export by its folder, ready to draw.

    `weights` are published files, or folders that hold them, to take instead of a download. `prompts` are the texts
    that a model of texts draws; text i is its class i. Raises ConfigError, CheckpointError and DiskError.
    """
    folder = located(name, weights=weights, offline=offline, progress=progress)
    return Pipeline.from_pretrained(folder, device=device, dtype=dtype, prompts=prompts)


def located(
    name: str | Path, *, weights: Sequence[str | Path] = (), offline: bool = False, progress: Progress | None = None
) -> Path:
    """The folder of a run or of an export; that of a published model is made first, if it is not there."""
    path = Path(name)
    if (path / "config.json").is_file() or str(name) not in MODELS:
        if not path.exists() and len(path.parts) == 1:
            near = get_close_matches(str(name), MODELS, 1)
            hint = f"did you mean the published {near[0]}?" if near else "unmask models lists the published ones"
            raise CheckpointError(f"{one_line(str(name))}: no such run, and no published model: {hint}")
        if weights:
            raise ConfigError(f"{name} is a folder of its own: weights are for a published model")
        return path
    return made(str(name), weights=weights, offline=offline, progress=progress)


def made(
    name: str, *, weights: Sequence[str | Path] = (), offline: bool = False, progress: Progress | None = None
) -> Path:
    """A published model, converted in the cache; CheckpointError or DiskError says what is missing or differs."""
    model, folder = MODELS[name], cache_dir() / "models" / name
    is_text = model.preset is None
    if (folder / "config.json").is_file():
        return folder
    given = [Path(place).expanduser() for place in weights]
    for place in given:
        if not place.exists():
            raise CheckpointError(f"{one_line(str(place))}: no such file or folder")
    files = {part: _file(part, given, name, offline, progress) for part in (model.tokenizer, model.model)}
    folder.mkdir(parents=True, exist_ok=True)
    if is_text:
        _copy_texts(files[model.model], folder)
    for part, path in files.items():
        _, done = convert_file(path, part.family, like=_own(model.size, part.family))
        into = folder / (TOKENIZER if part is model.tokenizer else MODEL)
        save(done, into, folder / f"{into.stem}-{REPORT}")
    write_recipe(model.size, folder, model.sampling)  # last: a folder that has it is whole
    return folder


def _own(size: Size, family: str) -> Size:
    return Size(tokenizer=size.tokenizer) if FAMILIES[family].is_tokenizer else size


def _file(part: File, given: Sequence[Path], name: str, offline: bool, progress: Progress | None) -> Path:
    """The published file: among those given, or fetched."""
    short = Path(part.name).name
    found = [place for place in given if place.is_file() and place.name == short]
    found += [hit for place in given if place.is_dir() for hit in (place / part.name, place / short) if hit.is_file()]
    if found:
        wrong = mismatch(found[0], part.source) if part.source is not None else None
        if wrong:
            raise CheckpointError(f"{one_line(str(found[0]))} is {wrong}: get the file of {part.page}")
        return found[0]
    if part.source is not None:
        return fetch(part.source, cache_dir() / "downloads", offline=offline, progress=progress)
    raise CheckpointError(
        f"{name} needs {part.name} of {part.page}, of which no hash is known to check a download by: get it there, and "
        f"name it or its folder with --weights"
    )


def _copy_texts(transformer: Path, folder: Path) -> None:
    """The text encoder and its tokenizer, which lie beside the transformer's folder."""
    for part in TEXT_PARTS:
        source = transformer.parent.parent / part
        if not source.is_dir():
            raise CheckpointError(f"{one_line(str(source))} is not there: give the model's whole folder with --weights")
        shutil.copytree(source, folder / part, dirs_exist_ok=True)


def save(done: Converted, into: Path, report: Path) -> None:
    """The converted parameters, and beside them what became of every tensor."""
    done.write(into, {"source": done.report.source})
    report.write_text(done.report.text, encoding="utf-8")


def write_recipe(size: Size, folder: Path, sampling: Sampling) -> None:
    """config.json, with which a folder of converted weights is like an export."""
    assert size.model is not None
    recipe = Recipe(data=Codes(path=""), tokenizer=size.tokenizer, model=size.model, sampling=sampling, unigram=False)
    write_json(folder / "config.json", to_json(recipe))


def as_run(model: Path, codes: str | None, out: Path) -> Path:
    """A run folder `out` of a converted model with pictures to measure it against, as codes by its own tokenizer.

    ConfigError where there are none, or where their classes are not the model's.
    """
    if codes is None:
        raise ConfigError("measured against which pictures? Give --data CODES, which unmask tokenize NAME makes")
    coded, recipe = open_coded(codes), read_recipe(model / "config.json", Recipe)
    there = 0 if isinstance(recipe.model, Amused) else recipe.model.num_classes
    if coded.meta.classes and len(coded.meta.classes) != there:
        raise ConfigError(
            f"{codes} has {len(coded.meta.classes)} classes and the model {there}: their numbers mean other things"
        )
    recipe = replace(recipe, data=settled(Codes(path=codes)), tokenizer_sha256=coded.meta.tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    for name in (MODEL, TOKENIZER):
        if not (out / name).exists():
            (out / name).symlink_to((model / name).resolve())
    if (out / "config.json").exists() and read_recipe(out / "config.json", Recipe) != recipe:
        raise CheckpointError(f"{out} holds something else: give another --out")
    write_json(out / "config.json", to_json(recipe))
    return out


def adopted(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """A recipe that starts from a published or converted model has its network, whatever it had; and what to say."""
    if recipe.init is None:
        return recipe, []
    folder = located(recipe.init)
    recipe = replace(recipe, init=str(folder))
    theirs = read_recipe(folder / "config.json", None) if (folder / "config.json").is_file() else None
    if not isinstance(theirs, Recipe) or isinstance(theirs.model, TransformerConfig | Amused):
        return recipe, []
    network = replace(theirs.model, null_class=True) if isinstance(theirs.model, GoogleMaskGIT) else theirs.model
    return replace(recipe, model=network), [f"the network is that of {folder.name}: {network}"]


def convert_into(path: Path, family: str, out: Path) -> Converted:
    """A foreign file into a folder: a generator makes it, its tokenizer joins it, and a tokenizer alone has its own.

    Raises CheckpointError for a file that does not fit, or a folder that holds something else.
    """
    rules: Family = FAMILIES[family]
    beside = read_recipe(out / "config.json", Recipe) if rules.is_tokenizer and (out / MODEL).exists() else None
    like = None if beside is None else _likeness(beside, rules, out)
    if not rules.is_tokenizer and (out / "config.json").exists():
        raise CheckpointError(f"{out} holds a model already: give another --out")
    size, done = convert_file(path, family, like=like)
    out.mkdir(parents=True, exist_ok=True)
    into = out / (TOKENIZER if beside is not None else MODEL)
    save(done, into, out / f"{into.stem}-{REPORT}")
    if not rules.is_tokenizer:
        write_recipe(size, out, _sampling(size))
    elif beside is None:
        write_tokenizer_config(size.tokenizer, out)
    return done


def _likeness(beside: Recipe, rules: Family, out: Path) -> Size:
    same: list[Any] = [size for size in rules.sizes if size.tokenizer == beside.tokenizer]
    if not same:
        raise CheckpointError(f"{out} holds a generator with another kind of tokenizer: give another --out")
    return same[0]


def _sampling(size: Size) -> Sampling:
    """That of the published model of this size, or the plain one."""
    return next((model.sampling for model in MODELS.values() if model.size == size), Sampling())
