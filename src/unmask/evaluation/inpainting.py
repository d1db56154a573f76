"""Repairing held-out images with holes, measured: schedules and early stops side by side, with the same noise for all.

Two distances matter: of whole repaired images to true ones, which the untouched pixels flatter, and of the holes alone,
everything outside them set to 0 in both. Which features, and which class accuracy, is the caller's choice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from unmask.data.holes import ANY, Cells, fill_smoothly, make_masks, paste
from unmask.data.pictures import spread
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.experiments.images import Experiment
from unmask.figures import images as figures
from unmask.method.guidance import Condition
from unmask.method.rand import to_double
from unmask.method.schedules import Cosine, Power, Shape
from unmask.metrics.embedders import ClassifierFeatures, Features, embed_all, identify_features
from unmask.metrics.frechet import compute_frechet_distance, fit_gaussian
from unmask.pipelines.editing import inpaint_images
from unmask.pipelines.image import Pipeline
from unmask.runtime.provenance import describe_environment
from unmask.storage.config import write_json
from unmask.storage.files import write_text
from unmask.storage.layout import REPORT
from unmask.storage.lock import remove_killed_writes

InpaintingMeasure = Callable[[Tensor, Tensor, Tensor], dict[str, float]]
"""`measure(repaired, truth, hole)` gives named figures."""

SHAPES: Mapping[str, Shape] = {"cosine": Cosine(), "linear": Power(1.0), "square": Power(2.0)}


@dataclass(frozen=True, kw_only=True)
class InpaintingRow:
    """One way to fill the holes: `stop` of `steps` forward passes along `schedule`, and its figures.

    Two ways without a model frame the others, at 0 steps: "smooth fill" of the surroundings, below which no model
    should fall, and "tokenizer", what a model would get that gives every true token.
    """

    schedule: str
    steps: int
    stop: int
    figures: dict[str, float]


def compare_schedules(
    pipeline: Pipeline,
    images: Float[Tensor, "n c h w"],
    holes: Bool[Tensor, "n h w"],
    labels: Condition = None,
    *,
    measure: InpaintingMeasure,
    schedules: Mapping[str, Shape] = SHAPES,
    steps: int = 20,
    stops: Sequence[int] | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
    cells: Cells = ANY,
) -> Iterator[InpaintingRow]:
    """Yield a row for each schedule and early stop (none by default), after the two without a model.

    All settings but the steps and the schedule are those of `sampling`, by default the pipeline's own.
    """
    stops = (steps,) if stops is None else stops
    if not (schedules and stops):
        raise ConfigError(f"{len(schedules)} schedules and {len(stops)} stops: give one or more of each")
    if not all(1 <= stop <= steps for stop in stops):
        raise ConfigError(f"stops {sorted(stops)}: each must be one of the {steps} steps")
    base = replace(sampling or pipeline.sampling, steps=steps)
    rebuilt = pipeline.tokenizer.decode(pipeline.tokenizer.encode(images)).to(images)
    for name, filled in (("smooth fill", fill_smoothly(images, holes)), ("tokenizer", rebuilt)):
        repaired = paste(images, filled[:, None], holes)[:, 0]
        yield InpaintingRow(schedule=name, steps=0, stop=0, figures=measure(repaired, images, holes))
    for name, shape in schedules.items():
        for stop in stops:
            with_shape = replace(base, schedule=shape)
            repaired = inpaint_images(
                pipeline, images, holes, labels, seed=seed, sampling=with_shape, cells=cells, stop=stop
            )
            yield InpaintingRow(schedule=name, steps=steps, stop=stop, figures=measure(repaired[:, 0], images, holes))


def measure_with(
    features: Callable[[Tensor], Tensor], accuracy: Callable[[Tensor], float] | None = None
) -> InpaintingMeasure:
    """L1 over the pixels of the holes (images span [-1, 1]), Frechet distances of `features` [n, d] over whole images
    and over the holes alone, and `accuracy(repaired)` where there is one."""

    def measure(repaired: Tensor, truth: Tensor, hole: Tensor) -> dict[str, float]:
        inside = hole[:, None]
        missed = to_double(torch.where(inside, (repaired - truth).abs(), 0.0)).sum()
        named = {
            "frechet": _distance(features(repaired), features(truth)),
            "frechet_holes": _distance(features(repaired * inside), features(truth * inside)),
            "l1_holes": float(missed) / max(1, int(inside.sum()) * truth.shape[1]),
        }
        return named if accuracy is None else {**named, "class_accuracy": accuracy(repaired)}

    return measure


def _distance(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> float:
    return compute_frechet_distance(fit_gaussian(a), fit_gaussian(b))


def measure_inpainting(
    experiment: Experiment,
    pipeline: Pipeline,
    features: Features | None,
    judge: ClassifierFeatures | None,
    out: Path,
    *,
    num: int,
    schedules: Mapping[str, Shape],
    sampling: Sampling,
    stops: Sequence[int],
    labelled: bool,
    cells: Cells,
    seed: int,
) -> list[InpaintingRow]:
    """`compare` on at most `num` held-out pictures with the holes of `gallery.holes`; the table and a picture to `out`.

    ConfigError without features to measure in.
    """
    if features is None:
        raise ConfigError(
            "without classes there is nothing to measure in: give --features inception or dinov2, or --classifier DIR"
        )
    made_by = describe_environment(pipeline.device)  # before the work, as the checkout may change meanwhile
    pictures = experiment.read_pictures("test")
    images, truth = pictures.read_rows(spread(len(pictures), num), torch.device("cpu"))
    hole = make_masks(len(images), *images.shape[2:])
    labels = truth if labelled and pipeline.num_classes else None
    measure = measure_with(lambda x: embed_all(features, x), make_accuracy(judge, truth))
    rows = list(
        compare_schedules(
            pipeline,
            images,
            hole,
            labels,
            measure=measure,
            schedules=schedules,
            steps=sampling.steps,
            stops=sorted(set(stops)),
            seed=seed,
            sampling=sampling,
            cells=cells,
        )
    )
    facts: dict[str, object] = {
        "features": str(identify_features(features)),
        "judge": None if judge is None else judge.sha256,
        "num_pictures": len(images),
        "sampling": str(sampling),
        "cells": str(cells),
        "labels": labels is not None,
        "seed": seed,
        **made_by,
    }
    write_table(rows, facts, out)
    shown = slice(0, 12)
    some = None if labels is None else labels[shown]
    repaired = inpaint_images(pipeline, images[shown], hole[shown], some, seed=seed, sampling=sampling, cells=cells)
    figures.write_picture(draw_comparison(images[shown], hole[shown], repaired[:, 0]), out / "repaired.png")
    return rows


def make_accuracy(judge: ClassifierFeatures | None, truth: Condition) -> Callable[[Tensor], float] | None:
    """Return a function of inpainted images: the share whose likeliest class is the true one."""
    if judge is None or truth is None:
        return None
    return lambda repaired: float((judge.classify(embed_all(judge, repaired)).argmax(1).cpu() == truth).double().mean())


INPAINTING_FILES = (REPORT, "table.md", "table.csv", "repaired.png")
"""The files of `measure_inpainting`."""


def write_table(rows: Sequence[InpaintingRow], facts: Mapping[str, object], out: Path) -> None:
    """table.md, table.csv, and report.json with `facts`, which say what the figures are of."""
    caption = (
        f"{facts['num_pictures']} held-out images with holes, in turn the right half, the lower half and the middle, "
        f"filled with seed {facts['seed']}; distances to the same images whole, in the features of "
        f"{facts['features']}."
    )
    remove_killed_writes(out)
    write_text(f"{format_markdown(rows)}\n{caption}\n", out / "table.md")
    write_text(format_csv(rows), out / "table.csv")
    write_json(out / REPORT, {"rows": [asdict(row) for row in rows], **facts})


def draw_comparison(
    truth: Float[Tensor, "n c h w"], hole: Bool[Tensor, "n h w"], repaired: Float[Tensor, "n c h w"]
) -> Image.Image:
    """Masked, repaired and true images below each other."""
    height, width = truth.shape[2:]
    masked = figures.overlay_mask(truth, hole.flatten(1), (height, width))
    rows = [masked, *(x.expand_as(masked) for x in (repaired, truth))]
    return figures.draw_triptych(rows, ["masked", "inpainted", "original"], scale=figures.choose_scale(truth))


def format_markdown(rows: Sequence[InpaintingRow]) -> str:
    """Return the rows as a Markdown table."""
    head, *body = list_cells(rows)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *body))


def format_csv(rows: Sequence[InpaintingRow]) -> str:
    """Return the rows as comma-separated values."""
    return "".join(",".join(line) + "\n" for line in list_cells(rows))


def list_cells(rows: Sequence[InpaintingRow]) -> list[list[str]]:
    """Return the cells of the table, names first; metrics have five digits."""
    names = list(rows[0].figures) if rows else []
    if not rows or any(list(row.figures) != names for row in rows):
        raise ConfigError(f"{len(rows)} rows: a table needs at least 1, and the same figures in each")
    body = [[r.schedule, str(r.steps), str(r.stop), *(f"{r.figures[name]:.5g}" for name in names)] for r in rows]
    return [["schedule", "steps", "stop", *names], *body]
