"""Real pictures as features: what samples are measured against. Computed once per network and pictures, and kept.

As in `unmask tokenize`, a picture that cannot be read is left out, and said.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from unmask.data.augment import PictureSet
from unmask.data.image_files import Unreadable
from unmask.data.pictures import Pictures, hash_pictures, spread
from unmask.data.sources.choice import write_source
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.experiments.images import Experiment
from unmask.method.rand import to_double
from unmask.metrics.embedders import ClassifierFeatures, Features, Identity, check_same_features, identify_features
from unmask.runtime.distributed import World, barrier, sum_over_ranks
from unmask.runtime.progress import Progress
from unmask.storage.config import dump_json, from_json, list_differences
from unmask.storage.weights import read_sealed, write_sealed

PICTURES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class ReferenceKey:
    """What the features of real pictures depend on; `source` is JSON text, `pictures` the digest of both parts."""

    features: Identity
    source: str
    size: tuple[int, int]
    train: int
    test: int
    pictures: str

    @property
    def file(self) -> str:
        """The name of the file, in a folder that keeps several."""
        return f"reference-{hashlib.sha256(dump_json(self).encode()).hexdigest()[:12]}.safetensors"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The features of real pictures, of the training set and held out; the indices say which of each part they are."""

    key: ReferenceKey
    train: Float64[Tensor, "n d"]
    test: Float64[Tensor, "m d"]
    train_index: Int[Tensor, "n"]
    test_index: Int[Tensor, "m"]

    @property
    def num_unread(self) -> int:
        """The number of images that were to be looked at but could not be read."""
        return sum(map(len, (spread(self.key.train), spread(self.key.test)))) - len(self.train) - len(self.test)


def split_blocks(num: int, world: World) -> Iterator[slice]:
    """This rank's share of 0..num-1, BATCH at a time; the cut is the same for any number of ranks."""
    for first in range(world.rank * PICTURES_AT_ONCE, num, world.size * PICTURES_AT_ONCE):
        yield slice(first, min(first + PICTURES_AT_ONCE, num))


def gather_rows(
    num: int,
    dim: int,
    compute: Callable[[slice], Float[Tensor, "b d"]],
    world: World,
    progress: Progress | None = None,
    what: str = "samples",
) -> Float64[Tensor, "n d"]:
    """Compute rows in blocks over the ranks; each rank gets all of them, equal to what one process computes."""
    report = progress or _silent
    rows = to_double(torch.zeros(num, dim, device=world.device))
    report(what, 0, num)
    for block in split_blocks(num, world):
        rows[block] = to_double(compute(block))
        report(
            what, min(num, block.stop + (world.size - 1) * PICTURES_AT_ONCE), num
        )  # the other ranks are about as far
    return sum_over_ranks(rows, world)


def _silent(what: str, done: int, total: int) -> None:
    pass


def embed_real(
    pictures: PictureSet,
    features: Features,
    index: Int[Tensor, "n"],
    world: World,
    progress: Progress | None = None,
) -> tuple[Float64[Tensor, "m d"], Int[Tensor, "m"]]:
    """Return the features of the images that can be read, and their indices; DataError if none can."""

    def compute(block: slice) -> Tensor:
        images, places = pictures.read_good(index[block], world.device)
        rows = to_double(torch.zeros(len(index[block]), 1 + features.dim, device=world.device))
        if len(places):
            read = torch.ones(len(places), 1, dtype=rows.dtype, device=rows.device)
            rows[places.to(rows.device)] = torch.cat([read, features(images).to(rows.device)], dim=1)
        return rows

    rows = gather_rows(len(index), 1 + features.dim, compute, world, progress, "real images")
    read = rows[:, 0] == 1
    if len(index) and not read.any():
        first = pictures.pictures.try_read(index[:1])[2]
        raise DataError(f"{first[0]}; nor can any other of {len(index)} pictures be read: restore them")
    return rows[read, 1:], index[read.cpu()]


def list_unread(pictures: PictureSet, read: Int[Tensor, "m"]) -> list[Unreadable]:
    """Return why the other images of a part could not be read, among those that are looked at."""
    every = spread(len(pictures))
    return pictures.pictures.try_read(every[~torch.isin(every, read)])[2]


def open_reference(
    experiment: Experiment, features: Features, path: Path, world: World, progress: Progress | None = None
) -> Reference:
    """Read the features from the file `path`, or from a folder's file for these images and features; else compute them.

    ConfigError if the file holds features of another kind or of other images: a distance to it would mean nothing.
    """
    split = experiment.split
    check_held_out(split.train, split.test)
    key = ReferenceKey(
        features=identify_features(features),
        source=dump_json(write_source(experiment.source)),
        size=experiment.recipe.tokenizer.size,
        train=len(split.train),
        test=len(split.test),
        pictures=hash_pictures(split.train, split.test),
    )
    path = path / key.file if path.is_dir() else path
    there = path.exists()
    barrier(world)  # all ranks have looked before the first writes
    if there:
        return _read(path, key, world)
    train, train_index = embed_real(experiment.read_pictures("train"), features, spread(key.train), world, progress)
    test, test_index = embed_real(experiment.read_pictures("test"), features, spread(key.test), world, progress)
    made = {"train": train, "test": test, "train_index": train_index, "test_index": test_index}
    if world.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(made, path, {"key": dump_json(key)})
    return Reference(key=key, train=train, test=test, train_index=train_index, test_index=test_index)


def _read(path: Path, key: ReferenceKey, world: World) -> Reference:
    try:
        tensors, facts = read_sealed(path)
        found = from_json(ReferenceKey, json.loads(facts["key"]), "key")
        train, test = (tensors[name].to(world.device) for name in ("train", "test"))
        train_index, test_index = (tensors[f"{name}_index"] for name in ("train", "test"))
    except (CheckpointError, KeyError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: not reference statistics ({error}); delete it to compute them again, or give another --reference"
        ) from error
    check_same_features(found.features, key.features)
    if found != key:
        raise ConfigError(
            f"{path} holds the features of other images ({list_differences(found, key)[0]}): give another file"
        )
    return Reference(key=key, train=train, test=test, train_index=train_index, test_index=test_index)


def check_judge(judge: ClassifierFeatures | None, classes: Sequence[str]) -> None:
    """ConfigError unless the classifier can know the pictures' classes: it has as many."""
    if judge is not None and classes and judge.num_classes != len(classes):
        raise ConfigError(
            f"the classifier knows {judge.num_classes} classes, these images have {len(classes)}: train one on them "
            "with unmask train-features"
        )


def check_held_out(train: Pictures, test: Pictures) -> None:
    """DataError if too few pictures are held out to measure a distance to them."""
    if len(test) < 2:
        raise DataError(
            f"{len(test)} of {len(train) + len(test)} images held out, and a distance takes at least 2: add "
            "images, or sort them into the sub-folders train and val"
        )
