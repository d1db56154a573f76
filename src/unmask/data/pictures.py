"""Pictures of any number, in memory or read when asked for: a million photos need only their places in memory."""

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
from unmask.storage.files import one_line

MAX_THREADS = 16
AHEAD = 256  # pictures that threads may hold decoded while the first of them is still awaited
PROBED = 64  # pictures whose pixels tell a set that is read when asked for from others


@runtime_checkable
class Pictures(Protocol):
    """Equal-sized 8-bit pictures with optional class ids; `classes` names the ids and is () without labels."""

    @property
    def labels(self) -> Int[Tensor, " n"] | None: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of each picture."""

    def __len__(self) -> int: ...

    def read(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """The chosen pictures; DataError names the first that cannot be read."""

    def read_float(self, index: Int[Tensor, " b"] | slice) -> Float[Tensor, "b c h w"]:
        """As `at`, 0..255 spread over [-1, 1]."""

    def try_read(
        self, index: Int[Tensor, " b"]
    ) -> tuple[UInt8[Tensor, "g c h w"], Int[Tensor, " g"], list[Unreadable]]:
        """The good ones of the chosen pictures, their positions in `index`, and the others."""

    def take(self, index: Int[Tensor, " b"]) -> "Pictures":
        """The chosen pictures with their labels, none of them read."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """What a source loads; `bad` lists the files that were not used."""

    train: Pictures
    test: Pictures
    bad: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OnDemand(ABC):
    """Pictures read by a few threads when asked for, shrunk to cover `size` (h, w) and centre-cropped.

    A child says how many there are, opens one, and takes some.
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
        """Picture `i` whole, in mode RGB or L; called by threads, inside `quiet`."""

    def read_one(self, i: int) -> UInt8[Tensor, "c h w"] | Unreadable:
        """Picture `i` in its final shape."""
        return fit(self.open(i), self.size, self.channels)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, *self.size

    def read(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        pixels, _, bad = self.try_read(index)
        if bad:
            raise DataError(f"{bad[0]}; repair or remove it, or leave it out with unmask tokenize")
        return pixels

    def read_float(self, index: Int[Tensor, " b"] | slice) -> Float[Tensor, "b c h w"]:
        chosen = torch.arange(len(self))[index] if isinstance(index, slice) else index
        return self.read(chosen).float() / 127.5 - 1

    def try_read(
        self, index: Int[Tensor, " b"]
    ) -> tuple[UInt8[Tensor, "g c h w"], Int[Tensor, " g"], list[Unreadable]]:
        return read_each(self.read_one, index, self.shape)


@dataclass(frozen=True, kw_only=True)
class Files(OnDemand):
    """Pictures in files of their own."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, i: int) -> Image.Image | Unreadable:
        return open_image(self.paths[i])

    def take(self, index: Int[Tensor, " b"]) -> "Files":
        paths = tuple(self.paths[i] for i in index.tolist())
        return replace(self, paths=paths, labels=take_labels(self.labels, index))


def take_labels(labels: Int[Tensor, " n"] | None, index: Int[Tensor, " b"]) -> Int[Tensor, " b"] | None:
    """The chosen labels, if there are any."""
    return None if labels is None else labels[index]


def read_each(
    read: Callable[[int], Tensor | Unreadable],
    index: Int[Tensor, " b"],
    shape: tuple[int, int, int],
    progress: Progress | None = None,
) -> tuple[UInt8[Tensor, "g c h w"], Int[Tensor, " g"], list[Unreadable]]:
    """As `Pictures.try_at`, calling `read` in threads: Pillow decodes and resizes outside Python's lock."""
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
    """One for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)


def read_all(pictures: Pictures) -> Images:
    """All pictures read into memory."""
    return Images(pixels=pictures.read(torch.arange(len(pictures))), labels=pictures.labels, classes=pictures.classes)


def hash_pictures(*sets: Pictures) -> str:
    """SHA-256 of the classes, labels and pixels: of every picture in memory, of PROBED spread over those that are read
    when asked for, so that one replaced among a million may go unseen."""
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
    """(train, held out), shuffled by `seed` alone."""
    if not 0 <= held_out < len(pictures):
        raise DataError(f"cannot hold out {held_out} of {len(pictures)} images: lower held_out or add images")
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    return pictures.take(order[held_out:]), pictures.take(order[:held_out])


def split_share(pictures: Pictures, held_out: float, seed: int, where: str) -> tuple[Pictures, Pictures]:
    """(train, test) with the fraction `held_out` in the test set, at least one image unless it is 0."""
    count = max(1, round(held_out * len(pictures))) if held_out else 0
    if count >= len(pictures):
        seen = f"{count} of {len(pictures)} images"
        raise DataError(f"{one_line(where)}: {seen} would be held out: add images or lower it")
    return split(pictures, count, seed)


def check_share(held_out: float) -> None:
    """ConfigError unless `held_out` is a fraction."""
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out {held_out}: use a fraction from 0 up to, not including, 1")


def check_shape(size: int, channels: int) -> None:
    """ConfigError unless pictures can be made that large and of so many channels."""
    if not 1 <= size <= 4096:
        raise ConfigError(f"size {size}: use 1 to 4096 pixels")
    if channels not in (1, 3):
        raise ConfigError(f"channels {channels}: use 3 for colour or 1 for grey")


MAX_SPREAD = 50_000  # pictures of a part that are looked at, spread over it


def spread(num: int, most: int = MAX_SPREAD) -> Int[Tensor, "n"]:
    """All of `num` pictures, or `most` of them at equal distances."""
    most = min(num, most)
    return torch.arange(most) * num // most
