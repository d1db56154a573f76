"""Every number of every configuration has bounds: what nothing could compute is refused at once, in one line."""

import math
import time
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from unmask.data.sources.choice import Arrays, Codes, Digits
from unmask.data.sources.folders import Folder
from unmask.data.sources.hub import HubImages
from unmask.data.sources.webdataset import Shards
from unmask.data.text.sources import HubText, TextFile
from unmask.decoding.rules import (
    LAGGING,
    AnnealedConfidence,
    AnnealedLogit,
    DrawnLogit,
    LastPassRamp,
    RolledHalton,
    StepConfidence,
)
from unmask.decoding.sampling import ListedCounts, Sampling
from unmask.errors import ConfigError, check_ranges
from unmask.method.models.transformer import TransformerConfig
from unmask.method.ramps import CosineRamp, Interval, LinearRamp
from unmask.method.sampling.adaptive import EntropyBound
from unmask.method.sampling.extra_priorities import MarginRepulsion
from unmask.method.sampling.priorities import Halton
from unmask.method.sampling.remasking import Cap, Rescale
from unmask.method.schedules import Exp, Log
from unmask.metrics.features import ClassifierConfig
from unmask.metrics.judge import JudgeConfig
from unmask.pretrained.lone_tokenizer import LoneTokenizer
from unmask.recipes.reading import CONFIG_KINDS, find_recipe, list_recipes
from unmask.recipes.schema import MeasuredModel, Recipe, TextRecipe, TokenizerRecipe
from unmask.recipes.spec import ModelSpec, NamedSampling, TextModelSpec
from unmask.storage.config import from_json, to_json
from unmask.tokenizers.pixels import Pixels
from unmask.tokenizers.text import Bytes
from unmask.tokenizers.vqgan import VQGAN

NEEDED: dict[type, dict[str, Any]] = {
    Pixels: {"size": (8, 8)},
    Log: {"tokens": 16},
    Exp: {"tokens": 16},
    Halton: {"grid": (4, 4)},
    RolledHalton: {"grid": (4, 4)},
    MarginRepulsion: {"grid": (4, 4), "radius": 1},
    StepConfidence: {"noises": (1.0, 2.0), "temperatures": (1.0, 2.0)},
    DrawnLogit: {"noises": (1.0, 2.0)},
    AnnealedConfidence: {"noise": 1.0, "rule": LAGGING},
    AnnealedLogit: {"noise": 1.0},
    LastPassRamp: {"scale": 2.0},
    ListedCounts: {"counts": (1, 3)},
    NamedSampling: {"name": "tuned-2", "sampling": Sampling()},
    Interval: {"scale": 2.0},
    LinearRamp: {"scale": 2.0},
    CosineRamp: {"scale": 2.0},
    Cap: {"eta": 0.5},
    Rescale: {"eta": 0.5},
    EntropyBound: {"gamma": 1.0},
    ClassifierConfig: {"channels": 1, "num_classes": 10},
    **{cls: {"path": "pictures"} for cls in (Arrays, Codes, Folder, Shards, TextFile)},
    **{cls: {"name": "owner/name"} for cls in (HubImages, HubText)},
    Recipe: {"tokenizer": Pixels(size=(8, 8)), "data": Digits()},
    MeasuredModel: {"tokenizer": Pixels(size=(8, 8)), "model": TransformerConfig(), "data": Digits()},
    ModelSpec: {"tokenizer": Pixels(size=(8, 8)), "model": TransformerConfig()},
    TextModelSpec: {"tokenizer": Bytes()},
    TextRecipe: {"tokenizer": Bytes(), "data": find_recipe("shakespeare").data},
}
"""What a class needs besides its defaults."""
ANYTHING = {"seed", "documents"}
"""Whole numbers that change no size and no time."""
SOURCES = (Arrays, Digits, Folder, HubImages, Shards)
"""Their seed goes to NumPy, which takes any whole number."""
UNLIMITED = {"clip"}
"""Numbers that may be infinite: an infinite largest norm clips nothing."""


def is_number(hint: Any) -> bool:
    if get_origin(hint) is Callable:
        return False
    return hint in (int, float) or any(is_number(part) for part in get_args(hint) if not is_dataclass(part))


def find_configs(hint: Any, found: dict[type, list[str]]) -> dict[type, list[str]]:
    """Return the configuration classes that an annotation leads to, with their fields of numbers."""
    if not is_dataclass(hint):
        for part in get_args(hint):
            find_configs(part, found)
    elif hint not in found:
        hints = {field.name: get_type_hints(hint)[field.name] for field in fields(hint) if field.init}
        found[hint] = [name for name, part in hints.items() if is_number(part)]
        for part in hints.values():
            find_configs(part, found)
    return found


CONFIGS: dict[type, list[str]] = {}
for kind in (*CONFIG_KINDS.values(), LoneTokenizer, JudgeConfig):
    find_configs(kind, CONFIGS)
FIELDS = [(cls, name) for cls, names in CONFIGS.items() for name in names]


def make(cls: type) -> Any:
    return cls(**NEEDED.get(cls, {}))


def change(config: Any, name: str, number: float) -> list[Any]:
    """Return the values of a field with a number in it: alone, or as each item of a tuple."""
    hint, old = get_type_hints(type(config))[name], getattr(config, name)
    kind = float if "float" in str(hint) else int
    number = kind(number)
    if not isinstance(old, tuple):
        return [number]
    return [tuple(number if i == at else item for i, item in enumerate(old)) for at in range(len(old))] or [(number,)]


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name in FIELDS])
def test_an_absurd_number_is_refused_at_once(cls, name):
    config, began = make(cls), time.perf_counter()
    whole = "float" not in str(get_type_hints(cls)[name])
    numbers = [-(10**12), 10**12, 10**30] if whole else [-1e30, 1e30, math.inf, -math.inf]
    if name in ANYTHING:
        numbers = [10**30] if cls not in SOURCES else []
    if name in UNLIMITED:
        numbers = [-1e30, -math.inf]
    for number in numbers:
        for value in change(config, name, number):
            with pytest.raises((ValueError, ConfigError)) as refused:
                replace(config, **{name: value})
            assert "\n" not in str(refused.value)
    assert time.perf_counter() - began < 1


def test_the_walk_finds_the_classes_that_a_recipe_holds():
    names = {cls.__name__ for cls in CONFIGS}
    assert {"TransformerConfig", "TrainConfig", "Sampling", "VQGAN", "FSQ", "Muon", "Amused", "JudgeConfig"} <= names
    assert len(FIELDS) > 150


def test_every_class_with_a_number_can_be_made():
    for cls in CONFIGS:
        required = {field.name for field in fields(cls) if field.default is field.default_factory is MISSING}
        assert required <= set(NEEDED.get(cls, {})) or not CONFIGS[cls], cls


@pytest.mark.parametrize("name", [*list_recipes(), *list_recipes(TokenizerRecipe)])
def test_the_recipes_of_the_package_are_within_the_bounds(name):
    recipe = find_recipe(name)
    assert from_json(type(recipe), to_json(recipe)) == recipe


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (TransformerConfig, {"dim": 1_048_576}),
        (TransformerConfig, {"depth": 1_000_000_000}),
        (VQGAN, {"size": [1_048_576, 1_048_576]}),
    ],
)
def test_absurd_sizes_in_a_file_are_refused_with_their_place(cls, values):
    with pytest.raises(ConfigError, match=rf"^config: {cls.__name__}\({next(iter(values))}=.*: must be from 1 to"):
        from_json(cls, values)


def test_the_largest_depth_is_built_within_seconds():
    import torch

    with torch.device("meta"):
        assert len(TransformerConfig(depth=1024).build(16, (4, 4)).blocks) == 1024


def test_bounds_are_inclusive_and_none_passes():
    check_ranges(Sampling(top_k=None, steps=8), {"top_k": (1, 5), "steps": (8, 8)})
    with pytest.raises(ValueError, match=r"^Sampling\(steps=8\): must be from 1 to 7$"):
        check_ranges(Sampling(steps=8), {"steps": (1, 7)})


def test_a_fraction_where_a_whole_number_belongs_is_named_at_once():
    @dataclass(frozen=True)
    class Cells:
        radius: int | None
        grid: tuple[int, ...]
        share: float

    ranges = {"radius": (0, 9), "grid": (1, 9), "share": (0, 1)}
    check_ranges(Cells(None, (4, 4), 1), ranges)
    check_ranges(Cells(1, (4, 4), 0.5), ranges)
    with pytest.raises(ValueError, match=r"^Cells\(radius=1.0\): give a whole number$"):
        check_ranges(Cells(1.0, (4, 4), 0.5), ranges)
    with pytest.raises(ValueError, match=r"^Cells\(grid=\(4, 4.0\)\): give a whole number$"):
        check_ranges(Cells(1, (4, 4.0), 0.5), ranges)
