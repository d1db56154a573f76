"""Find recipes by name, by file, or in the config.json of an earlier run."""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar, overload

from unmask import recipes
from unmask.errors import ConfigError
from unmask.recipes.schema import AnyKind, Recipe, TextRecipe, TokenizerRecipe
from unmask.storage.config import from_json, load_json

AnyRecipe = TypeVar("AnyRecipe", bound=AnyKind)
COMMAND: dict[type, str] = {
    Recipe: "train",
    TextRecipe: "train (or, of a run, generate, infill, score or evaluate-text)",
    TokenizerRecipe: "train-tokenizer",
}
MARK = {"loss": TokenizerRecipe, "packing": TextRecipe}
"""The field by which a kind is told in config.json."""
WHOSE: dict[type, str] = {
    Recipe: "an image generator's",
    TextRecipe: "a text model's",
    TokenizerRecipe: "a tokenizer's",
}
ONCE: dict[type, dict[str, str]] = {
    TextRecipe: {},
    Recipe: {"tokenizer": "Pixels", "objective": "MaskGIT", "model": "TransformerConfig"},
    TokenizerRecipe: {"perceptual": "ClassifierConfig"},
}
"""What these fields held before they had a choice, in files that do not say."""


def names(kind: type = Recipe) -> list[str]:
    """The recipes that come with the package and that the command of this kind takes: tokenizers' end in -tokenizer."""
    found = sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(recipes.__path__))
    return [name for name in found if name.endswith("-tokenizer") == (kind is TokenizerRecipe)]


def load(name: str) -> Recipe | TextRecipe:
    """A generator's recipe, of images or of text; see `find`."""
    found = find(name, None)
    if isinstance(found, TokenizerRecipe):
        _refuse(found, name)
    return found  # type: ignore[return-value]


@overload
def find(name: str, kind: type[AnyRecipe]) -> AnyRecipe: ...
@overload
def find(name: str, kind: None) -> AnyKind: ...
def find(name: str, kind: type | None) -> AnyKind:
    """A recipe by name, by the path of a Python file with `recipe()`, or by the `config.json` of an earlier run.

    A Python file is run: only give one that you trust. Raises ConfigError with the nearest name, or, where the recipe
    is not of the `kind` asked for, the command that takes it.
    """
    path = Path(name)
    if path.suffix == ".json":
        return read_recipe(path, kind)
    if path.suffix == ".py":
        return _right(_from_file(path), kind, name)
    known = [*names(Recipe), *names(TokenizerRecipe)]
    if name not in known:
        near = get_close_matches(name, names(kind or Recipe), 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names(kind or Recipe))}."
        raise ConfigError(f"no recipe {name}: {hint} Or give the path of a .py recipe or of a run's config.json")
    module = importlib.import_module(f"{recipes.__name__}.{name.replace('-', '_')}")
    build: Callable[[], AnyKind] = module.recipe
    return _right(build(), kind, name)


@overload
def read_recipe(path: Path, kind: type[AnyRecipe]) -> AnyRecipe: ...
@overload
def read_recipe(path: Path, kind: None) -> AnyKind: ...
def read_recipe(path: Path, kind: type | None) -> AnyKind:
    """The recipe in a run's config.json, of any kind or of the one asked for."""
    data = load_json(path)
    if isinstance(data, dict) and "type" in data:
        raise ConfigError(
            f"{path} is of a tokenizer alone: take unmask tokenize, or convert a generator into a new folder, and then "
            "its tokenizer into that"
        )
    here = next((of for field, of in MARK.items() if isinstance(data, dict) and field in data), Recipe)
    if isinstance(data, dict):
        data = data | {
            name: {"type": only} | data[name]
            for name, only in ONCE[here].items()
            if isinstance(data.get(name), dict) and "type" not in data[name]
        }
    return _right(from_json(here, data, path.name), kind, str(path))


def _right(made: AnyKind, kind: type | None, name: str) -> AnyKind:
    if kind is not None and not isinstance(made, kind):
        _refuse(made, name)
    return made


def _refuse(made: AnyKind, name: str) -> None:
    raise ConfigError(f"{name} is {WHOSE[type(made)]} recipe: take unmask {COMMAND[type(made)]}")


def _from_file(path: Path) -> AnyKind:
    spec = importlib.util.spec_from_file_location("user_recipe", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{path}: no such recipe file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
        build = getattr(module, "recipe", None)
        made = build() if callable(build) else None
    except (SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(made, AnyKind):
        raise ConfigError(f"{path}: a recipe file needs a function recipe() that returns unmask.recipes.Recipe")
    return made
