"""The datasets of images. Each source is a frozen config of plain scalars; its `load()` returns a train and a test set,
and a recipe names one of them. Published files are checked by their sha256, a user's files by their format."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from unmask.data.images import to_images
from unmask.data.labels import number_labels
from unmask.data.pictures import Arrangement, Split, check_share, split
from unmask.data.sources.cifar import Cifar10
from unmask.data.sources.folders import Folder
from unmask.data.sources.hub import HubImages
from unmask.data.sources.mnist import TEN, Mnist
from unmask.data.sources.npz import read_arrays
from unmask.data.sources.parts import Parts
from unmask.data.sources.webdataset import Shards
from unmask.data.text.sources import HubText, TextFile
from unmask.errors import ConfigError, DataError
from unmask.runtime.progress import Progress
from unmask.storage.config import to_json
from unmask.storage.files import escape_line
from unmask.storage.remote import is_remote

__all__ = [
    "Arrays",
    "Cifar10",
    "Codes",
    "Digits",
    "Folder",
    "HubImages",
    "Mnist",
    "PictureSource",
    "Shards",
    "Split",
    "fill_arrangement",
    "resolve_paths",
]


@dataclass(frozen=True, kw_only=True)
class Digits:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: real data without a download."""

    held_out: int = 297
    """Number of digits to hold out."""
    seed: int = 0
    """Seed of the shuffle before the split."""

    def __post_init__(self):
        if not 0 < self.held_out < 1797:
            raise ConfigError(f"held_out {self.held_out} of 1797 digits: use 1 to 1796")

    def load(self, progress: Progress | None = None) -> Split:
        """Load the training and the test set."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ConfigError("the digits come with scikit-learn: pip install 'unmask[demo]'") from error
        digits = load_digits()
        array = np.rint(digits.images * 255 / 16).astype(np.uint8)
        train, test = split(to_images(array, digits.target, TEN), self.held_out, self.seed)
        return Split(train=train, test=test)


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """An .npz file with `images`, uint8 (n, h, w) or (n, h, w, c), and optional `labels`, whole numbers."""

    path: str
    """The .npz file."""
    held_out: float = 0.1
    """Fraction of the images to hold out."""
    seed: int = 0
    """Seed that decides, with the content of each image, which ones are held out."""
    arrange: Arrangement = "content"
    """Order and split images by their content, or (runs of early versions) by their position in the listing."""

    def __post_init__(self):
        check_share(self.held_out)

    def load(self, progress: Progress | None = None) -> Split:
        """Load the training and the test set."""
        return self.open_parts(progress).split(self.held_out, self.seed, self.path, self.arrange)

    def open_parts(self, progress: Progress | None = None) -> Parts:
        """Load all images in the order of the file."""
        arrays = read_arrays(Path(self.path).expanduser(), ("images",), ("labels",))
        labels = arrays.get("labels")
        classes: tuple[str, ...] = ()
        notes: tuple[str, ...] = ()
        try:
            if labels is not None and labels.size and labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
                labels, classes, notes = number_labels(labels)
            whole = to_images(arrays["images"], labels, classes)
        except DataError as error:
            raise DataError(f"{escape_line(self.path)}: {error}") from error
        return Parts(train=whole, test=None, notes=notes)


PictureSource = Digits | Mnist | Cifar10 | Folder | Arrays | HubImages | Shards


@dataclass(frozen=True, kw_only=True)
class Codes:
    """A token dataset made by unmask tokenize; it holds no images, but names their source."""

    path: str
    """The folder of the token dataset."""


ARRANGED = tuple(source.__name__ for source in (Folder, Arrays, HubImages, Shards))
"""The sources that hold pictures out by their content."""
AnySource = TypeVar("AnySource", bound=PictureSource | Codes | TextFile | HubText)


def fill_arrangement(data: Any) -> Any:
    """Return the JSON of a source; one that an early version wrote arranges its pictures by position."""
    if not isinstance(data, dict) or data.get("type") not in ARRANGED or "arrange" in data:
        return data
    return data | {"arrange": "position"}


def resolve_paths(source: AnySource) -> AnySource:
    """Make the paths of a source absolute, so that it means the same from any working directory."""
    if isinstance(source, Digits | HubImages | HubText) or source.path is None:
        return source
    if isinstance(source, Folder | Shards) and not source.path:  # then its sets have paths of their own
        first, second = (None if part is None else _resolve(part) for part in (source.train, source.test))
        return replace(source, train=first, test=second)
    resolved = replace(source, path=_resolve(source.path))
    if isinstance(resolved, TextFile) and resolved.test is not None:
        return replace(resolved, test=_resolve(resolved.test))
    return resolved


_SETS = ("train", "test")


def write_source(source: PictureSource) -> dict[str, object]:
    """Return a source as plain JSON data, without what early versions did not write; `fill_arrangement` reads it."""
    absent = {"arrange": "position", **dict.fromkeys(_SETS)}
    return {name: value for name, value in to_json(source).items() if name not in absent or value != absent[name]}


def _resolve(path: str) -> str:
    return path if is_remote(path) else str(Path(path).expanduser().resolve())
