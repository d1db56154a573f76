"""Errors for the user, one class per exit code. The message is one line: what, where, what to do.

`check_ranges` is how a config class refuses a number, `look_up` how a table refuses a name, and `describe_os_error`
words what the system refused.
"""

import errno
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

WIDTHS = (1, 65_536)
"""Features of a layer, or values of a token."""
DEPTHS = (1, 1_024)
"""Layers, blocks or heads."""
SIDES = (1, 16_384)
"""Pixels or cells along one axis."""
CLASS_COUNTS = (0, 10_000_000)
"""Classes; 0 is none."""
STEP_COUNTS = (1, 1_000_000_000)
"""Steps, and steps between two events."""
BATCH_SIZES = (1, 1 << 24)
"""Rows of a batch."""
SEEDS = (-(1 << 63), (1 << 63) - 1)
"""Seeds: integers of 64 bits."""
FACTORS = (0, 1e9)
"""Weights, rates and temperatures."""


class UnmaskError(Exception):
    """Base of every error that the command line reports as one line and an exit code, without a traceback."""

    exit_code = 1


class ConfigError(UnmaskError):
    """A flag, a field or a combination of them cannot work."""

    exit_code = 2


class DataError(UnmaskError):
    """Input files are missing, damaged or not what they claim to be."""

    exit_code = 3


class CheckpointError(UnmaskError):
    """A checkpoint or export is damaged, foreign or of another architecture; or the run directory is in use."""

    exit_code = 4


class NonFiniteError(UnmaskError):
    """A loss, gradient, prediction or image became NaN or infinite. Nothing bad was written."""

    exit_code = 5


class DiskError(UnmaskError):
    """The disk is full, read-only or failing; the last good checkpoint is untouched."""

    exit_code = 6


class ShortageError(UnmaskError):
    """Memory or open files do not suffice: a limit of this machine, of its container or GPU, or of this process."""

    exit_code = 7


class RankError(UnmaskError):
    """A process of torchrun hung, ended or holds other weights than the rest.

    `is_consequence` is True where another process has the cause.
    """

    exit_code = 8

    def __init__(self, message: str, *, is_consequence: bool = False):
        super().__init__(message)
        self.is_consequence = is_consequence


class Preempted(UnmaskError):
    """A signal asked the run to stop. A checkpoint was saved, and the same command resumes the run."""

    exit_code = 85


def check_ranges(config: Any, ranges: Mapping[str, tuple[int | float, int | float]]) -> None:
    """Check fields of a config against (least, most); a tuple is checked item by item, and None passes.

    Raises:
        ValueError: A number is outside its range, or NaN, or has a fraction where the field is of type int.
    """
    kinds = {field.name: str(field.type) for field in fields(config)}
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, Integral | None) and "float" not in kinds[name]:
                raise ValueError(f"{type(config).__name__}({name}={value}): give a whole number")
            if number is not None and not least <= number <= most:
                low, high = (f"{x:,}" if isinstance(x, int) else f"{x:g}" for x in (least, most))
                raise ValueError(f"{type(config).__name__}({name}={value}): must be from {low} to {high}")


def check_type(name: str, value: object, kind: type) -> None:
    """Raise ConfigError unless an argument is a text (str), a whole number (int) or a number (float), or None.

    Numbers of numpy pass; True and False are no numbers.
    """
    wanted, base = _KINDS[kind]
    if value is not None and (isinstance(value, bool) or not isinstance(value, base)):
        raise ConfigError(f"{name}={value!r} is of type {type(value).__name__}: give {wanted}")


def check_whole_numbers(numbers: Mapping[str, object]) -> None:
    """Raise ConfigError for a named argument that is neither a whole number nor None."""
    for name, value in numbers.items():
        check_type(name, value, int)


_KINDS: dict[type, tuple[str, type]] = {
    str: ("a text", str),
    int: ("a whole number", Integral),
    float: ("a number", Real),
}
"""How a type is called, and what counts as it."""


def name_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function with errors for Python: they name `data.held_out`, and not the flag --data.held-out."""

    @functools.wraps(function)
    def _call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except UnmaskError as error:
            error.args = (replace_flags(str(error)), *error.args[1:])
            raise

    return _call


def replace_flags(message: str) -> str:
    """Return the message with arguments in place of flags; a command of the shell, up to a comma, stays as it is."""
    return _FLAG.sub(
        lambda found: found[0] if found["command"] else f"`{found['flag'].replace('-', '_')}`",
        message,
    )


_FLAG = re.compile(r"(?P<command>\b(?:unmask [a-z]|torchrun )[^,;:)]*)|(?<![^\s(])--(?P<flag>[a-z][\w.-]*\w)")


def describe_os_error(error: BaseException) -> str:
    """Return in a few words what the system refused, for the middle of a message.

    Raises:
        ShortageError: Memory or open files ran out, so the file that the caller wants to blame is not at fault.
    """
    number = error.errno if isinstance(error, OSError) else None
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    if number in (errno.EMFILE, errno.ENFILE):
        raise ShortageError(
            f"{where}too many open files: raise the limit, as with ulimit -n 4096, then run the same command again"
        ) from error
    if number == errno.ENOMEM:
        raise ShortageError(f"{where}not enough memory: close other programs, or use a larger machine") from error
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or str(error) or type(error).__name__


def look_up(table: Mapping[str, T], name: str, what: str) -> T:
    """Return table[name]; raise ConfigError with the nearest name if there is none."""
    if name not in table:
        raise ConfigError(f"no {what} {name}{suggest_nearest(name, table)}")
    return table[name]


def suggest_nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known name, or all names if none is near."""
    near = get_close_matches(name, list(known), 1)
    return f": did you mean {near[0]}?" if near else f": there are {', '.join(known)}"
