"""Image datasets in the format of Hugging Face's `datasets`, from its Hub or from a local folder."""

import inspect
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from unmask.data.identity import hash_encoded, hash_picture_file
from unmask.data.image_files import Unreadable, decode_bytes, open_image
from unmask.data.labels import number_labels
from unmask.data.pictures import (
    Arrangement,
    OnDemand,
    Pictures,
    Split,
    check_shape,
    check_share,
    is_small,
    take_keys,
    take_labels,
)
from unmask.data.sources.parts import Parts, choose_roles, report_unused
from unmask.errors import ConfigError, DataError
from unmask.lazy import Tensor, torch
from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line


@dataclass(frozen=True, kw_only=True)
class HubImages:
    """An image dataset by its name on the Hugging Face Hub, or a folder made by `save_to_disk` or any loader."""

    name: str
    """OWNER/NAME or OWNER/NAME@REVISION on the Hub, or a folder."""
    image: str = "image"
    """The column of images."""
    label: str | None = "label"
    """The column of classes; None for no classes."""
    train: str = "train"
    """The split to train on."""
    test: str = "test"
    """The split to hold out; without it validation, val, valid or dev, or else a part of the training split."""
    size: int = 256
    """Height and width of the images after resizing, in pixels."""
    channels: int = 3
    """3 for colour, 1 for grey."""
    held_out: float = 0.1
    """Fraction of the training split to hold out, if there is no test split."""
    seed: int = 0
    """Seed that decides, with the content of each image, which ones are held out."""
    arrange: Arrangement = "content"
    """Order and split images by their content, or (runs of early versions) by their position in the listing."""

    def __post_init__(self):
        check_shape(self.size, self.channels)
        check_share(self.held_out)

    def load(self, progress: Progress | None = None) -> Split:
        """Load the training and the test set."""
        return self.open_parts(progress).split(self.held_out, self.seed, self.name, self.arrange)

    def open_parts(self, progress: Progress | None = None) -> Parts:
        """Open the splits."""
        if not self.name:
            raise ConfigError("which dataset? Give --data.name OWNER/NAME, or a folder made by save_to_disk")
        parts = load_parts(self.name)
        first, roles = self.train, choose_roles(name for name in parts if name != self.train)
        if first not in parts and first == "train" and len(roles.train) == 1:
            (first,) = roles.train
        if first not in parts:
            raise ConfigError(f"{self.name} has no split {first!r}, but {', '.join(parts)}: set --data.train")
        held = self.test if self.test in parts else roles.test
        if self.test not in parts and self.test != "test":
            raise ConfigError(f"{self.name} has no split {self.test!r}, but {', '.join(parts)}: set --data.test")
        if held == first:
            raise ConfigError(f"{self.name}: {held} is to train on and to hold out; set --data.test to another split")
        unused = [name for name in parts if name not in (first, held)]
        train, notes = self._open_rows(parts, first)
        test = None if held is None else self._open_rows(parts, held, train)[0]
        return Parts(train=train, test=test, notes=(*report_unused(unused), *notes))

    def _open_rows(
        self, parts: dict[str, Any], part: str, like: Pictures | None = None
    ) -> tuple["HubRows", tuple[str, ...]]:
        where = f"{self.name}, {part}"
        return to_rows(parts[part], where, self.image, self.label, (self.size, self.size), self.channels, like)


@dataclass(frozen=True, kw_only=True)
class HubRows(OnDemand):
    """Images in the rows of a map-style dataset, whose column `image` holds encoded bytes or a path."""

    dataset: Any
    name: str
    image: str
    rows: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.rows)

    def find_place(self, i: int) -> str:
        """Return the dataset and the row of image `i`."""
        return f"{self.name}, row {int(self.rows[i])}"

    def fetch(self, i: int) -> bytes | str | Unreadable:
        """Read the encoded bytes of image `i`, or return its path if the row holds one."""
        try:
            cell = self.dataset[int(self.rows[i])][self.image]
        except (OSError, ValueError, LookupError) as error:
            return Unreadable(self.find_place(i), f"damaged ({error})")
        if cell is None:
            return Unreadable(self.find_place(i), "no picture there")
        return cell["path"] if cell["bytes"] is None else cell["bytes"]

    def open(self, i: int) -> Image.Image | Unreadable:
        body = self.fetch(i)
        if isinstance(body, bytes):
            return decode_bytes(io.BytesIO(body), self.find_place(i), exact=self.exact)
        return open_image(body, exact=self.exact) if isinstance(body, str) else body

    def hash_content(self, i: int, *, whole: bool) -> bytes:
        try:
            cell = self.dataset[int(self.rows[i])][self.image] or {"bytes": b""}
        except (OSError, ValueError, LookupError):
            return hash_encoded(b"")  # it is left out when it is read
        if cell["bytes"] is None:
            return hash_picture_file(cell["path"], whole=whole)
        return hash_encoded(cell["bytes"], whole=whole)

    def take(self, index: Int[Tensor, " b"]) -> "HubRows":
        labels, keys = take_labels(self.labels, index), take_keys(self.keys, index)
        return replace(self, rows=self.rows[index], labels=labels, keys=keys)


def load_parts(name: str, subset: str | None = None) -> dict[str, Any]:
    """Load the splits of a dataset, or of one of its configurations; OWNER/NAME@REVISION pins a commit. No code runs.

    Raises:
        ConfigError: it cannot be loaded.
        DataError: the folder `name` is damaged.
    """
    try:
        import datasets
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ConfigError(f"{name}: it takes Hugging Face's datasets to read it: pip install 'unmask[data]'") from error
    network = HfHubHTTPError.__bases__  # the base errors of its HTTP client, which depends on its version
    folder = Path(name).expanduser()
    saved = any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            found = datasets.load_from_disk(str(folder))
        else:
            place, _, revision = (str(folder), "", "") if folder.is_dir() else name.partition("@")
            pinned = {"revision": revision} if revision else {}
            found = datasets.load_dataset(place, subset, **pinned, **_refuse_code(datasets))
    except (*network, OSError, ValueError, LookupError, TypeError, datasets.exceptions.DatasetsError) as error:
        reason = escape_line(" ".join(str(error).split())[:300])  # may list the available names
        if folder.is_dir():
            raise DataError(f"{escape_line(name)}: {reason}; save the data set there again") from error
        what = name if subset is None else f"{name}, {subset}"
        raise ConfigError(f"cannot load {what} ({reason}): check name and network, or name a folder with it") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _refuse_code(datasets: Any) -> dict[str, bool]:
    """Return the argument that refuses a dataset's own loading script; {} for versions that run none."""
    known = inspect.signature(datasets.load_dataset).parameters
    return {"trust_remote_code": False} if "trust_remote_code" in known else {}


def to_rows(
    dataset: Any,
    where: str,
    image: str,
    label: str | None,
    size: tuple[int, int],
    channels: int,
    like: Pictures | None = None,
) -> tuple[HubRows, tuple[str, ...]]:
    """Select the columns `image` and `label` of a dataset, with the classes of `like` if given.

    Returns:
        The pictures, and a note if their labels are numbered anew.
    """
    from datasets import Image as Encoded

    features = dataset.features
    pictures = [
        name for name, kind in features.items() if isinstance(kind, Encoded) or getattr(kind, "dtype", "") == "binary"
    ]
    if image not in pictures:
        raise ConfigError(
            f"{where}: no column {image!r} of images, but {', '.join(pictures) or 'none'}: set --data.image"
        )
    if label is not None and label not in features:
        raise ConfigError(f"{where}: no column {label!r}, but {', '.join(features)}: set --data.label, maybe to None")
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if label is not None:
        labels, classes, notes = read_labels(dataset, label, where, () if like is None else like.classes)
    if like is not None and classes[: len(like.classes)] != like.classes[: len(classes)]:
        raise DataError(f"{where}: its classes are not those of the training set; set --data.test to another split")
    weight = dataset.data.nbytes
    try:
        return HubRows(
            labels=labels,
            classes=classes if like is None else like.classes,
            size=size,
            channels=channels,
            dataset=dataset.select_columns([image]).cast_column(image, Encoded(decode=False)),
            name=where,
            image=image,
            rows=torch.arange(len(dataset)),
            exact=is_small(weight),
        ), notes
    except DataError as error:
        raise DataError(f"{where}: {error}; or use another split") from error


def read_labels(
    dataset: Any, label: str, where: str, known: tuple[str, ...] = ()
) -> tuple[Int[Tensor, " n"], tuple[str, ...], tuple[str, ...]]:
    """Return (labels, class names, notes).

    The names are those of the column, or else the numbers that occur. `known` are the classes of the training set:
    numbers without names are looked up there.
    """
    column = dataset.select_columns([label]).with_format("arrow")[:].column(label)
    values = column.to_numpy() if not column.null_count else None
    if values is None or not np.issubdtype(values.dtype, np.integer):
        seen = f"{column.null_count} empty cells" if column.null_count else str(column.type)
        raise DataError(f"{where}: column {label!r} has {seen}, not whole numbers: set --data.label, maybe to None")
    names = getattr(dataset.features[label], "names", None)
    if names:
        return torch.tensor(values.astype(np.int64)), tuple(names), ()
    if known and all(name.isdecimal() for name in known):
        numbers = np.array([int(name) for name in known])  # rising, as `number_labels` makes them
        ids = np.searchsorted(numbers, values).clip(max=len(numbers) - 1)
        foreign = values[numbers[ids] != values]
        if len(foreign):
            raise DataError(f"{where}: no image of the training set has the label {foreign[0]}; use another split")
        return torch.tensor(ids.astype(np.int64)), known, ()
    try:
        ids, classes, notes = number_labels(values)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return torch.tensor(ids.astype(np.int64)), classes, notes
