"""Classes as a person gives them, by number or by name, and the numbers that a network takes."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Integral

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.errors import ConfigError
from unmask.method.guidance import Condition

Labels = Condition | Iterable[int | str]
"""Ids or names, a row each; or None for no class."""


def resolve_labels(labels: Int[Tensor, "n"] | Iterable[object], classes: Sequence[str]) -> Int[Tensor, "n"]:
    """Return the ids of labels, in whatever range; ConfigError for an unknown name or another type."""
    if isinstance(labels, Tensor):
        return labels
    if isinstance(labels, str):
        raise ConfigError(f"labels {labels!r}: give a list, such as [{labels!r}]")
    return torch.tensor([resolve_label(label, classes) for label in labels], dtype=torch.int64)


def resolve_label(label: object, classes: Sequence[str]) -> int:
    """Return the number of a class, given by name or number; a name wins, since digits are called "0" to "9"."""
    if label in classes:
        return list(classes).index(str(label))
    if isinstance(label, Integral) or (isinstance(label, str) and re.fullmatch(r"-?\d{1,9}", label)):
        return int(label)
    near = get_close_matches(str(label), classes, 1)
    known = f"did you mean {near[0]}?" if near else f"there are {', '.join(classes)}"
    raise ConfigError(f"no class {label}: {known if classes else 'give its number'}")
