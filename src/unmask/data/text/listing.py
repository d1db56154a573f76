"""List the text files of a folder: which are read, which of them are held out, and why the others are left out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from unmask.data.image_files import Unreadable
from unmask.data.sources.folders import list_files
from unmask.errors import DataError
from unmask.storage.files import escape_line

TextFormat = Literal["text", "lines", "jsonl", "json", "csv", "parquet"]
ENDINGS: Mapping[TextFormat, tuple[str, ...]] = MappingProxyType(
    {
        "text": (".txt", ".md"),
        "lines": (".txt", ".md"),
        "jsonl": (".jsonl", ".ndjson"),
        "parquet": (".parquet",),
        "csv": (".csv", ".tsv"),
        "json": (".json",),
    }
)
"""The endings of each format, in capitals too; all but Parquet may be followed by .gz. Where a folder has files of
several formats, the first one here is read."""

HELD_OUT_WORDS = (("val", "valid", "validation", "dev"), ("test",))
"""The names of a held-out split; the first group that is there is held out."""
_SPLIT = re.compile(r"(training|train|validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)
_ABOUT = re.compile(r"(readme|licen[cs]e)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ListedTexts:
    """The files of a folder. Without a held-out split `test` is None."""

    train: tuple[Path, ...]
    test: tuple[Path, ...] | None = None
    left_out: tuple[Unreadable, ...] = ()


def find_format(path: Path) -> TextFormat | None:
    """Return the format that the ending of a name stands for, or None."""
    name = path.name.lower()
    for kind, endings in ENDINGS.items():
        if (name if kind == "parquet" else name.removesuffix(".gz")).endswith(endings):
            return kind
    return None


def list_texts(root: Path, chosen: TextFormat | None, *, split: bool) -> ListedTexts:
    """List the visible files below a folder that are read, sorted, and the others with a reason.

    Args:
        root: The folder.
        chosen: The format to read; None for the first of `ENDINGS` that has files.
        split: Whether a folder or file `train` beside `val` or `test` divides the files.

    Raises:
        DataError: no file is left.
    """
    names, problems = list_files(root)
    found: dict[Path, TextFormat] = {}
    left_out = list(problems)
    every = tuple(dict.fromkeys(ending for endings in ENDINGS.values() for ending in endings))
    for path in map(Path, names):
        kind = find_format(path)
        if kind is None:
            left_out.append(Unreadable(str(path), f"its name ends in none of {', '.join(every)}"))
        elif _ABOUT.match(path.name):
            left_out.append(Unreadable(str(path), "it is about the texts; give the file itself to read it"))
        else:
            found[path] = kind
    there = [kind for kind in ENDINGS if kind in found.values()]
    taken = chosen or (there[0] if there else "text")
    endings = ENDINGS[taken]
    kept = [path for path, kind in found.items() if ENDINGS[kind] == endings]
    for path, kind in found.items():
        if path not in kept:
            reason = f"the folder is read as {' and '.join(endings)}; --data.format {kind} reads this one instead"
            left_out.append(Unreadable(str(path), reason))
    if not kept:
        wanted = ", ".join(every if chosen is None else endings)
        first = f"; left out {left_out[0]}" if left_out else ""
        raise DataError(
            f"{escape_line(str(root))}: no {wanted} files in this folder; name one with texts, or a file{first}"
        )
    divided = split_by_name(root, kept) if split else None
    if divided is None:
        return ListedTexts(train=tuple(kept), left_out=tuple(left_out))
    train, test, unused = divided
    held = find_split(root, test[0])
    left_out += [
        Unreadable(str(path), f"beside train and {held}, which is held out, it is not used") for path in unused
    ]
    return ListedTexts(train=tuple(train), test=tuple(test), left_out=tuple(left_out))


def split_by_name(root: Path, paths: list[Path]) -> tuple[list[Path], list[Path], list[Path]] | None:
    """Return the files of the training split, those held out and the others; None if the names are of no split."""
    words = {path: find_split(root, path) for path in paths}
    train = [path for path, word in words.items() if word in ("train", "training")]
    for group in HELD_OUT_WORDS:
        test = [path for path, word in words.items() if word in group]
        if train and test:
            return train, test, [path for path in paths if path not in {*train, *test}]
    return None


def find_split(root: Path, path: Path) -> str | None:
    """Return the split that the top folder of a file names, or its own name; `.md` files are no splits by name."""
    top, *deeper = path.relative_to(root).parts
    if deeper:
        return top.lower() if _SPLIT.fullmatch(top) else None
    match = None if path.suffix.lower() == ".md" else _SPLIT.match(top)
    return match.group(1).lower() if match else None
