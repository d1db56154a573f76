"""Let a training survive the loss of its output: `train | head`, a closed terminal, a full disk behind `> log`."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console


class OptionalOutput:
    """A text stream that switches itself off at its first failure, after one line on stderr."""

    def __init__(self, stream: Any, name: str):
        self._stream, self._name, self._lost = stream, name, False

    def write(self, text: str) -> int:
        """Write the text, or drop it if the output is lost."""
        if not self._lost:
            try:
                self._stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush what was written, unless the output is lost."""
        if not self._lost:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, error: OSError) -> None:
        self._lost = True
        with contextlib.suppress(OSError):  # without a file descriptor, or in a process that may open no more files
            drain = os.open(os.devnull, os.O_WRONLY)
            os.dup2(drain, self._stream.fileno())  # Python flushes at its end, and would report that it cannot
            os.close(drain)
        if sys.stderr is not None:  # it drops the line if it is this output itself
            reason = error.strerror or error
            with contextlib.suppress(OSError):
                sys.stderr.write(f"{self._name} is lost ({reason}); the training continues without it\n")
                sys.stderr.flush()


def make_console(stream: Any, *, quiet: bool = False) -> Console:
    """Return a console on a stream that breaks lines between words on a terminal; in a file, a message is one line."""
    console = Console(file=stream, highlight=False, emoji=False, quiet=quiet, force_jupyter=False)
    console.soft_wrap = not console.is_terminal
    return console


def print_line(line: str, stream: Any) -> None:
    """Print a line, broken between words on a terminal, and flush the stream."""
    if stream is not None:
        make_console(stream).print(line, markup=False)
        stream.flush()


@contextlib.contextmanager
def survive_lost_output() -> Iterator[None]:
    """Drop what is printed inside the block once its output is lost, and go on."""
    outer = sys.stdout, sys.stderr
    if sys.stdout is not None:
        sys.stdout = OptionalOutput(sys.stdout, "standard output")
    if sys.stderr is not None:
        sys.stderr = OptionalOutput(sys.stderr, "standard error")
    try:
        yield
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    finally:
        sys.stdout, sys.stderr = outer
