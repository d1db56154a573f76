"""MNIST (LeCun et al. 1998): 60,000 + 10,000 handwritten digits, from idx files or downloaded once and checked."""

import gzip
import hashlib
import http.client
import os
import struct
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from unmask.data.decoding import one_line
from unmask.data.images import Images, Progress, to_images
from unmask.data.pictures import Split
from unmask.errors import ConfigError, DataError, DiskError

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
TIMEOUT = 30  # seconds without an answer before a mirror is given up


@dataclass(frozen=True, kw_only=True)
class Mnist:
    """MNIST's 60,000 + 10,000 digits, area-averaged from 28x28; without `path` they are downloaded once into a cache.

    `path` may hold any data in the same four idx files with 10 classes, gzipped or not.
    """

    path: str | None = None
    size: int = 14
    binary: bool = True

    def __post_init__(self):
        if not 1 <= self.size <= 28:
            raise ConfigError(f"size {self.size}: MNIST is 28x28, use 1 to 28 (14 and 28 are exact)")

    def load(self, progress: Progress | None = None) -> Split:
        if self.path is None:
            folder = cache_dir() / "mnist"
            download_mnist(folder, progress)
        else:
            folder = Path(self.path).expanduser()
        return Split(train=self._read(folder, "train"), test=self._read(folder, "t10k"))

    def _read(self, folder: Path, part: str) -> Images:
        images = read_idx(folder / f"{part}-images-idx3-ubyte", 3)
        labels = read_idx(folder / f"{part}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise DataError(f"{one_line(str(folder))}: {part} has {len(images)} images but {len(labels)} labels")
        try:
            return to_images(images, labels, TEN, size=(self.size, self.size), binary=self.binary)
        except DataError as error:
            raise DataError(f"{one_line(str(folder))}, {part}: {error}") from error


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array in an idx file, `path` or `path`.gz; DataError unless every byte is accounted for."""
    if not path.exists():
        path = path.with_name(path.name + ".gz")
    shown = one_line(str(path))
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
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{shown}: {reason}; get it again, or name the folder that holds it") from error
    if len(body) != count:
        seen = "more" if len(body) > count else len(body)
        raise DataError(f"{shown}: {seen} bytes where the shape {shape} needs {count}; get it again")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def cache_dir() -> Path:
    """$UNMASK_CACHE, else $XDG_CACHE_HOME/unmask, else ~/.cache/unmask."""
    if os.environ.get("UNMASK_CACHE"):
        return Path(os.environ["UNMASK_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unmask"


def download_mnist(cache: Path, progress: Progress | None = None, mirrors: tuple[str, ...] = MIRRORS) -> None:
    """Put the four published MNIST files into `cache`, unless they are there already and sound.

    DataError if no mirror gives the published bytes, DiskError if they cannot be written; neither leaves a part behind.
    """
    for name, (size, sha256) in MNIST.items():
        path = cache / name
        try:
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                continue
            body = fetch_first([mirror + name for mirror in mirrors], size, sha256, progress)
            if isinstance(body, list):
                raise DataError(
                    f"cannot download {name} ({'; '.join(body)}): put {', '.join(MNIST)} into "
                    f"{one_line(str(cache))}, or name a folder that has them with --data DIR"
                )
            save(path, body)
        except OSError as error:
            raise DiskError(f"{one_line(str(path))}: {error.strerror or error}; or set UNMASK_CACHE") from error


def fetch_first(urls: list[str], size: int, sha256: str, progress: Progress | None) -> bytes | list[str]:
    """The bytes with that digest from the first mirror that has them, or one complaint for each mirror."""
    complaints = []
    for url in urls:
        try:
            body = fetch(url, size, progress)
        except (OSError, http.client.HTTPException, ValueError) as error:
            complaints.append(f"{urlsplit(url).netloc}: {one_line(str(error))}")
            continue
        if hashlib.sha256(body).hexdigest() == sha256:
            return body
        complaints.append(f"{urlsplit(url).netloc}: {len(body)} bytes that are not the published {size}")
    return complaints


def fetch(url: str, size: int, progress: Progress | None) -> bytes:
    """At most `size` + 1 bytes of `url`."""
    check_secure(url)
    name, body = url.rsplit("/", 1)[-1], bytearray()
    with urllib.request.build_opener(SecureRedirects).open(url, timeout=TIMEOUT) as answer:
        while len(body) <= size and (chunk := answer.read(min(65536, size + 1 - len(body)))):
            body += chunk
            if progress is not None:
                progress(name, len(body), size)
    return bytes(body)


class SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where we would have gone ourselves."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        check_secure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_secure(url: str) -> None:
    """ValueError unless https, or http to this very machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and (parts.scheme, parts.hostname) != ("http", "127.0.0.1"):
        raise ValueError(f"{url} is not https")


def save(path: Path, body: bytes) -> None:
    """Write by a temporary name and rename, so that a file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(body)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
