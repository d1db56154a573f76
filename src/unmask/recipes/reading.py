"""Find recipes by name, by file, or in the config.json of an earlier run."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, overload

from unmask import recipes
from unmask.data.sources.choice import Codes, fill_arrangement
from unmask.errors import CheckpointError, ConfigError
from unmask.pretrained.networks import LoneTokenizer, parse_lone_tokenizer
from unmask.recipes.listing import list_recipe_names
from unmask.recipes.schema import AnyRecipe, MeasuredModel, Recipe, TextRecipe, TokenizerRecipe
from unmask.recipes.spec import ModelSpec, TextModelSpec, narrow_to
from unmask.storage.config import from_json, load_json, to_json, write_json
from unmask.storage.layout import CONFIG

AnyConfig = Recipe | TextRecipe | TokenizerRecipe | MeasuredModel | ModelSpec | TextModelSpec | LoneTokenizer
"""What a config.json may hold."""
Kinds = Any
"""A class or a union of classes, as `isinstance` takes them."""
Wanted = TypeVar("Wanted", bound=AnyConfig)
WantedRecipe = TypeVar("WantedRecipe", bound=AnyRecipe)
CONFIG_KINDS: dict[str, type[AnyConfig]] = {
    "image-recipe": Recipe,
    "text-recipe": TextRecipe,
    "tokenizer-recipe": TokenizerRecipe,
    "measured-model": MeasuredModel,
    "image-model": ModelSpec,
    "text-model": TextModelSpec,
}
"""The field "kind" of a config.json."""
EARLIER_KINDS: dict[str, type[AnyConfig]] = {"loss": TokenizerRecipe, "packing": TextRecipe, "data": Recipe}
"""The field that tells the kind in files written before there was a "kind"."""
KIND_TITLES: dict[type, tuple[str, str]] = {
    Recipe: ("the recipe of an image model", "train (or, for a run, sample, inpaint, evaluate, sweep or score)"),
    TextRecipe: ("the recipe of a text model", "train (or, for a run, generate, infill, score or evaluate-text)"),
    TokenizerRecipe: ("the recipe of a tokenizer", "train-tokenizer (or, for a run, tokenize or evaluate-tokenizer)"),
    MeasuredModel: ("an image model trained elsewhere", "evaluate"),
    ModelSpec: ("an image model", "sample"),
    TextModelSpec: ("a text model", "generate"),
    LoneTokenizer: (
        "a tokenizer alone",
        "tokenize, or convert a generator into a new folder, then its tokenizer into it",
    ),
}
"""What each kind is called, and the command that takes it."""
EARLIER_TYPES: dict[type, dict[str, str]] = {
    Recipe: {"tokenizer": "Pixels", "objective": "MaskGIT", "model": "TransformerConfig"},
    TokenizerRecipe: {"perceptual": "ClassifierConfig"},
    TextRecipe: {"model": "TransformerConfig"},
    TextModelSpec: {"model": "TransformerConfig"},
}
"""The types of fields that had no choice when older files were written."""


def list_recipes(kind: type = Recipe) -> list[str]:
    """Return the names of the recipes in the package that the command of this kind takes."""
    return list_recipe_names(tokenizers=kind is TokenizerRecipe)


def load_recipe(name: str) -> Recipe | TextRecipe:
    """Return the recipe of an image or text model; see `find_recipe`."""
    return find_recipe(name, Recipe | TextRecipe)


@overload
def find_recipe(name: str, kind: type[WantedRecipe]) -> WantedRecipe: ...
@overload
def find_recipe(name: str, kind: Kinds = ...) -> Any: ...
def find_recipe(name: str, kind: Kinds = AnyRecipe) -> Any:
    """Return a recipe by name, by the path of a .py file with `recipe()`, or by an earlier run or its config.json.

    A .py file is executed: only give one that you trust.

    Raises:
        ConfigError: There is no such recipe (with the nearest name), or it is of another kind (with the command that
            takes it).

    Examples:
        >>> recipe = unmask.recipe("digits")
        >>> recipe.model.depth, recipe.training.batch_size
        (4, 64)
    """
    if not isinstance(name, str | Path):
        raise ConfigError(f"{name!r} is no name of a recipe: give one of {', '.join(list_recipes())}, or a run")
    path, name = Path(name), str(name)
    if path.suffix == ".json":
        return read_config(path, kind)
    if path.suffix == ".py":
        return _check_kind(_from_file(path), kind, name)
    known = [*list_recipes(Recipe), *list_recipes(TokenizerRecipe)]
    if _is_folder(name):
        if not has_config(path):
            raise ConfigError(f"{name} has no {CONFIG}: give the directory of a run, or a recipe")
        return read_config(path / CONFIG, kind)
    if name not in known:
        fitting = list_recipes(TokenizerRecipe if kind is TokenizerRecipe else Recipe)
        near = get_close_matches(name, fitting, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(fitting)}."
        raise ConfigError(f"no recipe {name}: {hint} Or give a run, its config.json, or the path of a .py recipe")
    module = importlib.import_module(f"{recipes.__name__}.{name.replace('-', '_')}")
    build: Callable[[], AnyRecipe] = module.recipe
    return _check_kind(build(), kind, name)


def check_recipe(recipe: object, kind: Kinds) -> None:
    """Raise ConfigError for what is no recipe of the kind that a function takes, such as the name of one."""
    if isinstance(recipe, str | Path):
        raise ConfigError(f"{str(recipe)!r} is the name of a recipe: give unmask.recipe({str(recipe)!r})")
    if type(recipe) not in KIND_TITLES:
        raise ConfigError(f"a recipe of type {type(recipe).__name__}: give what unmask.recipe(NAME) returns")
    _check_kind(recipe, kind, "this")  # type: ignore[arg-type]


def find_run(name: str) -> Path:
    """Return the run directory that the name of a recipe implies: the run itself, or one of this name in runs/."""
    path = Path(name)
    if path.suffix == ".json":
        return path.parent
    return path if _is_folder(name) else Path("runs") / path.stem


def _is_folder(name: str) -> bool:
    """Return whether this names a folder, and no recipe of the package, which comes first."""
    return name not in (*list_recipes(Recipe), *list_recipes(TokenizerRecipe)) and Path(name).is_dir()


def dump_config(config: AnyConfig) -> dict[str, Any]:
    """Return the JSON form of a recipe or spec, with its kind. `read_config` reads it."""
    if isinstance(config, LoneTokenizer):
        return to_json(config)["tokenizer"]
    kind = next(name for name, cls in CONFIG_KINDS.items() if type(config) is cls)
    return {"kind": kind, **to_json(config)}


def write_config(config: AnyConfig, folder: Path) -> None:
    """Write `folder`/config.json."""
    write_json(folder / CONFIG, dump_config(config))


def has_config(folder: Path) -> bool:
    """Return whether `folder` is a run, an export or a converted model."""
    return (folder / CONFIG).is_file()


@overload
def read_config(path: Path, kind: type[Wanted]) -> Wanted: ...
@overload
def read_config(path: Path, kind: Kinds = ...) -> Any: ...
def read_config(path: Path, kind: Kinds = AnyConfig) -> Any:
    """Read the config.json of a run, an export, a published model or a lone tokenizer.

    Args:
        path: The file.
        kind: The class, or union of classes, to accept. A recipe is accepted where its spec is asked for.

    Raises:
        CheckpointError: The file is damaged: no JSON object is in it.
        ConfigError: The file is missing, a field is wrong, or it holds another kind; the message names the command
            that takes it.
    """
    try:
        data = load_json(path)
    except ConfigError as error:
        if not path.is_file():
            raise
        raise CheckpointError(f"{error}; restore it from a copy, or make the run again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object; restore it from a copy, or make the run again")
    return parse_config(data, kind, str(path))


def parse_config(data: object, kind: Kinds, name: str) -> Any:
    """Return the recipe or spec in the JSON data of a config.json, as `read_config` does.

    Args:
        data: The JSON data.
        kind: The class, or union of classes, to accept.
        name: Where the data is from, for errors.
    """
    if (isinstance(data, dict) and "type" in data) or not isinstance(data, dict):
        return _check_kind(parse_lone_tokenizer(data), kind, name)
    data = dict(data)
    tag = data.pop("kind", None)
    if tag is not None and tag not in CONFIG_KINDS:
        raise ConfigError(f"{name}: kind {tag!r} is unknown here: it was written by a newer version of unmask")
    known = (cls for field, cls in EARLIER_KINDS.items() if field in data)
    here = CONFIG_KINDS[tag] if tag is not None else next(known, Recipe)
    for field, only in EARLIER_TYPES.get(here, {}).items():
        if isinstance(data.get(field), dict) and "type" not in data[field]:
            data[field] = {"type": only} | data[field]
    if "data" in data:
        data["data"] = fill_arrangement(data["data"])
    found: Any = from_json(here, data, name)
    if isinstance(found, Recipe) and found.data == Codes(path=""):  # how a model without a training was once written
        found = narrow_to(ModelSpec, found)
    return _check_kind(found, kind, name)


def _check_kind(found: AnyConfig, kind: Kinds, name: str) -> AnyConfig:
    if isinstance(found, kind):
        return found
    what, command = KIND_TITLES[type(found)]
    if isinstance(kind, type) and type(found) in kind.__bases__:
        raise ConfigError(f"{name} is {what} without its training recipe: give the run that trained it")
    raise ConfigError(f"{name} is {what}: use unmask {command}")


def _from_file(path: Path) -> AnyRecipe:
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
    if not isinstance(made, AnyRecipe):
        raise ConfigError(f"{path}: a recipe file needs a function recipe() that returns a Recipe of unmask.recipes")
    return made
