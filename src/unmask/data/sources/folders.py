"""Folders of image files, one sub-folder per class or flat: read into memory, or only listed if they are many."""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from jaxtyping import Int

from unmask.data.image_files import Unreadable, open_image, silence_warnings
from unmask.data.images import Images
from unmask.data.labels import list_names, normalize_name
from unmask.data.pictures import (
    UNCHECKED,
    Arrangement,
    Files,
    Pictures,
    Split,
    check_shape,
    check_share,
    is_small,
    read_each,
)
from unmask.data.sources.folder_parts import (
    IMAGE_SUFFIXES,
    find_parts,
    is_folder,
    is_visible,
    list_folders,
    skip_wrapper,
)
from unmask.data.sources.parts import Parts, report_unused
from unmask.errors import ConfigError, DataError, describe_os_error
from unmask.lazy import Tensor, torch
from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line
from unmask.storage.remote import is_remote

MAX_IN_MEMORY = 2 * 2**30  # bytes of pixels


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder of image files, one sub-folder per class or flat.

    Sub-folders called train (or training) and val (valid, validation, dev, test) are the two sets, and nothing else is
    held out. A set of more than 2 GiB of pixels is only listed, and read on demand.
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
    train: str | None = None
    """The folder to train on, inside --data.path or elsewhere; by default found by its name."""
    test: str | None = None
    """The folder to hold out, inside --data.path or elsewhere; by default found by its name."""

    def __post_init__(self):
        check_shape(self.size, self.channels)
        check_share(self.held_out)

    def load(self, progress: Progress | None = None) -> Split:
        """Load the training and the test set."""
        return self.open_parts(progress).split(self.held_out, self.seed, self.path or str(self.train), self.arrange)

    def open_parts(self, progress: Progress | None = None, *, listed: bool = False) -> Parts:
        """Open the sets of the folder, in memory, or only `listed`: the survey reads each picture by itself."""
        if not self.path and not self.train:
            raise ConfigError("which folder? Give --data DIR, with one sub-folder of images per class, or flat")
        for place in filter(None, map(str, (self.path, self.train or "", self.test or ""))):
            if is_remote(place):
                raise ConfigError(
                    f"{escape_line(place)}: a folder of images must lie on this disk; .tar shards at an address are "
                    "read by unmask tokenize MODEL --source shards"
                )
        found = find_parts(self.path, self.train, self.test)
        size = (self.size, self.size)
        read = partial(read_folder, size=size, channels=self.channels, progress=progress, listed=listed)
        train, bad, notes = read(found.train, skip=() if found.test is None else (found.test,))
        notes = [*found.notes, *report_unused(found.unused), *notes]
        test, fault = None, None
        if found.test is not None:
            root, said = skip_wrapper(found.test, stop=train.classes)
            try:
                test, more, about = read(root, like=train, skip=(found.train,))
            except ForeignClassError as error:
                if not listed:
                    raise
                fault = error  # the survey shows all there is, and then says this
                test, more, about = read(root, skip=(found.train,))
                train, test = join_classes(train, test)
            bad, notes = [*bad, *more, *said.bad], [*notes, *said.notes, *about]
        return Parts(train=train, test=test, bad=(*found.bad, *bad), notes=tuple(notes), fault=fault)


class ForeignClassError(DataError):
    """A set to hold out has a class that the training set lacks."""


def join_classes(train: Pictures, test: Pictures) -> tuple[Pictures, Pictures]:
    """Return both sets with the classes of either, those of the training set first."""
    names = {normalize_name(name): name for name in (*reversed(test.classes), *train.classes)}
    order = [*train.classes, *(name for name in test.classes if names[normalize_name(name)] not in train.classes)]
    number = {normalize_name(name): i for i, name in enumerate(order)}
    assert isinstance(train, Files)
    assert isinstance(test, Files)
    assert test.labels is not None
    labels = torch.tensor([number[normalize_name(name)] for name in test.classes])[test.labels]
    return replace(train, classes=tuple(order)), replace(test, labels=labels, classes=tuple(order))


def read_folder(
    root: str | Path,
    *,
    size: tuple[int, int],
    channels: int,
    progress: Progress | None = None,
    like: Pictures | None = None,
    skip: Collection[Path] = (),
    listed: bool = False,
) -> tuple[Pictures, list[Unreadable], list[str]]:
    """Read all good images below `root`, each once and sorted by path.

    Sub-folders of `root` are the classes, by sorted name or numbered as in `like`. Without sub-folders there are no
    labels. If images lie both beside and inside sub-folders, all are used without labels, and a note says so. Images
    of more than MAX_IN_MEMORY are only listed, by the suffixes of their names.

    Args:
        root: The folder.
        size: Height and width of the images after resizing.
        channels: 1 or 3.
        progress: Called with (what, done, total).
        like: The training set, for a set to hold out.
        skip: Folders that belong to another set.
        listed: List the images without reading them, whatever their number.

    Returns:
        The images, the files that were not used, and notes.

    Raises:
        DataError: there are no images.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"{escape_line(str(root))}: no such folder; give one that holds images")
    files, bad = list_files(root, skip)
    paths, twins = drop_twins(files)
    bad += twins
    weight = 0 if listed else sum(map(os.path.getsize, filter(os.path.isfile, paths)))
    every = Files(paths=paths, labels=None, classes=(), size=size, channels=channels, exact=is_small(weight))
    found: Files | Images
    if listed or len(paths) * channels * size[0] * size[1] > MAX_IN_MEMORY:
        good, odd = choose_by_suffix(paths, thorough=listed)
        found = every.take(good)
    else:
        pixels, good, odd = read_each(every.read_one, torch.arange(len(paths)), every.shape, progress)
        used = every.take(good)
        found = Images(pixels=pixels, labels=None, keys=used.compute_keys(), whole_keys=used.compute_whole_keys())
    bad += odd
    if not len(good):
        hint = f"; the first: {bad[0]}" if bad else ""
        raise DataError(f"{escape_line(str(root))}: no readable image among {len(files)} files{hint}")
    labels, classes, notes = label_by_folder(root, [paths[i] for i in good.tolist()], like, skip)
    notes += [UNCHECKED] if not every.exact and isinstance(found, Images) else []
    return replace(found, labels=labels, classes=classes), bad, notes


def choose_by_suffix(paths: tuple[str, ...], *, thorough: bool) -> tuple[Int[Tensor, " g"], list[Unreadable]]:
    """Return the indices of files that are images by name, and the other files; `thorough` opens the others."""
    good, odd = [], []
    with silence_warnings():
        for i, path in enumerate(paths):
            fault: object = None
            if not path.lower().endswith(IMAGE_SUFFIXES):
                fault = Unreadable(path, f"its name ends in none of {', '.join(IMAGE_SUFFIXES)}")
                fault = open_image(path) if thorough else fault
            if isinstance(fault, Unreadable):
                odd.append(fault)
            else:
                good.append(i)
    return torch.tensor(good, dtype=torch.int64), odd


def label_by_folder(
    root: Path, paths: Iterable[str], like: Pictures | None, skip: Collection[Path] = ()
) -> tuple[Int[Tensor, " n"] | None, tuple[str, ...], list[str]]:
    """Return (labels, classes, notes) by the sub-folder of `root` that holds each path.

    Names that differ only by their Unicode form are one class, with the name in the training set.
    """
    where = escape_line(str(root))
    start = len(os.path.join(root, ""))
    places = [path[start:].split(os.sep, 1) for path in paths]
    nested = sum(len(parts) > 1 for parts in places)
    # The Unicode form of a name does not change its place: copying from one system to another may change the form.
    found = sorted({parts[0] for parts in places if len(parts) > 1}, key=lambda n: (normalize_name(n), n))
    notes = _report_empty(root, found, skip)
    if like is not None and like.labels is None:
        return None, (), notes
    if nested < len(places):
        if like is not None:
            raise DataError(f"{where}: not all images lie in class folders, as those of train do: sort them into such")
        beside = f"{where}: images lie beside the class folders, so no labels were made: move them into one"
        return None, (), [*notes, beside] if nested else notes
    known: dict[str, str] = {}
    for name in found if like is None else like.classes:
        known.setdefault(normalize_name(name), name)
    if like is None and len(known) < len(found):
        twice = [name for name in found if known[normalize_name(name)] != name]
        notes.append(f"{where}: two folders with the same name in two Unicode forms are one class: {list_names(twice)}")
    foreign = [name for name in found if normalize_name(name) not in known]
    if foreign:
        name = foreign[0]
        near = [own for own in known.values() if own.casefold() == normalize_name(name).casefold()]
        hint = f"rename it to {escape_line(near[0])} if it is that class" if near else "move or remove that folder"
        raise ForeignClassError(f"{where}: no class {escape_line(name)} in train; {hint}")
    number = {name: i for i, name in enumerate(known)}
    labels = torch.tensor([number[normalize_name(parts[0])] for parts in places])
    return labels, tuple(known.values()), notes


def _report_empty(root: Path, found: Collection[str], skip: Collection[Path]) -> list[str]:
    """Return a note on the sub-folders without an image."""
    apart = {os.path.realpath(path) for path in skip}
    empty = [name for name in list_folders(root) if name not in found and os.path.realpath(root / name) not in apart]
    if not empty:
        return []
    what = "it is no class" if len(empty) == 1 else "they are no classes"
    return [f"{escape_line(str(root))}: no image in {list_names(empty)}, so {what}"]


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


def list_files(root: Path, skip: Collection[Path] = ()) -> tuple[list[str], list[Unreadable]]:
    """List every visible file below `root`, sorted, without the folders `skip`.

    Links are followed unless they lead to a folder that is read anyway.
    """
    apart = {os.path.realpath(path) for path in skip}
    tops: list[Path] = []
    files: list[str] = []
    bad, folders = [], [str(root)]
    while folders:
        folder = folders.pop()
        if apart and os.path.realpath(folder) in apart:
            continue
        if not tops or os.path.islink(folder):
            real = Path(os.path.realpath(folder))
            if any(real.is_relative_to(top) or top.is_relative_to(real) for top in tops):
                bad.append(Unreadable(folder, f"link to {real}, a loop or a folder that is read anyway"))
                continue
            tops.append(real)
        try:
            with os.scandir(folder) as entries:
                inner = sorted((e.name, is_folder(e)) for e in entries if is_visible(e.name))
        except OSError as error:
            bad.append(Unreadable(folder, describe_os_error(error)))
            continue
        folders += [os.path.join(folder, name) for name, deeper in reversed(inner) if deeper]
        files += [os.path.join(folder, name) for name, deeper in inner if not deeper]
    return sorted(
        files, key=lambda path: path.replace(os.sep, "\0")
    ), bad  # so "a b/x" does not come between "a/x" and "a/y"
