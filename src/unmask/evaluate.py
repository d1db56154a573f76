"""Many samples to figures one can trust: class accuracy, Frechet distance beside its floor, copies of training images.

Every figure names its reference: the features are those of a small classifier trained on the real training images, the
distance is to the held-out real images, and the floor is the distance of as many real training images to the same.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from unmask import figures
from unmask.config import read_json, write_json
from unmask.errors import ConfigError
from unmask.experiment import Experiment, commit, expected_first_loss, prepare
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
from unmask.pipeline import Pipeline, Sampling
from unmask.recipes import Recipe
from unmask.sampling.decode import State


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Real images and what a classifier trained on them makes of them."""

    train: Float[Tensor, "n c h w"]
    test: Float[Tensor, "m c h w"]
    test_labels: Int[Tensor, "m"]
    classifier: Classifier
    test_fit: Gaussian
    train_features: Float[Tensor, "n d"]


def reference(experiment: Experiment, folder: Path) -> Reference:
    """The classifier is trained once and kept as `classifier.safetensors` in the run; it is read from there later."""
    split, config = experiment.split, experiment.recipe.classifier
    if split.train.labels is None or split.test.labels is None:
        raise ConfigError("evaluation needs class labels, to train the classifier whose features it measures in")
    train, test = (s.as_float(slice(None)) for s in (split.train, split.test))
    path = folder / "classifier.safetensors"
    if not path.exists():
        save_classifier(train_classifier(train, split.train.labels, config), path)
    classifier = load_classifier(path)
    return Reference(
        train=train,
        test=test,
        test_labels=split.test.labels,
        classifier=classifier,
        test_fit=fit_gaussian(embed(classifier, test)),
        train_features=embed(classifier, train),
    )


def floor(real: Reference, num: int) -> float:
    """Frechet distance of `num` real training images (the first of a fixed permutation) to the held-out ones."""
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
    """Generate `num` images, measure them, draw the run's pictures, and write and return `report.json`."""
    experiment, pipeline = opened(run)
    sampling = sampling or pipeline.sampling
    real = reference(experiment, run)
    labels = pipeline.labels(num)
    if labels is None:
        raise ConfigError("evaluation needs a class-conditional model, to compare each sample with its class")
    images = pipeline.generate(labels, seed=seed, sampling=sampling)
    rebuilt = experiment.recipe.tokenizer.decode(experiment.test.tokens)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    numbers: dict[str, object] = {
        **measure(images, labels.cpu(), real),
        "classifier_test_accuracy": accuracy(real.classifier, real.test, real.test_labels),
        "frechet_floor": floor(real, num),
        "frechet_tokenizer": frechet_distance(fit_gaussian(embed(real.classifier, rebuilt)), real.test_fit),
        "nearest_train": nearest_train(
            images.flatten(1),
            experiment.recipe.tokenizer.decode(experiment.train.tokens).flatten(1),
            rebuilt.flatten(1),
        ),
        **_repair(experiment, pipeline, real, run, seed),
        "validation_loss": [r["validation_loss"] for r in rows if "validation_loss" in r][-1],
        "train_seconds": rows[-1]["seconds"],
        "train_steps": rows[-1]["step"],
        "num_parameters": sum(p.numel() for p in pipeline.model.parameters()),
        "steps": sampling.steps,
        "sampling": str(sampling),
        "num_samples": num,
        "num_reference": len(real.test),
        "features": fingerprint(real.classifier),
        "seed": seed,
        "commit": commit(),
        "torch": torch.__version__,
        "device": str(pipeline.device),
    }
    write_json(run / "report.json", numbers)
    draw(run, experiment, pipeline, sampling, seed)
    return numbers


def opened(run: Path) -> tuple[Experiment, Pipeline]:
    """A finished run, with its data."""
    return prepare(read_json(run / "config.json", Recipe)), Pipeline.from_pretrained(run)


def holes(num: int, height: int, width: int) -> Bool[Tensor, "n h w"]:
    """In turn the right half, the lower half, and the box in the middle of an image, as a mask (True is the hole)."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    box = (y >= height // 4) & (y < height - height // 4) & (x >= width // 4) & (x < width - width // 4)
    kinds = torch.stack([(x >= width // 2).expand(height, width), (y >= height // 2).expand(height, width), box])
    return kinds[torch.arange(num) % len(kinds)]


def _repair(experiment: Experiment, pipeline: Pipeline, real: Reference, run: Path, seed: int) -> dict[str, float]:
    """Fill holes in held-out images, draw some, and measure whether the repaired ones are still of their class."""
    images, labels = real.test[:300], real.test_labels[:300]
    tokenizer = experiment.recipe.tokenizer
    hole = holes(len(images), *images.shape[2:])
    repaired = pipeline.inpaint(images, hole, labels, seed=seed)
    _, masked = pipeline.with_hole(images, hole)
    shown = figures.masked_overlay(images[:12], masked[:12], tokenizer.grid)
    rows = [images[:12], shown, repaired[:12]]
    figures.write(
        figures.triptych(rows, ["original", "hole", "repaired"], scale=figures.readable_scale(images)),
        run / "inpaint.png",
    )
    return {"inpaint_class_accuracy": accuracy(real.classifier, repaired, labels)}


def draw(run: Path, experiment: Experiment, pipeline: Pipeline, sampling: Sampling, seed: int) -> None:
    """samples.png, decode.gif, order.png and loss.png of a run."""
    tokenizer, classes = experiment.recipe.tokenizer, max(1, pipeline.num_classes)
    labels = None if not pipeline.num_classes else torch.arange(100, device=pipeline.device) // 10 % classes
    images = pipeline.generate(labels, num=100, seed=seed, sampling=sampling)
    scale = figures.readable_scale(images)
    figures.write(figures.grid(images, 10, scale=scale), run / "samples.png")

    states = pipeline.history(num=30, seed=seed, sampling=sampling)
    figures.animate(decode_pictures(pipeline, states, scale), run / "decode.gif")
    when = torch.stack([s.revealed.long() * s.step for s in states]).sum(0).cpu()
    figures.write(figures.reveal_order(when, tokenizer.grid, len(states) - 1, 10, scale=2 * scale), run / "order.png")

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    series = {
        name: ([r["step"] for r in rows if key in r], [r[key] for r in rows if key in r])
        for name, key in (("training", "loss"), ("validation", "validation_loss"))
    }
    expected = "unigram entropy" if experiment.recipe.unigram else "log K"
    figures.curves(
        series,
        run / "loss.png",
        xlabel="step",
        ylabel="nats per masked token",
        title="Masked-token cross-entropy",
        references={f"before training: {expected}": expected_first_loss(experiment)},
    )


def decode_pictures(pipeline: Pipeline, states: Sequence[State], scale: int) -> list[Image.Image]:
    """One picture per state, masked cells hatched."""
    tokens = [state.tokens.cpu() for state in states]
    masked = [t == pipeline.model.mask_id for t in tokens]
    height, width = pipeline.tokenizer.grid
    return figures.decode_frames(tokens, masked, pipeline.tokenizer.decode, (height, width), 10, scale=scale)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a sweep: the setting, its figures on fresh seeds, and the temperature that was chosen for it."""

    order: str
    steps: int
    temperature: float
    class_accuracy: float
    frechet: float


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
    real = reference(experiment, run)
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
            yield Row(order=name, steps=count, temperature=best.temperature, **measure(images, labels.cpu(), real))
