"""Many samples to figures one can trust: class accuracy, Frechet distance beside its floor, copies of training images.

Every figure names its reference: the features are those of a small classifier trained on the real training images, the
distance is to the held-out real images, and the floor is the distance of as many real training images to the same.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.config import read_json, write_json
from unmask.errors import CheckpointError, ConfigError
from unmask.experiment import Experiment, environment, prepare
from unmask.gallery import draw, holes
from unmask.metrics.features import (
    Classifier,
    accuracy,
    embed,
    fingerprint,
    load_classifier,
    save_classifier,
    train_classifier,
)
from unmask.metrics.frechet import Gaussian, fit_gaussian, frechet_distance
from unmask.metrics.neighbours import nearest_train
from unmask.pipeline import Pipeline
from unmask.recipes import Recipe, Sampling


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Real images and what a classifier trained on them makes of them."""

    train: Float[Tensor, "n c h w"]
    test: Float[Tensor, "m c h w"]
    test_labels: Int[Tensor, "m"]
    classifier: Classifier
    test_fit: Gaussian
    train_features: Float[Tensor, "n d"]


def reference(experiment: Experiment, folder: Path, device: torch.device) -> Reference:
    """The classifier is trained once per configuration and kept in the run as `classifier.safetensors`."""
    split, config = experiment.split, experiment.recipe.classifier
    if split.train.labels is None or split.test.labels is None:
        raise ConfigError("evaluation needs class labels, to train the classifier whose features it measures in")
    train, test = (s.as_float(slice(None)).to(device) for s in (split.train, split.test))
    path = folder / "classifier.safetensors"
    if not path.exists() or load_classifier(path).config != config:
        save_classifier(train_classifier(train, split.train.labels.to(device), config), path)
    classifier = load_classifier(path).to(device)
    return Reference(
        train=train,
        test=test,
        test_labels=split.test.labels.to(device),
        classifier=classifier,
        test_fit=fit_gaussian(embed(classifier, test)),
        train_features=embed(classifier, train),
    )


def floor(real: Reference, num: int) -> float:
    """Frechet distance of `num` real training images (of a fixed permutation, at most all) to the held-out ones."""
    index = torch.randperm(len(real.train), generator=torch.Generator().manual_seed(0))[:num]
    return frechet_distance(fit_gaussian(real.train_features[index]), real.test_fit)


def measure(images: Float[Tensor, "n c h w"], labels: Int[Tensor, "n"], real: Reference) -> dict[str, float]:
    """Class accuracy by the classifier, and the Frechet distance to the held-out images."""
    fit = fit_gaussian(embed(real.classifier, images))
    return {
        "class_accuracy": accuracy(real.classifier, images, labels),
        "frechet": frechet_distance(fit, real.test_fit),
    }


def report(run: Path, *, num: int, seed: int, sampling: Sampling | None = None) -> dict[str, object]:
    """Generate `num` images, measure them, draw the run's pictures, and write and return `report.json`.

    Without classes there is no classifier: the report then holds what needs none.
    """
    curve = read_curve(run)
    experiment, pipeline = opened(run)
    sampling = sampling or pipeline.sampling
    images = pipeline.generate(num=num, seed=seed, sampling=sampling)
    tokenizer = experiment.recipe.tokenizer
    train, test = (tokenizer.decode(tokens).flatten(1) for tokens in (experiment.train.tokens, experiment.test.tokens))
    judged = {}
    labels = pipeline.labels(num)
    if labels is not None:
        real = reference(experiment, run, pipeline.device)
        rebuilt = tokenizer.decode(experiment.test.tokens)
        judged = {
            **measure(images, labels, real),
            "classifier_test_accuracy": accuracy(real.classifier, real.test, real.test_labels),
            "frechet_floor": floor(real, num),
            "frechet_tokenizer": frechet_distance(fit_gaussian(embed(real.classifier, rebuilt)), real.test_fit),
            "inpaint_class_accuracy": inpaint_accuracy(experiment, pipeline, real, sampling, seed),
            "features": fingerprint(real.classifier),
        }
    numbers: dict[str, object] = {
        **judged,
        "nearest_train": nearest_train(images.flatten(1), train, test),
        **curve,
        "num_parameters": sum(p.numel() for p in pipeline.model.parameters()),
        "steps": sampling.steps,
        "sampling": str(sampling),
        "num_samples": num,
        "num_reference": len(experiment.test),
        "seed": seed,
        "weights": str(next(pipeline.model.parameters()).dtype),
        **environment(pipeline.device),
    }
    write_json(run / "report.json", numbers)
    draw(run, experiment, pipeline, sampling, seed)
    return numbers


def read_curve(run: Path) -> dict[str, float]:
    """Where the training of a run ended: validation loss, seconds and steps. CheckpointError if there was none."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    if not losses:
        raise CheckpointError(f"{path} tells of no validation: give the folder of a run that was trained to its end")
    return {"validation_loss": losses[-1], "train_seconds": rows[-1]["seconds"], "train_steps": rows[-1]["step"]}


def opened(run: Path) -> tuple[Experiment, Pipeline]:
    """A finished run, with its data."""
    return prepare(read_json(run / "config.json", Recipe)), Pipeline.from_pretrained(run)


def inpaint_accuracy(
    experiment: Experiment, pipeline: Pipeline, real: Reference, sampling: Sampling, seed: int, num: int = 300
) -> float:
    """The share of held-out images, of up to `num`, that are still of their class after a hole in them was filled."""
    images = experiment.split.test.as_float(slice(0, num))
    labels = real.test_labels[:num]
    repaired = pipeline.inpaint(images, holes(len(images), *images.shape[2:]), labels, seed=seed, sampling=sampling)
    return accuracy(real.classifier, repaired, labels)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a sweep: the setting, its figures on fresh seeds, and the temperature that was chosen for it.

    `border` and `inside` are the mean times t, in (0, 1], at which cells on the rim of the grid and the others appear.
    """

    order: str
    steps: int
    temperature: float
    class_accuracy: float
    frechet: float
    border: float
    inside: float


def sweep(
    run: Path,
    *,
    num: int,
    tune: int,
    seed: int,
    steps: Sequence[int],
    orders: Iterable[tuple[str, Sampling]],
    temperatures: Sequence[float],
) -> Iterator[Row]:
    """Each order at each number of steps, at the temperature that is best for it.

    Temperatures are compared on `tune` samples of another seed against the real *training* images; the chosen one is
    then measured once, on `num` fresh samples against the held-out images, so the choice does not flatter the figure.
    """
    experiment, pipeline = opened(run)
    real = reference(experiment, run, pipeline.device)
    train_fit = fit_gaussian(real.train_features)

    def tuned(sampling: Sampling) -> float:
        images = pipeline.generate(num=tune, seed=seed + 1, sampling=sampling)
        return frechet_distance(fit_gaussian(embed(real.classifier, images)), train_fit)

    for name, base in orders:
        for count in steps:
            settings = [replace(base, steps=count, temperature=x) for x in temperatures]
            best = min(settings, key=tuned)
            labels = pipeline.labels(num)
            assert labels is not None
            images = pipeline.generate(labels, seed=seed, sampling=best)
            assert isinstance(best.temperature, float)
            border, inside = reveal_times(pipeline, best, seed)
            figures = measure(images, labels, real)
            yield Row(order=name, steps=count, temperature=best.temperature, border=border, inside=inside, **figures)


def reveal_times(pipeline: Pipeline, sampling: Sampling, seed: int, num: int = 200) -> tuple[float, float]:
    """The mean time t at which tokens on the rim of the grid are revealed, and that of all others."""
    states = pipeline.history(num=num, seed=seed, sampling=sampling)
    when = sum(s.revealed.double() * s.t for s in states)
    assert isinstance(when, Tensor)
    inner = torch.zeros(pipeline.tokenizer.grid, dtype=torch.bool, device=when.device)
    inner[tuple(slice(1, -1) for _ in pipeline.tokenizer.grid)] = True
    mean = when.mean(0)
    return float(mean[~inner.flatten()].mean()), float(mean[inner.flatten()].mean())
