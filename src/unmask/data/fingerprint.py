"""Record what a run was trained on, and notice when it is no longer the same set.

A fingerprint holds the classes, the counts and a digest of the content of both splits. It holds no names of files and
no place, so the same pictures under other names or in another folder have the same fingerprint.
"""

import hashlib
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import UInt8

from unmask.data.identity import sort_keys
from unmask.data.images import Images
from unmask.data.labels import normalize_name
from unmask.data.pictures import Pictures, Split
from unmask.errors import DataError
from unmask.storage.config import read_json, write_json
from unmask.storage.files import escape_line
from unmask.storage.layout import DATA

MAX_RECORD = 1 << 26  # bytes
_FEW = 3  # classes that a message names

Source = TypeVar("Source")


@dataclass(frozen=True, kw_only=True)
class DataPolicy:
    """What to do about data that a run knows already."""

    accept: bool = False
    """Continue although the data changed; the run keeps a record of it."""
    verify: bool = False
    """Hash all bytes of all pictures, also of those that are read on demand."""


STRICT = DataPolicy()
"""Refuse data that changed."""


@dataclass(frozen=True, kw_only=True)
class PartFingerprint:
    """One split of a dataset."""

    counts: tuple[int, ...]
    """Pictures of each class, or their number without classes."""
    content: str
    """SHA-256 over the keys of the pictures of each class, whatever their order."""
    whole: str | None = None
    """The same over all their bytes, if they were all read."""

    @property
    def num(self) -> int:
        """Number of pictures."""
        return sum(self.counts)


@dataclass(frozen=True, kw_only=True)
class DataFingerprint:
    """Both splits of a dataset, with the names of the classes."""

    classes: tuple[str, ...]
    """Names of the classes; () without labels."""
    train: PartFingerprint
    """What is trained on."""
    test: PartFingerprint
    """What is held out."""
    unit: Literal["images", "documents"] = "images"
    """What is counted."""

    @property
    def digest(self) -> str:
        """A text that is equal for equal data."""
        parts = [f"{part.counts} {part.content}" for part in (self.train, self.test)]
        return hashlib.sha256(repr((self.classes, parts)).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """What a run keeps in `data.json`."""

    data: DataFingerprint
    """The data of the latest training."""
    before: tuple[DataFingerprint, ...] = ()
    """The data before each change that was accepted, oldest first."""


def compute_fingerprint(split: Split, *, verify: bool = False) -> DataFingerprint:
    """Return the fingerprint of loaded pictures. All bytes are hashed with `verify`, or if they are in memory."""
    classes = tuple(normalize_name(name) for name in split.train.classes)  # copying may change the Unicode form
    return DataFingerprint(
        classes=classes,
        train=_compute_part(split.train, classes, verify),
        test=_compute_part(split.test, classes, verify),
    )


def _compute_part(pictures: Pictures, classes: tuple[str, ...], verify: bool) -> PartFingerprint:
    labels = np.zeros(len(pictures), np.int64) if pictures.labels is None else pictures.labels.numpy()
    names = classes or ("",)
    whole = verify or isinstance(pictures, Images)
    return PartFingerprint(
        counts=tuple(np.bincount(labels, minlength=len(names)).tolist()),
        content=_hash_classes(pictures.compute_keys(), labels, names),
        whole=_hash_classes(pictures.compute_whole_keys(), labels, names) if whole else None,
    )


def _hash_classes(keys: UInt8[np.ndarray, "n 16"], labels: np.ndarray, names: tuple[str, ...]) -> str:
    """Return a digest of the pictures of each class; empty classes do not change it."""
    order = sort_keys(keys).numpy()
    order = order[labels[order].argsort(kind="stable")]
    ends = np.bincount(labels, minlength=len(names)).cumsum()
    digest = hashlib.sha256()
    for name, start, end in zip(names, [0, *ends[:-1]], ends, strict=True):
        if end > start:
            digest.update(f"{name!r} {end - start}\n".encode("utf-8", "surrogatepass"))
            digest.update(keys[order[start:end]].tobytes())
    return digest.hexdigest()


def describe_changes(then: DataFingerprint, now: DataFingerprint) -> str | None:
    """Return in words what changed between two fingerprints, or None if nothing did."""
    parts = []
    old, new = (one.train.num + one.test.num for one in (then, now))
    if old != new:
        parts.append(f"{new:,} {now.unit} now, {old:,} then")
    elif then.test.num != now.test.num:
        parts.append(f"{now.test.num:,} {now.unit} held out now, {then.test.num:,} then")
    counts = [_count_classes(one) for one in (then, now)]
    gone, fresh = (sorted(set(a) - set(b)) for a, b in (counts, counts[::-1]))
    parts += [f"{_name_classes(gone)} gone"] if gone else []
    parts += [f"{_name_classes(fresh)} new"] if fresh else []
    if not gone and not fresh and then.classes:
        other = [name for name in counts[0] if counts[0][name] != counts[1][name]]
        parts += [
            f"class {escape_line(name)} has {counts[1][name]} now, {counts[0][name]} then" for name in other[:_FEW]
        ]
    if not parts and then.classes != now.classes:
        parts.append("the classes are in another order")
    if not parts and then.digest != now.digest:
        parts.append(f"as many {now.unit}, but not the same ones")
    pairs = [(a.whole, b.whole) for a, b in ((then.train, now.train), (then.test, now.test))]
    if not parts and any(a is not None and b is not None and a != b for a, b in pairs):
        parts.append("bytes inside some images changed")
    return "; ".join(parts) or None


def find_renumbered(then: DataFingerprint, now: DataFingerprint) -> str | None:
    """Return why a model cannot continue with the new classes, or None if it can."""
    if len(then.classes) != len(now.classes):
        return f"the number of classes is {len(now.classes)} now, {len(then.classes)} then, and is fixed in the model"
    numbers = {name: i for i, name in enumerate(now.classes)}
    moved = [(i, name) for i, name in enumerate(then.classes) if numbers.get(name, i) != i]
    if not moved:
        return None
    number, name = moved[0]
    return (
        f"class {escape_line(name)} was number {number} and would be {numbers[name]}, which --accept-data cannot "
        "change: rename the new classes so that the old ones keep their numbers"
    )


def raise_if_changed(
    then: DataFingerprint, now: DataFingerprint, policy: DataPolicy, what: str, advice: str, accept: str
) -> str | None:
    """Return what changed if `policy` accepts it, or None if nothing did.

    Args:
        then, now: The fingerprints to compare.
        policy: Whether a change is accepted. Other class numbers never are: the model would mistake the classes.
        what: The beginning of the message, such as "the data of runs/x changed".
        advice: What to do.
        accept: What --accept-data does.

    Raises:
        DataError: The data changed, and this is not accepted.
    """
    changed = describe_changes(then, now)
    if changed is None:
        return None
    fixed = find_renumbered(then, now)
    if fixed is not None:
        raise DataError(f"{what}: {changed}; {fixed}; {advice}")
    if not policy.accept:
        raise DataError(f"{what}: {changed}; {advice}, or --accept-data to {accept}")
    return changed


def describe_unverified(then: DataFingerprint | None, policy: DataPolicy, *, recorded: bool) -> list[str]:
    """Return a note if all bytes are to be compared, and no earlier command has recorded a digest of them.

    Args:
        then: What an earlier command recorded, if it recorded anything.
        policy: Whether all bytes are to be compared.
        recorded: Whether this command records the digest.
    """
    if not policy.verify or (then is not None and then.train.whole is not None):
        return []
    now = "it is recorded now, and" if recorded else "train or tokenize records it with --verify-data;"
    return [f"no digest of all bytes was recorded before: {now} there was nothing to compare it with"]


def _count_classes(data: DataFingerprint) -> dict[str, int]:
    pairs = zip(data.classes, data.train.counts, data.test.counts, strict=False)
    return {name: train + test for name, train, test in pairs if train + test}


def _name_classes(names: list[str]) -> str:
    shown = ", ".join(escape_line(name) for name in names[:_FEW])
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"class {shown} is" if len(names) == 1 else f"classes {shown}{more} are"


def read_record(folder: Path) -> DataRecord | None:
    """Return what a run recorded about its data, or None for a run of an early version.

    Raises:
        ConfigError: The record is damaged.
    """
    path = folder / DATA
    return read_json(path, DataRecord, MAX_RECORD) if path.is_file() else None


def check_data(folder: Path, found: DataFingerprint, policy: DataPolicy, advice: str, accept: str) -> str | None:
    """Compare the data with what a run recorded; return what changed if `policy` accepts it, else None.

    See `raise_if_changed` for the arguments and the error.
    """
    record = read_record(folder)
    if record is None:
        return None
    what = f"the data of {escape_line(str(folder))} changed"
    return raise_if_changed(record.data, found, policy, what, advice, accept)


def record_data(folder: Path, found: DataFingerprint) -> None:
    """Write what a run is trained on; data that it was trained on before stays in the record."""
    record = read_record(folder)
    if record is None:
        record = DataRecord(data=found)
    elif describe_changes(record.data, found) is not None:
        record = DataRecord(data=found, before=(*record.before, record.data))
    else:
        record = replace(record, data=merge_whole(record.data, found))
    write_json(folder / DATA, record)


def merge_whole(old: DataFingerprint, new: DataFingerprint) -> DataFingerprint:
    """Return equal data, with the digests over all bytes that either of both knows."""
    train, test = (
        replace(there, whole=there.whole or here.whole)
        for there, here in ((old.train, new.train), (old.test, new.test))
    )
    return replace(new, train=train, test=test)


def forget_place(source: Source) -> Source:
    """Return a source without where it lies: a fingerprint says what it holds, so the place may change."""
    assert is_dataclass(source)
    places = {
        field.name: field.default if isinstance(field.default, str | None) else ""
        for field in fields(source)
        if field.name != "arrange" and isinstance(getattr(source, field.name), str | None)
    }
    return replace(source, **places)  # type: ignore[type-var]


def match_arrangement(source: Source, earlier: object) -> Source:
    """Return a source that orders its pictures as the source of an earlier run does."""
    arrange = getattr(earlier, "arrange", None)
    return source if arrange is None or not hasattr(source, "arrange") else replace(source, arrange=arrange)  # type: ignore
