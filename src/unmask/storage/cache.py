"""Find the cache folder for downloads and conversions, and fetch small files into it."""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line, write_bytes


def find_cache_dir() -> Path:
    """Return $UNMASK_CACHE, else $XDG_CACHE_HOME/unmask, else ~/.cache/unmask."""
    if os.environ.get("UNMASK_CACHE"):
        return Path(os.environ["UNMASK_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unmask"


MIRROR_TIMEOUT = 30
"""Seconds without an answer after which the next mirror is tried."""


def fetch_first(urls: list[str], size: int, sha256: str, progress: Progress | None) -> bytes | list[str]:
    """Return the bytes with this SHA-256 from the first mirror that has them, or one complaint per mirror."""
    complaints = []
    for url in urls:
        try:
            body = fetch_bytes(url, size, progress)
        except (OSError, http.client.HTTPException, ValueError) as error:
            complaints.append(f"{urlsplit(url).netloc}: {escape_line(str(error))}")
            continue
        if hashlib.sha256(body).hexdigest() == sha256:
            return body
        complaints.append(f"{urlsplit(url).netloc}: {len(body)} bytes that are not the published {size}")
    return complaints


def fetch_bytes(url: str, size: int, progress: Progress | None) -> bytes:
    """Return at most `size` + 1 bytes of `url`.

    Raises:
        OSError, http.client.HTTPException: The server cannot be reached or does not answer.
        ValueError: The address, or one that it redirects to, is not https.
    """
    check_secure(url)
    name, body = url.rsplit("/", 1)[-1], bytearray()
    with urllib.request.build_opener(SecureRedirects).open(url, timeout=MIRROR_TIMEOUT) as answer:
        while len(body) <= size and (chunk := answer.read(min(65536, size + 1 - len(body)))):
            body += chunk
            if progress is not None:
                progress(name, len(body), size)
    return bytes(body)


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


def save_cached(path: Path, body: bytes) -> None:
    """Write a file with `write_atomic`, and create its missing parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(body, path)
