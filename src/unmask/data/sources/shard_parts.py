"""Which .tar files are trained on and which are held out: by their names, or as given."""

import os
import re
from glob import glob, has_magic

from unmask.data.sources.parts import choose_roles, is_held_out_name, is_train_name, refuse_without_train
from unmask.errors import ConfigError, DataError
from unmask.storage.files import escape_line
from unmask.storage.remote import expand_braces, is_remote, list_remote


def choose_shards(path: str, train: str | None, test: str | None) -> tuple[list[str], list[str], list[str]]:
    """Return the archives to train on, those to hold out, and those that are not used: as given, or by their names.

    Names without a set's name in them are trained on, unless others have one to train on.
    """
    base = os.path.expanduser(path)
    given = [None if one is None else find_shards(_join(base, os.path.expanduser(one))) for one in (train, test)]
    if path or train is None:
        every = [one for one in find_shards(path) if not any(one in (part or ()) for part in given)]
    else:
        every = []
    groups: dict[str, list[str]] = {}
    spread = len({os.path.dirname(archive) for archive in every}) > 1
    for archive in every:
        groups.setdefault(find_split_name(archive, use_folder=spread), []).append(archive)
    plain = groups.pop("", [])
    roles = choose_roles(groups)
    first, second = given
    held = groups[roles.test] if second is None and roles.test is not None else second or []
    if first is None:
        first = [archive for name in roles.train for archive in groups[name]] or plain
        if not held and roles.train:
            first = sorted([*first, *plain])
        if not first and len(groups) == 1 and second is None:  # the pattern names a single set: train on a share of it
            first, held = held, []
        if not first:
            raise refuse_without_train(path, groups)
    both = sorted({*first} & {*held})
    if both:
        raise ConfigError(f"{escape_line(both[0])}: to train on and to hold out; give two patterns")
    used = {*first, *held}
    return first, held, [archive for archive in every if archive not in used]


def _join(base: str, inside: str) -> str:
    return inside if is_remote(inside) else os.path.join(base, inside)


def find_split_name(archive: str, *, use_folder: bool) -> str:
    """Return the set that the name of an archive, or of its folder, tells, such as "val"; "" if none does."""
    folder, name = os.path.split(archive)
    words = re.findall(r"[a-z]+", name.lower().removesuffix(".tar"))
    words += [os.path.basename(folder).lower()] if use_folder else []
    return next((word for word in words if is_train_name(word) or is_held_out_name(word)), "")


def find_shards(path: str) -> list[str]:
    """List the .tar files of a folder, a pattern or a single path, sorted; {00..09} and {a,b} stand for several.

    A folder without any may have them in folders called train, val and so on. An address such as s3://bucket/folder is
    listed where it lies (`storage/remote.py`).
    """
    if not path:
        raise ConfigError("which shards? Give --data DIR with .tar files, or a quoted pattern such as 'train-*.tar'")
    place = os.path.expanduser(path)
    if is_remote(place):
        found = list(list_remote(place, ".tar"))
    elif "{" in place and not os.path.exists(place) and len(patterns := expand_braces(place)) > 1:
        found = [name for pattern in patterns for name in find_shards(pattern)]
    elif os.path.isdir(place):
        found = _list_tars(place)
        named = [name for name in os.listdir(place) if is_train_name(name) or is_held_out_name(name)]
        found = found or [one for name in named for one in _list_tars(os.path.join(place, name))]
    elif has_magic(place) and not os.path.exists(place):
        found = [name for name in glob(place, recursive=True) if os.path.isfile(name)]
    else:
        found = [place] if os.path.isfile(place) else []
    if not found:
        raise DataError(f"{escape_line(path)}: no .tar file; give a folder of them, or a pattern such as 'train-*.tar'")
    return sorted(found)


def _list_tars(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    return [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".tar") and name[0] != "."]
