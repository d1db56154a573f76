"""Recipes: one Python file per experiment, each with a function `recipe()` that returns the full configuration.

The docstring of a recipe states its command, hardware, time and expected result. A recipe is plain data: saved as
`config.json`, it rebuilds the model and repeats the run.
"""

from unmask.decoding.sampling import Sampling
from unmask.recipes.schema import Recipe, TextRecipe, TokenizerRecipe

__all__ = ["Recipe", "Sampling", "TextRecipe", "TokenizerRecipe"]
