"""A training on codes that starts from a model with a tokenizer may be given pictures. That tokenizer makes codes of
them, once, in the run, where a continued run finds them."""

from dataclasses import dataclass, replace
from pathlib import Path

from unmask.data.fingerprint import STRICT, DataPolicy
from unmask.data.image_files import Unreadable
from unmask.data.pictures import Split
from unmask.data.shards.dataset import META
from unmask.data.shards.tokenizing import CENTER, FLIP, PLAN
from unmask.data.sources.choice import Codes, Folder
from unmask.errors import CheckpointError, ConfigError
from unmask.experiments.coded import make_codes
from unmask.experiments.images import check_classes, fit_to_data
from unmask.pretrained.lone_tokenizer import LearnedModel, read_lone_tokenizer
from unmask.published.opening import OpenedModel
from unmask.recipes.reading import read_config
from unmask.recipes.schema import Recipe
from unmask.recipes.spec import ModelSpec
from unmask.runtime.distributed import World
from unmask.runtime.progress import Progress
from unmask.storage.layout import CONFIG
from unmask.tokenizers.base import open_tokenizer
from unmask.tokenizers.pixels import Pixels
from unmask.training.runfolder import has_checkpoint

CODES = "codes"
"""In a run: the codes of the pictures that it was given."""


@dataclass(frozen=True, kw_only=True)
class GivenImages:
    """Opened images, the recipe with what follows from them filled in, and the model whose tokenizer to use."""

    recipe: Recipe
    source: Folder
    split: Split
    start: OpenedModel


def has_given_images(recipe: Recipe) -> bool:
    """Return whether a recipe that starts from a model names a folder of images in place of a token dataset."""
    if not recipe.init or not isinstance(recipe.data, Codes) or not recipe.data.path:
        return False
    folder = Path(recipe.data.path).expanduser()
    return folder.is_dir() and not any((folder / name).exists() for name in (META, PLAN))


def use_tokenized(recipe: Recipe, run: Path) -> Recipe:
    """Return the recipe with the token dataset that `tokenize_given` makes in the run."""
    return replace(recipe, data=Codes(path=str(run / CODES)))


def open_given(
    recipe: Recipe, start: OpenedModel, num_classes: int | None, progress: Progress | None = None
) -> GivenImages:
    """Open the images; ConfigError if they, the model and the stated number of classes do not fit.

    Nothing is downloaded or written.
    """
    assert isinstance(recipe.data, Codes)
    theirs = start.config
    if not isinstance(theirs, ModelSpec) or isinstance(theirs.tokenizer, Pixels):
        raise ConfigError(
            f"{recipe.data.path} is no token dataset, and {start.name} has no tokenizer to make one with: give a "
            "folder that unmask tokenize made"
        )
    config = theirs.tokenizer
    given = recipe.data
    source = Folder(
        path=given.path, size=max(config.size), channels=config.channels, train=given.train, test=given.test
    )
    split = source.load(progress)
    check_classes(split.train.classes, num_classes, recipe.data.path)
    fitted = fit_to_data(replace(recipe, tokenizer=config), split.train.classes)
    return GivenImages(recipe=fitted, source=source, split=split, start=start)


def tokenize_given(
    given: GivenImages, run: Path, world: World, policy: DataPolicy = STRICT, progress: Progress | None = None
) -> list[Unreadable]:
    """Make `run`/codes, or see that they are there and of these pictures; returns the pictures left out.

    By this process alone. Raises DataError if there are other codes, CheckpointError for another experiment in the run.
    """
    codes, config = run / CODES, run / CONFIG
    if config.exists():
        there = read_config(config)
        kept = isinstance(there, Recipe) and isinstance(there.data, Codes) and Path(there.data.path).name == CODES
        if not kept:  # the run itself may have moved
            raise CheckpointError(f"{run} holds another experiment: give another --out")
    _, bad = make_codes(
        given.source,
        _open_tokenizer(given, run),
        codes,
        views=(CENTER, FLIP),
        shard_size=4096,
        seed=0,
        batch=64,
        processes=1,
        world=World(0, 1, world.device),
        progress=progress,
        split=given.split,
        policy=policy,
    )
    return bad


def _open_tokenizer(given: GivenImages, run: Path) -> LearnedModel:
    """Open the tokenizer of the model to start from; a run that resumes has a copy."""
    if has_checkpoint(run):
        return read_lone_tokenizer(run / CODES / "tokenizer")
    weights = given.start.find_tokenizer_weights()
    return open_tokenizer(given.recipe.tokenizer, weights)  # type: ignore[return-value]
