"""A look at every picture of a dataset before anything is trained: counts, sizes, copies, damage, empty pictures.

Each picture is decoded once, by a few threads; what is kept of it is a row of 32 bytes.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from unmask.data.image_files import FORMATS, IMAGE_DAMAGE, Unreadable, fit, silence_warnings
from unmask.data.labels import list_names
from unmask.data.pictures import AHEAD, Arrangement, Files, OnDemand, Pictures, Split, count_threads, spread
from unmask.data.sources.choice import PictureSource
from unmask.data.sources.folders import Folder
from unmask.data.sources.parts import Parts, count_classes
from unmask.data.summary import describe_counts, describe_split
from unmask.errors import DataError
from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line

FLAT = 8  # levels of 255 within which nearly all pixels of a flat picture lie
STRAY = 0.005  # share of the pixels at each end that may lie outside
DARK, BRIGHT = 16, 239
BAND = 256  # rows of a picture
LISTED = 10  # files that a list names
MOST_NAMED = 3  # pictures with contradictory labels that it names
MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with transparency",
    "I;16": "16-bit grey",
    "I": "16-bit grey",
    "P": "palette",
    "RGB": "colour",
    "RGBA": "colour with transparency",
}
ROWS, COLUMNS = 12, 10  # of the contact sheet
TILE = 96  # pixels of a picture's edge there


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of a picture."""

    width: int
    height: int
    mode: str
    digest: bytes
    """Of size and pixels: equal for copies, whatever the file format."""
    flat: str
    """"near-black", "near-white" or "one colour" if nearly all pixels are equal; else empty."""


@dataclass(frozen=True, kw_only=True)
class SurveyedPart:
    """The readable pictures of a set, and what was seen of each."""

    name: str
    pictures: Pictures
    sizes: Int[np.ndarray, "n 2"]
    """Width and height in pixels."""
    modes: dict[str, int]
    digests: np.ndarray
    flat: dict[str, list[str]]
    """Names of flat pictures, by kind."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What there is in a dataset."""

    parts: tuple[SurveyedPart, ...]
    split: Split
    """What a command would train on and hold out."""
    copies: list[list[str]]
    """Names of equal pictures of the same set."""
    shared: list[list[str]]
    """Names of equal pictures of which some are trained on and some held out."""
    contradictions: list[list[str]]
    """Names of equal pictures with different labels, each with its class."""
    fault: DataError | None = None
    """Why a training would refuse these pictures."""


def survey_source(source: PictureSource, progress: Progress | None = None) -> Survey:
    """Look at every picture of a source.

    Raises:
        ConfigError, DataError: as its `load`.
    """
    given = open_unsplit(source, progress)
    sets = [("train", given.train)] if given.test is None else [("train", given.train), ("held out", given.test)]
    parts, bad = [], list(given.bad)
    for name, pictures in sets:
        part, odd = _survey_part(name, pictures, progress)
        parts.append(part)
        bad += odd
    parts, about = _drop_unread_classes(parts)
    good = Parts(
        train=parts[0].pictures,
        test=parts[1].pictures if len(parts) > 1 else None,
        bad=tuple(bad),
        notes=(*given.notes, *about),
    )
    copies, shared, contradictions = find_copies(parts)
    where = str(getattr(source, "path", None) or getattr(source, "name", ""))
    arrange: Arrangement = getattr(source, "arrange", "position")
    share = getattr(source, "held_out", 0.0) if good.test is None else 0.0
    seed = getattr(source, "seed", 0)
    if not len(good.train):
        hint = f"; the first: {bad[0]}" if bad else ""
        raise DataError(f"{escape_line(where)}: no readable image to train on{hint}")
    try:
        split = good.split(share, seed, where, arrange)
    except DataError as error:  # too few to hold some out: a training refuses them, a survey says so
        split = replace(good, notes=(*good.notes, str(error))).split(0.0, seed, where, arrange)
    return Survey(
        parts=tuple(parts),
        split=split,
        copies=copies,
        shared=shared,
        contradictions=contradictions,
        fault=given.fault,
    )


def open_unsplit(source: PictureSource, progress: Progress | None = None) -> Parts:
    """Open the pictures of a source, files only listed and no share of them held out yet."""
    if isinstance(source, Folder):
        return source.open_parts(progress, listed=True)
    if hasattr(source, "open_parts"):
        return source.open_parts(progress)
    split = source.load(progress)
    return Parts(train=split.train, test=split.test, bad=split.bad, notes=split.notes)


def _survey_part(name: str, pictures: Pictures, progress: Progress | None) -> tuple[SurveyedPart, list[Unreadable]]:
    if isinstance(pictures, OnDemand):
        pictures = replace(pictures, exact=True)  # this is the place to look at every byte
    num = len(pictures)
    good: list[int] = []
    bad: list[Unreadable] = []
    sizes, digests = np.zeros((num, 2), np.int32), np.zeros(num, "V16")
    modes: Counter[str] = Counter()
    flat: dict[str, list[str]] = {}
    for i, seen in enumerate(_look_at_all(pictures)):
        if progress is not None:
            progress("images", i + 1, num)
        if isinstance(seen, Unreadable):
            bad.append(seen)
            continue
        sizes[len(good)], digests[len(good)] = (seen.width, seen.height), np.void(seen.digest)
        modes[seen.mode] += 1
        if seen.flat:
            flat.setdefault(seen.flat, []).append(name_picture(pictures, i))
        good.append(i)
    index = torch.tensor(good, dtype=torch.int64)
    part = SurveyedPart(
        name=name,
        pictures=pictures.take(index),
        sizes=sizes[: len(good)],
        modes=dict(modes.most_common()),
        digests=digests[: len(good)],
        flat=flat,
    )
    return part, bad


def _look_at_all(pictures: Pictures) -> Iterator[Look | Unreadable]:
    with silence_warnings(), ThreadPoolExecutor(count_threads()) as pool:
        rounds = torch.arange(len(pictures)).split(AHEAD)
        yield from chain.from_iterable(pool.map(lambda i: look(pictures, i), part.tolist()) for part in rounds)


def look(pictures: Pictures, i: int) -> Look | Unreadable:
    """Decode picture `i` and return what is kept of it; call it inside `silence_warnings`."""
    image = open_picture(pictures, i)
    if isinstance(image, Unreadable):
        return image
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
    for top in range(0, image.height, BAND):  # in bands, so that a large picture is not copied whole
        band = image.crop((0, top, image.width, min(top + BAND, image.height)))
        digest.update(band.convert("RGB").tobytes())
    return Look(*image.size, _read_mode(pictures, i, image.mode), digest.digest(), classify_flatness(image))


def open_picture(pictures: Pictures, i: int) -> Image.Image | Unreadable:
    """Return picture `i` in its own size, upright, in mode RGB or L."""
    if isinstance(pictures, OnDemand):
        return pictures.open(i)
    array = pictures.read(torch.tensor([i]))[0].permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def name_picture(pictures: Pictures, i: int) -> str:
    """Return the path of picture `i`, or where else it lies."""
    return pictures.find_place(i) if isinstance(pictures, OnDemand) else f"picture {i}"


def _read_mode(pictures: Pictures, i: int, decoded: str) -> str:
    """Return the colour mode of a file, from its header."""
    source = pictures.fetch(i) if isinstance(pictures, OnDemand) else None
    if source is None or isinstance(source, Unreadable):
        return decoded
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as file:
            return file.mode
    except IMAGE_DAMAGE:  # it has changed since it was decoded
        return decoded


def classify_flatness(image: Image.Image) -> str:
    """Return "near-black", "near-white" or "one colour" if nearly all pixels of an RGB or L image are equal."""
    counts = np.array(image.histogram()).reshape(-1, 256).cumsum(1)
    total = image.width * image.height
    low = (counts > STRAY * total).argmax(1)
    high = (counts >= (1 - STRAY) * total).argmax(1)
    if (high - low > FLAT).any():
        return ""
    return "near-black" if (high <= DARK).all() else "near-white" if (low >= BRIGHT).all() else "one colour"


def find_copies(parts: Sequence[SurveyedPart]) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Return the groups of equal pictures inside a set, those in two sets, and those of several classes.

    A group holds the names of the pictures; one of several classes holds a picture of each class, with the class.
    """
    every = np.concatenate([part.digests for part in parts]).view(np.uint64).reshape(-1, 2)
    owner = np.repeat(np.arange(len(parts)), [len(part.digests) for part in parts])
    first = np.concatenate([np.arange(len(part.digests)) for part in parts])
    order = np.lexsort((every[:, 0], every[:, 1]))
    starts = np.flatnonzero(np.append(True, (every[order][1:] != every[order][:-1]).any(1)))
    labels = [np.full(len(p.digests), -1) if p.pictures.labels is None else p.pictures.labels.numpy() for p in parts]
    label, classes = np.concatenate(labels), parts[0].pictures.classes
    copies: list[list[str]] = []
    shared: list[list[str]] = []
    contradictions: list[list[str]] = []
    ends = np.append(starts[1:], len(order))
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        group = np.sort(order[start:end])
        names = [name_picture(parts[owner[i]].pictures, int(first[i])) for i in group]
        (shared if len(set(owner[group])) > 1 else copies).append(names)
        seen = dict(zip(label[group][::-1].tolist(), names[::-1], strict=True))  # the first picture of each class
        if len(seen) > 1:
            contradictions.append([f"{one} ({classes[number]})" for number, one in sorted(seen.items())])
    return sorted(copies), sorted(shared), sorted(contradictions)


def _drop_unread_classes(parts: list[SurveyedPart]) -> tuple[list[SurveyedPart], list[str]]:
    """Drop the classes of folders without a readable picture, as a training does, and name them."""
    pictures = parts[0].pictures
    if not isinstance(pictures, Files) or pictures.labels is None:
        return parts, []
    used = torch.cat([part.pictures.labels for part in parts if part.pictures.labels is not None]).unique()
    empty = [name for i, name in enumerate(pictures.classes) if i not in used.tolist()]
    if not empty:
        return parts, []
    number = torch.full((len(pictures.classes),), -1).index_put((used,), torch.arange(len(used)))
    classes = tuple(pictures.classes[i] for i in used.tolist())
    made = []
    for part in parts:
        assert isinstance(part.pictures, Files)
        assert part.pictures.labels is not None
        labels = number[part.pictures.labels]
        made.append(replace(part, pictures=replace(part.pictures, labels=labels, classes=classes)))
    what = "it is no class" if len(empty) == 1 else "they are no classes"
    return made, [f"no readable image in {list_names(empty)}, so {what}"]


def choose_tiles(survey: Survey) -> list[tuple[str, UInt8[Tensor, "_ 3 h w"]]]:
    """Return rows of small pictures with a title each: some of each class to train on, and some that are held out.

    Of many classes there are ROWS, evenly spaced.
    """
    train, test = survey.split.train, survey.split.test
    rows: list[tuple[str, Pictures]] = [("train on", train)]
    if train.labels is not None:
        counts = count_classes(train)
        seen = [i for i, count in enumerate(counts) if count]
        chosen = [seen[i] for i in spread(len(seen), ROWS).tolist()]
        members = {i: train.take((train.labels == i).nonzero()[:, 0]) for i in chosen}
        rows = [(f"{train.classes[i][:60]}, {counts[i]:,} to train on", members[i]) for i in chosen]
    if len(test):
        rows.append((f"held out, {len(test):,}", test))
    return [(title, torch.stack(_read_tiles(pictures))) for title, pictures in rows]


def _read_tiles(pictures: Pictures) -> list[UInt8[Tensor, "3 h w"]]:
    with silence_warnings():
        images = [open_picture(pictures, i) for i in spread(len(pictures), COLUMNS).tolist()]
    tiles = [fit(image, (TILE, TILE), 3) for image in images]
    return [tile for tile in tiles if not isinstance(tile, Unreadable)]


def describe_survey(survey: Survey, size: int) -> list[str]:
    """Return the survey in lines; `size` is the edge below which a picture would be enlarged."""
    lines = describe_split(survey.split)
    if len(survey.parts) > 1:
        for part in survey.parts:
            counts = describe_counts(part.pictures.classes, count_classes(part.pictures), len(part.pictures))
            lines.append(f"{part.name:11s} {counts}")
    sizes = np.concatenate([part.sizes for part in survey.parts])
    if len(sizes):
        ranked = sizes[np.argsort(sizes.astype(np.int64).prod(1), kind="stable")]
        least, median, most = (f"{w}x{h}" for w, h in (ranked[0], ranked[len(ranked) // 2], ranked[-1]))
        small = int((sizes.min(1) < size).sum())
        lines.append(f"sizes       smallest {least}, median {median}, largest {most}; {small:,} smaller than {size}")
    modes: Counter[str] = Counter()
    for part in survey.parts:
        modes.update(part.modes)
    lines.append("modes       " + ", ".join(f"{MODES.get(mode, mode)} {num:,}" for mode, num in modes.most_common()))
    lines += _list_groups("copies", "equal to another of the same set", survey.copies)
    if len(survey.parts) > 1:
        lines += _list_groups("in both", "both trained on and held out", survey.shared)
    if survey.contradictions:
        num = len(survey.contradictions)
        what = "image has copies" if num == 1 else "images have copies"
        lines.append(f"labels      {num:,} {what} of another class, so one of the labels is wrong")
        lines += ["  " + " = ".join(map(escape_line, group[:4])) for group in survey.contradictions[:MOST_NAMED]]
    flat: dict[str, list[str]] = {}
    for part in survey.parts:
        for kind, names in part.flat.items():
            flat.setdefault(kind, []).extend(names)
    lines += [f"{kind:11s} {len(names):,}: {list_names(names, LISTED)}" for kind, names in sorted(flat.items())]
    lines += ["flat        none is near-black, near-white or of one colour"] if not flat else []
    bad = survey.split.bad
    lines.append(f"left out    {len(bad):,}" if bad else "left out    none")
    lines += [f"  {one}" for one in bad[: 2 * LISTED]]
    lines += [f"  and {len(bad) - 2 * LISTED:,} more"] if len(bad) > 2 * LISTED else []
    return lines


def _list_groups(kind: str, what: str, groups: list[list[str]]) -> list[str]:
    if not groups:
        return [f"{kind:11s} no image is {what}"]
    where = f"in {len(groups):,} group{'s' * (len(groups) > 1)}"
    lines = [f"{kind:11s} {sum(map(len, groups)):,} images are {what}, {where}"]
    lines += ["  " + " = ".join(escape_line(name) for name in group[:4]) for group in groups[:LISTED]]
    return lines + ([f"  and {len(groups) - LISTED:,} more groups"] if len(groups) > LISTED else [])
