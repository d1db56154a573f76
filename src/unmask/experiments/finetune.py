"""A new training from an earlier one's weights, on a larger grid or other classes: the reproduction report's 512x512
model is its 256x256 one, trained on (arXiv 2310.14400, section 2). What cannot be carried over exactly is resized or
started anew, and said; everything else has to fit."""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unmask.decoding.rules import stretch
from unmask.decoding.sampling import Sampling
from unmask.errors import CheckpointError, ConfigError
from unmask.method.models.protocol import Generator
from unmask.method.models.transformer import TransformerConfig
from unmask.pretrained.google import GoogleMaskGIT
from unmask.published.store import described
from unmask.recipes.reading import read_recipe
from unmask.recipes.schema import Recipe, TextRecipe, TokenizerRecipe
from unmask.storage.weights import load_weights, skip_initial_weights
from unmask.tokenizers.text import open_text_tokenizer
from unmask.training.runfolder import goes_on

CELLS = {"position": "positions", "cell_bias": "biases"}
"""Parameters of which every cell of the grid has its own; a critic has them too."""
CLASSES = "classes.table.weight"


def start_from(model: Generator, run: Path) -> list[str]:
    """`load_compatible` from a run folder or an export; CheckpointError or ConfigError names what does not fit."""
    if not (run / "config.json").is_file():
        raise CheckpointError(f"{run}: no config.json there; give the folder of a finished run, or an export")
    recipe = read_recipe(run / "config.json", None)
    if isinstance(recipe, TokenizerRecipe):
        raise ConfigError(f"{run} is a tokenizer's run: a generator starts from a generator")
    if isinstance(recipe, TextRecipe):
        known = open_text_tokenizer(run / "tokenizer.json", recipe.tokenizer.context)
        vocab_size, grid = known.vocab_size, known.grid
    else:
        vocab_size, grid = recipe.tokenizer.vocab_size, recipe.tokenizer.grid
    with skip_initial_weights():
        earlier = recipe.model.build(vocab_size, grid)
    load_weights(earlier, run / "model.safetensors")
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
    there, here = (len(table[CLASSES]) - 1 if CLASSES in table else 0 for table in (weights, own))
    if there != here:
        chosen.pop(CLASSES, None)
        if here:
            chosen[CLASSES] = own[CLASSES].detach().clone()
        if here and there and own[CLASSES].shape[1] == weights[CLASSES].shape[1]:
            chosen[CLASSES][0] = weights[CLASSES][0]  # of NULL
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


def origin(init: str, run: Path | None = None) -> Recipe | None:
    """The recipe of a model to start from, as `described` has it.

    Of a training from it that goes on in `run`, the one there: the model itself is needed no more.
    """
    config = None if run is None or not goes_on(run) else run / "config.json"
    there = read_recipe(config, None) if config is not None and config.is_file() else None
    return there if isinstance(there, Recipe) and there.init == init else described(init)


def adopted(
    recipe: Recipe, run: Path | None = None, written: Recipe | None = None, given: Collection[str] = ()
) -> tuple[Recipe, list[str]]:
    """A recipe that starts from a published or converted model has its network, whatever it had; and what to say.

    So has one of a published network that starts from ours. `written`: the recipe before flags changed it. Where its
    sampling is the plain one, the model's takes its place, with these changes; those of the network are refused.
    `given`: fields of the sampling that flags set, maybe to what is plain.
    """
    written = recipe if written is None else written
    if recipe.init == "":
        raise ConfigError("which model to start from? Give --init NAME, one of unmask models, or the folder of a run")
    theirs = None if recipe.init is None else origin(recipe.init, run)
    if theirs is None or (isinstance(theirs.model, TransformerConfig) and isinstance(recipe.model, TransformerConfig)):
        return recipe, []
    if (recipe.model, recipe.tokenizer) != (written.model, written.tokenizer):
        raise ConfigError(
            f"network and tokenizer are those of {recipe.init}: leave the flags of --model and --tokenizer out"
        )
    network, sampling, notes = theirs.model, recipe.sampling, []
    if isinstance(network, GoogleMaskGIT):
        network = replace(network, null_class=True)
    if written.sampling == Sampling():
        sampling = _changed(theirs.sampling, sampling, given)
        but = "" if sampling == theirs.sampling else ", but for what flags say"
        notes = [f"it is sampled as {recipe.init} is{but}"]
    recipe = replace(recipe, model=network, sampling=sampling)
    return recipe, [f"the network is that of {recipe.init}: {network}", *notes]


def _changed(theirs: Sampling, own: Sampling, given: Collection[str]) -> Sampling:
    """`theirs` with what of `own` is not plain, or was given."""
    values = {field.name: (getattr(own, field.name), field.default) for field in fields(Sampling)}
    changes: dict[str, Any] = {name: x for name, (x, plain) in values.items() if x != plain or name in given}
    if isinstance(theirs.temperature, tuple):
        warmth = stretch(theirs.temperature, changes.get("steps", theirs.steps))
        changes = {"temperature": warmth, **changes}
    return replace(theirs, **changes)
