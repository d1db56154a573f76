"""Image collections in memory, or read on demand: a million photos need only their paths in memory."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from unmask.data.identity import choose_held_out, hash_picture_file, join_keys, sort_keys
from unmask.data.image_files import Unreadable, fit, open_image, silence_warnings
from unmask.data.images import Images, check_labels
from unmask.errors import ConfigError, DataError
from unmask.lazy import Tensor, torch
from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line

MAX_THREADS = 16
MAX_CHECKED = 1 << 28
"""Bytes of images up to which every JPEG is followed code by code, at about 0.26 s per MB; libjpeg checks all."""
AHEAD = 256  # images that threads may decode ahead of the first unfinished one

Arrangement = Literal["content", "position"]
"""How a set of pictures is ordered and split: by the content of each, or, in runs of early versions, by its position in
the listing."""


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

    def compute_keys(self) -> UInt8[np.ndarray, "n 16"]:
        """Return the key of each image (`unmask.data.identity`)."""

    def compute_whole_keys(self) -> UInt8[np.ndarray, "n 16"]:
        """Return a hash of all bytes of each image."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A loaded dataset; `bad` lists the files that were not used, `notes` says what a person should know."""

    train: Pictures
    test: Pictures
    bad: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OnDemand(ABC):
    """Images that a few threads read on demand, shrunk to cover `size` (h, w) and centre-cropped.

    A subclass implements `__len__`, `find_place`, `fetch`, `open` and `take`.
    """

    labels: Int[Tensor, " n"] | None
    classes: tuple[str, ...]
    size: tuple[int, int]
    channels: int
    keys: UInt8[np.ndarray, "n 16"] | None = None
    """The keys of the images, once they are known."""
    exact: bool = True
    """Whether every code of a JPEG is followed; see `is_small`."""

    def __post_init__(self) -> None:
        check_labels(self.labels, self.classes, len(self))

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def find_place(self, i: int) -> str:
        """Return where image `i` lies, such as its path."""

    @abstractmethod
    def fetch(self, i: int) -> bytes | str | Unreadable:
        """Return the encoded bytes of image `i`, or the path of the file that holds them."""

    @abstractmethod
    def open(self, i: int) -> Image.Image | Unreadable:
        """Open image `i` whole, in mode RGB or L; threads call it inside `silence_warnings`."""

    @abstractmethod
    def hash_content(self, i: int, *, whole: bool) -> bytes:
        """Return the key of image `i`, or with `whole` a hash of all its bytes."""

    def compute_keys(self) -> UInt8[np.ndarray, "n 16"]:
        """Return the key of each image; this reads at most 8 KiB of each, in threads."""
        return self._hash_each(whole=False) if self.keys is None else self.keys

    def compute_whole_keys(self) -> UInt8[np.ndarray, "n 16"]:
        """Return a hash of all bytes of each image; this reads them all."""
        return self._hash_each(whole=True)

    def _hash_each(self, *, whole: bool) -> UInt8[np.ndarray, "n 16"]:
        rounds = torch.arange(len(self)).split(AHEAD)  # a pool keeps 1 KiB for each picture that it is given
        with ThreadPoolExecutor(count_threads()) as pool:
            keys = (pool.map(lambda i: self.hash_content(i, whole=whole), part.tolist()) for part in rounds)
            return join_keys(list(chain.from_iterable(keys)))

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
            what = "repair or remove it (unmask data DIR lists all)"
            raise DataError(f"{bad[0]}; {what}, or leave it out with unmask tokenize")
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

    def find_place(self, i: int) -> str:
        return self.paths[i]

    def fetch(self, i: int) -> bytes | str | Unreadable:
        return self.paths[i]

    def open(self, i: int) -> Image.Image | Unreadable:
        return open_image(self.paths[i], exact=self.exact)

    def hash_content(self, i: int, *, whole: bool) -> bytes:
        return hash_picture_file(self.paths[i], whole=whole)

    def take(self, index: Int[Tensor, " b"]) -> "Files":
        paths = tuple(self.paths[i] for i in index.tolist())
        return replace(self, paths=paths, labels=take_labels(self.labels, index), keys=take_keys(self.keys, index))


def is_small(num_bytes: int) -> bool:
    """Return whether every JPEG in a set of so many bytes is followed code by code: it takes minutes, not hours."""
    return num_bytes <= MAX_CHECKED


UNCHECKED = (
    f"in sets of more than {MAX_CHECKED >> 20} MiB, damage of JPEGs is found as far as libjpeg warns of it: "
    "unmask data DIR follows every code and finds more"
)
"""What to say about a set that is not small."""


def take_labels(labels: Int[Tensor, " n"] | None, index: Int[Tensor, " b"]) -> Int[Tensor, " b"] | None:
    """Return the chosen labels, if there are any."""
    return None if labels is None else labels[index]


def take_keys(keys: UInt8[np.ndarray, "n 16"] | None, index: Int[Tensor, " b"]) -> UInt8[np.ndarray, "b 16"] | None:
    """Return the chosen keys, if they are known."""
    return None if keys is None else keys[index.numpy()]


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
    return Images(
        pixels=pictures.read(torch.arange(len(pictures))),
        labels=pictures.labels,
        classes=pictures.classes,
        keys=pictures.compute_keys(),
    )


def hash_pictures(*sets: Pictures) -> str:
    """Return the SHA-256 of classes, labels, and keys of images that come from files, else their pixels."""
    found = hashlib.sha256()
    for pictures in sets:
        num = len(pictures)
        found.update(f"{num} {pictures.shape} {pictures.classes}\n".encode())
        if pictures.labels is not None:
            found.update(pictures.labels.numpy().tobytes())
        if not isinstance(pictures, Images) or pictures.keys is not None:
            whole = isinstance(pictures, Images)  # then all bytes were read
            found.update((pictures.compute_whole_keys() if whole else pictures.compute_keys()).tobytes())
            continue
        for index in torch.arange(num).split(AHEAD):
            found.update(torch.arange(len(index)).numpy().tobytes())
            found.update(pictures.pixels[index].numpy().tobytes())
    return found.hexdigest()


def split(pictures: Pictures, held_out: int, seed: int) -> tuple[Pictures, Pictures]:
    """Split into (train, held out), shuffled by `seed` alone."""
    if not 0 <= held_out < len(pictures):
        raise DataError(f"cannot hold out {held_out} of {len(pictures)} images: lower held_out or add images")
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    return pictures.take(order[held_out:]), pictures.take(order[:held_out])


def split_share(
    pictures: Pictures, held_out: float, seed: int, where: str, arrange: Arrangement = "content"
) -> tuple[Pictures, Pictures]:
    """Split into (train, test); about the fraction `held_out` is the test set, at least one image unless it is 0.

    Each image's content and the seed decide whether it is held out, so adding images moves no other. Both sets are
    sorted by content. With `arrange` "position", the exact fraction is held out by position.
    """
    if arrange == "position":
        count = max(1, round(held_out * len(pictures))) if held_out else 0
        _check_rest(len(pictures), count, where)
        return split(pictures, count, seed)
    pictures = sort_by_content(pictures)
    held = choose_held_out(pictures.compute_keys(), held_out, seed)
    _check_rest(len(pictures), int(held.sum()), where)
    return pictures.take((~held).nonzero()[:, 0]), pictures.take(held.nonzero()[:, 0])


def sort_by_content(pictures: Pictures) -> Pictures:
    """Return the images in the order of their keys, with the keys; copies of an image keep their order."""
    keys = pictures.compute_keys()
    return replace(pictures, keys=keys).take(sort_keys(keys))  # type: ignore[type-var]


def _check_rest(num: int, held_out: int, where: str) -> None:
    if held_out >= num:
        seen = f"{held_out} of {num} images"
        raise DataError(f"{escape_line(where)}: {seen} would be held out: add images or lower it")


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
