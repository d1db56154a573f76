"""Check token and class ids before a table looks them up, wherever the check costs nothing."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.method.guidance import NULL


def can_read(ids: Int[Tensor, "..."]) -> bool:
    """Return True on a CPU, outside of compilation.

    Elsewhere, reading values would wait for the device or cut the graph.
    """
    return ids.device.type == "cpu" and not torch.compiler.is_compiling()


def check_ids(what: str, ids: Int[Tensor, "..."], low: int, high: int, note: str) -> None:
    """Raise ValueError unless all ids are in low..high. Where `can_read` is False, the tables check for themselves."""
    if can_read(ids) and ids.numel() and (int(ids.min()) < low or int(ids.max()) > high):
        raise ValueError(f"{what} span {int(ids.min())}..{int(ids.max())}, not {low}..{high} ({note})")


def check_rows(tokens: Int[Tensor, "b l"], grid: tuple[int, ...], mask_id: int) -> None:
    """Raise ValueError if the rows do not have the grid's length, or if a token is neither a code nor the mask."""
    length = math.prod(grid)
    if tokens.shape[1] != length:
        raise ValueError(f"got {tokens.shape[1]} tokens per row; this model's grid {grid} has {length}")
    check_ids("tokens", tokens, 0, mask_id, f"{mask_id} is the mask")


def check_class_labels(classes: Int[Tensor, "b"] | None, num_classes: int) -> None:
    """Raise ValueError for a class that is neither in 0..num_classes-1 nor NULL."""
    if classes is not None:
        check_ids("classes", classes, NULL, num_classes - 1, f"{NULL} is no class")
