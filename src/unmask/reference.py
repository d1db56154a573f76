"""Real pictures as features: what samples are measured against. Computed once per network and source, and kept."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float64, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unmask.config import differences, dump_json, from_json, to_json
from unmask.data.augment import PictureSet
from unmask.errors import CheckpointError, ConfigError
from unmask.experiment import Experiment
from unmask.metrics.embedders import ClassifierFeatures, Features, Identity, check_same, identity
from unmask.metrics.features import Classifier, ClassifierConfig, load_classifier, save_classifier, train_classifier
from unmask.training.distributed import World, barrier, sum_over_ranks
from unmask.weights import write_weights

MOST = 50_000  # pictures of a part that are looked at, spread over it
BATCH = 256
MEMORY = 1 << 30  # bytes of pictures that a classifier learns from


@dataclass(frozen=True, kw_only=True)
class Key:
    """What the features of real pictures depend on; `source` is JSON text."""

    features: Identity
    source: str
    size: tuple[int, int]
    train: int
    test: int


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The features of real pictures; `num_train` of them are of the training set, the others held out.

    `train_index` says which pictures of the training set they are.
    """

    key: Key
    train: Float64[Tensor, "n d"]
    test: Float64[Tensor, "m d"]

    @property
    def train_index(self) -> Int[Tensor, "n"]:
        return spread(self.key.train)


def spread(num: int, most: int = MOST) -> Int[Tensor, "n"]:
    """All of `num` pictures, or `most` of them at equal distances."""
    most = min(num, most)
    return torch.arange(most) * num // most


def blocks(num: int, world: World) -> Iterator[slice]:
    """This rank's share of 0..num-1, BATCH at a time; the cut is the same for any number of ranks."""
    for first in range(world.rank * BATCH, num, world.size * BATCH):
        yield slice(first, min(first + BATCH, num))


def gather(
    num: int, dim: int, compute: Callable[[slice], Float[Tensor, "b d"]], world: World
) -> Float64[Tensor, "n d"]:
    """Rows that the ranks compute in blocks, whole on each of them, and equal to what one process computes."""
    rows = torch.zeros(num, dim, dtype=torch.float64, device=world.device)
    for block in blocks(num, world):
        rows[block] = compute(block).double()
    return sum_over_ranks(rows, world)


def embed_real(
    pictures: PictureSet, features: Features, index: Int[Tensor, "n"], world: World
) -> Float64[Tensor, "n d"]:
    """The features of the pictures of these numbers."""

    def compute(block: slice) -> Tensor:
        return features(pictures.rows(index[block], world.device)[0])

    return gather(len(index), features.dim, compute, world)


def open_reference(experiment: Experiment, features: Features, path: Path, world: World) -> Reference:
    """The features in the file `path`; made, and saved there, if there is no such file.

    ConfigError if the file is of other features or pictures: a distance to it would mean nothing.
    """
    there = path.exists()
    barrier(world)
    split = experiment.split
    key = Key(
        features=identity(features),
        source=dump_json(to_json(experiment.source)),
        size=experiment.recipe.tokenizer.size,
        train=len(split.train),
        test=len(split.test),
    )
    if there:
        return _read(path, key, world)
    train = embed_real(experiment.real("train"), features, spread(key.train), world)
    test = embed_real(experiment.real("test"), features, spread(key.test), world)
    if world.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights({"train": train, "test": test}, path, {"key": dump_json(key)})
    return Reference(key=key, train=train, test=test)


def _read(path: Path, key: Key, world: World) -> Reference:
    try:
        with safe_open(path, framework="pt") as file:
            found = from_json(Key, json.loads((file.metadata() or {})["key"]), "key")
            train, test = (file.get_tensor(name).to(world.device) for name in ("train", "test"))
    except (OSError, SafetensorError, KeyError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: not reference statistics ({error}); give another file, to be made") from error
    check_same(found.features, key.features)
    if found != key:
        raise ConfigError(
            f"{path} holds the features of other pictures ({differences(found, key)[0]}): give another file"
        )
    return Reference(key=key, train=train, test=test)


def in_domain(pictures: PictureSet, config: ClassifierConfig, path: Path, world: World) -> ClassifierFeatures:
    """A classifier trained on these real pictures, once per configuration, and kept in `path`."""
    if pictures.pictures.labels is None:
        raise ConfigError(
            "these pictures have no classes to train a classifier on: give --features inception or dinov2"
        )
    barrier(world)
    if world.is_main and not (path.exists() and load_classifier(path).config == config):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_classifier(train_on(pictures, config, world), path)
    barrier(world)
    return ClassifierFeatures(load_classifier(path).to(world.device))


def check_judge(judge: ClassifierFeatures | None, classes: Sequence[str]) -> None:
    """ConfigError unless the classifier can know the pictures' classes: it has as many."""
    if judge is not None and classes and judge.num_classes != len(classes):
        raise ConfigError(
            f"the classifier knows {judge.num_classes} classes, these pictures have {len(classes)}: train one on them "
            "with unmask train-features"
        )


def train_on(pictures: PictureSet, config: ClassifierConfig, world: World) -> Classifier:
    """The classifier of a configuration, trained on these pictures, as 8 bits in memory: MEMORY of them at most."""
    assert pictures.pictures.labels is not None
    index = spread(len(pictures), MEMORY // pictures.dim)
    labels = pictures.pictures.labels[index]
    parts = [
        ((pictures.rows(part, torch.device("cpu"))[0] + 1) * 127.5).round().to(torch.uint8) for part in index.split(256)
    ]
    return train_classifier(torch.cat(parts).to(world.device), labels.to(world.device), config)
