"""A classifier trained on the real pictures themselves, whose features and classes samples are measured in."""

from pathlib import Path

import torch

from unmask.data.augment import PictureSet
from unmask.data.pictures import OnDemand, hash_pictures, spread
from unmask.errors import ConfigError
from unmask.metrics.embedders import ClassifierFeatures
from unmask.metrics.features import (
    Classifier,
    ClassifierConfig,
    load_classifier,
    save_classifier,
    train_classifier,
    trained_on,
)
from unmask.runtime.distributed import World, barrier
from unmask.runtime.progress import Progress

BATCH = 256


MEMORY = 1 << 30  # bytes of pictures that a classifier learns from


def in_domain(
    pictures: PictureSet, config: ClassifierConfig, path: Path, world: World, progress: Progress | None = None
) -> ClassifierFeatures:
    """A classifier trained on these real pictures, once for them and per configuration, and kept in `path`."""
    if pictures.pictures.labels is None:
        raise ConfigError(
            "these pictures have no classes to train a classifier on: give --features inception or dinov2"
        )
    barrier(world)
    if world.is_main:
        found = hash_pictures(pictures.pictures)
        if not (path.exists() and load_classifier(path).config == config and trained_on(path) == found):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_classifier(train_on(pictures, config, world, progress), path, found)
    barrier(world)
    return ClassifierFeatures(load_classifier(path).to(world.device))


def train_on(
    pictures: PictureSet, config: ClassifierConfig, world: World, progress: Progress | None = None
) -> Classifier:
    """The classifier of a configuration, trained on these pictures, as 8 bits in memory: MEMORY of them at most."""
    assert pictures.pictures.labels is not None
    every, parts, labels = torch.arange(len(pictures)), [], []
    if isinstance(pictures.pictures, OnDemand):
        every = spread(len(pictures))  # as the reference has them, which names those that cannot be read
    for index in every[spread(len(every), MEMORY // pictures.dim)].split(BATCH):
        images, places = pictures.read_good(index, torch.device("cpu"))
        parts.append(((images + 1) * 127.5).round().to(torch.uint8))
        labels.append(pictures.pictures.labels[index[places]])
    return train_classifier(torch.cat(parts).to(world.device), torch.cat(labels).to(world.device), config, progress)
