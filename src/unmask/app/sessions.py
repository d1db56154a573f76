"""What the server remembers of each open page: its last results, and whether somebody pressed stop."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from unmask.errors import ConfigError

MOST_SESSIONS = 32
"""Pages whose results are kept; with more, those of the page that was idle longest are dropped."""


@dataclass(kw_only=True)
class Session:
    """One open page."""

    stop: threading.Event = field(default_factory=threading.Event)
    """Set when somebody presses stop."""
    results: dict[str, Any] = field(default_factory=dict)
    """The last result of each tab, by the name of the tab."""
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


class Sessions:
    """The open pages, by the id that gradio gives them."""

    def __init__(self, most: int = MOST_SESSIONS):
        self._most = most
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: str | None) -> Session:
        """Return the session of a page, made at its first use."""
        with self._lock:
            session = self._sessions.pop(name or "", None) or Session()
            self._sessions[name or ""] = session
            while len(self._sessions) > self._most:
                _, oldest = self._sessions.popitem(last=False)
                oldest.stop.set()
            return session

    def close(self, name: str | None) -> int:
        """Stop and forget a page that was closed; return how many are left."""
        with self._lock:
            session = self._sessions.pop(name or "", None)
            if session is not None:
                session.stop.set()
            return len(self._sessions)
