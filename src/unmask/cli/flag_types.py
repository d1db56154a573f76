"""How flags are read and shown beside tyro's own ways: optional and repeated values, and defaults chosen later."""

from dataclasses import replace
from types import NoneType, UnionType
from typing import Any, Union, get_args

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

UNSET = "unset"
"""How help shows the default None. The text of such a flag says what happens then."""
REGISTRY = ConstructorRegistry()
"""How tyro reads and shows the types of flags."""


def show_default(text: str) -> Any:
    """Return the mark of a flag whose default is chosen later: `Annotated[int | None, show_default("...")]`."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


@REGISTRY.primitive_rule
def read_optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Show `X | None` as X, and its default as unset; None is still read."""
    options = get_args(info.type) if info.type_origin in (Union, UnionType) else ()
    if len(options) != 2 or NoneType not in options:
        return None
    plain = _read_plain(next(one for one in options if one is not NoneType), info)
    if plain is None:
        return None
    return replace(
        plain,
        instance_from_str=lambda words: None if words == ["None"] else plain.instance_from_str(words),
        is_instance=lambda value: value is None or plain.is_instance(value),
        str_from_instance=lambda value: [UNSET] if value is None else plain.str_from_instance(value),
        choices=None if plain.choices is None else (*plain.choices, "None"),
    )


@REGISTRY.primitive_rule
def read_several(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Show `tuple[X, ...]` as `X ...`, and the default () as none."""
    options = get_args(info.type)
    if info.type_origin is not tuple or options[1:] != (...,):
        return None
    plain = _read_plain(options[0], info)
    if plain is None or plain.nargs != 1:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{plain.metavar} ...",
        instance_from_str=lambda words: tuple(plain.instance_from_str([word]) for word in words),
        is_instance=lambda value: isinstance(value, tuple) and all(plain.is_instance(one) for one in value),
        str_from_instance=lambda value: [word for one in value for word in plain.str_from_instance(one)] or ["none"],
        choices=plain.choices,
    )


@REGISTRY.primitive_rule
def read_one_or_several(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Show `X | tuple[X, ...]` as `X ...`; a single value is an X."""
    options = get_args(info.type) if info.type_origin in (Union, UnionType) else ()
    if len(options) != 2 or options[1] != tuple[options[0], ...]:  # type: ignore[valid-type]
        return None
    one, several = _read_plain(options[0], info), _read_plain(options[1], info)
    if one is None or several is None:
        return None
    return replace(
        several,
        instance_from_str=lambda words: (one if len(words) == 1 else several).instance_from_str(words),
        is_instance=lambda value: one.is_instance(value) or several.is_instance(value),
        str_from_instance=lambda value: (several if isinstance(value, tuple) else one).str_from_instance(value),
    )


def _read_plain(kind: Any, info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Return how tyro reads a part of a type; None where that part is a group of flags."""
    found = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
    return None if isinstance(found, UnsupportedTypeAnnotationError) else found
