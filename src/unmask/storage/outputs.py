"""Guard what lies where a command writes: a file that unmask did not make is replaced only if the user insists.

Every check runs before the work of the command. Files that unmask writes carry MARK, or stand in the manifest of their
folder (`storage/manifest.py`).
"""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from unmask.errors import ConfigError, DiskError
from unmask.storage.files import escape_line

MARK = "made by unmask"
"""In the metadata of each picture, animation and page that unmask writes."""
REPORT_SIGNS = ("command", "commit", "hardware", "threads")
"""Names that each report of this and of earlier versions holds."""
_MARKED_BYTES = 1 << 16
"""The mark stands within this many bytes of the beginning or the end of a file."""


def check_file(path: Path, *, overwrite: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Refuse to write a file over something that unmask did not make.

    Args:
        path: The file to write.
        overwrite: Replace it all the same.
        inputs: Files that the command reads, which it never replaces.

    Raises:
        ConfigError: `path` is a folder, an input, or a file that unmask did not make.
        DiskError: Its folder cannot be written.
    """
    shown = escape_line(str(path))
    if path.is_dir():
        raise ConfigError(f"{shown} is a folder: give the name of a file")
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise ConfigError(f"{shown} is the input itself, which is never replaced: give another name")
    if os.path.lexists(path) and not overwrite and not is_marked(path):
        raise ConfigError(f"{shown} is there, and unmask did not make it: give another name, or add --overwrite")
    check_writable(path.parent)


def check_folder(folder: Path, names: Iterable[str], *, ours: Collection[str] = (), overwrite: bool = False) -> None:
    """Refuse to write `names` into a folder that holds files of these names which are not `ours`.

    Raises:
        ConfigError: Such a file is there.
        DiskError: The folder cannot be written, or is a file.
    """
    shown = escape_line(str(folder))
    if os.path.lexists(folder) and not folder.is_dir():
        raise DiskError(f"{shown} is a file: give the name of a folder")
    foreign = [name for name in names if name not in ours and _holds_something(folder / name)]
    if foreign and not overwrite:
        more = f" and {len(foreign) - 1} more files" if len(foreign) > 1 else ""
        raise ConfigError(
            f"{shown} holds {foreign[0]}{more}, which unmask did not make so: give another folder, or add --overwrite "
            "to replace what is there"
        )
    check_writable(folder)


def _holds_something(path: Path) -> bool:
    """Return whether there is a file with content, a link, or a folder with more in it than a killed write left."""
    if path.is_dir() and not path.is_symlink():
        return any(".tmp-" not in name for name in os.listdir(path))
    return os.path.lexists(path) and (path.is_symlink() or path.stat().st_size > 0)


def check_results(
    folder: Path | None, names: Sequence[str], *, signs: Sequence[str] = REPORT_SIGNS, overwrite: bool = False
) -> None:
    """Check the folder that the user named for tables and plots.

    Args:
        folder: The folder; None, the default inside a run, is not checked.
        names: The files to write. The first one tells whose folder it is: if it holds all `signs`, unmask made it.
        signs: Words of that file.
        overwrite: Replace files that unmask did not make.
    """
    if folder is not None:
        ours = names if _holds(folder / names[0], signs) else ()
        check_folder(folder, names, ours=ours, overwrite=overwrite)


def is_marked(path: Path) -> bool:
    """Return whether a picture, animation or page has the MARK of unmask."""
    return _holds(path, (MARK,))


def _holds(path: Path, words: Sequence[str]) -> bool:
    """Return whether all words stand near the beginning or the end of a file."""
    try:
        with open(path, "rb") as file:
            text = file.read(_MARKED_BYTES)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MARKED_BYTES))
            text += file.read()
    except OSError:
        return False
    return all(word.encode() in text for word in words)


def choose_free(path: Path, list_files: Callable[[Path], Iterable[Path]] = lambda path: [path]) -> Path:
    """Return `path`, or the first of NAME_2, NAME_3 ... for which none of the files to write is there."""
    number, free = 1, path
    while any(os.path.lexists(file) for file in list_files(free)):
        number += 1
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free


def check_writable(folder: Path) -> None:
    """Raise DiskError if `folder`, or the nearest folder above it that exists, cannot be written."""
    there = next((place for place in (folder, *folder.absolute().parents) if os.path.lexists(place)), folder)
    if not there.is_dir():
        raise DiskError(f"{escape_line(str(there))} is not a folder: give another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise DiskError(f"{escape_line(str(there))} cannot be written: give another place")
