"""`unmask score`: orders and step budgets ranked by the likelihood of held-out data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unmask.cli.flag_types import show_default
from unmask.cli.flags import (
    MODELS_OWN,
    Device,
    MeasuredFlags,
    OutputFlags,
    WeightType,
    check_device,
    choose_device,
    choose_say,
    fetch_model,
    find_dtype,
)
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.cli.tables import TableColumn, format_cells, format_titles
from unmask.decoding.choices import ORDER_CHOICES, SCHEDULE_CHOICES
from unmask.errors import ConfigError, look_up
from unmask.published.names import MODEL_NAMES
from unmask.storage.outputs import check_results

if TYPE_CHECKING:
    from unmask.decoding.sampling import Sampling
    from unmask.evaluation.scoring import OrderScore
    from unmask.published.opening import OpenedModel
    from unmask.runtime.distributed import World


@dataclass(frozen=True, kw_only=True)
class ScoreFlags(OutputFlags):
    """What to score."""

    orders: Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{ORDER_CHOICES} ...")] = (
        "halton",
        "margin-repulsion",
        "margin",
        "entropy",
        "confidence-without-noise",
        "raster",
    )
    """Unmasking orders; the others are compared with the first."""
    steps: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of forward passes."""
    schedule: Annotated[str | None, tyro.conf.arg(metavar=SCHEDULE_CHOICES), show_default(MODELS_OWN)] = None
    """Fraction still masked over time, as for unmask sample."""
    rows: int = 256
    """Held-out rows to score, spread over all there are."""
    passes: int = 16
    """Masks of each row behind the likelihood bound; more make it more certain."""
    seed: int = 0
    """Seed of the masks."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    dtype: WeightType = "auto"
    """Number type of weights: auto is fp32; int8 is faster for wide networks on a CPU, but less exact."""
    published: Annotated[MeasuredFlags, tyro.conf.arg(name="")] = field(default_factory=MeasuredFlags)
    out: Annotated[Path | None, show_default("RUN/score, or runs/NAME/score of a published model")] = None
    """Folder for the table and its plot."""


def run_score(arguments: list[str]) -> None:
    """Run `unmask score`."""
    name, rest = split_positional(arguments, f"score MODEL, where MODEL is {MODEL_NAMES}")
    flags = parse(ScoreFlags, rest, f"score {name}")
    from unmask.decoding.names import list_orders, list_schedules
    from unmask.decoding.sampling import Sampling
    from unmask.evaluation import scoring
    from unmask.recipes.schema import TokenizerRecipe
    from unmask.recipes.spec import ModelSpec, TextModelSpec
    from unmask.runtime.distributed import join_world

    check_device(flags.device, flags.dtype)
    check_results(flags.out, scoring.SCORE_FILES, overwrite=flags.overwrite)
    with catch_value_errors(), join_world(choose_device(flags.device)) as here:
        opened = flags.published.open(name, here)
        if not isinstance(opened.config, ModelSpec | TextModelSpec):
            kind = "a tokenizer's run" if isinstance(opened.config, TokenizerRecipe) else "a tokenizer"
            raise ConfigError(f"{name} is {kind}: give a model of images or text")
        table = list_schedules(opened.config.length)
        sampling = None
        if flags.schedule is not None:
            sampling = Sampling(schedule=look_up(table, flags.schedule, "schedule"))
        grid = opened.config.grid
        chosen = [(order, look_up(list_orders(grid), order, "order")) for order in dict.fromkeys(flags.orders)]
        fetch_model(opened, here)
        _print_table(flags, opened, chosen, sampling, here)


def _print_table(
    flags: ScoreFlags, opened: "OpenedModel", chosen: list, sampling: "Sampling | None", here: "World"
) -> None:
    from unmask.evaluation import scoring
    from unmask.evaluation.measuring import open_subject

    with catch_disk_errors(flags.out or Path("runs")):
        measured, dtype = flags.published, find_dtype(flags.dtype)
        subject, own, _, folder = open_subject(
            opened, here, measured.source, flags.out, measured.policy, choose_say(here), dtype
        )
        out = flags.out or folder / "score"
        rows, first = [], chosen[0][0]
        columns = plan_score_table([order for order, _ in chosen], subject.units)
        for row in scoring.score_subject(
            subject,
            chosen,
            sampling or own,
            flags.steps,
            num=flags.rows,
            passes=flags.passes,
            seed=flags.seed,
            world=here,
        ):
            rows.append(row)
            if here.is_main:
                head = [] if len(rows) > 1 else [format_titles(columns)]
                print("\n".join([*head, show_score(row, subject.units, columns, first)]), flush=True)
        if here.is_main:
            facts: dict[str, object] = {
                "rows": min(flags.rows, len(subject.rows)),
                "passes": flags.passes,
                "seed": flags.seed,
                **scoring.describe_dtype(dtype),
            }
            scoring.write_scores(rows, subject.units, out, facts, here)
            print(f"bound: any order, one token a pass. difference: to {first}, ± its standard error")
            print(f"\nwrote into {out}: score.md, score.csv, score.json, score.png")


def plan_score_table(orders: Sequence[str], units: Sequence[tuple[str, float]]) -> list[TableColumn]:
    """Return the columns of the table for the terminal."""
    numbers = [TableColumn("steps", 5), TableColumn("nats/token", len("12.3456±0.1234"))]
    numbers += [TableColumn(name.replace(" per ", "/")) for name, _ in units]
    return [TableColumn("order", max(map(len, orders))), *numbers, TableColumn("difference", len("+0.1234±0.1234"))]


def show_score(row: "OrderScore", units: Sequence[tuple[str, float]], columns: list[TableColumn], first: str) -> str:
    """Return a row of the table for the terminal."""
    others = [f"{row.nats / math.log(2) / per:.4f}" for _, per in units]
    apart = f"{row.difference:+.4f}±{row.difference_error:.4f}" if row.steps and row.order != first else "–"
    nats = f"{row.nats:.4f}±{row.error:.4f}"
    return format_cells(columns, [row.order, str(row.steps or "–"), nats, *others, apart])
