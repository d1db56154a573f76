"""Convert frozen dataclasses to strict JSON and back, typed by the annotations of the dataclass.

A config is rebuilt only from what its annotations list. A union of dataclasses is a closed sum type, written as
`{"type": "Power", "exponent": 2.0}`. No class is ever looked up by name outside its annotation.
"""

import difflib
import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from unmask.errors import ConfigError, DiskError, describe_os_error
from unmask.storage.files import write_text

T = TypeVar("T")
_SCALARS = (bool, int, float, str)


def to_json(config: Any) -> dict[str, Any]:
    """Return the config as plain dicts, lists and scalars; `from_json` turns them back into an equal config."""
    return _write_class(config, "config")


def from_json(cls: type[T], data: Any, where: str = "config") -> T:
    """Build `cls` from parsed JSON.

    Args:
        where: Start of the dotted path in error messages.

    Raises:
        ConfigError: A key is unknown or missing, a type is wrong, or the class refuses a value.
    """
    return _read_class(cls, data, where)


def load_json(path: Path, max_bytes: int = 1 << 20) -> Any:
    """Parse a JSON file.

    Raises:
        ConfigError: The file is missing, longer than `max_bytes` or not valid JSON, or has a repeated key or NaN.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {describe_os_error(error)}") from error
    if len(text) > max_bytes:
        raise ConfigError(f"{path} is longer than {max_bytes} bytes, so unmask did not write it; give another file")
    return _parse(text, str(path))


def read_json(path: Path, cls: type[T], max_bytes: int = 1 << 20) -> T:
    """Read one config from a JSON file; raise ConfigError as `load_json` and `from_json` do."""
    return from_json(cls, load_json(path, max_bytes), where=Path(path).name)


def dump_json(obj: Any) -> str:
    """Return the text of a config or of plain JSON data; raise ConfigError if `load_json` would refuse the text."""
    try:
        text = json.dumps(to_json(obj) if is_dataclass(obj) else obj, indent=2) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"this cannot be written as JSON: {error}") from error
    _parse(text.encode(), "the JSON to write")
    return text


def write_json(path: Path, obj: Any) -> None:
    """Write a config or plain JSON data with `write_atomic`: a crash leaves the whole old file or the whole new one.

    Raises:
        ConfigError: The data has no JSON form.
        DiskError: The disk refused the file; an older file stays.
    """
    path = Path(path)
    text = dump_json(obj)
    try:
        write_text(text, path)
    except OSError as error:
        raise DiskError(
            f"cannot write {path}: {describe_os_error(error)}; an older file there is kept: free or repair the disk"
        ) from error


def list_differences(a: Any, b: Any) -> list[str]:
    """Return the dotted fields in which two configs (or their JSON) differ, as `"model.depth 4 there, 6 here"`.

    `a` is there, `b` is here.
    """
    there, here = (dict(_list_leaves(to_json(x) if is_dataclass(x) else x)) for x in (a, b))
    names = list(there) + [name for name in here if name not in there]
    absent = object()

    def show(value: Any) -> str:
        return "absent" if value is absent else json.dumps(value)

    pairs = [(name, there.get(name, absent), here.get(name, absent)) for name in names]
    return [f"{name} {show(x)} there, {show(y)} here" for name, x, y in pairs if x != y]


def _parse(text: bytes, name: str) -> Any:
    try:
        return json.loads(text.decode(), object_pairs_hook=_refuse_repeats, parse_constant=_read_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid JSON: {error}") from error


def _list_leaves(data: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(data, Mapping) or not data:
        return [(path, data)]
    return [leaf for key, value in data.items() for leaf in _list_leaves(value, f"{path}.{key}" if path else key)]


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a repeated key: plain `json` would silently keep the last one."""
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"key {key!r} is given twice")
        seen[key] = value
    return seen


def _read_constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is not a value")
    return float(name)


def _is_class(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _describe_hint(hint: Any) -> str:
    if _is_union(hint):
        return " or ".join(_describe_hint(member) for member in get_args(hint))
    if hint is type(None):
        return "null"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def _type_error(hint: Any, data: Any, where: str) -> ConfigError:
    shown = repr(data) if len(repr(data)) <= 80 else repr(data)[:77] + "..."
    return ConfigError(f"{where}: expected {_describe_hint(hint)}, got {shown}")


def _list_fields(cls: type) -> list[tuple[Field[Any], Any]]:
    """Return the fields that the constructor takes, with their resolved annotations."""
    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in fields(cls) if field.init]


def _index_members(hint: Any) -> dict[str, type]:
    """Return the dataclasses of a union by name; raise TypeError if names repeat or a field is called `type`."""
    members = [member for member in get_args(hint) if _is_class(member)]
    named = {member.__name__: member for member in members}
    if len(named) < len(members) or any(field.name == "type" for member in members for field in fields(member)):
        raise TypeError(f"{_describe_hint(hint)}: give its dataclasses different names and no field called 'type'")
    return named


def _read(hint: Any, data: Any, where: str) -> Any:
    if _is_class(hint):
        return _read_class(hint, data, where)
    if _is_union(hint):
        return _read_union(hint, data, where)
    if get_origin(hint) is tuple:
        return _read_tuple(hint, data, where)
    if get_origin(hint) is Literal:
        # True == 1 in Python, so the type has to agree as well.
        if any(type(data) is type(choice) and data == choice for choice in get_args(hint)):
            return data
        raise _type_error(hint, data, where)
    return _read_scalar(hint, data, where)


def _read_scalar(hint: Any, data: Any, where: str) -> Any:
    if hint is type(None) and data is None:
        return None
    if hint is float and type(data) is int and abs(data) < 2**53:
        return float(data)
    if hint not in (*_SCALARS, type(None)):
        raise TypeError(f"{where}: the annotation {_describe_hint(hint)} has no JSON form")
    if type(data) is not hint or (hint is float and math.isnan(data)):
        raise _type_error(hint, data, where)
    return data


def _read_tuple(hint: Any, data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _type_error(hint, data, where)
    return tuple(_read(*slot) for slot in _list_slots(hint, data, where))


def _list_slots(hint: Any, values: Sequence[Any], where: str) -> list[tuple[Any, Any, str]]:
    """Return (annotation, value, path) for each item of a tuple."""
    items = get_args(hint)
    if items[1:] == (Ellipsis,):
        items = items[:1] * len(values)
    if len(items) != len(values):
        raise ConfigError(f"{where}: expected {len(items)} values, got {len(values)}")
    return [(item, value, f"{where}[{i}]") for i, (item, value) in enumerate(zip(items, values, strict=True))]


def _read_union(hint: Any, data: Any, where: str) -> Any:
    classes = _index_members(hint)
    if isinstance(data, Mapping) and classes:
        return _read_member(classes, data, where)
    candidates = [member for member in get_args(hint) if not _is_class(member)]
    tuples = [member for member in candidates if get_origin(member) is tuple]
    if isinstance(data, list) and len(tuples) == 1:
        return _read_tuple(tuples[0], data, where)
    # A float also accepts an int, so it is tried last.
    for member in sorted(candidates, key=lambda member: member is float):
        try:
            return _read(member, data, where)
        except ConfigError:
            continue
    raise _type_error(hint, data, where)


def _read_member(classes: dict[str, type], data: Mapping[str, Any], where: str) -> Any:
    if len(classes) == 1:
        return _read_class(next(iter(classes.values())), data, where)
    if "type" not in data:
        raise ConfigError(f'{where}: add "type", one of {", ".join(classes)}')
    chosen = data["type"]
    if not isinstance(chosen, str) or chosen not in classes:
        raise ConfigError(f"{where}.type: no {chosen!r} here{_suggest(str(chosen), list(classes))}")
    return _read_class(classes[chosen], {key: value for key, value in data.items() if key != "type"}, where)


def _read_class(cls: type[T], data: Any, where: str) -> T:
    if not isinstance(data, Mapping):
        raise _type_error(cls, data, where)
    known = {field.name: (field, hint) for field, hint in _list_fields(cls)}
    for key in data:
        if key not in known:
            raise ConfigError(f"{where}.{key}: no such field{_suggest(str(key), list(known))}")
    for name, (field, hint) in known.items():
        if name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{where}.{name}: missing; give it as {_describe_hint(hint)}")
    values = {name: _read(known[name][1], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _suggest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose from {', '.join(names) or 'nothing'}"


def _write_class(config: Any, where: str) -> dict[str, Any]:
    return {
        field.name: _write(hint, getattr(config, field.name), f"{where}.{field.name}")
        for field, hint in _list_fields(type(config))
    }


def _write(hint: Any, value: Any, where: str) -> Any:
    if _is_union(hint):
        return _write_union(hint, value, where)
    if _is_class(hint) and type(value) is hint:
        return _write_class(value, where)
    if get_origin(hint) is tuple and isinstance(value, tuple):
        return [_write(*slot) for slot in _list_slots(hint, value, where)]
    if _is_class(hint) or get_origin(hint) is tuple:
        raise _type_error(hint, value, where)
    return _read(hint, value, where)


def _write_union(hint: Any, value: Any, where: str) -> Any:
    classes = _index_members(hint)
    if type(value) in classes.values():
        tag = {"type": type(value).__name__} if len(classes) > 1 else {}
        return tag | _write_class(value, where)
    plain = [member for member in get_args(hint) if not _is_class(member)]
    for member in sorted(plain, key=lambda member: member is float):
        try:
            return _write(member, value, where)
        except ConfigError:
            continue
    raise _type_error(hint, value, where)
