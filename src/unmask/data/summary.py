"""What a command says before it works: classes with their counts, what is held out, and what was left out."""

import os

from unmask.data.labels import MAX_LISTED
from unmask.data.pictures import UNCHECKED, OnDemand, Split
from unmask.data.sources.parts import count_classes
from unmask.storage.files import escape_line

NAMED = 3  # files that the summary names


def describe_split(split: Split) -> list[str]:
    """Return lines such as "dataset     disc 30, square 30; 6 held out; 1 left out (a.txt)", and one for each note."""
    counts = [sum(pair) for pair in zip(count_classes(split.train), count_classes(split.test), strict=True)]
    total = len(split.train) + len(split.test)
    first = [describe_counts(split.train.classes, counts, total), f"{len(split.test):,} held out"]
    if split.bad:
        names = [escape_line(os.path.basename(one.path)) for one in split.bad[:NAMED]]
        more = f" and {len(split.bad) - NAMED:,} more" if len(split.bad) > NAMED else ""
        first.append(f"{len(split.bad):,} left out ({', '.join(names)}{more})")
    unchecked = isinstance(split.train, OnDemand) and not split.train.exact
    notes = [*split.notes, *([UNCHECKED] if unchecked else [])]
    return ["dataset     " + "; ".join(first), *(f"note: {note}" for note in notes)]


def describe_counts(classes: tuple[str, ...], counts: list[int], total: int) -> str:
    """Return the number of pictures of each class, or the range of these numbers if the classes are many."""
    if not classes:
        return f"{total:,} image{'s' * (total != 1)} without classes"
    if len(classes) <= MAX_LISTED:
        after = ":" if any(name.isdecimal() for name in classes) else ""  # "7: 20", as "7 20" reads like two numbers
        return ", ".join(f"{escape_line(name)}{after} {count:,}" for name, count in zip(classes, counts, strict=True))
    least, most = min(counts), max(counts)
    each = f"{least:,} each" if least == most else f"{least:,} to {most:,} each"
    return f"{total:,} images of {len(classes):,} classes, {each}"
