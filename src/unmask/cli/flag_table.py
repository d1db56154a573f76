"""The flags of a command as data, named as tyro names them: to find the run among them, and to complete them."""

import re
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from unmask.errors import ConfigError, suggest_nearest

_FLAG = re.compile(r"-[A-Za-z]|--[A-Za-z][\w.-]*(=.*)?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag: its names, and the words that follow it."""

    names: tuple[str, ...]
    values: int | None = 1
    """How many words it takes; None for all up to the next flag."""
    choices: tuple[str, ...] = ()
    """The words it takes, where they are known."""


HELP = Flag(names=("-h", "--help"), values=0)


def list_flags(kind: type, default: Any = None) -> list[Flag]:
    """Return the flags of a dataclass; the class of a field is that of its default."""
    return [*_list_fields(kind, default, ""), HELP]


def is_flag(word: str) -> bool:
    """Return whether a word looks like a flag, and not like a negative number or a text."""
    return _FLAG.fullmatch(word) is not None


def find_operand(arguments: list[str], flags: Iterable[Flag], command: str) -> int | None:
    """Return the place of the first word that is neither a flag nor its value, or None without one.

    Raises:
        ConfigError: A flag is unknown, or takes all words after it, so that none is left.
    """
    table = {name: flag for flag in flags for name in flag.names}
    place, greedy = 0, None
    while place < len(arguments):
        word = arguments[place]
        if not is_flag(word):
            return place
        name, given, _ = word.partition("=")
        name = name.replace("_", "-")
        if name not in table:
            more = suggest_nearest(name, table)
            raise ConfigError(f"no flag {name}{more if 'did you mean' in more else ''} (flags: {command} --help)")
        values = table[name].values
        place += 1
        if not given and values is None:
            first = place
            while place < len(arguments) and not is_flag(arguments[place]):
                place += 1
            greedy = (word, arguments[place - 1]) if place - first > 1 and place == len(arguments) else None
        elif not given:
            place += values or 0
    if greedy is not None:
        flag, last = greedy
        raise ConfigError(
            f"{flag} takes all words after it, {last} too: put what to work on first, as in {command} {last} {flag} ..."
        )
    return None


def find_named(arguments: list[str], is_named: Callable[[str], bool]) -> int | None:
    """Return the place of the only word of which `is_named` is true, for flags that depend on this word."""
    places = [place for place, word in enumerate(arguments) if not is_flag(word) and is_named(word)]
    return places[0] if len(places) == 1 else None


def _list_fields(kind: type, default: Any, prefix: str) -> Iterator[Flag]:
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        if not field.init:
            continue
        hint = hints[field.name]
        marks: tuple[Any, ...] = getattr(hint, "__metadata__", ())
        hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        value = _read_default(field) if default is None else getattr(default, field.name)
        named = {name: [x for mark in marks if (x := getattr(mark, name, None)) is not None] for name in _MARKS}
        name = (named["name"] or [field.name.replace("_", "-")])[-1]
        inner = [option for option in _list_options(hint) if is_dataclass(option)]
        if inner:
            if value is not None:
                chosen = type(value) if is_dataclass(value) else inner[0]
                below = value if is_dataclass(value) else None
                yield from _list_fields(chosen, below, f"{prefix}{name}." if name else prefix)  # type: ignore[arg-type]
            continue
        names = [f"--{prefix}{name}", *(alias for aliases in named["aliases"] for alias in aliases)]
        if hint is bool:
            names.append(f"--{prefix}no-{name}")
        metavar = str((named["metavar"] or [""])[-1])
        yield Flag(names=tuple(names), values=_count_words(hint), choices=_list_choices(hint) or _read_choices(metavar))


_MARKS = ("name", "aliases", "metavar")
"""What `tyro.conf.arg` says about a flag."""


def _read_default(field: "Field[Any]") -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _list_options(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _count_words(hint: Any) -> int | None:
    """Return how many words a flag of this type takes; None for any number."""
    if hint is bool:
        return 0
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        return None if Ellipsis in parts else len(parts)
    if get_origin(hint) is Literal:
        return 1
    options = [option for option in _list_options(hint) if option is not type(None)]
    if len(options) == 1:
        return 1 if options[0] in (hint, bool) else _count_words(options[0])
    counts = {1 if option is bool else _count_words(option) for option in options}
    return counts.pop() if len(counts) == 1 else None


def _list_choices(hint: Any) -> tuple[str, ...]:
    """Return the words of a Literal."""
    found = [word for option in _list_options(hint) for word in get_args(option) if get_origin(option) is Literal]
    return tuple(str(word) for word in found)


def _read_choices(metavar: str) -> tuple[str, ...]:
    """Return the plain words in {a, b, c}, as help shows the choices of a text."""
    inside = re.match(r"\{(.*)\}", metavar)
    words = inside[1].split(", ") if inside else []
    return tuple(word for word in words if re.fullmatch(r"[a-z0-9][\w.-]*", word) and " to " not in word)
