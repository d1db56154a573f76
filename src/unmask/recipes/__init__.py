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
from typing import Annotated, Literal, TypeVar, overload

import tyro

from unmask.config import from_json, load_json
from unmask.critic import WithCritic
from unmask.data.sources import Codes, Source
from unmask.data.text import HubText, TextFile
from unmask.decoding import FromCritic, Order, Sampling, ValeoaiV1
from unmask.errors import ConfigError
from unmask.metrics.features import ClassifierConfig
from unmask.models.transformer import TransformerConfig
from unmask.objectives import MaskedDiffusion, MaskGIT, Objective
from unmask.pretrained.amused import Amused
from unmask.pretrained.networks import GeneratorConfig, LearnedConfig
from unmask.tokenizers.losses import TokenizerLoss
from unmask.tokenizers.lpips import LpipsFiles
from unmask.tokenizers.pixels import Pixels
from unmask.tokenizers.text import BPE, Bytes, Characters
from unmask.tokenizers.vqgan import VQGAN
from unmask.training.loop import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about an experiment. With `conditional`, model.num_classes is taken from the data set's classes.

    Pictures are tokenized as the run starts, by Pixels; Codes were made before, and bring their tokenizer with them.
    `unigram` starts the head at the tokens' own frequencies, so the first loss is their entropy instead of log K.
    `classes` are the names of the data set's, `tokenizer_sha256` tells a learned tokenizer: both are filled in from it.
    `init`: a run, an export or a published model to start from; "" is one that has to be named.
    """

    data: Source | Codes
    tokenizer: Pixels | LearnedConfig
    model: GeneratorConfig | Amused = TransformerConfig()
    objective: Objective | WithCritic = MaskGIT()
    training: TrainConfig = TrainConfig()
    sampling: Sampling = Sampling()
    classifier: ClassifierConfig = ClassifierConfig(channels=1, num_classes=10)
    conditional: bool = True
    """Whether to learn classes, where the data has some."""
    unigram: bool = True
    """Whether the head starts at the tokens' own frequencies."""
    classes: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    tokenizer_sha256: Annotated[str | None, tyro.conf.Suppress] = None
    init: str | None = None
    """A run, an export, one of unmask models or hf-hub:OWNER/NAME to start from."""

    def __post_init__(self) -> None:
        _check_parts(self.objective, self.model, self.sampling)


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


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """Everything about an experiment on text, which becomes rows of `tokenizer.context` tokens.

    `packing`: a "stream" of documents, one after another with an end token between, cut into rows; or "documents", one
    a row, which needs a `padded` model. `documents` counts those of the corpus, `text_sha256` tells its tokens and
    `tokenizer_sha256` the tokenizer: all are filled in from the data. `unigram` and `init` as in Recipe.
    """

    data: TextFile | HubText
    tokenizer: Characters | Bytes | BPE
    packing: Literal["stream", "documents"] = "stream"
    model: TransformerConfig = TransformerConfig()
    objective: Objective | WithCritic = MaskedDiffusion()
    training: TrainConfig = TrainConfig()
    sampling: Sampling = Sampling()
    unigram: bool = True
    documents: Annotated[int, tyro.conf.Suppress] = 0
    text_sha256: Annotated[str | None, tyro.conf.Suppress] = None
    tokenizer_sha256: Annotated[str | None, tyro.conf.Suppress] = None
    init: str | None = None

    def __post_init__(self) -> None:
        if self.packing == "documents" and not self.model.padded:
            raise ValueError("packing documents: rows end early, so --model.padded is needed")
        if self.model.num_classes:
            raise ValueError(f"model.num_classes {self.model.num_classes}: text has no classes; leave it at 0")
        _check_parts(self.objective, self.model, self.sampling)

    @property
    def opens(self) -> bool:
        """Whether a text begins after an end token: so in a stream of many documents."""
        return self.packing == "stream" and self.documents > 1


def _check_parts(objective: Objective | WithCritic, model: GeneratorConfig | Amused, sampling: Sampling) -> None:
    """ValueError for a part of the network that nothing trains, or that is asked for and not there."""
    judged = isinstance(objective, WithCritic)
    generator = objective.generator if isinstance(objective, WithCritic) else objective
    if not isinstance(model, TransformerConfig):
        if judged or generator.self_condition or isinstance(sampling.priority, FromCritic):
            raise ValueError(f"{type(model).__name__} has no critic and no self-conditioning: our own network has")
        return
    if model.critic == "only":
        raise ValueError('model.critic "only" predicts no tokens: it is for `critic.Critic`, not for a recipe')
    if judged != (model.critic in ("head", "separate")):
        raise ValueError(f'model.critic "{model.critic}": "head" or "separate" goes with the objective WithCritic')
    if bool(generator.self_condition) != model.self_condition:
        raise ValueError(
            f"objective.self_condition {generator.self_condition} and model.self_condition {model.self_condition}: "
            "a share above 0 and the layer go together"
        )
    if isinstance(sampling.priority, FromCritic) and not judged:
        raise ValueError("sampling.priority FromCritic: this model has no critic; train it with WithCritic")


__all__ = [
    "AnyKind", "FromCritic", "Order", "Recipe", "Sampling", "TextRecipe", "TokenizerRecipe", "ValeoaiV1", "find",
    "load", "names", "read_recipe",
]  # fmt: skip

AnyKind = Recipe | TokenizerRecipe | TextRecipe
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
    found = sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__))
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
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
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
