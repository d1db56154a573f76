"""Check before a training begins that it can end: memory, disk space, and that all processes agree."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from unmask.data.fingerprint import DataFingerprint
from unmask.data.sources.choice import Codes
from unmask.errors import ConfigError
from unmask.method.models.configs import TransformerConfig
from unmask.pretrained.conditions import takes_prompts
from unmask.recipes.reading import dump_config
from unmask.recipes.schema import AnyRecipe, TextRecipe, TokenizerRecipe
from unmask.runtime.distributed import World, check_agreement, resolve_strategy
from unmask.runtime.kernels import check_compiler
from unmask.runtime.provenance import find_commit
from unmask.runtime.shortage import check_disk, check_memory
from unmask.storage.config import dump_json
from unmask.storage.layout import CHECKPOINTS, MODEL
from unmask.training.configs import AdamW
from unmask.training.runfolder import list_checkpoints, parse_step

BYTES = 4  # of a number: weights, averages, gradients and moments are float32
LAYER_NUMBERS = 18  # kept for the backward pass of a layer, for each token and each of its dimensions, at least
LOGIT_NUMBERS = 2  # and for each logit


def check_room(recipe: AnyRecipe, folder: Path, world: World) -> None:
    """Compare what the training of a recipe needs at least with what there is, before any data is read.

    Raises:
        ConfigError: The blocks are to be compiled, and cannot be here.
        ShortageError: Weights, averages, moments, and gradients or activations do not fit into the memory.
        DiskError: The checkpoints do not fit onto the disk.
    """
    training = recipe.training
    if training.compile:
        _check_compiling(recipe, world)
    num = sum(p.numel() for network in _build_without_memory(recipe) for p in network.parameters())
    moments = 2 if isinstance(training.optimizer, AdamW) else 1
    shares = world.size if resolve_strategy(training.strategy, world) == "fsdp" else 1
    part = "tokenizer" if isinstance(recipe, TokenizerRecipe) else "model"
    what = f"the model has {num:,} weights; lower the sizes under --{part}"
    rows, activations = estimate_activations(recipe, world)
    if activations:
        what += f", or raise --training.accumulate (a rank computes {rows} rows at a time)"
    # Gradients come as activations go.
    needed = num * BYTES * (2 + moments) / shares + max(num * BYTES / shares, activations)
    check_memory(needed, world.device, what)
    done = max(map(parse_step, list_checkpoints(folder / CHECKPOINTS)), default=0)
    if done >= training.steps and (folder / MODEL).exists():
        return
    kept = sum(1 for _ in (folder / CHECKPOINTS).glob("step-*"))
    # Saves to come: one after each multiple of save_every, and one after the last step.
    saves = -(-training.steps // training.save_every) - done // training.save_every if done < training.steps else 0
    copies = min(saves, max(1, training.keep + 1 - kept))
    what = f"free some, give an --out on another disk, or lower --training.keep (now {training.keep})"
    check_disk(num * BYTES * ((2 + moments) * copies + 1), folder, what)


def _check_compiling(recipe: AnyRecipe, world: World) -> None:
    """Raise ConfigError if `training.compile` can do nothing here."""
    check_compiler(world.device)
    if isinstance(recipe, TokenizerRecipe):
        raise ConfigError("--training.compile: a tokenizer has no blocks that are compiled; leave it out")
    if resolve_strategy(recipe.training.strategy, world) == "fsdp":
        raise ConfigError("--training.compile: sharded blocks are not compiled; use --training.strategy ddp")


def estimate_activations(recipe: AnyRecipe, world: World) -> tuple[int, int]:
    """Return the rows that a rank computes at a time, and the bytes that the backward pass of a transformer needs.

    Measured on the recipes digits, mnist and cifar10, in float32 and bfloat16, tensors that are kept for the backward
    pass take 1.2 to 1.6 times as much. There is no estimate, 0 bytes, of other networks, of tokenizers, and of token
    datasets, whose grid is known only once they are read.
    """
    rows = -(-recipe.training.batch_size // (recipe.training.accumulate * world.size))
    if isinstance(recipe, TokenizerRecipe) or isinstance(recipe.data, Codes):
        return rows, 0
    if not isinstance(recipe.model, TransformerConfig):
        return rows, 0
    vocab_size = 1 if isinstance(recipe, TextRecipe) else recipe.tokenizer.vocab_size
    each = LAYER_NUMBERS * recipe.model.dim * recipe.model.depth + LOGIT_NUMBERS * vocab_size
    return rows, rows * math.prod(recipe.grid) * each * BYTES


def check_ranks(recipe: AnyRecipe, data: DataFingerprint | None, world: World) -> None:
    """Raise ConfigError unless all processes have the same recipe, data, code and version of torch."""
    digest = "" if data is None else data.digest
    facts = {"recipe": dump_json(dump_config(recipe)), "data": digest}
    check_agreement({"code": find_commit(), "version of torch": torch.__version__, **facts}, world)


def _build_without_memory(recipe: AnyRecipe) -> Sequence[nn.Module]:
    """Return the networks that a recipe trains, without weights; no network for one that takes prompts."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        if isinstance(recipe, TokenizerRecipe):
            return recipe.tokenizer.build(), recipe.loss.discriminator.build(recipe.tokenizer.channels)
        if takes_prompts(recipe.model):
            return ()
        # How many tokens a text has is known only once it was read; its network is at least this large.
        vocab_size = 1 if isinstance(recipe, TextRecipe) else recipe.tokenizer.vocab_size
        try:
            return (recipe.model.build(vocab_size, recipe.grid),)
        except ValueError:  # the network is for the tokenizer that comes with the data; if not, the training refuses it
            return ()
