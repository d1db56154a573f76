"""Read files of a cloud store or a web server through a local copy, by fsspec: s3://, gs://, hf://, https://.

A copy is made once, a portion at a time, and kept in the cache. Its folder is named after the address, the size and the
version (ETag or the like) that the server states. So a file that changed there is copied again, and everything behind
this module reads plain files: the same order, splits, fingerprints and workers as for local data.
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from unmask.errors import ConfigError, DataError, DiskError, describe_os_error
from unmask.runtime.progress import Progress
from unmask.storage.cache import find_cache_dir
from unmask.storage.files import escape_line, write_atomic

PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "memory": "fsspec",
}
"""The schemes that are read, and the package that fsspec needs for each."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that are read without encryption: nothing leaves this machine."""
VERSIONS: tuple[str, ...] = ("ETag", "etag", "md5Hash", "generation", "blob_id", "Content-MD5", "Digest")
VERSIONS += ("LastModified", "Last-Modified", "mtime", "created")
"""What a server may state about the version of a file, the best first."""
ERRORS = {
    "aiohttp": "ClientError",
    "botocore.exceptions": "BotoCoreError",
    "gcsfs.retry": "HttpError",
    "huggingface_hub.errors": "HfHubHTTPError",
}
"""Errors of these packages that are no OSError."""
REMOTE_BLOCK = 8 << 20
MAX_FILES = 100_000
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")


def is_remote(path: str) -> bool:
    """Return whether a path is an address such as s3://bucket/name."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def expand_braces(pattern: str) -> list[str]:
    """Return what a shell makes of {00..09}, {a,b} and braces within braces, in order.

    Raises:
        ConfigError: The pattern stands for more than MAX_FILES names.
    """
    start = pattern.find("{")
    words, end = _split_braces(pattern, start) if start >= 0 else ([], 0)
    if not words:
        return [pattern]
    numbers = _RANGE.fullmatch(words[0]) if len(words) == 1 else None
    if numbers is not None:
        first, last = int(numbers[1]), int(numbers[2])
        padded = any(len(text) > 1 and text[0] == "0" for text in numbers.groups())
        _check_number(abs(last - first) + 1, pattern)
        step = 1 if first <= last else -1
        width = max(map(len, numbers.groups())) if padded else 1
        inside = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    else:
        inside = [name for word in words for name in expand_braces(word)]
    rest = expand_braces(pattern[end:])
    _check_number(len(inside) * len(rest), pattern)
    return [pattern[:start] + word + after for word in inside for after in rest]


def _split_braces(pattern: str, start: int) -> tuple[list[str], int]:
    """Return what stands between the commas of the braces that open at `start`, and where they end; [] if unclosed."""
    words, depth = [""], 0
    for at in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[at], 0)
        if not depth:
            return words, at + 1
        if depth == 1 and pattern[at] == ",":
            words.append("")
        elif at > start:
            words[-1] += pattern[at]
    return [], 0


def _check_number(number: int, pattern: str) -> None:
    if number > MAX_FILES:
        raise ConfigError(f"{escape_line(pattern)}: stands for more than {MAX_FILES:,} files; give fewer")


@lru_cache(maxsize=64)
def list_remote(pattern: str, suffix: str = "") -> tuple[str, ...]:
    """Return the addresses that a pattern stands for: braces in their order, what a glob or a folder holds sorted.

    A folder stands for its files that end in `suffix`, where there is a suffix. It is looked up once a process.

    Raises:
        ConfigError: fsspec or the package for the scheme is not installed, or the scheme is not known.
        DataError: The server cannot be reached or refuses.
    """
    fs = _open_file_system(pattern)
    scheme = pattern.partition("://")[0].lower()
    magic = r"[*\[]" if scheme.startswith("http") else r"[*?\[]"  # ? begins the query of a web address
    found: list[str] = []
    for one in expand_braces(pattern):
        try:
            if re.search(magic, one):
                found += _add_scheme(scheme, fs.glob(one))
            elif suffix and not one.partition("?")[0].endswith(suffix):
                found += _add_scheme(scheme, fs.glob(f"{one.rstrip('/')}/*{suffix}"))
            else:
                found.append(one)
        except _list_errors() as error:
            raise _make_error(one, error) from error
    return tuple(found)


def _add_scheme(scheme: str, paths: list[str]) -> list[str]:
    return sorted(path if is_remote(path) else f"{scheme}://{path.lstrip('/')}" for path in paths)


@lru_cache(maxsize=MAX_FILES)
def _look_up(address: str) -> tuple[int | None, str]:
    """Return the size and the version of a file, as its server states them; looked up once a process."""
    fs = _open_file_system(address)
    try:
        facts = fs.info(address)
    except _list_errors() as error:
        raise _make_error(address, error) from error
    return facts.get("size"), next((str(facts[name]) for name in VERSIONS if facts.get(name)), "")


def fetch_remote(address: str, progress: Progress | None = None) -> Path:
    """Return the path of the local copy of a file, and make it if there is none of the version that the server has.

    Raises:
        ConfigError: As `list_remote`.
        DataError: The file is not there, cannot be reached, or ends early.
        DiskError: The copy cannot be written.
    """
    from filelock import FileLock

    size, version = _look_up(address)
    mark = hashlib.sha256(f"{address}\n{size}\n{version}".encode()).hexdigest()[:16]
    name = PurePosixPath(unquote(urlsplit(address).path if "?" in address else address)).name
    path = find_cache_dir() / "remote" / mark / name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):  # another process may make it just now
            if not path.is_file():
                _copy(address, size, path, progress)
    except OSError as error:
        raise DiskError(
            f"cannot write {escape_line(str(path))}: {describe_os_error(error)}; free the disk, or set UNMASK_CACHE"
        ) from error
    return path


def _copy(address: str, size: int | None, path: Path, progress: Progress | None) -> None:
    """Copy a file a portion at a time; raise DataError where its server fails, OSError where the disk does."""
    done = 0
    with write_atomic(path) as temporary, open(temporary, "wb") as out:
        for block in _read_blocks(address):
            out.write(block)
            done += len(block)
            if progress is not None:
                progress(path.name, done, size or done)
        if size is not None and done != size:
            raise DataError(f"{escape_line(address)}: {done} of {size} bytes came; run the command again")


def _read_blocks(address: str) -> Iterator[bytes]:
    try:
        with _open_file_system(address).open(address, "rb") as source:
            while block := source.read(REMOTE_BLOCK):
                yield block
    except _list_errors() as error:
        raise _make_error(address, error) from error


def _open_file_system(address: str) -> Any:
    scheme = address.partition("://")[0].lower()
    shown = escape_line(address)
    if scheme == "http" and urlsplit(address).hostname not in LOOPBACK:
        raise ConfigError(f"{shown}: http:// is not encrypted, so others could change the data: give https://")
    if scheme not in PACKAGES:
        known = ", ".join(f"{name}://" for name in PACKAGES if name not in ("gcs", "memory", "http"))
        raise ConfigError(f"{shown}: {scheme}:// is not read; give a local path, or one of {known}")
    try:
        import fsspec

        return fsspec.filesystem(scheme)
    except ImportError as error:
        lacking = "fsspec" if getattr(error, "name", None) == "fsspec" else PACKAGES[scheme]
        command = f"pip install {lacking}" if lacking in ("s3fs", "gcsfs") else "pip install 'unmask[remote]'"
        raise ConfigError(f"{shown}: {lacking} is needed to read it: {command}") from error


def _list_errors() -> tuple[type[Exception], ...]:
    """Return the errors that a server may cause, of the packages that are loaded."""
    loaded = (getattr(sys.modules.get(module), name, None) for module, name in ERRORS.items())
    return (OSError, ValueError, RuntimeError, *(kind for kind in loaded if kind is not None))


def _make_error(address: str, error: Exception) -> DataError:
    cause = error.__cause__ or error  # fsspec calls every failed request of a web server FileNotFoundError
    missing = isinstance(error, FileNotFoundError) and getattr(cause, "status", 404 if cause is error else 0) == 404
    reason = "not there" if missing else " ".join(str(cause).split())[:200] or type(cause).__name__
    advice = "check the address" if missing else "check the address, the network and your credentials"
    return DataError(f"{escape_line(address)}: cannot be read ({escape_line(reason)}); {advice}")
