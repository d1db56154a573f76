"""Recipes: one Python file per experiment, each with a function `recipe()` that returns the full configuration.

The docstring of a recipe holds its command, hardware, time and expected result. A recipe is plain data: saved as
`config.json` it rebuilds the model and repeats the run.
"""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from unmask.config import from_json, load_json
from unmask.data.sources import Codes, Source
from unmask.errors import ConfigError
from unmask.guidance import CosineRamp, Interval, LinearRamp
from unmask.metrics.features import ClassifierConfig
from unmask.models.transformer import TransformerConfig
from unmask.objectives import MaskGIT
from unmask.sampling.priorities import Confidence, Entropy, Halton, Margin, MaxLogit, Random, Raster
from unmask.schedules import Arccos, Cosine, Shape, ratios, ratios_from_counts, valeoai_v1
from unmask.tokenizers.losses import TokenizerLoss
from unmask.tokenizers.lpips import LpipsFiles
from unmask.tokenizers.pixels import Pixels
from unmask.tokenizers.vqgan import VQGAN
from unmask.training.loop import TrainConfig

Order = Confidence | Halton | Random | Margin | Entropy | MaxLogit | Raster


@dataclass(frozen=True, kw_only=True)
class ValeoaiV1:
    """The counts of `schedules.valeoai_v1`: `shape` says how many tokens a step reveals, not how many stay masked."""

    shape: Shape = Arccos()


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to decode: each field is an argument of `decode` or `guided`, as data. Interval(s) is a constant scale s."""

    steps: int = 8
    schedule: Shape | ValeoaiV1 = Cosine()
    priority: Order = Confidence()
    temperature: float | tuple[float, ...] = 1.0
    scale: Interval | LinearRamp | CosineRamp = Interval(scale=1.0)
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        many = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        if self.steps < 1 or not all(0 <= x < float("inf") for x in many):
            raise ValueError(f"sampling: steps={self.steps} must be at least 1, temperature={many} finite and >= 0")
        if (self.top_k is not None and self.top_k < 1) or (self.top_p is not None and not 0 < self.top_p <= 1):
            raise ValueError(f"sampling: top_k={self.top_k} must be at least 1, and top_p={self.top_p} lie in (0, 1]")

    def ratios(self, tokens: int) -> list[float]:
        """The fractions still masked after each step, for a canvas of so many tokens."""
        if isinstance(self.schedule, ValeoaiV1):
            return ratios_from_counts(valeoai_v1(tokens, self.steps, self.schedule.shape))
        return ratios(self.schedule, self.steps)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about an experiment. With `conditional`, model.num_classes is taken from the data set's classes.

    Pictures are tokenized as the run starts, by Pixels; Codes were made before, and bring their tokenizer with them.
    `unigram` starts the head at the tokens' own frequencies, so the first loss is their entropy instead of log K.
    `classes` are the names of the data set's, `tokenizer_sha256` tells a learned tokenizer: both are filled in from it.
    `init`: a run or an export to start from.
    """

    data: Source | Codes
    tokenizer: Pixels | VQGAN
    model: TransformerConfig = TransformerConfig()
    objective: MaskGIT = MaskGIT()
    training: TrainConfig = TrainConfig()
    sampling: Sampling = Sampling()
    classifier: ClassifierConfig = ClassifierConfig(channels=1, num_classes=10)
    conditional: bool = True
    unigram: bool = True
    classes: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    tokenizer_sha256: Annotated[str | None, tyro.conf.Suppress] = None
    init: str | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """Everything about a tokenizer's training. `flip`: mirror half of the pictures.

    `perceptual` names the network whose features the reconstructions are to share: a classifier, trained on the same
    pictures if they have class labels, or the published LPIPS; null is none. `classifier` judges them later.
    """

    data: Source
    tokenizer: VQGAN
    loss: TokenizerLoss = TokenizerLoss()
    perceptual: ClassifierConfig | LpipsFiles | None = None
    classifier: ClassifierConfig = ClassifierConfig(channels=3, num_classes=10)
    flip: bool = True
    training: TrainConfig = TrainConfig()


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe | TokenizerRecipe)
COMMAND = {Recipe: "train", TokenizerRecipe: "train-tokenizer"}
ONCE: dict[type, dict[str, str]] = {
    Recipe: {"tokenizer": "Pixels"},
    TokenizerRecipe: {"perceptual": "ClassifierConfig"},
}
"""What these fields held before they had a choice, in files that do not say."""


def names(kind: type = Recipe) -> list[str]:
    """The recipes of a kind that come with the package: those of tokenizers end in -tokenizer."""
    found = sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__))
    return [name for name in found if name.endswith("-tokenizer") == (kind is TokenizerRecipe)]


def load(name: str) -> Recipe:
    """A generator's recipe; see `find`."""
    return find(name, Recipe)


def find(name: str, kind: type[AnyRecipe]) -> AnyRecipe:
    """A recipe by name, by the path of a Python file with `recipe()`, or by the `config.json` of an earlier run.

    A Python file is run: only give one that you trust. Raises ConfigError with the nearest name, or the command that
    takes the other kind.
    """
    path = Path(name)
    if path.suffix == ".json":
        return read_recipe(path, kind)
    if path.suffix == ".py":
        return _right(_from_file(path), kind, name)
    known = [*names(Recipe), *names(TokenizerRecipe)]
    if name not in known:
        near = get_close_matches(name, names(kind), 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names(kind))}."
        raise ConfigError(f"no recipe {name}: {hint} Or give the path of a .py recipe or of a run's config.json")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    build: Callable[[], Recipe | TokenizerRecipe] = module.recipe
    return _right(build(), kind, name)


def read_recipe(path: Path, kind: type[AnyRecipe]) -> AnyRecipe:
    """The recipe in a run's config.json."""
    data = load_json(path)
    other = TokenizerRecipe if kind is Recipe else Recipe
    if isinstance(data, dict) and ("loss" in data) != (kind is TokenizerRecipe):
        _refuse(other, str(path))
    if isinstance(data, dict):
        data = data | {
            name: {"type": only} | data[name]
            for name, only in ONCE[kind].items()
            if isinstance(data.get(name), dict) and "type" not in data[name]
        }
    return from_json(kind, data, path.name)


def _right(made: Recipe | TokenizerRecipe, kind: type[AnyRecipe], name: str) -> AnyRecipe:
    if not isinstance(made, kind):
        _refuse(type(made), name)
    return made  # type: ignore[return-value]


def _refuse(kind: type, name: str) -> None:
    what = "a tokenizer's" if kind is TokenizerRecipe else "a generator's"
    raise ConfigError(f"{name} is {what} recipe: unmask {COMMAND[kind]} takes it")


def _from_file(path: Path) -> Recipe | TokenizerRecipe:
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
    if not isinstance(made, Recipe | TokenizerRecipe):
        raise ConfigError(f"{path}: a recipe file needs a function recipe() that returns unmask.recipes.Recipe")
    return made
