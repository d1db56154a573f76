"""Class numbers as they are stored, and the numbers from 0 that a network takes."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Integer

from unmask.data.images import MAX_CLASSES
from unmask.errors import DataError
from unmask.storage.files import escape_line

IGNORED = (255, 65_535, 2**31 - 1, 2**32 - 1)
"""Numbers that other programs store for "no class"."""
MAX_LISTED = 12


def number_labels(
    labels: Integer[np.ndarray, " n"],
) -> tuple[Integer[np.ndarray, " n"], tuple[str, ...], tuple[str, ...]]:
    """Number the classes that occur from 0, in the order of their labels.

    Returns:
        The new labels, the classes with the stored numbers as names, and a note if the numbers have changed.

    Raises:
        DataError: a label seems to say "no class", or there are too many classes.
    """
    values, ids = np.unique(labels, return_inverse=True)
    known = values.tolist()
    if known and known[0] < 0:
        raise DataError(f"{_count(labels, known[0])}, which often means no class: {_REMEDY}")
    if len(known) > 1 and known[-1] in IGNORED and known[-2] != known[-1] - 1:
        often = f"{_count(labels, known[-1])} beside {known[0]} to {known[-2]}, which often means no class"
        raise DataError(f"{often}: {_REMEDY}")
    if len(known) > MAX_CLASSES:
        raise DataError(f"{len(known)} different labels, but {MAX_CLASSES} classes is the most: use fewer")
    names = tuple(str(value) for value in known)
    last = len(known) - 1
    if not known or (known[0], known[-1]) == (0, last):
        return labels, names, ()
    note = f"the labels {list_names(names)} are classes 0 to {last} here; each class keeps its label as its name"
    return ids.reshape(labels.shape), names, (note,)


_REMEDY = "take these images out, or number all classes from 0 without gaps"


def _count(labels: Integer[np.ndarray, " n"], value: int) -> str:
    num = int((labels == value).sum())
    return f"{num:,} {'label is' if num == 1 else 'labels are'} {value}"


def list_names(names: Sequence[str], most: int = MAX_LISTED) -> str:
    """Return names in one line, the first ones if there are many."""
    shown = ", ".join(escape_line(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def normalize_name(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), so that names that look the same are equal."""
    return unicodedata.normalize("NFC", name)


def report_classes(classes: Sequence[str], train: Iterable[int], test: Iterable[int]) -> tuple[str, ...]:
    """Return what a person should know about classes.

    Args:
        classes: Their names.
        train: The number of training pictures of each class.
        test: The number of held-out pictures of each class.
    """
    counts = [(one, one + other) for one, other in zip(train, test, strict=True)]
    notes = []
    if len(classes) == 1:
        notes.append(f"all images are of one class, {escape_line(classes[0])}: a folder per class makes classes")
    folded = Counter(normalize_name(name).casefold() for name in classes)
    alike = [name for name in classes if folded[normalize_name(name).casefold()] > 1]
    if alike:
        notes.append(f"classes that differ only by case are different ones: {list_names(alike)}; rename them if not")
    single = sum(total == 1 for _, total in counts)
    scattered = single > 2 and 2 * single > len(classes)
    if scattered:
        notes.append(
            f"{single:,} of {len(classes):,} classes have a single image: if these are no classes, put all images "
            "into one folder"
        )
    empty = [name for name, (_, total) in zip(classes, counts, strict=True) if total == 0]
    if empty:
        notes.append(f"{len(empty):,} of {len(classes):,} classes have no image: {list_names(empty)}")
    unseen = [name for name, (one, total) in zip(classes, counts, strict=True) if one == 0 < total]
    if unseen and not scattered:
        notes.append(f"no image to train on, only held-out ones: {list_names(unseen)}")
    return tuple(notes)
