"""MNIST (LeCun et al. 1998): 60,000 + 10,000 handwritten digits, from idx files or downloaded once and checked."""

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmask.data.images import Images, to_images
from unmask.data.pictures import Split
from unmask.errors import ConfigError, DataError, describe_os_error
from unmask.runtime.progress import Progress
from unmask.storage.cache import find_cache_dir
from unmask.storage.download import Unavailable, download_file
from unmask.storage.files import escape_line

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
# name -> (bytes, sha256) of the published files
MNIST = {
    "train-images-idx3-ubyte.gz": (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "train-labels-idx1-ubyte.gz": (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "t10k-images-idx3-ubyte.gz": (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "t10k-labels-idx1-ubyte.gz": (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}
MAX_IDX_BYTES = 2**31  # MNIST has 47 million; more than this is a damaged header or a decompression bomb
TEN = tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class Mnist:
    """MNIST's 60,000 + 10,000 digits, area-averaged from 28x28."""

    path: str | None = None
    """A folder of four such idx files of any 10 classes, gzipped or not; without it, download MNIST once to a cache."""
    size: int = 14
    """Height and width of the images after resizing, 1 to 28 pixels."""
    binary: bool = True
    """Make each pixel black or white."""

    def __post_init__(self):
        if not 1 <= self.size <= 28:
            raise ConfigError(f"size {self.size}: MNIST is 28x28, use 1 to 28 (14 and 28 are exact)")

    def load(self, progress: Progress | None = None) -> Split:
        """Load the training and the test set."""
        if self.path is None:
            folder = find_cache_dir() / "mnist"
            download_mnist(folder, progress)
        else:
            folder = Path(self.path).expanduser()
        return Split(train=self._read(folder, "train"), test=self._read(folder, "t10k"))

    def _read(self, folder: Path, part: str) -> Images:
        images = read_idx(folder / f"{part}-images-idx3-ubyte", 3)
        labels = read_idx(folder / f"{part}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise DataError(f"{escape_line(str(folder))}: {part} has {len(images)} images but {len(labels)} labels")
        try:
            return to_images(images, labels, TEN, size=(self.size, self.size), binary=self.binary)
        except DataError as error:
            raise DataError(f"{escape_line(str(folder))}, {part}: {error}") from error


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read the uint8 array of an idx file, `path` or `path`.gz; raise DataError for missing or extra bytes."""
    if not path.exists():
        path = path.with_name(path.name + ".gz")
    shown = escape_line(str(path))
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(4 + 4 * ndim)
            if len(header) < 4 + 4 * ndim or header[:4] != bytes([0, 0, 8, ndim]):
                raise DataError(f"{shown}: not an idx file of bytes in {ndim} dimensions; get it again")
            shape = struct.unpack(f">{ndim}I", header[4:])
            count = int(np.prod(shape, dtype=object))
            if not 0 < count <= MAX_IDX_BYTES:
                raise DataError(f"{shown}: its header claims the shape {shape}; get it again")
            body = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = describe_os_error(error)
        raise DataError(f"{shown}: {reason}; get it again, or name the folder that holds it") from error
    if len(body) != count:
        seen = "more" if len(body) > count else len(body)
        raise DataError(f"{shown}: {seen} bytes where the shape {shape} needs {count}; get it again")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def download_mnist(cache: Path, progress: Progress | None = None, mirrors: tuple[str, ...] = MIRRORS) -> None:
    """Download the four published MNIST files into `cache`, unless they are there and intact.

    No error leaves a partial file.

    Raises:
        DataError: no mirror returns the published bytes.
        DiskError: they cannot be written.
    """
    for name, (size, sha256) in MNIST.items():
        try:
            urls = [mirror + name for mirror in mirrors]
            download_file(urls, cache / name, size=size, sha256=sha256, progress=progress)
        except Unavailable as error:
            raise DataError(
                f"cannot download {name} ({error}): put {', '.join(MNIST)} into {escape_line(str(cache))}, or name a "
                "folder that has them with --data DIR"
            ) from error
