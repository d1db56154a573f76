"""Download a file that does not live on the Hugging Face Hub: from the first mirror that has the published bytes.

The file appears whole and checked, or not at all. Addresses are https, also after a redirect.
"""

import http.client
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from unmask.errors import DiskError, describe_os_error
from unmask.runtime.progress import Progress
from unmask.storage.cache import lock_file
from unmask.storage.files import escape_line, hash_file, write_atomic
from unmask.storage.hub import check_free_space

MIRROR_TIMEOUT = 30
"""Seconds without a byte after which the next mirror is tried."""
READ_SIZE = 1 << 18


class Unavailable(Exception):
    """No mirror has the file; the message says why, for each of them."""


def download_file(
    urls: Sequence[str], path: Path, *, size: int | None = None, sha256: str | None = None,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Download a file to `path` from the first mirror that has it, unless it is there already.

    Another process that downloads the same file is waited for.

    Args:
        urls: The mirrors.
        path: Where to write it.
        size: Published bytes; without it, the server must state them.
        sha256: Published SHA-256, or its first digits; without it, only the size is checked.
        progress: Called with the name of the file, the bytes so far and all bytes.

    Raises:
        Unavailable: No mirror has the published bytes.
        DiskError: The disk refused them.
    """
    try:
        if path.is_file() and find_mismatch(path, size, sha256) is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(path):
            _try_mirrors(urls, path, size, sha256, progress)
    except OSError as error:
        raise DiskError(f"{escape_line(str(path))}: {describe_os_error(error)}; or set UNMASK_CACHE") from error


def _try_mirrors(
    urls: Sequence[str], path: Path, size: int | None, sha256: str | None, progress: Progress | None
) -> None:
    complaints = []
    for url in urls:
        if path.is_file() and find_mismatch(path, size, sha256) is None:  # another process was faster
            return
        try:
            with write_atomic(path) as temporary:
                _receive(url, temporary, path, size, progress)
                _check_received(temporary, size, sha256)
            return
        except Unavailable as error:
            complaints.append(f"{urlsplit(url).netloc}: {escape_line(str(error))}")
    raise Unavailable("; ".join(complaints))


def find_mismatch(path: Path, size: int | None, sha256: str | None) -> str | None:
    """Return how a file differs from the published one, or None if it does not."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"{found:,} bytes and not the published {size:,}"
    if sha256 is None or (digest := hash_file(path)).startswith(sha256):
        return None
    return f"of sha256 {digest[: max(12, len(sha256))]} and not the published {sha256}"


def _check_received(path: Path, size: int | None, sha256: str | None) -> None:
    if wrong := find_mismatch(path, size, sha256):
        raise Unavailable(f"the file is {wrong}")


def _receive(url: str, temporary: Path, path: Path, size: int | None, progress: Progress | None) -> None:
    """Write what `url` sends, at most the expected bytes. Raises Unavailable, or what the disk refused."""
    received = 0
    try:
        check_secure(url)
        answer = urllib.request.build_opener(SecureRedirects).open(url, timeout=MIRROR_TIMEOUT)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(describe_os_error(error)) from error
    with answer, open(temporary, "wb") as file:
        total = size if size is not None else answer.length
        if total is None:
            raise Unavailable("the server does not state the size of the file")
        check_free_space(path.parent, total)
        while True:
            try:
                chunk = answer.read1(min(READ_SIZE, total + 1 - received))
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(f"the connection ended: {describe_os_error(error)}") from error
            if not chunk:
                break
            received += len(chunk)
            if received > total:
                raise Unavailable(f"the file is longer than the published {total:,} bytes")
            file.write(chunk)
            if progress is not None:
                progress(path.name, received, total)
    if received < total:
        raise Unavailable(f"the connection ended after {received:,} of {total:,} bytes")


class SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect only to an address that `check_secure` allows."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: Any,
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        check_secure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_secure(url: str) -> None:
    """Raise ValueError unless the URL is https, or http to this machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and (parts.scheme, parts.hostname) != ("http", "127.0.0.1"):
        raise ValueError(f"{url} is not https")
