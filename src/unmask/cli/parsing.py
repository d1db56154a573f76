"""Flags to dataclasses through tyro, and every mistake folded into one line."""

import contextlib
import io
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import tyro

from unmask.cli import describe_command
from unmask.cli.command_flags import RECIPE_COMMANDS, list_command_flags
from unmask.cli.ending import describe_disk_error
from unmask.cli.flag_table import find_named, find_operand, is_flag
from unmask.cli.flag_types import REGISTRY
from unmask.cli.help import make_sentence, print_examples
from unmask.cli.recipes import is_recipe, is_run
from unmask.errors import ConfigError, DiskError, NonFiniteError

T = TypeVar("T")


def parse(kind: type[T], arguments: list[str], command: str, default: T | None = None) -> T:
    """Parse flags with tyro. Only scalars are flags: the class of a field, such as a schedule, is the default's.

    Args:
        kind: The dataclass of the flags.
        arguments: The words of the flags.
        command: The command and what it works on; for help, as `split_positional` returns it.
        default: The defaults, where `kind` does not have them.
    """
    command, _, what = command.partition(", where ")
    name, prog = command.split()[0], f"unmask {command.strip()}"
    about = "\n\n".join(make_sentence(text) for text in (describe_command(name), what) if text)
    for flag, value in pairwise([*arguments, "--"]):
        if flag == "--weights" and value.startswith("--"):  # an empty list, as tyro has it: a variable without a value
            raise ConfigError("--weights: give the files, or a folder that holds them")
    errors = io.StringIO()
    settings = (tyro.conf.AvoidSubcommands,)
    try:
        with contextlib.redirect_stderr(errors), REGISTRY:
            if default is None:
                return tyro.cli(kind, args=arguments, prog=prog, description=about, config=settings)
            return tyro.cli(kind, args=arguments, prog=prog, description=about, config=settings, default=default)
    except SystemExit as stop:
        if not stop.code:
            print_examples(name)
            raise
    raise ConfigError(f"{_one_line(errors.getvalue())} (flags: {prog} --help)")


def _one_line(box: str) -> str:
    """Return the sentence in tyro's error box, and the flag that it suggests."""
    rows = [line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:]]
    rows = rows[1:] if rows and set(rows[0]) == {"-"} else rows  # the box of a terminal without box characters
    rule = next((i for i, row in enumerate(rows) if set(row) in ({"─"}, {"-"})), len(rows))
    if rows and rows[0].startswith("Missing from"):
        missing = [match[0] for row in rows if (match := re.match(r"--\w[\w.-]*", row))]
        return f"{' and '.join(missing)} must be given"
    names = next((found for row in rows[rule:] if row.startswith("--") and (found := _FLAG_NAME.findall(row))), [])
    text = " ".join(rows[:rule])
    if names and "Perhaps" in box:
        typed = _FLAG_NAME.search(text)
        return f"{text}: did you mean {max(names, key=partial(_compare, typed.group() if typed else names[0]))}?"
    for pattern, plain in _PLAIN_WORDS:
        text = re.sub(pattern, plain, text)
    return text


_FLAG_NAME = re.compile(r"--\w[\w.-]*")
_PLAIN_WORDS = (
    (r"^Error parsing ([\w.]+): ", ""),  # a group of flags: the sentence names the field
    (r"^Error parsing (--[\w.-]+): invalid literal for int\(\) with base 10: (.*)", r"\1 \2: give a whole number"),
    (r"^Error parsing (--[\w.-]+): could not convert string to float: (.*)", r"\1 \2: give a number"),
)
"""What tyro and Python say of a wrong value, and what is said in its place."""


def _compare(typed: str, name: str) -> float:
    return SequenceMatcher(None, typed, name).ratio()


def split_positional(arguments: list[str], usage: str) -> tuple[str, list[str]]:
    """Return the argument that says what to work on, which may stand before or after flags, and the other arguments.

    Args:
        arguments: The words after the command.
        usage: The command, what it takes, and after ", where" what that is.

    Returns:
        The argument and the others; for help, what `usage` says in place of the argument, and --help.

    Raises:
        ConfigError: There is no such argument, or a flag before it is unknown.
    """
    command, _, operands = usage.partition(" ")
    if arguments and not is_flag(arguments[0]):
        return arguments[0], arguments[1:]
    if {"-h", "--help"} & set(arguments):
        takes, comma, where = operands.partition(", where ")
        return re.split(r" \[?--", takes)[0] + comma + where, ["--help"]
    if not arguments:
        place = None
    elif command in RECIPE_COMMANDS:  # the flags depend on the recipe
        place = find_named(arguments, is_recipe)
        place = find_named(arguments, is_run) if place is None else place
    else:
        place = find_operand(arguments, list_command_flags(command), f"unmask {command}")
    if place is None:
        raise ConfigError(f"usage: unmask {usage}")
    return arguments[place], arguments[:place] + arguments[place + 1 :]


@contextlib.contextmanager
def catch_value_errors() -> Iterator[None]:
    """Turn a ValueError of the method, for a number that it cannot use, into a ConfigError: it came from a flag.

    Logits that are NaN come from the weights instead, and become a NonFiniteError.
    """
    try:
        yield
    except ValueError as error:
        from unmask.method.sampling.decode import NonFiniteLogits  # not at the top: flags are read without torch

        kind = NonFiniteError if isinstance(error, NonFiniteLogits) else ConfigError
        raise kind(str(error)) from error


@contextlib.contextmanager
def catch_disk_errors(where: Path) -> Iterator[None]:
    """Report a full, read-only or missing disk in one line."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our output has left: no disk is at fault
    except OSError as error:
        raise DiskError(describe_disk_error(error, where)) from error
