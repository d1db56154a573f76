"""Show the progress of long work: as a bar on a terminal, otherwise as a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TaskID

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) during the work."""


SECONDS_BETWEEN_LINES = 20.0
"""Without a terminal, a line appears at most this often."""


@contextmanager
def show_progress(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield `report(what, done, total)`, which moves one bar for each `what`; the bars disappear at the end.

    Without a terminal, `report` prints a line to stderr at most every SECONDS_BETWEEN_LINES seconds, so that long work
    does not look as if it hung.
    """
    console = Console(stderr=True, soft_wrap=True, force_jupyter=False)
    if not console.is_terminal:  # there, even a transient bar leaves an empty line
        yield _make_line_report(SECONDS_BETWEEN_LINES) if shown else _report_nothing
        return
    aside = sys.stdout.isatty()  # otherwise the output of a command, such as a table, would follow the bar to stderr
    with Bar(console=console, transient=True, redirect_stdout=aside, disable=not shown) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


def _make_line_report(seconds: float) -> Callable[[str, int, int], None]:
    """Return a `report` that prints at most one line in `seconds` seconds, and none in the first `seconds`."""
    last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            print(f"{what} {done:,}/{total:,}", file=sys.stderr, flush=True)

    return report


def _report_nothing(what: str, done: int, total: int) -> None:
    pass
