"""WebDataset shards: images and labels in plain tar files. One scan of the headers finds them, then they are read by
offset. Nothing is extracted, so no name in an archive can write anywhere."""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from jaxtyping import Int
from PIL import Image

from unmask.data.identity import hash_picture_file
from unmask.data.image_files import Unreadable, decode_bytes
from unmask.data.images import MAX_CLASSES
from unmask.data.labels import number_labels
from unmask.data.pictures import (
    Arrangement,
    OnDemand,
    Split,
    check_shape,
    check_share,
    is_small,
    take_keys,
    take_labels,
)
from unmask.data.sources.parts import Parts, report_unused
from unmask.data.sources.shard_parts import choose_shards
from unmask.errors import DataError, describe_os_error
from unmask.lazy import Tensor, torch
from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line
from unmask.storage.remote import fetch_remote, is_remote

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
DOTTED = tuple("." + suffix for suffix in PICTURE_SUFFIXES)
MEMBER_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # as in WebDataset: KEY up to the first dot
MAX_PICTURE_BYTES = 2**29  # of one encoded image
MAX_CLS_BYTES = 64
MAX_JSON_BYTES = 2**20  # may hold much more than the label
# What tarfile raises on damaged headers; compressed archives are never opened.
TAR_DAMAGE = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Uncompressed .tar files in the format of WebDataset.

    An image is KEY.jpg, .jpeg, .png or .webp; its class is the whole number in KEY.cls, or "label" in KEY.json. Files
    called train-*.tar and val-*.tar (valid, validation, dev, test), or in folders of these names, are the two sets.
    """

    path: str
    """A folder of .tar files, one .tar file, or a pattern such as "data/*.tar" or "s3://bucket/train-{000..099}.tar"."""
    size: int = 256
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
    """The .tar files to train on, as a folder, file or pattern inside --data.path; by default found by their names."""
    test: str | None = None
    """The .tar files to hold out, as a folder, file or pattern inside --data.path; by default found by their names."""

    def __post_init__(self):
        check_shape(self.size, self.channels)
        check_share(self.held_out)

    def load(self, progress: Progress | None = None) -> Split:
        """Load the training and the test set."""
        return self.open_parts(progress).split(self.held_out, self.seed, self.path or str(self.train), self.arrange)

    def open_parts(self, progress: Progress | None = None) -> Parts:
        """List the sets of the archives."""
        train, test, unused = choose_shards(self.path, self.train, self.test)
        archives = [str(fetch_remote(one, progress)) if is_remote(one) else one for one in (*train, *test)]
        pictures, bad, notes = read_shards(archives, (self.size, self.size), self.channels, progress)
        notes = (*report_unused(os.path.basename(path) for path in unused), *notes)
        if not test:
            return Parts(train=pictures, test=None, bad=tuple(bad), notes=notes)
        held = pictures.places[:, 0] >= len(train)
        for side, found in ((held, test), (~held, train)):
            if not side.any():
                hint = f"; the first: {bad[0]}" if bad else ""
                raise DataError(f"{escape_line(found[0])}: no readable image in {len(found)} shards{hint}")
        first, second = (pictures.take(side.nonzero()[:, 0]) for side in (~held, held))
        return Parts(train=first, test=second, bad=tuple(bad), notes=notes)


@dataclass(frozen=True, kw_only=True)
class Members(OnDemand):
    """Images inside tar files: `places` are (index into `archives`, offset, bytes), `names` member names."""

    archives: tuple[str, ...]
    names: tuple[str, ...]
    places: Int[Tensor, "n 3"]

    def __len__(self) -> int:
        return len(self.places)

    def find_place(self, i: int) -> str:
        """Return the archive and the name of image `i`."""
        return f"{self.archives[int(self.places[i, 0])]}, {self.names[i]}"

    def fetch(self, i: int) -> bytes | Unreadable:
        """Read the encoded bytes of image `i`."""
        archive, offset, length = self.places[i].tolist()
        try:
            with open(self.archives[archive], "rb") as file:
                file.seek(offset)
                body = file.read(length)
        except OSError as error:
            return Unreadable(self.find_place(i), describe_os_error(error))
        if len(body) < length:
            return Unreadable(self.find_place(i), f"{len(body)} of {length} bytes are there: the archive has changed")
        return body

    def open(self, i: int) -> Image.Image | Unreadable:
        body = self.fetch(i)
        return (
            body
            if isinstance(body, Unreadable)
            else decode_bytes(io.BytesIO(body), self.find_place(i), exact=self.exact)
        )

    def hash_content(self, i: int, *, whole: bool) -> bytes:
        archive, offset, length = self.places[i].tolist()
        return hash_picture_file(self.archives[archive], offset, length, whole=whole)

    def take(self, index: Int[Tensor, " b"]) -> "Members":
        return replace(
            self,
            names=tuple(self.names[i] for i in index.tolist()),
            places=self.places[index],
            labels=take_labels(self.labels, index),
            keys=take_keys(self.keys, index),
        )


@dataclass(frozen=True, slots=True)
class Member:
    """A regular member of an archive: the position of its bytes."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Sample:
    """An image in an archive, and its class if it has one."""

    picture: Member
    label: int | None


def read_shards(
    archives: list[str], size: tuple[int, int], channels: int, progress: Progress | None = None
) -> tuple[Members, list[Unreadable], tuple[str, ...]]:
    """List all images of the archives in order; if any image has a label, all must have one.

    Returns:
        The images, what was not used, and a note if the labels are numbered anew.
    """
    found: list[tuple[int, Sample]] = []
    bad: list[Unreadable] = []
    for number, archive in enumerate(archives):
        samples, odd = read_archive(archive)
        found += [(number, sample) for sample in samples]
        bad += odd
        if progress is not None:
            progress(archive, number + 1, len(archives))
    labelled = any(sample.label is not None for _, sample in found)
    if labelled:
        bare = "no .cls and no label in a .json of its name, but other pictures have one"
        bad += [Unreadable(f"{archives[i]}, {one.picture.name}", bare) for i, one in found if one.label is None]
        found = [(i, one) for i, one in found if one.label is not None]
    if not found:
        hint = f"; the first: {bad[0]}" if bad else ""
        raise DataError(f"{escape_line(archives[0])}: no readable image in {len(archives)} shards{hint}")
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if labelled:
        stored = np.array([sample.label for _, sample in found], dtype=np.int64)
        try:
            ids, classes, notes = number_labels(stored)
        except DataError as error:
            raise DataError(f"{escape_line(archives[0])}: {error}") from error
        labels = torch.from_numpy(ids)
    weight = sum(one.picture.length for _, one in found)
    return (
        Members(
            labels=labels,
            classes=classes,
            size=size,
            channels=channels,
            archives=tuple(archives),
            names=tuple(sample.picture.name for _, sample in found),
            places=torch.from_numpy(np.array([(i, one.picture.offset, one.picture.length) for i, one in found])),
            exact=is_small(weight),
        ),
        bad,
        notes,
    )


def read_archive(archive: str) -> tuple[list[Sample], list[Unreadable]]:
    """List the images of an archive with their labels, in its order, and what was not used."""
    parts, bad = list_parts(archive)
    groups: dict[str, dict[str, Member]] = {}
    for part in parts:
        match = MEMBER_NAME.fullmatch(part.name)
        if match is None:
            continue
        group = groups.setdefault(match[1], {})
        if match[2].lower() in group:
            bad.append(Unreadable(f"{archive}, {part.name}", "a second member of that name"))
        group.setdefault(match[2].lower(), part)
    if not groups:
        return [], bad
    samples = []
    dotted = [name for group in groups.values() for name in list_dotted(group)]
    if dotted:
        remedy = "rename them, as a key ends at its first dot"
        bad.append(Unreadable(archive, f"{len(dotted)} pictures with a dot in the key, such as {dotted[0]}: {remedy}"))
    with open(archive, "rb") as file:
        for key, group in groups.items():
            if list_dotted(group):
                continue
            try:
                samples.append(Sample(choose_picture(group), read_label(file, group)))
            except DataError as error:
                bad.append(Unreadable(f"{archive}, {key}", str(error)))
    return samples, bad


def list_parts(archive: str) -> tuple[list[Member], list[Unreadable]]:
    """List the regular members whose bytes are complete, and the faults of the archive, if any."""
    parts: list[Member] = []
    bad: list[Unreadable] = []
    try:
        with open(archive, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            end = os.fstat(file.fileno()).st_size
            for info in walk(tar):
                part = Member(info.name, info.offset_data, info.size)
                reason = find_fault(info, end)
                parts += [part] if reason == "" else []
                bad += [Unreadable(f"{archive}, {info.name}", reason)] if reason else []
            file.seek(tar.offset)
            mark = file.read(tarfile.BLOCKSIZE)
            if mark.strip(b"\0"):  # tarfile stops here silently
                bad.append(Unreadable(archive, f"damaged header at byte {tar.offset}: nothing behind it was used"))
            elif len(mark) < tarfile.BLOCKSIZE:
                bad.append(Unreadable(archive, "ends without tar's end mark: it may have been cut short"))
    except TAR_DAMAGE as error:
        known = (
            describe_os_error(error)
            if isinstance(error, OSError) and error.strerror
            else f"not a sound, plain tar ({error})"
        )
        bad.append(Unreadable(archive, known))
    return parts, bad


def walk(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members in order; raise ReadError for a negative size, which could make tarfile loop forever."""
    last = -1
    for info in tar:
        if info.offset <= last or info.size < 0:
            raise tarfile.ReadError(f"damaged header at byte {info.offset}")
        last = info.offset
        yield info


def find_fault(info: tarfile.TarInfo, end: int) -> str | None:
    """Return why a member cannot be used; "" if it can, None if it is to be ignored, such as a folder."""
    if not info.isreg() or info.issparse():
        return "a link or a sparse file: store it whole" if info.name.lower().endswith(DOTTED) else None
    if info.offset_data + info.size > end:
        return "cut short: the archive ends before it does"
    if info.size > MAX_PICTURE_BYTES and info.name.lower().endswith(DOTTED):
        return f"{info.size} bytes are more than {MAX_PICTURE_BYTES}: shrink it first"
    return ""


def list_dotted(group: dict[str, Member]) -> list[str]:
    """Return the names of images that a dot in their key hides, if the members of a key hold no other image."""
    if any(suffix in PICTURE_SUFFIXES for suffix in group):
        return []
    return [part.name for suffix, part in group.items() if suffix.endswith(DOTTED)]


def choose_picture(group: dict[str, Member]) -> Member:
    """Return the single image among the members of a key."""
    pictures = [part for suffix, part in group.items() if suffix in PICTURE_SUFFIXES]
    if len(pictures) == 1:
        return pictures[0]
    if pictures:
        raise DataError(f"{len(pictures)} pictures, {', '.join(part.name for part in pictures)}: keep one")
    raise DataError(f"no picture ({', '.join(DOTTED)}) beside .{', .'.join(list(group)[:3])}")


def read_label(file: BinaryIO, group: dict[str, Member]) -> int | None:
    """Read the class from the members of a key, if they state one; raise DataError if it is not valid."""
    if "cls" in group:
        text = read_part(file, group["cls"], MAX_CLS_BYTES)
        if not re.fullmatch(rb"\s*\d+\s*", text):
            raise DataError(f".cls is {text[:20]!r}, not a whole number from 0")
        label = int(text)
    elif "json" in group:
        try:
            facts = json.loads(read_part(file, group["json"], MAX_JSON_BYTES))
        except (ValueError, RecursionError) as error:
            raise DataError(f".json is not valid JSON ({error})") from error
        if not isinstance(facts, dict) or "label" not in facts:
            return None
        label = facts["label"]
        if type(label) is not int or label < 0:
            raise DataError(f"label in .json is {str(label)[:20]!r}, not a whole number from 0")
    else:
        return None
    if label >= MAX_CLASSES:
        raise DataError(f"label {label}, but {MAX_CLASSES} classes is the most: number them from 0")
    return label


def read_part(file: BinaryIO, part: Member, most: int) -> bytes:
    """Read the bytes of a small member."""
    if part.length > most:
        raise DataError(f"{part.name} has {part.length} bytes, too many for a label: {most} is the most")
    file.seek(part.offset)
    return file.read(part.length)
