"""Which folders below a folder are the training set, the held-out set and the classes: by their names, or as given."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from unmask.data.image_files import Unreadable
from unmask.data.labels import list_names, normalize_name
from unmask.data.sources.parts import choose_roles, is_held_out_name, is_train_name, refuse_without_train
from unmask.errors import ConfigError, DataError
from unmask.storage.files import escape_line
from unmask.storage.outputs import is_marked

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Said:
    """The files that were passed by on the way, and what a person should know."""

    bad: list[Unreadable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class FolderParts:
    """The folder to train on, the one to hold out if there is one, and the names of the others."""

    train: Path
    test: Path | None = None
    unused: tuple[str, ...] = ()
    bad: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()


def find_parts(path: str, train: str | None, test: str | None) -> FolderParts:
    """Find the sets in the folder `path`; `train` and `test` name folders inside it or elsewhere.

    Raises:
        ConfigError: the two sets are the same folder.
        DataError: there are held-out sets and nothing to train on.
    """
    base = Path(path).expanduser()
    first, second = (None if name is None else base / Path(name).expanduser() for name in (train, test))
    root, said = skip_wrapper(base) if path else (base, Said())
    if first is not None and not (path and _is_inside(first, root)):
        found = FolderParts(train=first, test=second)
    else:
        found = find_named_parts(root, first, second)
    if found.test is not None and os.path.realpath(found.train) == os.path.realpath(found.test):
        raise ConfigError(f"{escape_line(str(found.test))}: to train on and to hold out; give two folders")
    notes, bad, chosen = [*said.notes, *found.notes], list(said.bad), found.train
    used = [one for one in (found.train, found.test) if one is not None]
    if path and not any(os.path.realpath(one) == os.path.realpath(root) or _is_inside(one, root) for one in used):
        notes.append(f"{escape_line(path)}: not used, as --data.train and --data.test lie elsewhere")
    unused: tuple[str, ...] = ()
    if path and _is_inside(chosen, root):
        unused, loose = _list_rest(root, used)
        bad += loose
    if chosen != root:
        chosen, inner = skip_wrapper(chosen)
        notes, bad = [*notes, *inner.notes], [*bad, *inner.bad]
    return FolderParts(train=chosen, test=found.test, unused=unused, bad=tuple(bad), notes=tuple(notes))


def find_named_parts(root: Path, train: Path | None = None, test: Path | None = None) -> FolderParts:
    """Find the sets that are not given among the sub-folders of `root` by their names.

    A folder with a set's name beside class folders is a class, and a note says so. Training and held-out folders that
    hold class folders themselves are sets whatever lies beside them.
    """
    given = {os.path.realpath(path) for path in (train, test) if path is not None}
    names = [name for name in list_folders(root) if os.path.realpath(root / name) not in given]
    named = [name for name in names if is_train_name(name) or is_held_out_name(name)]
    others = [name for name in names if name not in named]
    roles = choose_roles(named)
    held = root / roles.test if test is None and roles.test is not None else test
    if train is not None:
        return FolderParts(train=train, test=held)
    if not named:
        return FolderParts(train=root, test=test)
    if not roles.train and not others and (len(named) > 1 or test is not None):
        raise refuse_without_train(str(root), named)
    pair = [*roles.train, *([roles.test] if test is None and roles.test is not None else [])]
    nested = all(_holds_classes(root / name) for name in pair)
    if not roles.train or held is None or (others and not nested):
        flags = " and ".join(
            f"--data.{'train' if is_train_name(name) else 'test'} {escape_line(name)}" for name in pair
        )
        taken = f"{list_names(named)}: taken for {'a class' if len(named) == 1 else 'classes'}"
        note = f"{taken}, as {list_names(others, 3)} lies beside; if not, give {flags}"
        return FolderParts(train=root, test=test, notes=(note,) if others else ())
    if len(roles.train) > 1:
        found = " and ".join(roles.train)
        raise DataError(f"{escape_line(str(root))}: {found} are both names to train on: choose one with --data.train")
    return FolderParts(train=root / roles.train[0], test=held)


def skip_wrapper(root: Path, stop: Iterable[str] = ()) -> tuple[Path, Said]:
    """Return the folder that holds the sets or classes, and what to say if it is not `root` but a folder alone in it.

    A folder alone is such a wrapper if it holds several folders and no images, or has the name of a set, and is not
    one of the classes `stop`.
    """
    classes = {normalize_name(name) for name in stop}
    here, way, best = root, [os.path.realpath(root)], root
    while True:
        names = list_folders(here)
        if len(names) != 1 or _holds_images(here) or normalize_name(names[0]) in classes:
            break
        inner = here / names[0]
        if os.path.realpath(inner) in way:
            break
        way.append(os.path.realpath(inner))
        named = is_train_name(names[0]) or is_held_out_name(names[0])
        below = list_folders(inner)
        if not named and (not below or _holds_images(inner)):
            break
        here = inner
        best = here if named or len(below) > 1 else best
    if best == root:
        return root, Said()
    shown = escape_line(str(best))
    loose = [Unreadable(str(path), f"beside {shown}") for path in _list_loose(root, best)]
    note = f"{shown} is the only folder in {escape_line(str(root))}, so its content is used"
    return best, Said(bad=loose, notes=[note])


def list_folders(root: Path) -> list[str]:
    """List the visible sub-folders, sorted; [] if the folder cannot be read, which its reader will report."""
    return [name for name, deeper in _scan(root) if deeper]


def is_visible(name: str) -> bool:
    """Return whether a file or folder counts: not hidden, and not what macOS adds to its archives."""
    return not name.startswith(".") and name != "__MACOSX"


def is_folder(entry: os.DirEntry) -> bool:
    """Return whether it is a folder or a link to one; a broken link is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _scan(root: Path) -> list[tuple[str, bool]]:
    try:
        with os.scandir(root) as entries:
            return sorted((entry.name, is_folder(entry)) for entry in entries if is_visible(entry.name))
    except OSError:
        return []


def check_no_pictures(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder of pictures as the place for a run, for tokens or for an export.

    Raises:
        ConfigError: There are pictures in it or in a folder inside it that unmask did not make, and not `overwrite`.
    """
    if overwrite or not folder.is_dir():
        return
    for place in (folder, *(folder / name for name in list_folders(folder))):
        for name, deeper in _scan(place):
            if not deeper and name.lower().endswith(IMAGE_SUFFIXES) and not is_marked(place / name):
                shown = escape_line(str((place / name).relative_to(folder)))
                raise ConfigError(
                    f"{escape_line(str(folder))} holds pictures ({shown}): give a folder of its own, or add --overwrite"
                )


def _holds_images(root: Path) -> bool:
    return any(not deeper and name.lower().endswith(IMAGE_SUFFIXES) for name, deeper in _scan(root))


def _holds_classes(root: Path) -> bool:
    return bool(list_folders(root)) and not _holds_images(root)


def _is_inside(path: Path, root: Path) -> bool:
    """Return whether `path` lies below `root`, and is not `root`."""
    there, here = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    return there != here and there.is_relative_to(here)


def _list_loose(root: Path, best: Path) -> Iterable[Path]:
    """Yield the visible files beside each folder from `root` down to `best`."""
    here = root
    for part in best.relative_to(root).parts:
        yield from (here / name for name, deeper in _scan(here) if not deeper)
        here = here / part


def _list_rest(root: Path, used: list[Path]) -> tuple[tuple[str, ...], list[Unreadable]]:
    """Return the sub-folders of `root` that hold no part of a set, and the files beside the sets."""
    real = [Path(os.path.realpath(path)) for path in used]
    unused, loose = [], []
    for name, deeper in _scan(root):
        here = Path(os.path.realpath(root / name))
        if not deeper:
            loose.append(Unreadable(str(root / name), "beside the folders that are used"))
        elif not any(path.is_relative_to(here) for path in real):
            unused.append(name)
    return tuple(sorted(unused, key=lambda name: (not is_held_out_name(name), name))), loose
