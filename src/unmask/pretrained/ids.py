"""Ids that no table has are refused in words, where to look at them costs nothing."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.method.guidance import NULL


def readable(ids: Int[Tensor, "..."]) -> bool:
    """On a CPU, and not while compiling: elsewhere to look at values would wait for the device, or cut the graph."""
    return ids.device.type == "cpu" and not torch.compiler.is_compiling()


def check_ids(what: str, ids: Int[Tensor, "..."], low: int, high: int, note: str) -> None:
    """ValueError unless all are in low..high; those that are not `readable` are left to the tables themselves."""
    if readable(ids) and ids.numel() and (int(ids.min()) < low or int(ids.max()) > high):
        raise ValueError(f"{what} span {int(ids.min())}..{int(ids.max())}, not {low}..{high} ({note})")


def check_rows(tokens: Int[Tensor, "b l"], grid: tuple[int, ...], mask_id: int) -> None:
    """ValueError for rows of another length than the grid's, or a token that is neither a code nor the mask."""
    length = math.prod(grid)
    if tokens.shape[1] != length:
        raise ValueError(f"got {tokens.shape[1]} tokens per row; this model's grid {grid} has {length}")
    check_ids("tokens", tokens, 0, mask_id, f"{mask_id} is the mask")


def check_classes(classes: Int[Tensor, "b"] | None, num_classes: int) -> None:
    """ValueError for a class that is neither one of so many nor NULL."""
    if classes is not None:
        check_ids("classes", classes, NULL, num_classes - 1, f"{NULL} is no class")
