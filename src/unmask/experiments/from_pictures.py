"""A training on codes that starts from a model with a tokenizer may be given pictures. That tokenizer makes codes of
them, once, in the run, where a continued run finds them."""

from dataclasses import dataclass, replace
from pathlib import Path

from unmask.data.image_files import Unreadable
from unmask.data.pictures import Split
from unmask.data.shards.dataset import META
from unmask.data.shards.tokenizing import CENTER, FLIP, PLAN
from unmask.data.sources.choice import Codes, Folder, resolve_paths
from unmask.errors import CheckpointError, ConfigError
from unmask.experiments.coded import make_codes
from unmask.experiments.finetune import origin
from unmask.experiments.images import check_classes, fitted
from unmask.pretrained.lone_tokenizer import read_tokenizer
from unmask.pretrained.networks import LearnedModel
from unmask.published.store import located
from unmask.recipes.reading import read_recipe
from unmask.recipes.schema import Recipe
from unmask.runtime.distributed import World
from unmask.runtime.progress import Progress
from unmask.storage.layout import TOKENIZER
from unmask.tokenizers.base import open_tokenizer
from unmask.tokenizers.pixels import Pixels
from unmask.training.runfolder import goes_on

CODES = "codes"
"""In a run: the codes of the pictures that it was given."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """Pictures that were opened, and the recipe with what follows from them filled in; its tokenizer is to make codes.

    `init` is the model that this tokenizer is of.
    """

    recipe: Recipe
    source: Folder
    split: Split
    init: str


def are_given(recipe: Recipe) -> bool:
    """Whether a recipe on codes that starts from a model names a folder that holds none."""
    if not recipe.init or not isinstance(recipe.data, Codes) or not recipe.data.path:
        return False
    folder = Path(recipe.data.path).expanduser()
    return folder.is_dir() and not any((folder / name).exists() for name in (META, PLAN))


def on_codes(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with the codes that `tokenize_given` makes in the run."""
    return replace(recipe, data=Codes(path=str(run / CODES)))


def open_given(recipe: Recipe, run: Path, num_classes: int | None, progress: Progress | None = None) -> Given:
    """Open the pictures; ConfigError where they, the model and the number of classes that was stated do not fit.

    Nothing is fetched or written for it. `run` is where they are to be trained on.
    """
    assert isinstance(recipe.data, Codes)
    assert recipe.init is not None
    theirs = origin(recipe.init, run)
    if theirs is None or isinstance(theirs.tokenizer, Pixels):
        raise ConfigError(
            f"{recipe.data.path} holds no codes, and {recipe.init} has no tokenizer to make them with: give a folder "
            "that unmask tokenize made"
        )
    config = theirs.tokenizer
    source = Folder(path=recipe.data.path, size=max(config.size), channels=config.channels)
    split = source.load(progress)
    check_classes(split.train.classes, num_classes, recipe.data.path)
    made = fitted(replace(recipe, tokenizer=config), split.train.classes)
    return Given(recipe=made, source=source, split=split, init=recipe.init)


def tokenize_given(given: Given, run: Path, world: World, progress: Progress | None = None) -> list[Unreadable]:
    """Make `run`/codes, or see that they are there and of these pictures; returns the pictures left out.

    By this process alone. Raises DataError if there are other codes, CheckpointError for another experiment in the run.
    """
    codes, config = run / CODES, run / "config.json"
    if config.exists():
        there = read_recipe(config, None)
        if not isinstance(there, Recipe) or resolve_paths(there.data) != resolve_paths(Codes(path=str(codes))):
            raise CheckpointError(f"{run} holds another experiment: give another --out, or delete the folder")
    _, bad = make_codes(
        given.source,
        _tokenizer(given, run),
        codes,
        views=(CENTER, FLIP),
        shard_size=4096,
        seed=0,
        batch=64,
        processes=1,
        world=World(0, 1, world.device),
        progress=progress,
        split=given.split,
    )
    return bad


def _tokenizer(given: Given, run: Path) -> LearnedModel:
    """That of the model to start from, which a run that goes on needs no more."""
    if goes_on(run):
        return read_tokenizer(run / CODES / "tokenizer")
    return open_tokenizer(given.recipe.tokenizer, located(given.init) / TOKENIZER)  # type: ignore[return-value]
