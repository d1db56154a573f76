"""Which network measures: `--features` and `--classifier` of the evaluating commands, and `unmask train-features`."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from unmask.cli.parsing import disk_errors, parse, positional, value_errors
from unmask.cli.tokenizers import place, sources
from unmask.data.augment import PictureSet
from unmask.data.sources.choice import Arrays, Source
from unmask.decoding.names import look_up
from unmask.errors import ConfigError
from unmask.evaluation.reference import embed_real
from unmask.metrics.embedders import ClassifierFeatures, Features, InceptionFeatures, load_dinov2
from unmask.metrics.features import ClassifierConfig, load_classifier
from unmask.metrics.in_domain import in_domain
from unmask.metrics.inception import find_weights, load_inception
from unmask.recipes import cifar10
from unmask.runtime.distributed import World, join_world
from unmask.runtime.progress import show_progress
from unmask.runtime.provenance import describe_environment
from unmask.storage.config import write_json

CLASSIFIER = "classifier.safetensors"
PHOTOS = cifar10.recipe().classifier


@dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    features: str = "classifier"
    """classifier, inception or dinov2; or, for the latter two, kind=PATH of their weights."""
    classifier: Path | None = None
    """A folder that unmask train-features made; without it, a classifier is trained and kept in the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class ReferenceFlags(NetworkFlags):
    reference: Path | None = None
    """The file that keeps the features of the real pictures; by default in the run."""


def open_networks(flags: NetworkFlags, here: World) -> tuple[Features | None, ClassifierFeatures | None]:
    """The network to measure in, None for the classifier itself, and the classifier, None for the run's own."""
    judge = None
    if flags.classifier is not None:
        path = flags.classifier / CLASSIFIER if flags.classifier.is_dir() else flags.classifier
        judge = ClassifierFeatures(load_classifier(path).to(here.device))
    kind, _, path_of = flags.features.partition("=")
    if kind == "classifier":
        if path_of:
            raise ConfigError(f"--features {flags.features}: give the folder as --classifier {path_of}")
        return None, judge
    openers = {"inception": _inception, "dinov2": _dinov2}
    return look_up(openers, kind, "features")(path_of or None, here), judge


def _inception(path: str | None, here: World) -> Features:
    return InceptionFeatures(load_inception(path or find_weights()).to(here.device))


def _dinov2(path: str | None, here: World) -> Features:
    features = load_dinov2(path) if path else load_dinov2()
    features.network.to(here.device)
    return features


@dataclass(frozen=True, kw_only=True)
class FeatureFlags:
    data: Source
    classifier: ClassifierConfig = PHOTOS
    out: Path
    device: Literal["auto", "cpu", "cuda"] = "auto"


def train_features(arguments: list[str]) -> None:
    """train a classifier on pictures with classes, whose features unmask evaluate then measures in"""
    name, rest = positional(arguments, "train-features SOURCE --data PATH --out DIR, as cifar10, folder, mnist or hub")
    source = look_up(sources(32, 3), "folder" if rest == ["--help"] and name == "RUN" else name, "source")
    rest = [re.sub(r"^--data(?==|$)", place(source), word) for word in rest]
    flags = parse(
        FeatureFlags, rest, f"train-features {name}", FeatureFlags(data=source, out=Path("runs") / f"{name}-features")
    )
    device = None if flags.device == "auto" else flags.device
    with (
        value_errors(),
        disk_errors(flags.out),
        join_world(device) as here,
        show_progress(shown=here.is_main) as progress,
    ):
        split = flags.data.load(progress)
        if isinstance(flags.data, Arrays) and not split.train.classes:
            raise ConfigError(f"{flags.data.path} holds no labels: a classifier needs them")
        channels, height, width = split.train.shape
        config = replace(flags.classifier, channels=channels, num_classes=max(2, len(split.train.classes)))
        train, test = (
            PictureSet(pictures=part, size=(height, width), flip=False) for part in (split.train, split.test)
        )
        features = in_domain(train, config, flags.out / CLASSIFIER, here, progress)
        right = math.nan
        if split.test.labels is not None and len(split.test):
            bank, read = embed_real(test, features, torch.arange(len(test)), here)
            right = float((features.classify(bank).argmax(1).cpu() == split.test.labels[read]).double().mean())
        report = {
            "test_accuracy": right,
            "features": features.name,
            "sha256": features.sha256,
            **describe_environment(here.device),
        }
        if here.is_main:
            write_json(flags.out / "report.json", report)
            print(f"{right:.2%} of {len(test):,} held-out pictures are classified right")
            print(f"wrote {flags.out / CLASSIFIER}; next: unmask evaluate RUN --classifier {flags.out}")
