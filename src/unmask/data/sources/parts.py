"""Which part of a source is trained on, which is held out, and which is not used: by the names of folders, shards and
splits."""

from collections.abc import Iterable
from dataclasses import dataclass

from unmask.data.image_files import Unreadable
from unmask.data.labels import list_names, report_classes
from unmask.data.pictures import Arrangement, Pictures, Split, sort_by_content, split_share
from unmask.errors import DataError
from unmask.storage.files import escape_line

TRAIN_NAMES = ("train", "training")
HELD_OUT_NAMES = ("val", "valid", "validation", "dev", "test")
"""The first one that is there is held out; the others are kept for a final test."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The pictures of a source before a share is held out."""

    train: Pictures
    test: Pictures | None
    """The held-out images, or None if the source has none of its own."""
    bad: tuple[Unreadable, ...] = ()
    """The files that were not used."""
    notes: tuple[str, ...] = ()
    """What a person should know, a sentence each."""
    fault: DataError | None = None
    """Why a training would refuse this source, where only a survey opens it."""

    def split(self, held_out: float, seed: int, where: str, arrange: Arrangement = "content") -> Split:
        """Hold out a fraction of the pictures, unless the source has a test set; `where` names it in an error."""
        train, test = self.train, self.test
        if test is None:
            train, test = split_share(train, held_out, seed, where, arrange)
        elif arrange == "content":
            train, test = sort_by_content(train), sort_by_content(test)
        about = report_classes(train.classes, *(count_classes(part) for part in (train, test)))
        return Split(train=train, test=test, bad=self.bad, notes=(*self.notes, *about))


def count_classes(pictures: Pictures) -> list[int]:
    """Return the number of pictures of each class; [] without classes."""
    if pictures.labels is None:
        return [0] * len(pictures.classes)
    return pictures.labels.bincount(minlength=len(pictures.classes)).tolist()


@dataclass(frozen=True, kw_only=True)
class Roles:
    """What each named part is for."""

    train: tuple[str, ...]
    test: str | None
    unused: tuple[str, ...]


def is_train_name(name: str) -> bool:
    """Return whether a part of this name is one to train on."""
    return name.casefold() in TRAIN_NAMES


def is_held_out_name(name: str) -> bool:
    """Return whether a part of this name is one to hold out."""
    return name.casefold() in HELD_OUT_NAMES


def choose_roles(names: Iterable[str]) -> Roles:
    """Choose by name what to train on and what to hold out; other names are not looked at."""
    names = sorted(names)
    held = sorted(filter(is_held_out_name, names), key=lambda name: HELD_OUT_NAMES.index(name.casefold()))
    return Roles(train=tuple(filter(is_train_name, names)), test=held[0] if held else None, unused=tuple(held[1:]))


def report_unused(names: Iterable[str], flag: str = "--data.test") -> tuple[str, ...]:
    """Return notes that name the parts that are not used."""
    names = tuple(names)
    held = [name for name in names if is_held_out_name(name)]
    others = [name for name in names if name not in held]
    notes = []
    if held:
        instead = f"{flag} {escape_line(held[0])} holds {'it' if len(held) == 1 else 'the first one'} out instead"
        notes.append(f"{list_names(held)}: not used, so kept for a final test; {instead}")
    if others:
        notes.append(f"{list_names(others)}: not used, neither to train on nor held out")
    return tuple(notes)


def refuse_without_train(where: str, names: Iterable[str], flag: str = "--data.train") -> DataError:
    """Return the error for a source that holds several held-out parts and nothing to train on."""
    found = " and ".join(escape_line(name) for name in sorted(names))
    return DataError(f"{escape_line(where)}: holds {found} but no train: name what to train on with {flag}")
