"""How far long work has come: a bar on a terminal, or a line now and then without one."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TaskID

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) as work goes on."""


SECONDS_BETWEEN_LINES = 20.0  # seconds


@contextmanager
def show_progress(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Bars that `report(what, done, total)` moves, one for each `what`; they go away at the end.

    Without a terminal a line to stderr, every QUIET seconds: what takes long is not to look as if it hung.
    """
    console = Console(stderr=True, soft_wrap=True)
    if not console.is_terminal:  # where even a transient bar leaves an empty line
        yield _lines(SECONDS_BETWEEN_LINES) if shown else _unsaid
        return
    aside = sys.stdout.isatty()  # else what a command prints, a table for one, would follow the bar to stderr
    with Bar(console=console, transient=True, redirect_stdout=aside, disable=not shown) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


def _lines(seconds: float) -> Callable[[str, int, int], None]:
    """Reports as lines, at most one in so many seconds, none before the first of them."""
    last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            print(f"{what} {done:,}/{total:,}", file=sys.stderr, flush=True)

    return report


def _unsaid(what: str, done: int, total: int) -> None:
    pass
