"""Folders of image files, one sub-folder per class or flat: read into memory, or only listed if they are many."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.data.image_files import Unreadable
from unmask.data.images import Images
from unmask.data.pictures import (
    Arrangement,
    Files,
    Pictures,
    Split,
    check_shape,
    check_share,
    read_each,
    sort_by_content,
    split_share,
)
from unmask.errors import ConfigError, DataError, describe_os_error
from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line

MAX_IN_MEMORY = 2 * 2**30  # bytes of pixels
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_FOLDERS = ({"train", "val"}, {"train", "test"})


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder of image files, one sub-folder per class or flat.

    If it holds only the folders `train` and `val` (or `test`), these are the two sets and nothing else is held out.
    A set of more than 2 GiB of pixels is only listed, and read on demand.
    """

    path: str
    """The folder."""
    size: int = 32
    """Height and width of the images after resizing, in pixels."""
    channels: int = 3
    """3 for colour, 1 for grey."""
    held_out: float = 0.1
    """Fraction of the images to hold out."""
    seed: int = 0
    """Seed that decides, with the content of each image, which ones are held out."""
    arrange: Arrangement = "content"
    """Order and split images by their content, or (runs of early versions) by their position in the listing."""

    def __post_init__(self):
        check_shape(self.size, self.channels)
        check_share(self.held_out)

    def load(self, progress: Progress | None = None) -> Split:
        """Load the training and the test set."""
        if not self.path:
            raise ConfigError("which folder? Give --data DIR, with one sub-folder of images per class, or flat")
        root = Path(self.path).expanduser()
        size = (self.size, self.size)
        pair = find_pair(root)
        if pair is None:
            images, bad = read_folder(root, size=size, channels=self.channels, progress=progress)
            train, test = split_share(images, self.held_out, self.seed, self.path, self.arrange)
            return Split(train=train, test=test, bad=tuple(bad))
        train, bad = read_folder(pair[0], size=size, channels=self.channels, progress=progress)
        test, more = read_folder(pair[1], size=size, channels=self.channels, progress=progress, like=train)
        if self.arrange == "content":
            train, test = sort_by_content(train), sort_by_content(test)
        return Split(train=train, test=test, bad=(*bad, *more))


def find_pair(root: Path) -> tuple[Path, Path] | None:
    """Return the folders of the training and test set, if `root` holds these two and nothing else."""
    try:
        names = {name for name in os.listdir(root) if not name.startswith(".")}
    except OSError:  # read_folder will name the reason
        return None
    if names not in SPLIT_FOLDERS or not all((root / name).is_dir() for name in names):
        return None
    (other,) = names - {"train"}
    return root / "train", root / other


def read_folder(
    root: str | Path,
    *,
    size: tuple[int, int],
    channels: int,
    progress: Progress | None = None,
    like: Pictures | None = None,
) -> tuple[Pictures, list[Unreadable]]:
    """Read all good images below `root`, each once and sorted by path; return also the files that were not used.

    Sub-folders of `root` are the classes, by sorted name or numbered as in `like`. Without sub-folders there are no
    labels. If images lie both beside and inside sub-folders, all are used without labels, and the list of unused files
    says so. Images of more than MAX_IN_MEMORY are only listed, by the suffixes of their names.

    Raises:
        DataError: there are no images.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"{escape_line(str(root))}: no such folder; give one that holds images")
    files, bad = list_files(root)
    paths, twins = drop_twins(files)
    bad += twins
    listed = Files(paths=paths, labels=None, classes=(), size=size, channels=channels)
    found: Files | Images
    if len(paths) * channels * size[0] * size[1] > MAX_IN_MEMORY:
        good, odd = choose_by_suffix(paths)
        found = listed.take(good)
    else:
        pixels, good, odd = read_each(listed.read_one, torch.arange(len(paths)), listed.shape, progress)
        used = listed.take(good)
        found = Images(pixels=pixels, labels=None, keys=used.compute_keys(), whole_keys=used.compute_whole_keys())
    bad += odd
    if not len(good):
        hint = f"; the first: {bad[0]}" if bad else ""
        raise DataError(f"{escape_line(str(root))}: no readable image among {len(files)} files{hint}")
    labels, classes, lost = label_by_folder(root, [paths[i] for i in good.tolist()], like)
    return replace(found, labels=labels, classes=classes), bad + lost


def choose_by_suffix(paths: tuple[str, ...]) -> tuple[Int[Tensor, " g"], list[Unreadable]]:
    """Return the indices of files that are images by name, and the other files."""
    good, odd = [], []
    for i, path in enumerate(paths):
        if path.lower().endswith(IMAGE_SUFFIXES):
            good.append(i)
        else:
            odd.append(Unreadable(path, f"its name ends in none of {', '.join(IMAGE_SUFFIXES)}"))
    return torch.tensor(good, dtype=torch.int64), odd


def label_by_folder(
    root: Path, paths: Iterable[str], like: Pictures | None
) -> tuple[Int[Tensor, " n"] | None, tuple[str, ...], list[Unreadable]]:
    """Return (labels, classes, problems) by the sub-folder of `root` that holds each path."""
    if like is not None and like.labels is None:
        return None, (), []
    start = len(os.path.join(root, ""))
    places = [path[start:].split(os.sep, 1) for path in paths]
    nested = sum(len(parts) > 1 for parts in places)
    if nested < len(places):
        if like is not None:
            where = escape_line(str(root))
            raise DataError(f"{where}: not all images lie in class folders, as those of train do: sort them into such")
        reason = "images lie beside the class folders, so no labels were made: move them into one"
        return None, (), [Unreadable(str(root), reason)] if nested else []
    found = {parts[0] for parts in places}
    classes = tuple(sorted(found)) if like is None else like.classes
    foreign = sorted(found - set(classes))
    if foreign:
        raise DataError(
            f"{escape_line(str(root))}: no class {escape_line(foreign[0])} in train; move or remove that folder"
        )
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[parts[0]] for parts in places]), classes, []


def drop_twins(files: list[str]) -> tuple[tuple[str, ...], list[Unreadable]]:
    """Return the paths of different files, and the paths that lead to one of these files again."""
    folders: dict[str, str] = {}
    met: dict[str, str] = {}
    twins = []
    for path in files:
        folder, name = os.path.split(path)
        if os.path.islink(path):
            real = os.path.realpath(path)
        else:
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            real = os.path.join(folders[folder], name)
        if real in met:
            twins.append(Unreadable(path, f"the same file as {met[real]}"))
        else:
            met[real] = path
    return tuple(met.values()), twins


def list_files(root: Path) -> tuple[list[str], list[Unreadable]]:
    """List every visible file below `root`, sorted; follow links unless they lead to a folder that is read anyway."""
    tops: list[Path] = []
    files: list[str] = []
    bad, folders = [], [str(root)]
    while folders:
        folder = folders.pop()
        if not tops or os.path.islink(folder):
            real = Path(os.path.realpath(folder))
            if any(real.is_relative_to(top) or top.is_relative_to(real) for top in tops):
                bad.append(Unreadable(folder, f"link to {real}, a loop or a folder that is read anyway"))
                continue
            tops.append(real)
        try:
            with os.scandir(folder) as entries:
                inner = sorted((e.name, is_folder(e)) for e in entries if not e.name.startswith("."))
        except OSError as error:
            bad.append(Unreadable(folder, describe_os_error(error)))
            continue
        folders += [os.path.join(folder, name) for name, deeper in reversed(inner) if deeper]
        files += [os.path.join(folder, name) for name, deeper in inner if not deeper]
    return sorted(
        files, key=lambda path: path.replace(os.sep, "\0")
    ), bad  # so "a b/x" does not come between "a/x" and "a/y"


def is_folder(entry: os.DirEntry) -> bool:
    """Return whether it is a folder or a link to one; a broken link is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False
