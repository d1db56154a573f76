"""The command line and the line of Python that do what a click did, to copy."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def write_command(command: str, words: Sequence[str], flags: Mapping[str, Any]) -> str:
    """Return a command line; flags that are None are left out, and a list gives several words.

    Args:
        command: The command, such as "sample".
        words: What stands before the flags, such as the model.
        flags: Values by the names of the flags, without the dashes.
    """
    parts = ["unmask", command, *words]
    for name, value in flags.items():
        if value is None or value is False:
            continue
        parts.append(f"--{name.replace('_', '-')}")
        values = [] if value is True else value if isinstance(value, list | tuple) else [value]
        parts += map(_show, values)
        if len(values) == 1 and str(values[0]).startswith("-"):
            parts[-2:] = [f"{parts[-2]}={parts[-1]}"]  # otherwise it would be read as a flag
    return shlex.join(parts)


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class Variable(str):
    """The name of a variable, which lines of Python hold without quotes."""

    def __repr__(self) -> str:
        return str(self)


def write_python(
    model: str,
    call: str,
    arguments: Sequence[Any],
    keywords: Mapping[str, Any],
    *,
    before: str = "",
    prompts: Sequence[str] | None = None,
) -> str:
    """Return lines of Python: load the model, call it; None is left out.

    Args:
        model: What `unmask.load` takes.
        call: What stands before the bracket, such as "images = pipe".
        arguments: Its arguments.
        keywords: Its keywords.
        before: Lines that follow the first import.
        prompts: The prompts with which the model is loaded.
    """
    opened = ", ".join([repr(model), *_list_keywords({"prompts": prompts})])
    given = ", ".join([*map(repr, arguments), *_list_keywords(keywords)])
    return f"import unmask\n{before}\npipe = unmask.load({opened})\n{call}({given})"


def _list_keywords(keywords: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in keywords.items() if value is not None]
