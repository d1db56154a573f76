"""End a command in one line and with its exit code, whatever stopped it."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from unmask.errors import ConfigError, DiskError, RankError, ShortageError, UnmaskError, describe_os_error
from unmask.runtime.shortage import describe_shortage
from unmask.runtime.termination import Terminated, raise_on_signals
from unmask.runtime.torchrun import record_cause
from unmask.storage.files import escape_line

LOWER = {
    "train": "raise --training.accumulate, or lower --training.batch-size or the sizes under --model",
    "train-tokenizer": "raise --training.accumulate, or lower --training.batch-size or the sizes under --tokenizer",
    "tokenize": "lower --batch or --processes",
    "tokenize-text": "lower --processes",
    "sample": "lower --num",
    "generate": "lower --num",
    "inpaint": "lower --variants, or shrink the photo",
}
"""What needs less memory, by command."""


@contextlib.contextmanager
def finish_in_one_line(command: str) -> Iterator[None]:
    """Turn what stops the block into a line and an exit code. An error of the program itself keeps its traceback."""
    try:
        with raise_on_signals(), _name_output():
            yield
    except UnmaskError as error:
        _leave(
            describe_plainly(str(error)),
            error.exit_code,
            is_consequence=isinstance(error, RankError) and error.is_consequence,
        )
    except KeyboardInterrupt:
        _leave("interrupted", 128 + signal.SIGINT)
    except Terminated as stop:
        _leave(str(stop), 128 + stop.number)
    except BrokenPipeError:
        _close(1)
        sys.exit(128 + signal.SIGPIPE)
    except (OSError, MemoryError, RuntimeError) as error:
        shortage = describe_shortage(error)
        if shortage is not None:
            advice = LOWER.get(command, "close other programs, or use a machine with more memory")
            _leave(f"{shortage}: {advice}", ShortageError.exit_code)
        if not isinstance(error, OSError):
            raise
        try:
            _leave(describe_disk_error(error, "the disk"), DiskError.exit_code)
        except ShortageError as reason:
            _leave(str(reason), reason.exit_code)


_CONFIG = re.compile(r"\b[A-Z]\w*\((\w+=[^()]*)\)(?=:)")


def describe_plainly(line: str) -> str:
    """Return the line with "dim 30, heads 4" in place of "TransformerConfig(dim=30, heads=4)"."""
    return _CONFIG.sub(lambda found: re.sub(r"\b(\w+)=", r"\1 ", found[1]), line)


def describe_disk_error(error: OSError, where: Path | str) -> str:
    """Return the line for an error of a file, or of the disk where the error names no file."""
    return f"{error.filename or where}: {describe_os_error(error)}; what was written before is kept"


def check_text(arguments: list[str]) -> None:
    """Raise ConfigError for an argument that is not UTF-8: its path could be neither printed nor stored."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise ConfigError(f"{escape_line(argument)}: this is not UTF-8; rename the file or the folder")


class _Output:
    """Standard output whose errors name it: otherwise they would look like errors of the file being written."""

    def __init__(self, stream: Any):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with _name_errors():
            return int(self.stream.write(text))

    def flush(self) -> None:
        with _name_errors():
            self.stream.flush()


@contextlib.contextmanager
def _name_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, "the output") from error


@contextlib.contextmanager
def _name_output() -> Iterator[None]:
    if sys.stdout is None:  # closed before the program began
        yield
        return
    output = _Output(sys.stdout)
    with contextlib.redirect_stdout(output):
        yield
        output.flush()  # a full disk behind it is found here, and not after the last line


def _leave(line: str, code: int, *, is_consequence: bool = False) -> NoReturn:
    """Say the last line, to the user and to torchrun, and exit."""
    try:
        print(f"unmask: {line}", file=sys.stderr, flush=True)
    except OSError:
        _close(2)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _close(1)
    record_cause(f"unmask: {line}", is_consequence=is_consequence)
    sys.exit(code)


def _close(descriptor: int) -> None:
    """Drop what is still to be written: Python flushes at its end, and would report that it cannot."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
