"""Start a training from an earlier model's weights, on a larger grid or with other classes.

The reproduction report trains its 512x512 model from its 256x256 one (arXiv 2310.14400, section 2). What cannot be
carried over exactly is resized or initialized again, and reported. Everything else has to fit.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from unmask.decoding.rules import stretch
from unmask.decoding.sampling import Sampling
from unmask.errors import CheckpointError, ConfigError
from unmask.method.models.configs import TransformerConfig
from unmask.method.models.partition_config import PartitionConfig
from unmask.method.models.protocol import Generator
from unmask.pretrained.conditions import add_null_class
from unmask.pretrained.networks import LoneTokenizer
from unmask.published.files import Note
from unmask.published.opening import OpenedModel, open_model
from unmask.recipes.reading import has_config, read_config
from unmask.recipes.schema import Recipe, TextRecipe, TokenizerRecipe
from unmask.recipes.spec import ModelSpec, TextModelSpec
from unmask.storage.layout import CONFIG, MODEL, TEXT_TOKENIZER
from unmask.storage.weights import load_weights, skip_initial_weights
from unmask.tokenizers.text import open_text_tokenizer
from unmask.training.runfolder import has_checkpoint

CELLS = {"position": "positions", "query": "queries", "cell_bias": "biases"}
"""Parameters of which every cell of the grid has its own; a critic has them too."""
CLASS_TABLE = "classes.table.weight"


class Places(TypedDict, total=False):
    """Where the files of a published model are; see `open_model`."""

    weights: Sequence[str | Path]
    offline: bool
    say: Note | None


def start_from(model: Generator, start: OpenedModel) -> list[str]:
    """Fill `model` with the weights of an earlier one (`load_compatible`); return what was changed.

    CheckpointError or ConfigError names what does not fit.
    """
    if isinstance(start.config, TokenizerRecipe | LoneTokenizer):
        raise ConfigError(f"{start.name} is a tokenizer: a generator starts from a generator")
    folder = start.fetch()
    spec = start.config
    if isinstance(spec, TextModelSpec):
        known = open_text_tokenizer(folder / TEXT_TOKENIZER, spec.tokenizer.context)
        vocab_size, grid = known.vocab_size, known.grid
    else:
        vocab_size, grid = spec.tokenizer.vocab_size, spec.tokenizer.grid
    with skip_initial_weights():
        earlier = spec.model.build(vocab_size, grid)
    if type(earlier) is not type(model):
        raise ConfigError(
            f"{start.name} is a {type(earlier).__name__}, and this recipe trains a {type(model).__name__}: "
            "take another recipe or another --init"
        )
    load_weights(earlier, folder / MODEL)
    return load_compatible(model, dict(earlier.named_parameters()), earlier.grid)


@torch.no_grad()
def load_compatible(model: Generator, weights: Mapping[str, Tensor], grid: tuple[int, ...]) -> list[str]:
    """Fill `model` with the weights of one on another `grid` or with other classes; returns what was changed.

    Learned positions are resized bicubically. Of another number of classes only "no class" is kept: the others stay as
    the model has them. CheckpointError, before anything is written, if any other name or shape differs.
    """
    own = dict(model.named_parameters())
    chosen, notes = dict(weights), []
    celled = {name: CELLS[name.rpartition(".")[2]] for name in own if name.rpartition(".")[2] in CELLS}
    for name in celled if grid != model.grid else ():
        if name in weights:
            _check_positions(weights[name], grid, model.grid)
            chosen[name] = resize_positions(weights[name], grid, model.grid)
    if celled and grid != model.grid:
        what = " and ".join(dict.fromkeys(celled.values()))
        notes.append(f"{what} of a grid of {_times(grid)} resized to {_times(model.grid)}")
    there, here = (len(table[CLASS_TABLE]) - 1 if CLASS_TABLE in table else 0 for table in (weights, own))
    if there != here:
        chosen.pop(CLASS_TABLE, None)
        if here:
            chosen[CLASS_TABLE] = own[CLASS_TABLE].detach().clone()
        if here and there and own[CLASS_TABLE].shape[1] == weights[CLASS_TABLE].shape[1]:
            chosen[CLASS_TABLE][0] = weights[CLASS_TABLE][0]  # of NULL
        new = f"new class table of {here} classes, {there} there; the rest loaded"
        notes.append(new if here else f"the table of {there} classes left out")
    wrong = [n for n in sorted(own.keys() | chosen.keys()) if _shape(own, n) != _shape(chosen, n)]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"the weights to start from are of another architecture: {len(wrong)} tensors differ, first {name}, "
            f"{_shape(chosen, name) or 'missing'} there and {_shape(own, name) or 'missing'} here; set the model's "
            "sizes to theirs"
        )
    for name, parameter in own.items():
        parameter.copy_(chosen[name])
    return notes


def resize_positions(
    position: Float[Tensor, "l dim"], old: tuple[int, ...], new: tuple[int, ...]
) -> Float[Tensor, "m dim"]:
    """Bicubic, axis by axis, so for any number of them; cells are areas, so that the borders of both grids coincide."""
    x = position.float().unflatten(0, old)
    for axis, cells in enumerate(new):
        if cells != old[axis]:
            rows = x.movedim(axis, -1)
            flat = rows.reshape(1, -1, 1, old[axis])
            # Only the antialiasing filter, which is wider only where it shrinks, keeps straight lines straight.
            flat = F.interpolate(flat, (1, cells), mode="bicubic", align_corners=False, antialias=True)
            x = flat.reshape(*rows.shape[:-1], cells).movedim(-1, axis)
    return x.flatten(0, -2)


def _check_positions(position: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    if len(old) != len(new) or len(position) != torch.Size(old).numel():
        raise CheckpointError(
            f"{len(position)} learned positions of a grid of {_times(old)} cannot be resized to {_times(new)}: start "
            "from a model with as many axes"
        )


def _shape(table: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(table[name].shape) if name in table else None


def _times(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))


def find_start(recipe: Recipe | TextRecipe, run: Path, **places: Unpack[Places]) -> OpenedModel | None:
    """Return the model that a recipe starts from (`init`), found by its name; None if there is none.

    A run that resumes needs that model no more: its own config.json then says what it was.
    """
    if recipe.init is None:
        return None
    if recipe.init == "":
        raise ConfigError("which model to start from? Give --init NAME, one of unmask models, or the folder of a run")
    if has_checkpoint(run) and has_config(run):
        here = read_config(run / CONFIG)
        if isinstance(here, Recipe | TextRecipe) and here.init == recipe.init:
            return OpenedModel(name=recipe.init, config=here, folder=run)
    return open_model(recipe.init, **places)


def adopt_network(
    recipe: Recipe, start: OpenedModel | None, written: Recipe | None = None, given: Collection[str] = ()
) -> tuple[Recipe, list[str]]:
    """Give a recipe that starts from a published network that network; return it and what to say.

    The same holds for a recipe of a published network that starts from ours.

    Args:
        recipe: The recipe, with flags applied.
        start: The model that it starts from.
        written: The recipe before flags changed it. If its sampling is the default one, the model's replaces it, with
            the changes by flags. Changes to the network are refused.
        given: Fields of the sampling that flags set, maybe to their defaults.

    Raises:
        ConfigError: Flags change the network or tokenizer of the model.
    """
    written = recipe if written is None else written
    theirs = None if start is None else start.config
    if not isinstance(theirs, ModelSpec):
        return recipe, []
    ours = TransformerConfig | PartitionConfig
    if isinstance(theirs.model, ours) and isinstance(recipe.model, ours):
        return recipe, []
    if (recipe.model, recipe.tokenizer) != (written.model, written.tokenizer):
        raise ConfigError(
            f"network and tokenizer are those of {recipe.init}: leave the flags of --model and --tokenizer out"
        )
    network, sampling, notes = add_null_class(theirs.model), recipe.sampling, []
    if written.sampling == Sampling():
        sampling = _merge_sampling(theirs.sampling, sampling, given)
        but = "" if sampling == theirs.sampling else ", except for what flags say"
        notes = [f"it is sampled as {recipe.init} is{but}"]
    recipe = replace(recipe, model=network, sampling=sampling)
    return recipe, [f"the network is that of {recipe.init}: {network}", *notes]


def _merge_sampling(theirs: Sampling, own: Sampling, given: Collection[str]) -> Sampling:
    """Return `theirs` with the fields of `own` that differ from the defaults, or were given."""
    values = {field.name: (getattr(own, field.name), field.default) for field in fields(Sampling)}
    changes: dict[str, Any] = {name: x for name, (x, plain) in values.items() if x != plain or name in given}
    if isinstance(theirs.temperature, tuple):
        warmth = stretch(theirs.temperature, changes.get("steps", theirs.steps))
        changes = {"temperature": warmth, **changes}
    return replace(theirs, **changes)
