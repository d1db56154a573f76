"""Recipes: one Python file per experiment, each with a function `recipe()` that returns the full configuration.

The docstring of a recipe states its command, hardware, time and expected result. A recipe is plain data: saved as
`config.json`, it rebuilds the model and repeats the run.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.decoding.sampling import Sampling
    from unmask.recipes.schema import Recipe, TextRecipe, TokenizerRecipe

__all__ = ["Recipe", "Sampling", "TextRecipe", "TokenizerRecipe"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = "unmask.decoding.sampling" if name == "Sampling" else "unmask.recipes.schema"
    return getattr(importlib.import_module(place), name)  # at its first use: recipes are listed without torch
