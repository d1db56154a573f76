"""Image collections in memory, or read on demand: a million photos need only their paths in memory."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from unmask.data.image_files import Unreadable, fit, open_image, silence_warnings
from unmask.data.images import Images, check_labels
from unmask.errors import ConfigError, DataError
from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line

MAX_THREADS = 16
AHEAD = 256  # images that threads may decode ahead of the first unfinished one
PROBED = 64  # images that are hashed of a collection that is read on demand


@runtime_checkable
class Pictures(Protocol):
    """Equal-sized 8-bit images with optional class ids; `classes` names the ids and is () without labels."""

    @property
    def labels(self) -> Int[Tensor, " n"] | None: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of each image."""

    def __len__(self) -> int: ...

    def read(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """Read the chosen images; raise DataError that names the first unreadable one."""

    def read_float(self, index: Int[Tensor, " b"] | slice) -> Float[Tensor, "b c h w"]:
        """Like `read`, with 0..255 mapped to [-1, 1]."""

    def try_read(
        self, index: Int[Tensor, " b"]
    ) -> tuple[UInt8[Tensor, "g c h w"], Int[Tensor, " g"], list[Unreadable]]:
        """Read the chosen images; return the good ones, their positions in `index`, and the unreadable ones."""

    def take(self, index: Int[Tensor, " b"]) -> "Pictures":
        """Select images and their labels without reading them."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A loaded dataset; `bad` lists the files that were not used."""

    train: Pictures
    test: Pictures
    bad: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OnDemand(ABC):
    """Images that a few threads read on demand, shrunk to cover `size` (h, w) and centre-cropped.

    A subclass implements `__len__`, `open` and `take`.
    """

    labels: Int[Tensor, " n"] | None
    classes: tuple[str, ...]
    size: tuple[int, int]
    channels: int

    def __post_init__(self) -> None:
        check_labels(self.labels, self.classes, len(self))

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def open(self, i: int) -> Image.Image | Unreadable:
        """Open image `i` whole, in mode RGB or L; threads call it inside `silence_warnings`."""

    def read_one(self, i: int) -> UInt8[Tensor, "c h w"] | Unreadable:
        """Read image `i` in its final shape."""
        return fit(self.open(i), self.size, self.channels)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, *self.size

    def read(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """Read the chosen images; raise DataError that names the first unreadable one."""
        pixels, _, bad = self.try_read(index)
        if bad:
            raise DataError(f"{bad[0]}; repair or remove it, or leave it out with unmask tokenize")
        return pixels

    def read_float(self, index: Int[Tensor, " b"] | slice) -> Float[Tensor, "b c h w"]:
        """Like `read`, with 0..255 mapped to [-1, 1]."""
        chosen = torch.arange(len(self))[index] if isinstance(index, slice) else index
        return self.read(chosen).float() / 127.5 - 1

    def try_read(
        self, index: Int[Tensor, " b"]
    ) -> tuple[UInt8[Tensor, "g c h w"], Int[Tensor, " g"], list[Unreadable]]:
        """Read the chosen images; return the good ones, their positions in `index`, and the unreadable ones."""
        return read_each(self.read_one, index, self.shape)


@dataclass(frozen=True, kw_only=True)
class Files(OnDemand):
    """Images in separate files."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, i: int) -> Image.Image | Unreadable:
        return open_image(self.paths[i])

    def take(self, index: Int[Tensor, " b"]) -> "Files":
        paths = tuple(self.paths[i] for i in index.tolist())
        return replace(self, paths=paths, labels=take_labels(self.labels, index))


def take_labels(labels: Int[Tensor, " n"] | None, index: Int[Tensor, " b"]) -> Int[Tensor, " b"] | None:
    """Return the chosen labels, if there are any."""
    return None if labels is None else labels[index]


def read_each(
    read: Callable[[int], Tensor | Unreadable],
    index: Int[Tensor, " b"],
    shape: tuple[int, int, int],
    progress: Progress | None = None,
) -> tuple[UInt8[Tensor, "g c h w"], Int[Tensor, " g"], list[Unreadable]]:
    """Like `Pictures.try_read`, but call `read` in threads: Pillow decodes and resizes outside Python's lock."""
    pixels = torch.empty(len(index), *shape, dtype=torch.uint8)
    good: list[int] = []
    bad: list[Unreadable] = []
    with silence_warnings(), ThreadPoolExecutor(count_threads()) as pool:
        results = chain.from_iterable(pool.map(read, part.tolist()) for part in index.split(AHEAD))
        for place, result in enumerate(results):
            if isinstance(result, Unreadable):
                bad.append(result)
            else:
                pixels[len(good)] = result
                good.append(place)
            if progress is not None:
                progress("images", place + 1, len(index))
    return pixels[: len(good)], torch.tensor(good, dtype=torch.int64), bad


def count_threads() -> int:
    """Return one thread for each core that this process may use, at most MAX_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)


def read_all(pictures: Pictures) -> Images:
    """Read all images into memory."""
    return Images(pixels=pictures.read(torch.arange(len(pictures))), labels=pictures.labels, classes=pictures.classes)


def hash_pictures(*sets: Pictures) -> str:
    """Return the SHA-256 of classes, labels and pixels.

    All images in memory are hashed, but only PROBED evenly spaced ones of those that are read on demand, so one
    replaced file among a million may go unnoticed.
    """
    found = hashlib.sha256()
    for pictures in sets:
        num = len(pictures)
        few = min(num, PROBED) if isinstance(pictures, OnDemand) else num
        found.update(f"{num} {pictures.shape} {pictures.classes}\n".encode())
        if pictures.labels is not None:
            found.update(pictures.labels.numpy().tobytes())
        for index in (torch.arange(few) * num // max(1, few)).split(AHEAD):
            pixels, places, _ = pictures.try_read(index)
            found.update(places.numpy().tobytes())
            found.update(pixels.numpy().tobytes())
    return found.hexdigest()


def split(pictures: Pictures, held_out: int, seed: int) -> tuple[Pictures, Pictures]:
    """Split into (train, held out), shuffled by `seed` alone."""
    if not 0 <= held_out < len(pictures):
        raise DataError(f"cannot hold out {held_out} of {len(pictures)} images: lower held_out or add images")
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    return pictures.take(order[held_out:]), pictures.take(order[:held_out])


def split_share(pictures: Pictures, held_out: float, seed: int, where: str) -> tuple[Pictures, Pictures]:
    """Split into (train, test); the fraction `held_out` is the test set, at least one image unless it is 0."""
    count = max(1, round(held_out * len(pictures))) if held_out else 0
    if count >= len(pictures):
        seen = f"{count} of {len(pictures)} images"
        raise DataError(f"{escape_line(where)}: {seen} would be held out: add images or lower it")
    return split(pictures, count, seed)


def check_share(held_out: float) -> None:
    """Raise ConfigError unless `held_out` is a fraction in [0, 1)."""
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out {held_out}: use a fraction from 0 up to, not including, 1")


def check_shape(size: int, channels: int) -> None:
    """Raise ConfigError unless size is 1 to 4096 pixels, and channels 1 or 3."""
    if not 1 <= size <= 4096:
        raise ConfigError(f"size {size}: use 1 to 4096 pixels")
    if channels not in (1, 3):
        raise ConfigError(f"channels {channels}: use 3 for colour or 1 for grey")


MAX_SPREAD = 50_000  # images that represent a split, evenly spaced


def spread(num: int, most: int = MAX_SPREAD) -> Int[Tensor, "n"]:
    """Return the indices of all `num` images, or of `most` evenly spaced ones."""
    most = min(num, most)
    return torch.arange(most) * num // most
