"""Which kind of source a path is: a folder of images, an .npz file, .tar files, or a dataset of Hugging Face."""

import os
from pathlib import Path

from unmask.data.shards.dataset import META
from unmask.data.sources.choice import Arrays, Cifar10, Digits, Folder, HubImages, Mnist, PictureSource, Shards
from unmask.data.sources.parts import is_held_out_name, is_train_name
from unmask.errors import ConfigError, DataError
from unmask.storage.files import escape_line
from unmask.storage.remote import is_remote

HUB_MARKS = ("dataset_dict.json", "state.json")
HUB_SUFFIXES = (".parquet", ".arrow")


def identify_source(path: str) -> PictureSource:
    """Return the source that a path names, or digits, mnist or cifar10.

    Raises:
        ConfigError: there is nothing, or nothing of images.
    """
    named: dict[str, PictureSource] = {"digits": Digits(), "mnist": Mnist(binary=False), "cifar10": Cifar10()}
    place, shown = Path(path).expanduser(), escape_line(path)
    if path in named and not place.exists():
        return named[path]
    if is_remote(path):
        return Shards(path=path)
    if place.is_dir():
        return _identify_folder(path, place)
    if path.endswith(".npz") and place.is_file():
        return Arrays(path=path)
    if path.endswith(".tar"):  # a file or a pattern
        return Shards(path=path)
    if place.exists():
        raise ConfigError(f"{shown}: not a dataset of images; give a folder, an .npz file or .tar files")
    raise DataError(f"{shown}: no such file or folder; give a folder of images, an .npz file, or {', '.join(named)}")


def _identify_folder(path: str, place: Path) -> PictureSource:
    if (place / META).is_file():
        raise ConfigError(f"{escape_line(path)}: a token dataset, so without images; give the folder it was made from")
    if any((place / mark).is_file() for mark in HUB_MARKS) or _has_files(place, HUB_SUFFIXES, ("data",)):
        return HubImages(name=path)
    if _has_files(place, (".tar",)):
        return Shards(path=path)
    return Folder(path=path)


def _has_files(place: Path, suffixes: tuple[str, ...], inside: tuple[str, ...] = ()) -> bool:
    """Return whether a folder holds such files, or a folder in it with the name of a set or one of `inside`."""
    folders = [place]
    try:
        for entry in os.scandir(place):
            if entry.is_dir() and (is_train_name(entry.name) or is_held_out_name(entry.name) or entry.name in inside):
                folders.append(Path(entry.path))
        return any(name.endswith(suffixes) for folder in folders for name in os.listdir(folder))
    except OSError:
        return False
