"""Find the cache folder for downloads and conversions, and lock what is made in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def find_cache_dir() -> Path:
    """Return $UNMASK_CACHE, else $XDG_CACHE_HOME/unmask, else ~/.cache/unmask."""
    if os.environ.get("UNMASK_CACHE"):
        return Path(os.environ["UNMASK_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unmask"


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder; wait while another process that makes it holds the lock."""
    from filelock import FileLock

    with FileLock(path.with_name(f".{path.name}.lock")):
        yield
