"""What the server remembers of each open page: its last results, its downloads, and whether somebody pressed stop."""

import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unmask.errors import ConfigError

MOST_SESSIONS = 32
"""Pages whose results are kept; with more, those of the page that was idle longest are dropped."""
MOST_IDLE = 2 * 3600.0
"""Seconds after its last event for which the results of a page are kept."""
MOST_KEPT = 1 << 30
"""Bytes of results that are kept; with more, those of the page that was idle longest are dropped."""


@dataclass(kw_only=True)
class Session:
    """One open page."""

    stop: threading.Event = field(default_factory=threading.Event)
    """Set when somebody presses stop."""
    results: dict[str, Any] = field(default_factory=dict)
    """The last result of each tab, by the name of the tab."""
    folder: Path | None = None
    """Where its downloads are."""
    used: float = field(default_factory=time.monotonic)
    """When its last event came."""
    busy: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def run_job(self) -> Iterator[None]:
        """Hold the page's one job; ConfigError if another one runs."""
        if not self.busy.acquire(blocking=False):
            raise ConfigError("this page already runs a job: wait for it, or press stop")
        try:
            self.stop.clear()
            yield
        finally:
            self.busy.release()

    def forget(self) -> None:
        """Stop its job, and drop its results and downloads."""
        self.stop.set()
        self.results.clear()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """The open pages, by the id that gradio gives them."""

    def __init__(self, most: int = MOST_SESSIONS, *, idle: float = MOST_IDLE, kept: int = MOST_KEPT):
        self._most, self._idle, self._kept = most, idle, kept
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: str | None) -> Session:
        """Return the session of a page, made at its first use; forget pages that were idle too long."""
        with self._lock:
            session = self._sessions.pop(name or "", None) or Session()
            self._sessions[name or ""] = session
            session.used = time.monotonic()
            for oldest in list(self._sessions)[:-1]:
                if not self._has_too_much(self._sessions[oldest]):
                    break
                self._sessions.pop(oldest).forget()
            return session

    def _has_too_much(self, oldest: Session) -> bool:
        """Return whether the page that was idle longest must go. A page whose job runs is not idle."""
        if oldest.busy.locked() and len(self._sessions) <= self._most:
            return False
        size = sum(measure_bytes(session.results) for session in self._sessions.values())
        return len(self._sessions) > self._most or size > self._kept or time.monotonic() - oldest.used > self._idle

    def close(self, name: str | None) -> int:
        """Stop and forget a page that was closed; return how many are left."""
        with self._lock:
            session = self._sessions.pop(name or "", None)
            if session is not None:
                session.forget()
            return len(self._sessions)

    def close_all(self) -> None:
        """Stop and forget all pages."""
        with self._lock:
            while self._sessions:
                self._sessions.popitem()[1].forget()


def measure_bytes(result: Any) -> int:
    """Return the bytes of results: of what has `num_bytes`, alone or in lists, tuples and dictionaries."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return sum(map(measure_bytes, result))
    return int(getattr(result, "num_bytes", 0))
