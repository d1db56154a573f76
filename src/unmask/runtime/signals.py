"""Stop a run at the next step boundary after SIGTERM or Ctrl-C; a second signal stops it at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StopFlag:
    """`asked` is True after a signal."""

    asked: bool = False


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Yield a flag that signal handlers set and the loop reads; restore the previous handlers at the end."""
    flag = StopFlag()
    names = (signal.SIGTERM, signal.SIGINT)
    previous = {name: signal.getsignal(name) for name in names}

    def handle(number: int, frame: object) -> None:
        flag.asked = True
        for name in names:
            signal.signal(name, signal.SIG_DFL)

    for name in names:
        signal.signal(name, handle)
    try:
        yield flag
    finally:
        for name in names:
            signal.signal(name, previous[name])
