"""SIGTERM and Ctrl-C ask for a stop at the next step boundary; a second one stops at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StopFlag:
    """Whether a signal came in."""

    asked: bool = False


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """The handlers only set a flag; the loop acts on it. The previous handlers come back at the end."""
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
