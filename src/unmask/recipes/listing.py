"""The names of the recipes in the package, and what their docstrings say of them, found without importing them."""

import ast
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path

_OTHER_MODULES = ("listing", "reading", "schema", "spec")


@dataclass(frozen=True)
class RecipeNote:
    """What the docstring of a recipe says of it."""

    name: str
    """Its name, as commands take it."""
    about: str
    """What it trains: the first line."""
    hardware: str
    """What it runs on."""
    duration: str
    """How long it takes, or that this is unknown."""
    kind: str
    """The class of the recipe: Recipe, TextRecipe or TokenizerRecipe."""


def list_recipe_names(*, tokenizers: bool = False) -> list[str]:
    """Return the names of the recipes that `unmask train` takes, or of those that `unmask train-tokenizer` takes."""
    modules = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    found = sorted(name.replace("_", "-") for name in modules if name not in _OTHER_MODULES)
    return [name for name in found if name.endswith("-tokenizer") == tokenizers]


def read_recipe_note(name: str) -> RecipeNote:
    """Read the docstring of a recipe: its first line, and the sentence "Runs on HARDWARE: DURATION."."""
    module = ast.parse((Path(__file__).parent / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8"))
    text = ast.get_docstring(module) or ""
    place = re.search(r"^Runs on (?:an? )?([^:]+): (.+)\.$", text, re.M)
    build = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "recipe")
    return RecipeNote(
        name=name,
        about=text.splitlines()[0].rstrip("."),
        hardware=place[1] if place else "",
        duration=place[2] if place else "",
        kind=ast.unparse(build.returns) if build.returns else "",
    )
