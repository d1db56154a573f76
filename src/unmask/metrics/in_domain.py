"""Prepare the in-domain classifier of a dataset: its features and classes measure the samples."""

import contextlib
import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from unmask.data.augment import PictureSet
from unmask.data.pictures import OnDemand, hash_pictures, spread
from unmask.errors import CheckpointError, ConfigError, DiskError
from unmask.metrics.configs import ClassifierConfig
from unmask.metrics.embedders import ClassifierFeatures
from unmask.metrics.features import Classifier, load_classifier, read_picture_digest, save_classifier, train_classifier
from unmask.runtime.distributed import World, barrier
from unmask.runtime.progress import Progress
from unmask.storage.cache import find_cache_dir
from unmask.storage.lock import remove_killed_writes

READ_BATCH = 256  # images read at once
MAX_TRAINING_BYTES = 1 << 30  # of images that a classifier is trained on


def prepare_classifier_features(
    pictures: PictureSet, config: ClassifierConfig, path: Path, world: World, progress: Progress | None = None
) -> ClassifierFeatures:
    """Return the features of a classifier for these real images. Train it unless `path` holds one for them.

    Only the main rank trains; the others wait. A file of other images or another configuration is replaced. What was
    trained once is kept in the cache folder, so that all runs on the same images are measured by the same classifier.

    Raises:
        ConfigError: If the images have no classes.
    """
    if pictures.pictures.labels is None:
        raise ConfigError("these images have no classes to train a classifier on: pass --features inception or dinov2")
    barrier(world)
    if world.is_main:
        found = hash_pictures(pictures.pictures)
        if not (path.exists() and load_classifier(path).config == config and read_picture_digest(path) == found):
            remove_killed_writes(path.parent)
            save_classifier(_take_or_train(pictures, config, found, world, progress), path, found)
    barrier(world)
    return ClassifierFeatures(load_classifier(path).to(world.device))


def _take_or_train(
    pictures: PictureSet, config: ClassifierConfig, found: str, world: World, progress: Progress | None
) -> Classifier:
    """Return the classifier of these images from the cache folder, or train it and keep it there."""
    facts = json.dumps([found, pictures.size, asdict(config), version("unmask")], sort_keys=True)
    key = hashlib.sha256(facts.encode()).hexdigest()
    kept = find_cache_dir() / "classifiers" / f"{key}.safetensors"
    with contextlib.suppress(CheckpointError):
        classifier = load_classifier(kept)
        if read_picture_digest(kept) == found and classifier.config == config:
            return classifier
    classifier = train_on_pictures(pictures, config, world, progress)
    with contextlib.suppress(OSError, DiskError):  # a full or read-only cache is no reason to stop
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_classifier(classifier, kept, found)
    return classifier


def train_on_pictures(
    pictures: PictureSet, config: ClassifierConfig, world: World, progress: Progress | None = None
) -> Classifier:
    """Train a classifier on these images, held in memory as bytes, MAX_TRAINING_BYTES at most."""
    assert pictures.pictures.labels is not None
    every, parts, labels = torch.arange(len(pictures)), [], []
    if isinstance(pictures.pictures, OnDemand):
        every = spread(len(pictures))  # the same images as the reference, which names unreadable files
    for index in every[spread(len(every), MAX_TRAINING_BYTES // pictures.dim)].split(READ_BATCH):
        images, places = pictures.read_good(index, torch.device("cpu"))
        parts.append(((images + 1) * 127.5).round().to(torch.uint8))
        labels.append(pictures.pictures.labels[index[places]])
    return train_classifier(torch.cat(parts).to(world.device), torch.cat(labels).to(world.device), config, progress)
