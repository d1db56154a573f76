"""A model that was trained elsewhere, made a run to measure: links to its weights, and a recipe with codes of pictures.

Nothing is written beside the weights themselves.
"""

from dataclasses import replace
from pathlib import Path

from unmask.data.sources.choice import Codes, settled
from unmask.errors import CheckpointError, ConfigError
from unmask.experiments.coded import open_coded
from unmask.pretrained.amused import Amused
from unmask.recipes.reading import read_recipe
from unmask.recipes.schema import Recipe
from unmask.storage.config import to_json, write_json
from unmask.storage.layout import MODEL, TOKENIZER
from unmask.storage.weights import have_same_weights
from unmask.tokenizers.base import verify_tokenizer


def trained_elsewhere(folder: Path) -> bool:
    """Whether nothing is known of the pictures behind a model: it was converted, or it is an export of such a one."""
    config = folder / "config.json"
    recipe = read_recipe(config, None) if config.is_file() else None
    return isinstance(recipe, Recipe) and recipe.data == Codes(path="")


def as_run(model: Path, codes: str | None, out: Path) -> Path:
    """A run folder `out` of a converted model with pictures to measure it against, as codes by its own tokenizer.

    ConfigError where there are none, or where their classes are not the model's; CheckpointError where `out` holds
    something else.
    """
    recipe = read_recipe(model / "config.json", Recipe)
    if isinstance(recipe.model, Amused):
        raise ConfigError(f"{model.name} draws from texts, and codes have none: it cannot be measured here")
    if codes is None:
        raise ConfigError("measured against which pictures? Give --data CODES, which unmask tokenize NAME makes")
    if out.resolve() == model.resolve():
        raise ConfigError(f"{out} holds the model itself, and no figures go into it: give another --out")
    verify_tokenizer(recipe.tokenizer, model / TOKENIZER, None)
    coded = open_coded(codes)
    if len(coded.meta.classes) != recipe.model.num_classes:
        raise ConfigError(
            f"{codes} has {len(coded.meta.classes) or 'no'} classes and the model {recipe.model.num_classes}: their "
            "numbers mean other things"
        )
    if not have_same_weights(model / TOKENIZER, coded.weights):
        raise ConfigError(f"{codes} are of another tokenizer than the model's: make them with unmask tokenize NAME")
    recipe = replace(recipe, data=settled(Codes(path=codes)), tokenizer_sha256=coded.meta.tokenizer)
    if (out / "config.json").exists() and read_recipe(out / "config.json", Recipe) != recipe:
        raise CheckpointError(f"{out} holds something else: give another --out")
    links = [out / name for name in (MODEL, TOKENIZER)]
    if any(link.exists() and not link.is_symlink() for link in links):
        raise CheckpointError(f"{out} holds weights of its own: give another --out")
    if any(link.exists() and not _of(link, model) for link in links):
        raise CheckpointError(f"{out} is of another model: give another --out")
    out.mkdir(parents=True, exist_ok=True)
    for link in links:
        link.unlink(missing_ok=True)
        link.symlink_to((model / link.name).resolve())
    write_json(out / "config.json", to_json(recipe))
    return out


def _of(link: Path, model: Path) -> bool:
    """Whether it leads to that model's file, or to the same weights elsewhere."""
    theirs = model / link.name
    return link.resolve() == theirs.resolve() or have_same_weights(link.resolve(), theirs.resolve())
