"""What `--help` shows beside the flags' own texts: how types and unset defaults are written, and two examples each."""

import shutil
import textwrap
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

EXAMPLES: dict[str, tuple[str, str]] = {
    "demo": ("unmask demo", "unmask demo --steps 200 --samples 300 --out runs/quick"),
    "data": ("unmask data photos", "unmask data photos --size 64 --sheet sheet.png"),
    "train": ("unmask train digits", "unmask train runs/digits --training.steps 2000"),
    "train-tokenizer": (
        "unmask train-tokenizer folder-tokenizer --data photos",
        "unmask train-tokenizer cifar10-tokenizer --training.steps 2000 --dry-run",
    ),
    "train-features": (
        "unmask train-features folder --data photos --out runs/photos-features",
        "unmask train-features digits --classifier.steps 300",
    ),
    "tokenize": (
        "unmask tokenize runs/folder-tokenizer --crops 2",
        "unmask tokenize besnier-256 --data photos --out codes/photos",
    ),
    "tokenize-text": (
        "unmask tokenize-text shakespeare --data tinyshakespeare.txt",
        "unmask tokenize-text tinystories --data stories.txt --data.test held-out.txt",
    ),
    "sample": (
        "unmask sample runs/demo --labels 3 --num 20 --steps 4",
        "unmask sample besnier-256 --labels 207 --num 4 --preset besnier-256-8",
    ),
    "inpaint": (
        "unmask inpaint runs/demo digit.png --box 2 2 4 4 --label 3",
        "unmask inpaint besnier-256 photo.jpg --mask mask.png --variants 2",
    ),
    "generate": (
        'unmask generate runs/shakespeare --prompt "ROMEO:"',
        "unmask generate runs/tinystories --num 2 --steps 32 --html stories.html",
    ),
    "infill": (
        'unmask infill runs/tinystories "The [MASK:12] dog ran to the [MASK:3]."',
        'unmask infill runs/shakespeare "To be, or [MASK:30] question." --num 1',
    ),
    "evaluate": (
        "unmask evaluate runs/demo --samples 1500",
        "unmask evaluate besnier-256 --data codes/imagenet --features inception",
    ),
    "evaluate-tokenizer": (
        "unmask evaluate-tokenizer runs/folder-tokenizer",
        "unmask evaluate-tokenizer besnier-256 --data photos --pictures 2000",
    ),
    "evaluate-inpaint": (
        "unmask evaluate-inpaint runs/demo --images 200",
        "unmask evaluate-inpaint runs/demo --schedules cosine linear --stops 4",
    ),
    "evaluate-text": (
        "unmask evaluate-text runs/shakespeare --steps 4 16 64 --samples 50",
        "unmask evaluate-text runs/shakespeare --orders halton raster",
    ),
    "sweep": (
        "unmask sweep runs/demo --samples 1500 --steps 1 4 16",
        "unmask sweep runs/demo --orders halton confidence --scales 1 2 4",
    ),
    "score": (
        "unmask score runs/demo",
        "unmask score runs/shakespeare --orders halton raster --steps 4 16 64 --rows 64",
    ),
    "schedule": (
        "unmask schedule --shape cosine --tokens 256 --steps 8",
        "unmask schedule --style halton --tokens 576 --steps 32 --json",
    ),
    "models": ("unmask models", "unmask models besnier-256"),
    "fetch": ("unmask fetch besnier-256", "unmask fetch titok-l32 --weights downloads"),
    "convert": (
        "unmask convert maskgit.pth --family valeoai-v1 --out models/mine",
        "unmask convert vqgan.ckpt --family taming-vqgan --out models/mine",
    ),
    "export": (
        "unmask export runs/demo --out exports/demo",
        "unmask export besnier-256 --out exports/besnier-256 --offline",
    ),
}
"""Two commands each, which run as they stand once the runs and files in them are there."""

WIDTH = 80
"""Columns that printed sentences fill at most."""
UNSET = "unset"
"""How help shows the default None. The text of such a flag says what happens then."""
REGISTRY = ConstructorRegistry()
"""How tyro reads and shows the types of flags."""


def wrap(text: str) -> str:
    """Break a sentence into lines that fit a terminal; the second and later ones are indented."""
    width = min(WIDTH, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def make_sentence(phrase: str) -> str:
    """Return a phrase with a capital letter and a full stop, in lines that fit a terminal."""
    return wrap(f"{phrase[:1].upper()}{phrase[1:].rstrip('.')}.")


def print_examples(command: str) -> None:
    """Print the examples of a command, the last lines of its help."""
    if command in EXAMPLES:
        print("examples:", *EXAMPLES[command], sep="\n  ")


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
