"""Stop a run at the next step boundary after a signal: a job scheduler's, a closed terminal's, or Ctrl-C.

A second SIGTERM or Ctrl-C stops it at once. The other signals may come several times, as shells and the kernel both
send SIGHUP when a terminal closes.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

AT_ONCE = (signal.SIGTERM, signal.SIGINT)
"""A second one of these ends the process."""
OTHERS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""The signals of terminals and schedulers; Windows has none of them."""
STOPPING = (*AT_ONCE, *OTHERS)
"""The signals that ask a run to stop."""


@dataclass
class StopFlag:
    """`asked` is True after a signal."""

    asked: bool = False


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Yield a flag that signal handlers set and the loop reads; restore the previous handlers at the end.

    A signal that the process was started to ignore stays ignored, as `nohup` wants for SIGHUP.
    """
    flag = StopFlag()
    previous = {name: signal.getsignal(name) for name in STOPPING}
    heard = [name for name in STOPPING if name in AT_ONCE or previous[name] != signal.SIG_IGN]

    def handle(number: int, frame: object) -> None:
        flag.asked = True
        if number in AT_ONCE:
            for name in AT_ONCE:
                signal.signal(name, signal.SIG_DFL)

    for name in heard:
        signal.signal(name, handle)
    try:
        yield flag
    finally:
        for name in heard:
            signal.signal(name, previous[name])
