"""Open the network whose features the metrics are measured in."""

from pathlib import Path

from unmask.errors import ConfigError, look_up
from unmask.metrics.embedders import ClassifierFeatures, Features, InceptionFeatures, load_dinov2
from unmask.metrics.features import load_classifier
from unmask.metrics.inception import find_inception_weights, load_inception
from unmask.runtime.distributed import World
from unmask.storage.layout import CLASSIFIER


def open_networks(
    features: str, classifier: str | Path | None, world: World
) -> tuple[Features | None, ClassifierFeatures | None]:
    """Return the feature extractor (None for the classifier itself) and the classifier (None for the run's own).

    Args:
        features: "classifier", "inception" or "dinov2"; or, for the latter two, kind=PATH of their weights.
        classifier: A folder that unmask train-features made, or its file.
        world: Where to compute.

    Raises:
        ConfigError: There is no such kind.
        CheckpointError: Weights are missing or damaged.
    """
    judge = None
    if classifier is not None:
        path = Path(classifier)
        judge = ClassifierFeatures(load_classifier(path / CLASSIFIER if path.is_dir() else path).to(world.device))
    kind, _, weights = features.partition("=")
    if kind == "classifier":
        if weights:
            raise ConfigError(f"--features {features}: give the folder as --classifier {weights}")
        return None, judge
    return look_up({"inception": _open_inception, "dinov2": _open_dinov2}, kind, "features")(
        weights or None, world
    ), judge


def _open_inception(path: str | None, world: World) -> Features:
    return InceptionFeatures(load_inception(path or find_inception_weights()).to(world.device))


def _open_dinov2(path: str | None, world: World) -> Features:
    features = load_dinov2(path)
    features.network.to(world.device)
    return features
