"""What a campaign found: one result per attempt, added up, kept as JSON, and the campaigns by name."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_NOTES = 12
"""Notes kept of one campaign: enough to repair by, and a page that can be read."""


@dataclass(frozen=True)
class Result:
    """The end of one attempt."""

    fate: str
    """survived, lost or silent."""
    how: str
    """How it survived or was lost, in a few words that many attempts share, such as "refused"."""
    note: str = ""
    """For a loss: where and by which seed, so that it can be done again."""


def survive(how: str) -> Result:
    return Result("survived", how)


def lose(how: str, note: str) -> Result:
    return Result("lost", how, note)


@dataclass
class Tally:
    """The results of one campaign so far."""

    name: str
    about: str
    seed: int
    planned: int
    tried: int = 0
    survived: int = 0
    lost: int = 0
    silent: int = 0
    how: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        self.tried += 1
        setattr(self, result.fate, getattr(self, result.fate) + 1)
        self.how[result.how] += 1
        if result.fate != "survived" and len(self.notes) < MOST_NOTES and result.note not in self.notes:
            self.notes.append(result.note)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({**vars(self), "how": dict(self.how.most_common())}), encoding="utf-8")


@dataclass(frozen=True)
class Campaign:
    """One row of the page."""

    name: str
    """Unique; its first part up to the dash is its section of the page."""
    about: str
    """What is attacked, for a reader of the page."""
    full: int
    """Attempts in full; --scale changes them."""
    attack: Callable[..., Iterator[Result]]
    """Called as attack(work, count, seed): yields a Result per attempt."""
    least: int = 1
    """Attempts at the smallest scale."""
