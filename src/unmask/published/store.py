"""Published models in the cache: the first use of one downloads its files, or takes local ones, and converts them.

The result is a folder like any export.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unmask.errors import CheckpointError
from unmask.pretrained.conditions import EXTRA_FILES, check_prompts_installed, read_extras, write_extras
from unmask.pretrained.conversion import Converted
from unmask.pretrained.families import FAMILIES, Family, Size, convert_file
from unmask.pretrained.lone_tokenizer import write_lone_tokenizer_config
from unmask.published.catalogue import MODELS, Published
from unmask.published.files import File, Note, fetch_file
from unmask.recipes.reading import read_config, write_config
from unmask.recipes.spec import ModelSpec
from unmask.runtime.progress import Progress
from unmask.storage.cache import find_cache_dir, lock_file
from unmask.storage.config import load_json
from unmask.storage.download import find_mismatch
from unmask.storage.files import escape_line, remove_temporary_files, write_text
from unmask.storage.layout import CONFIG, MODEL, TOKENIZER
from unmask.storage.lock import lock
from unmask.storage.manifest import (
    begin_files,
    list_unchanged,
    list_unfinished,
    read_records,
    record_files,
    verify_recorded,
)
from unmask.storage.outputs import check_folder

CONVERSION_REPORT = "conversion.txt"
"""The end of the name of the report on a converted file."""


def fetch_published(
    name: str,
    *,
    weights: Sequence[str | Path] = (),
    offline: bool = False,
    progress: Progress | None = None,
    say: Note | None = None,
) -> Path:
    """Return the folder of a published model in the cache, downloading and converting it at its first use.

    `say` is called with a line on each file whose SHA-256 is pinned now. CheckpointError or DiskError says what is
    missing or differs.
    """
    folder = find_cache_dir() / "models" / name
    given = [Path(place).expanduser() for place in weights]
    damage = _find_damage(folder)
    if damage is None and not given:
        return folder
    try:
        files = _find_files(MODELS[name], given, offline, progress, say)
    except CheckpointError as error:
        raise CheckpointError(f"{damage}, and it cannot be converted again: {error}" if damage else error) from error
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder):
        remove_temporary_files(folder)
        if given or _find_damage(folder) is not None:  # another process may just have made it
            _convert_files(MODELS[name], files, folder)
    return folder


def _find_damage(folder: Path) -> str | None:
    """Return what is wrong with a converted model, "" if there is none, and None if it is as it was written."""
    if not (folder / CONFIG).is_file():
        return ""
    try:
        for name in read_records(folder) or ():
            if not (folder / name).is_file():
                return f"{escape_line(str(folder / name))} is missing"
            verify_recorded(folder, name)
    except CheckpointError as error:
        return str(error)
    return None


def _convert_files(model: Published, files: Mapping[File, Path], folder: Path) -> None:
    extras = read_extras(model.size.model, files[model.model].parent.parent)  # the text encoder lies beside the network
    (folder / CONFIG).unlink(missing_ok=True)
    write_extras(extras, folder)
    begin_files(folder, [CONFIG])
    names = [CONFIG]
    for part in (model.model, model.tokenizer):
        path = files[part]
        _, done = convert_file(path, part.family, like=_own(model.size, part.family))
        into = folder / (TOKENIZER if part is model.tokenizer else MODEL)
        write_converted(done, into, folder / f"{into.stem}-{CONVERSION_REPORT}")
        names.append(into.name)
    write_config(model.spec, folder)
    record_files(folder, [*names, *(name for name in EXTRA_FILES if extras is not None and (folder / name).exists())])


def _find_files(
    model: Published, given: Sequence[Path], offline: bool, progress: Progress | None, say: Note | None
) -> dict[File, Path]:
    """Return the published files: those given, else those that are downloaded."""
    check_prompts_installed(model.size.model)
    parts = (model.model, model.tokenizer)
    for place in given:
        if not place.exists():
            raise CheckpointError(f"{escape_line(str(place))}: no such file or folder")
    found = {part: _find_given(part, given, parts) for part in parts}
    for place in given:
        if not any(path is not None and place in (path, *path.parents) for path in found.values()):
            names = " or ".join(part.name for part in parts)
            raise CheckpointError(f"{escape_line(str(place))} is not, and does not hold, {names}, which are wanted")
    given_model = found[model.model]
    for part in (*parts, *(model.extras if given_model is None else ())):
        if found.get(part) is None:
            found[part] = _fetch_file(part, offline, progress, say)
    return {part: path for part, path in found.items() if path is not None}


def _own(size: Size, family: str) -> Size:
    return Size(tokenizer=size.tokenizer) if FAMILIES[family].is_tokenizer else size


def _find_given(part: File, given: Sequence[Path], parts: Sequence[File]) -> Path | None:
    """Return the published file among those given, or in their folders; CheckpointError if it is not as published."""
    short = Path(part.name).name
    alike = sum(Path(other.name).name == short for other in parts) > 1  # then the folder tells
    ending = part.name if alike else short
    found = [place for place in given if place.is_file() and _is_named(place, ending)]
    names = (part.name,) if alike else (part.name, short)
    found += [place / name for place in given for name in names if (place / name).is_file()]
    if not found:
        return None
    if wrong := find_mismatch(found[0], part.size, part.sha256):
        raise CheckpointError(f"{escape_line(str(found[0]))} is {wrong}: get the file of {part.page}")
    return found[0]


def _is_named(place: Path, ending: str) -> bool:
    """Return whether a file, or the target of a link, has this path at its end: a cache may name it by its hash."""
    return any(path.as_posix().endswith(f"/{ending}") for path in (Path(os.path.abspath(place)), place.resolve()))


def _fetch_file(part: File, offline: bool, progress: Progress | None, say: Note | None) -> Path | None:
    try:
        return fetch_file(part, offline=offline, progress=progress, say=say)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, or name a copy of it with --weights") from error


def write_converted(done: Converted, into: Path, report: Path) -> None:
    """Write the converted parameters, and a report on every tensor beside them."""
    done.write(into, {"source": done.report.source})
    write_text(done.report.text, report)


def convert_into(path: Path, family: str, out: Path, *, overwrite: bool = False) -> Converted:
    """Convert a foreign file into a folder.

    A generator creates the folder, its tokenizer joins it, and a tokenizer alone gets a folder for itself. A conversion
    that ended before its time is done again.
    Raises CheckpointError for a file that does not fit, or a folder that holds something else; ConfigError if it would
    replace a file that unmask did not make, unless `overwrite`.
    """
    rules, config = FAMILIES[family], out / CONFIG
    joins = rules.is_tokenizer and _lacks_tokenizer(out)
    if config.exists() and not joins and CONFIG not in list_unfinished(out):
        raise CheckpointError(f"{out} holds a model already: give another --out")
    into = out / (TOKENIZER if joins else MODEL)
    report = out / f"{into.stem}-{CONVERSION_REPORT}"
    check_folder(out, [into.name, report.name], ours=list_unchanged(out), overwrite=overwrite)
    like = _find_size(read_config(config, ModelSpec), rules, out) if joins else None
    size, done = convert_file(path, family, like=like)
    with lock(out, keep=False):
        names = {*list_unchanged(out), into.name, report.name, CONFIG}
        begin_files(out, names)
        write_converted(done, into, report)
        if not rules.is_tokenizer:
            write_config(_find_spec(size), out)
        elif not joins:
            write_lone_tokenizer_config(size.tokenizer, out)
        record_files(out, [name for name in names if (out / name).is_file()])
    return done


def _lacks_tokenizer(folder: Path) -> bool:
    """Return whether the folder holds a generator without a tokenizer, or with an unfinished one."""
    if not (folder / MODEL).exists() or not (folder / CONFIG).exists():
        return False
    is_open = not (folder / TOKENIZER).exists() or TOKENIZER in list_unfinished(folder)
    return is_open and "model" in load_json(folder / CONFIG)


def _find_size(beside: ModelSpec, rules: Family, out: Path) -> Size:
    same: list[Any] = [size for size in rules.sizes if size.tokenizer == beside.tokenizer]
    if not same:
        raise CheckpointError(f"{out} holds a generator with another kind of tokenizer: give another --out")
    return same[0]


def _find_spec(size: Size) -> ModelSpec:
    """Return the spec of the published model of this size, or one with the default sampling."""
    assert size.model is not None
    published = next((model.spec for model in MODELS.values() if model.size == size), None)
    return published or ModelSpec(tokenizer=size.tokenizer, model=size.model)
