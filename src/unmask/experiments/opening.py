"""The lines with which a training begins: what runs, where, in which number type and why, and where to look."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from unmask.recipes.schema import AnyRecipe, TextRecipe, TokenizerRecipe
from unmask.runtime.choices import Precision
from unmask.runtime.distributed import World, resolve_precision, resolve_strategy
from unmask.runtime.kernels import choose_dtype
from unmask.runtime.provenance import describe_processor


def describe_opening(
    recipe: AnyRecipe,
    run: Path,
    here: World,
    *,
    networks: Mapping[str, nn.Module],
    num_rows: tuple[int, int],
    length: int,
    vocab_size: int,
) -> list[str]:
    """Return the opening lines of a training.

    Args:
        recipe: What runs.
        run: The run directory.
        here: This process among all.
        networks: What is trained, by name.
        num_rows: Rows for training and rows held out.
        length: Tokens per row.
        vocab_size: Kinds of tokens.
    """
    training = recipe.training
    unit = "rows" if isinstance(recipe, TextRecipe) else "images"
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    parameters = ", ".join(f"{size:,} of the {name}" if len(sizes) > 1 else f"{size:,}" for name, size in sizes.items())
    return [
        f"run         {run}: {training.steps:,} steps",
        f"device      {_describe_device(recipe, here)}",
        f"type        {describe_precision(training.precision, here.device)}{', compiled' * training.compile}",
        f"parameters  {parameters}",
        f"data        {num_rows[0]:,} {unit} for training, {num_rows[1]:,} held out",
        f"per step    {training.batch_size:,} {unit}, {training.batch_size * length:,} tokens of {vocab_size:,} kinds",
        f"next        {_describe_next(recipe, run)}",
    ]


def describe_type(precision: Precision, device: torch.device) -> str:
    """Return the name of the number type of the forward pass."""
    return {"bf16": "bfloat16", "fp32": "float32"}[resolve_precision(precision, device)]


def describe_precision(precision: Precision, device: torch.device) -> str:
    """Return the number type of the forward pass, and why it is this one."""
    name = describe_type(precision, device)
    if precision != "auto":
        return f"{name}: the recipe or --training.precision says so"
    if device.type == "cpu":
        has = choose_dtype(device) == torch.bfloat16
        return f"{name}: this CPU has instructions for it" if has else f"{name}: no usable bfloat16 instructions here"
    return f"{name}: this GPU is fast in it" if name == "bfloat16" else f"{name}: bfloat16 is not used on {device.type}"


def _describe_device(recipe: AnyRecipe, here: World) -> str:
    if here.device.type == "cuda":
        parts = [str(here.device), torch.cuda.get_device_name(here.device)]
    else:
        threads = torch.get_num_threads()
        parts = [
            str(here.device),
            describe_processor().partition(" (family")[0],
            f"{threads} thread{'s' * (threads > 1)}",
        ]
    if here.size > 1:
        parts.append(f"{here.size} processes ({resolve_strategy(recipe.training.strategy, here)})")
    return ", ".join(parts)


def _describe_next(recipe: AnyRecipe, run: Path) -> str:
    if isinstance(recipe, TokenizerRecipe):
        return f"unmask evaluate-tokenizer {run} (report.json), unmask tokenize {run}"
    if isinstance(recipe, TextRecipe):
        return f"unmask generate {run}, unmask score {run}"
    return f"unmask evaluate {run} (report.json), unmask sample {run}"
