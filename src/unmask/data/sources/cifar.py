"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour photos of 32x32 in ten classes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmask.data.image_files import Unreadable, open_image, silence_warnings
from unmask.data.images import Images, to_images
from unmask.data.pictures import Split, count_threads, read_all
from unmask.data.sources.hub import HubImages
from unmask.data.sources.npz import read_arrays
from unmask.errors import DataError, describe_os_error
from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line

CIFAR_HUB = "uoft-cs/cifar10"
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
TILES = (40, 25)  # rows and columns of images on a page
RECORD = 1 + 3 * SIDE * SIDE  # bytes: the class, then the red, the green and the blue plane
BATCHES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}


@dataclass(frozen=True, kw_only=True)
class Cifar10:
    """CIFAR-10, as the published binary batches, as pages of tiles, or from the Hugging Face Hub.

    Pages are train_00.webp, test_00.webp and so on, 25x40 tiles each, with their classes in labels.npz.
    """

    path: str | None = None
    """A folder with the binary batches or the pages; without it, download from the Hub."""

    def load(self, progress: Progress | None = None) -> Split:
        """Load the training and the test set."""
        if self.path is None:
            return load_hub()
        folder = Path(self.path).expanduser()
        for binary in (folder, folder / "cifar-10-batches-bin"):
            if (binary / BATCHES["test"][0]).exists():
                return Split(train=read_batches(binary, "train"), test=read_batches(binary, "test"))
        if not (folder / "labels.npz").exists():
            raise DataError(
                f"{escape_line(str(folder))}: neither {BATCHES['test'][0]} nor labels.npz is there; give a folder that "
                "holds CIFAR-10's binary version, unpacked, or pages of tiles"
            )
        return Split(train=read_pages(folder, "train", progress), test=read_pages(folder, "test", progress))


def load_hub() -> Split:
    """Load from the Hugging Face Hub, which caches its downloads."""
    split = HubImages(name=CIFAR_HUB, image="img", label="label", size=SIDE, arrange="position").load()
    if split.train.classes != CIFAR_CLASSES:
        raise DataError(
            f"{CIFAR_HUB} on the hub has the classes {', '.join(split.train.classes)}: give a folder instead"
        )
    return Split(train=read_all(split.train), test=read_all(split.test))


def read_batches(folder: Path, part: str) -> Images:
    """Read the published binary version: records of a class and three planes."""
    records = []
    for name in BATCHES[part]:
        shown = escape_line(str(folder / name))
        try:
            body = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"{shown}: {describe_os_error(error)}; unpack CIFAR-10's binary version again") from error
        if not body or len(body) % RECORD:
            raise DataError(f"{shown}: {len(body)} bytes are not records of {RECORD}; unpack it again")
        records.append(np.frombuffer(body, dtype=np.uint8).reshape(-1, RECORD))
    whole = np.concatenate(records)
    return to_ten_classes(whole[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), whole[:, 0], folder)


def read_pages(folder: Path, part: str, progress: Progress | None = None) -> Images:
    """Read pages of tiles, one for each row of labels.npz."""
    path = folder / "labels.npz"
    arrays = read_arrays(path, (part,), ("classes",))
    labels, classes = arrays[part], tuple(arrays.get("classes", CIFAR_CLASSES))
    tiles = TILES[0] * TILES[1]
    if labels.ndim != 2 or not len(labels) or labels.shape[1] != tiles:
        raise DataError(f"{escape_line(str(path))}: {part} has the shape {labels.shape}, not (pages, {tiles})")
    if classes != CIFAR_CLASSES:
        raise DataError(f"{escape_line(str(path))}: its classes are {', '.join(map(str, classes))}, not CIFAR-10's")
    names = [folder / f"{part}_{i:02d}.webp" for i in range(len(labels))]
    pages = []
    with silence_warnings(), ThreadPoolExecutor(count_threads()) as pool:
        for name, page in zip(names, pool.map(read_page, names), strict=True):
            pages.append(page)
            if progress is not None:
                progress(str(name), len(pages), len(names))
    return to_ten_classes(np.concatenate(pages), labels.reshape(-1), path)


def read_page(path: Path) -> np.ndarray:
    """Read the (1000, 32, 32, 3) tiles of a page, row by row; call it inside `silence_warnings`."""
    rows, columns = TILES
    image = open_image(path)
    if isinstance(image, Unreadable):
        raise DataError(f"{image}; get it again")
    if image.size != (columns * SIDE, rows * SIDE):
        width, height = image.size
        raise DataError(
            f"{escape_line(str(path))}: {width}x{height} pixels, not {columns * SIDE}x{rows * SIDE}: {columns} columns "
            f"and {rows} rows of {SIDE}x{SIDE} tiles"
        )
    array = np.asarray(image.convert("RGB")).reshape(rows, SIDE, columns, SIDE, 3)
    return array.transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 3)


def to_ten_classes(array: np.ndarray, labels: np.ndarray, where: Path) -> Images:
    """Convert to Images with CIFAR-10's classes; errors name the path."""
    try:
        return to_images(array, labels, CIFAR_CLASSES)
    except DataError as error:
        raise DataError(f"{escape_line(str(where))}: {error}; get it again") from error
