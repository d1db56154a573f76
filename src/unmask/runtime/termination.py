"""Signals outside of a training raise `Terminated`, as Ctrl-C raises KeyboardInterrupt."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from unmask.runtime.signals import OTHERS

ENDING = (signal.SIGTERM, *OTHERS)
"""The signals that end a command."""


class Terminated(BaseException):
    """A signal that ends the process; not an Exception, so that nothing takes it for an error of its own."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise Terminated on the signals of ENDING inside the block, so that workers and temporary files are cleared away.

    Under torchrun the signals end the process as before: a rank that waits for another could not raise anything.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several or threading.current_thread() is not threading.main_thread():
        yield
        return
    # One that is ignored, as under nohup, stays ignored.
    names = [name for name in ENDING if signal.getsignal(name) is signal.SIG_DFL]

    def handle(number: int, frame: object) -> None:
        raise Terminated(number)

    for name in names:
        signal.signal(name, handle)
    try:
        yield
    finally:
        for name in names:
            signal.signal(name, signal.SIG_DFL)
