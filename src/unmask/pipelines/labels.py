"""Classes as a person gives them, by number or by name, the numbers that a network takes, and shares of classes."""

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
"""Ids or names, a row each; or None for no class. A tensor holds ids."""
MOST_NAMES = 20
"""Most names of classes in a line."""
NAMELESS = "this model has no class names; give a number, or leave it out if there are no classes"
"""What to do about a name where there are none."""


def resolve_labels(labels: Int[Tensor, "n"] | Iterable[object], classes: Sequence[str]) -> Int[Tensor, "n"]:
    """Return the ids of labels, in whatever range; ConfigError for an unknown name or another type."""
    if isinstance(labels, Tensor):
        return labels
    if isinstance(labels, str):
        raise ConfigError(f"labels {labels!r}: give a list, such as [{labels!r}]")
    if not isinstance(labels, Iterable):
        raise ConfigError(f"labels {labels!r} of type {type(labels).__name__}: give names or numbers of classes")
    return torch.tensor([resolve_label(label, classes) for label in labels], dtype=torch.int64)


def resolve_label(label: object, classes: Sequence[str]) -> int:
    """Return the id of a class, given by name or number: first as a name, since digits are called "0" to "9".

    Lower and upper case are equal, unless two names then are.

    Raises:
        ConfigError: There is no such class; or a number (not a string) is the name of one class and the id of another.
    """
    if isinstance(label, Integral) and (said := describe_ambiguity(str(label), classes)) is not None:
        raise ConfigError(f"label {label} may mean {said}: give the name {str(label)!r}, or ids as a tensor")
    if isinstance(label, str | Integral) and str(label) in classes:
        return list(classes).index(str(label))
    if isinstance(label, Integral) or (isinstance(label, str) and re.fullmatch(r"-?\d{1,9}", label)):
        return int(label)
    plain = [name.casefold() for name in classes]
    if plain.count(word := str(label).casefold()) == 1:
        return plain.index(word)
    near = get_close_matches(word, plain, 1) or [name for name in plain if word in name][:1]
    shown = classes if len(classes) <= MOST_NAMES else (*classes[: MOST_NAMES - 1], "...", classes[-1])
    known = f"did you mean {classes[plain.index(near[0])]}?" if near else f"there are {', '.join(shown)}"
    raise ConfigError(f"no class {label}: {known if classes else NAMELESS}")


def describe_ambiguity(label: str, classes: Sequence[str]) -> str | None:
    """Return in words which two classes a number may mean, by name and by id; None if it can mean one only."""
    if label not in classes or not re.fullmatch(r"\d{1,9}", label):
        return None
    named, number = list(classes).index(label), int(label)
    if named == number or number >= len(classes):
        return None
    return f"the class called {label} (id {named}) and the class with id {number} (called {classes[number]})"


def check_label_range(labels: Int[Tensor, "n"], num: int, num_classes: int, classes: Sequence[str] = ()) -> None:
    """ConfigError unless there is one of `num_classes` class ids for each of `num` images."""
    if len(labels) != num:
        raise ConfigError(f"{len(labels)} labels for {num} images: give one each")
    if not num_classes:
        raise ConfigError("this model is unconditional: leave the labels out")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        last = num_classes - 1
        named = f" ({classes[0]} to {classes[-1]})" if classes and (classes[0], classes[-1]) != ("0", str(last)) else ""
        raise ConfigError(f"no class {wrong}: this model's labels go from 0 to {last}{named}")


def list_filled_classes(num_classes: int, empty: Sequence[int]) -> Int[Tensor, "k"]:
    """Return the ids of the classes that had a training picture."""
    return torch.tensor([i for i in range(num_classes) if i not in set(empty)], dtype=torch.int64)


def resolve_filled_labels(labels: str | int | Labels, classes: Sequence[str], empty: Sequence[int]) -> Int[Tensor, "n"]:
    """Return the ids of one or several labels; ConfigError for a class without a training picture, too."""
    assert labels is not None
    ids = resolve_labels([labels] if isinstance(labels, str | int) else labels, classes)
    for label in empty:
        if (ids == label).any():
            name = classes[label] if label < len(classes) else str(label)
            raise ConfigError(f"class {name} (id {label}) had no training picture: name another class")
    return ids


def share_out_labels(weights: Int[Tensor, "k"], num: int) -> Int[Tensor, "n"]:
    """Return `num` class ids in the shares of `weights`, spread: the first labels of the row have these shares too.

    The next label is the class with the largest weight / (2 s + 1), if it came s times so far; on a tie, the lowest id
    (the rule of Webster and Sainte-Lague). So label i depends on neither `num` nor a batch, equal weights give 0, 1, 2
    and so on in turn, each class is within about one sample of its share, and a class of weight 0 never comes.
    """
    ids = weights.nonzero()[:, 0]
    if not len(ids):
        raise ConfigError("no class has a picture to be measured against: hold some pictures out")
    sizes = weights[ids].double()
    most = (sizes * (num + len(ids)) / sizes.sum() + 2).long().clamp(max=num)
    owner = torch.arange(len(ids)).repeat_interleave(most)
    before = torch.arange(len(owner)) - (most.cumsum(0) - most).repeat_interleave(most)
    order = ((2 * before + 1) / sizes[owner]).argsort(stable=True)  # stable: by class among equals
    return ids[owner[order[:num]]]
