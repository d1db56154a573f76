"""Which classes are sampled to be measured, and which real pictures stand beside them.

A distance also measures how often each class comes. So samples have the class shares of the held-out pictures that
they are compared with, and so do the training pictures of the real-data baseline.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.errors import ConfigError
from unmask.evaluation.reference import Reference
from unmask.experiments.images import Experiment
from unmask.method.guidance import Condition
from unmask.pipelines.image import Pipeline
from unmask.pipelines.labels import share_out_labels
from unmask.pipelines.rules import LabelRule
from unmask.published.catalogue import read_imagenet_classes

SHOWN_CLASSES = 5
TOLD_DIFFERENCE = 0.01  # of all pictures


@dataclass(frozen=True, kw_only=True)
class ClassShares:
    """How many pictures of each class there are, and how often each is sampled.

    `held_out` and `training` count the pictures of the reference; `rows` are the labels of its training pictures. A
    class of weight 0 is not sampled.
    """

    names: tuple[str, ...]
    held_out: Int[Tensor, "k"]
    training: Int[Tensor, "k"]
    rows: Int[Tensor, "n"]
    weights: Int[Tensor, "k"]

    @property
    def unmeasured(self) -> list[str]:
        """The names of the classes that are not sampled, as they have no held-out or no training image."""
        return [name for name, weight in zip(self.names, self.weights.tolist(), strict=True) if not weight]

    def choose_tuned_labels(self, num: int, rule: LabelRule) -> Int[Tensor, "n"]:
        """Return `num` labels to be compared with the training pictures: in their shares, or balanced."""
        weights = self.weights if rule == "balanced" else self.training * (self.weights > 0)
        return share_out_labels(weights, num)


def count_class_shares(
    experiment: Experiment, pipeline: Pipeline, real: Reference | None, rule: LabelRule
) -> ClassShares | None:
    """Count the pictures of each class; return None for a model or images without classes.

    Raises:
        ConfigError: The classes of the pictures are not those of the model, or `rule` is for a model with classes.
    """
    if not pipeline.num_classes and rule == "balanced":
        raise ConfigError("--labels balanced is for a model with classes, and this one has none: leave it out")
    train, test = experiment.split.train.labels, experiment.split.test.labels
    if not pipeline.num_classes or real is None or train is None or test is None:
        return None
    names, num = experiment.classes, len(experiment.classes)
    if num != pipeline.num_classes:
        raise ConfigError(
            f"the model has {pipeline.num_classes} classes and these images {num}: their numbers mean other things"
        )
    # The names of a published model are ours, and a folder of ImageNet has others, such as n02099601.
    known = () if pipeline.classes == read_imagenet_classes() else pipeline.classes
    for i, (theirs, ours) in enumerate(zip(known, names, strict=False)):
        if theirs != ours and not experiment.policy.accept:
            raise ConfigError(f"class {i} is {theirs} for the model and {ours} in these images: rename the images'")
    held_out, training = (
        labels[index].bincount(minlength=num) for labels, index in ((test, real.test_index), (train, real.train_index))
    )
    weights = held_out * (train.bincount(minlength=num) > 0)
    if rule == "balanced":
        weights = (weights > 0).long()
    return ClassShares(names=names, held_out=held_out, training=training, rows=train[real.train_index], weights=weights)


def choose_labels(shares: ClassShares | None, pipeline: Pipeline, num: int) -> Condition:
    """Return the classes of samples number 0 to `num` - 1; None for an unconditional model."""
    return pipeline.cycle_labels(num) if shares is None else share_out_labels(shares.weights, num)


def choose_baseline(shares: ClassShares | None, num_train: int, num: int) -> Int[Tensor, "m"]:
    """Return `num` training pictures of the reference, at random, in the class shares of the samples.

    Where a class has too few, there are fewer of all. Without classes, or where the shares of the training set are
    those of the samples, any pictures do.
    """
    num = min(num, num_train)
    order = torch.randperm(num_train, generator=torch.Generator().manual_seed(0))
    if shares is None:
        return order[:num]
    weights, training = shares.weights, shares.training
    if torch.equal(weights * training.sum(), training * weights.sum()):
        return order[:num]
    if not (weights * training).any():
        return order[:num]
    wanted = share_out_labels(weights * (training > 0), num)
    enough = int((count_earlier(wanted) < training[wanted]).long().cumprod(0).sum())
    if enough < 2:  # no distance to so few
        return order[:num]
    counts = wanted[:enough].bincount(minlength=len(weights))
    labels = shares.rows[order]
    return order[count_earlier(labels) < counts[labels]]


def count_earlier(labels: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Return how many earlier labels are the same, for each."""
    order = labels.argsort(stable=True)
    counts = labels.bincount()
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return ranks


def describe_shares(shares: ClassShares, labels: Int[Tensor, "n"]) -> str | None:
    """Return a sentence on the classes that are a larger part of one set than of another; None if there is none."""
    sampled = labels.cpu().bincount(minlength=len(shares.names))
    parts = torch.stack([counts / max(1, int(counts.sum())) for counts in (sampled, shares.held_out, shares.training)])
    spread = parts.max(0).values - parts.min(0).values
    order = spread.argsort(descending=True, stable=True)
    told = [i for i in order.tolist() if spread[i] > TOLD_DIFFERENCE]
    if not told:
        return None
    lines = [
        f"class {shares.names[i]} is {parts[0, i]:.1%} of the samples, {parts[1, i]:.1%} of the held-out images and "
        f"{parts[2, i]:.1%} of the training images"
        for i in told[:SHOWN_CLASSES]
    ]
    return "; ".join(
        [*lines, *([f"{len(told) - SHOWN_CLASSES} more classes differ"] if len(told) > SHOWN_CLASSES else [])]
    )


def describe_unmeasured(names: Sequence[str]) -> str:
    """Return a sentence on the classes that are not sampled."""
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return (
        f"{', '.join(names[:SHOWN_CLASSES])}{more}: no held-out or no training image, so neither sampled nor measured"
    )
