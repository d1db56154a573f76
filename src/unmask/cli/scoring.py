"""`unmask score`: orders and step budgets ranked by the likelihood of held-out data."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from unmask.cli.parsing import disk_errors, parse, positional, value_errors
from unmask.cli.published import MEASURABLE, MeasuredFlags, measured
from unmask.decoding.names import look_up, orders, schedules
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.evaluation import scoring
from unmask.experiments import images as image_experiment
from unmask.experiments import text as text_experiment
from unmask.method.guidance import Condition, Interval, Predict, guided
from unmask.pipelines.image import Pipeline
from unmask.pipelines.text import TextPipeline
from unmask.recipes.reading import read_recipe
from unmask.recipes.schema import Recipe, TextRecipe
from unmask.runtime.distributed import World, join_world


@dataclass(frozen=True, kw_only=True)
class ScoreFlags:
    orders: tuple[str, ...] = ("halton", "margin-repulsion", "margin", "entropy", "confidence-without-noise", "raster")
    """The first is what the others are compared with."""
    steps: tuple[int, ...] = (1, 4, 16, 64)
    """Forward passes."""
    schedule: str | None = None
    """As unmask sample --schedule has them; the run's own by default."""
    rows: int = 256
    """Held-out rows, spread over all there are."""
    passes: int = 16
    """Masks of each row behind the likelihood bound."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    published: Annotated[MeasuredFlags, tyro.conf.arg(name="")] = field(default_factory=MeasuredFlags)
    out: Path | None = None
    """The folder for the table and its plot; RUN/score by default, where a published model's RUN is runs/NAME."""


def score(arguments: list[str]) -> None:
    """rank orders and numbers of steps by the exact likelihood they give held-out data: no samples, no judge"""
    name, rest = positional(arguments, f"score RUN, where RUN is {MEASURABLE}")
    flags = parse(ScoreFlags, rest, f"score {name}")
    with value_errors(), join_world(None if flags.device == "auto" else flags.device) as here:
        run = measured(name, flags.published, flags.out, here)
        _table(flags, run, flags.out or run / "score", here)


def _table(flags: ScoreFlags, run: Path, out: Path, here: World) -> None:
    with disk_errors(out):
        subject, sampling, grid = opened_subject(run, here)
        length = math.prod(grid)
        if flags.schedule is not None:
            sampling = Sampling(schedule=look_up(schedules(length), flags.schedule, "schedule"))
        chosen = [(order, look_up(orders(grid), order, "order")) for order in dict.fromkeys(flags.orders)]
        rows = []
        for row in scoring.score(
            subject, chosen, sampling, flags.steps, num=flags.rows, passes=flags.passes, seed=flags.seed, world=here
        ):
            rows.append(row)
            if here.is_main:
                first = chosen[0][0]
                print("\n".join([*([] if len(rows) > 1 else [scoring.head(subject.units, first)]),
                                 scoring.line(row, subject.units, first)]), flush=True)  # fmt: skip
        if here.is_main:
            facts: dict[str, object] = {
                "rows": min(flags.rows, len(subject.rows)),
                "passes": flags.passes,
                "seed": flags.seed,
            }
            scoring.write(rows, subject.units, out, facts, here)
            print(f"\nwrote into {out}: score.md, score.csv, score.png")


def opened_subject(run: Path, here: World) -> tuple[scoring.Subject, Sampling, tuple[int, ...]]:
    """A finished run, of images or of text, as something to score."""
    recipe = read_recipe(run / "config.json", None)
    if isinstance(recipe, TextRecipe):
        return _text(run, recipe, here)
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"{run} is a tokenizer's run: give one of a model, of images or of text")
    experiment = image_experiment.prepare(recipe)
    pipeline = Pipeline.from_pretrained(run, device=str(here.device), dtype=torch.float32)

    def predict(condition: Condition) -> Predict:
        return pipeline.predict(condition, replace(pipeline.sampling, scale=Interval(1.0)))

    def plain(condition: Condition) -> Predict:
        return guided(pipeline.model, condition)

    subject = scoring.Subject(predict=predict, plain=plain, rows=experiment.test, mask_id=pipeline.model.mask_id)
    return subject, pipeline.sampling, pipeline.model.grid


def _text(run: Path, recipe: TextRecipe, here: World) -> tuple[scoring.Subject, Sampling, tuple[int, ...]]:
    ready = text_experiment.reopened(recipe, run)
    pipeline = TextPipeline.from_pretrained(run, device=str(here.device), dtype=torch.float32)
    held_out = ready.meta.test
    subject = scoring.Subject(
        predict=lambda condition: pipeline.predict(),
        plain=lambda condition: pipeline.predict(remember=False),
        rows=ready.test,
        mask_id=pipeline.model.mask_id,
        units=(("bits per character", held_out.characters / held_out.tokens),),
    )
    return subject, pipeline.sampling, pipeline.model.grid
