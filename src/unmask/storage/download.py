"""Download published files once into a cache, from their publisher at a pinned revision.

A file is used only if its size and SHA-256 are the published ones. An interrupted download resumes where it ended.
"""

import errno
import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from unmask.errors import CheckpointError, ConfigError, DiskError, describe_os_error
from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line, move_into_place
from unmask.storage.https import READ_SIZE, Answer, Cut, Unavailable, get

HUB_URL = "https://huggingface.co"
ATTEMPTS, GAIN, PAUSE = 4, 1 << 20, 1.0
"""Attempts without GAIN new bytes before a download fails, and the seconds between two attempts."""
SPARE = 64 << 20
"""Bytes that stay free on the disk."""


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One published file: a `path` in a `repo` of the Hugging Face Hub at a `revision`, or a `url`."""

    repo: str | None = None
    """Repository on the Hugging Face Hub, as owner/name."""
    url: str | None = None
    """Whole address of a file that is published elsewhere."""
    path: str = ""
    """Path of the file in the repository."""
    revision: str = ""
    """Revision of the repository; without `sha256` it must be a commit of 40 digits."""
    size: int | None = None
    """Published size in bytes; without it the size is not checked."""
    sha256: str | None = None
    """Published SHA-256, or its first 8 or more digits; without it only the size is checked."""

    def __post_init__(self) -> None:
        if (self.repo is None) == (self.url is None):
            raise ConfigError(f"repo {self.repo!r}, url {self.url!r}: give exactly one of them")
        if self.url is not None and (self.path or self.revision):
            raise ConfigError(f"path {self.path!r}, revision {self.revision!r}: a url is the whole address")
        if (
            len(self.place.parts) < 2 + bool(self.repo)
            or {"..", "/"} & set(self.place.parts)
            or "\0" in str(self.place)
        ):
            raise ConfigError(f"path {self.path!r}: give the path of a file, without ..")
        if self.sha256 is not None and not (8 <= len(self.sha256) <= 64 and _is_hex(self.sha256)):
            raise ConfigError(
                f"sha256 {self.sha256!r}: give 64 hexadecimal digits, or the 8 or more that are published"
            )
        if self.repo and not (len(self.revision) == 40 and _is_hex(self.revision)) and self.sha256 is None:
            raise ConfigError(f"revision {self.revision!r} is not a commit of 40 digits: give one, or give the sha256")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"size {self.size}: give the bytes of the file, or None")

    @property
    def address(self) -> str:
        """The address at the publisher."""
        if self.url is not None:
            return self.url
        return f"{HUB_URL}/{quote(str(self.repo))}/resolve/{quote(self.revision or 'main')}/{quote(self.path)}"

    @property
    def place(self) -> Path:
        """The relative path in a cache folder."""
        if self.url is not None:
            parts = urlsplit(self.url)
            return Path(parts.netloc.replace(":", "-"), *PurePosixPath(unquote(parts.path).lstrip("/")).parts)
        return Path(str(self.repo).replace("/", "--"), self.revision[:12] or "main", *PurePosixPath(self.path).parts)


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdef" for c in text)


def fetch_file(
    source: PublishedFile,
    folder: Path,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    _loopback: bool = False,
) -> Path:
    """Return the path of a published file in the cache `folder`, and download it first if it is not there.

    Args:
        offline: Never use the network.
        progress: Called with the file name, the bytes so far and all bytes.
        _loopback: For tests: allow plain http to 127.0.0.1.

    Raises:
        CheckpointError: The file cannot be downloaded, or is not the published one; then nothing of it is kept.
        DiskError: The file cannot be written.
    """
    path = Path(folder) / source.place
    by_hand = f"or put it at {escape_line(str(path))} by hand, from {escape_line(source.address)}"
    try:
        wrong = find_mismatch(path, source) if path.is_file() else "not there"
        if not wrong:
            return path
        if offline:
            raise CheckpointError(
                f"{escape_line(str(path))} is {wrong}, and this is offline; go online once, {by_hand}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(path):
            if not path.is_file() or find_mismatch(path, source):  # another process may just have finished it
                _Download(source, path, progress, _loopback).run()
    except Unavailable as error:
        raise CheckpointError(
            f"cannot download {path.name}: {escape_line(str(error))}; try again, {by_hand}"
        ) from error
    except OSError as error:
        raise DiskError(f"{escape_line(str(path))}: {describe_os_error(error)}; or set UNMASK_CACHE") from error
    return path


def find_mismatch(path: Path, source: PublishedFile) -> str | None:
    """Return how a file differs from the published one, or None if it does not."""
    size = path.stat().st_size
    if source.size is not None and size != source.size:
        return f"{size} bytes and not the published {source.size}"
    if source.sha256 is None:
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(READ_SIZE):
            digest.update(block)
    if digest.hexdigest().startswith(source.sha256):
        return None
    return f"of sha256 {digest.hexdigest()[: max(12, len(source.sha256))]} and not the published {source.sha256}"


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder; wait while another process that makes it holds the lock."""
    from filelock import lock_descriptor

    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        lock_descriptor(lock.fileno())
        yield


@dataclass(frozen=True)
class _Download:
    """One download: it goes into the file `part` until that is whole and checked; `tag` holds the version of `part`."""

    source: PublishedFile
    path: Path
    progress: Progress | None
    loopback: bool

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def tag(self) -> Path:
        return self.path.with_name(self.path.name + ".part.tag")

    @property
    def received(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def run(self) -> None:
        in_one_piece = self.receive_all()
        wrong = find_mismatch(self.part, self.source)
        if wrong and not in_one_piece:  # the pieces may be of different versions
            self.discard()
            self.receive_all()
            wrong = find_mismatch(self.part, self.source)
        if wrong:
            self.discard()
            raise Unavailable(f"it is {wrong}, so nothing was kept")
        move_into_place(self.part, self.path)
        self.tag.unlink(missing_ok=True)

    def receive_all(self) -> bool:
        """Receive the whole file; return whether it came in one piece."""
        left, before, in_one_piece = ATTEMPTS, self.received, not self.received
        while True:
            try:
                self.attempt()
                return in_one_piece
            except Cut:
                left = ATTEMPTS if self.received >= before + GAIN else left - 1
                if not left:
                    raise
                before, in_one_piece = self.received, False
            time.sleep(PAUSE)

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)

    def attempt(self) -> None:
        """Resume from `part` if it has the same version or a SHA-256 can check the result; otherwise start again."""
        start, tag = self.received, self.tag.read_text() if self.tag.is_file() else ""
        if start and start == self.source.size:
            return  # the last download ended after the last byte and before the check
        wanted = {"Range": f"bytes={start}-"} if start and (tag or self.source.sha256) else {}
        if wanted and tag:
            wanted["If-Range"] = tag
        with get(self.source.address, wanted, loopback=self.loopback) as answer:
            if answer.status == 416 or (answer.status == 206 and (not wanted or answer.first != start)):
                self.discard()
                raise Cut("the server cannot resume the download")
            self.receive(answer, start if answer.status == 206 else 0)

    def receive(self, answer: Answer, start: int) -> None:
        total = None if answer.length is None else start + answer.length
        if total is not None and self.source.size not in (None, total):
            self.discard()
            raise Unavailable(f"it is {total} bytes and not the published {self.source.size}, so nothing was kept")
        total = self.source.size or total
        if total is None:
            raise Unavailable("the server does not give the size of the file")
        free = shutil.disk_usage(self.path.parent).free
        if free < total - start + SPARE:
            raise OSError(
                errno.ENOSPC, f"{(total - start) >> 20} MiB remain to download, and {free >> 20} MiB are free"
            )
        self.tag.write_text(answer.tag)
        with open(self.part, "r+b" if start else "wb") as file:
            file.seek(start)
            for block in answer.read_blocks():
                start += len(block)
                if start > total:
                    break
                file.write(block)
                if self.progress is not None:
                    self.progress(self.path.name, start, total)
        if start > total:
            self.discard()
            raise Unavailable(f"it is longer than {total} bytes, so nothing was kept")
        if start < total:
            raise Cut(f"the connection ended after {start} of {total} bytes; the next attempt resumes there")
