"""`unmask sweep`: ways to sample a run side by side, in one table."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unmask.cli.flag_types import show_default
from unmask.cli.flags import (
    MeasuredFlags,
    OutputFlags,
    ReferenceFlags,
    WeightType,
    check_device,
    choose_device,
    choose_say,
    fetch_model,
    find_dtype,
)
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.cli.tables import TableColumn, fit_columns, format_cells, format_titles
from unmask.errors import ConfigError
from unmask.evaluation.plans import SweepChoices, plan_sweep
from unmask.published.names import MODEL_NAMES
from unmask.runtime.progress import show_progress
from unmask.storage.outputs import check_results

if TYPE_CHECKING:
    from unmask.evaluation.sweep_table import SweepRow
    from unmask.evaluation.sweeping import SweepPlan
    from unmask.published.opening import OpenedModel
    from unmask.runtime.distributed import World


@dataclass(frozen=True, kw_only=True)
class SweepFlags(SweepChoices, OutputFlags):
    """What to compare, and in which features."""

    network: Annotated[ReferenceFlags, tyro.conf.arg(name="")] = field(default_factory=ReferenceFlags)
    published: Annotated[MeasuredFlags, tyro.conf.arg(name="")] = field(default_factory=MeasuredFlags)
    dtype: WeightType = "auto"
    """Number type of weights: auto is bf16 where fast; int8 is faster for wide networks on a CPU, but less exact."""
    out: Annotated[Path | None, show_default("RUN/sweep, or runs/NAME/sweep of a published model")] = None
    """Folder for the table and its plots."""


def run_sweep(arguments: list[str]) -> None:
    """Run `unmask sweep`."""
    name, rest = split_positional(arguments, f"sweep MODEL, where MODEL is {MODEL_NAMES}")
    flags = parse(SweepFlags, rest, f"sweep {name}")
    from unmask.evaluation import sweep_table
    from unmask.runtime.distributed import join_world

    if flags.out is not None and (flags.out.suffix in (".md", ".csv") or flags.out.is_file()):
        raise ConfigError(f"--out {flags.out}: give a folder, for sweep.md, sweep.csv and the plots")
    check_device(flags.network.device, flags.dtype)
    check_results(flags.out, sweep_table.SWEEP_FILES, signs=sweep_table.COLUMNS, overwrite=flags.overwrite)
    with catch_value_errors(), join_world(choose_device(flags.network.device)) as here:
        opened = flags.published.open(name, here)
        spec = opened.require_image_spec()
        own = flags.network.features == "classifier" and flags.network.classifier is None
        if own and not getattr(spec.model, "num_classes", 1):
            raise ConfigError(
                f"{name} has no classes: give --features inception or dinov2, or --classifier DIR, to measure in"
            )
        plan = plan_sweep(spec, flags, name)
        fetch_model(opened, here)
        _print_table(flags, plan, opened, here)


def _print_table(flags: SweepFlags, plan: "SweepPlan", opened: "OpenedModel", here: "World") -> None:
    from unmask.evaluation.runs import open_run
    from unmask.evaluation.sweeping import sweep_run

    with catch_disk_errors(flags.out or Path("runs")), show_progress(shown=here.is_main) as progress:
        features, judge = flags.network.open(here)
        run = open_run(
            opened,
            here,
            data=flags.published.source,
            out=flags.out,
            dtype=find_dtype(flags.dtype),
            policy=flags.published.policy,
            progress=progress,
            say=choose_say(here),
        )
        out = flags.out or run.folder / "sweep"
        rows = sweep_run(
            run,
            plan,
            out,
            world=here,
            features=features,
            judge=judge,
            reference=flags.network.reference,
            progress=progress,
        )
        shared, columns = plan_table(plan)
        for place, row in enumerate(rows):
            progress("rows", place + 1, len(plan.list_choices()) + 3)  # baseline, bound, and the best again
            if here.is_main:
                print(
                    "\n".join([*(() if place else (shared, format_titles(columns))), show_row(row, columns)]),
                    flush=True,
                )
        if here.is_main:
            print("*: the best row again, with a fresh seed. FD: Frechet distance; less is better")
            plots = ", and plots" if any(out.glob("*.png")) else ""
            print(f"\nwrote into {out}: sweep.md with all metrics, sweep.csv{plots}")


SHOWN_SETTINGS = {
    "schedule": "schedule", "steps": "steps", "noise": "noise", "scale": "scale", "ramp": "ramp", "top_k": "top-k",
    "top_p": "top-p",
}  # fmt: skip
"""Titles of the settings of a row; those that do not vary stand above the table."""
SHOWN_METRICS = {
    "FD": ("frechet", "{:.3f}", 8),
    "accuracy": ("class_accuracy", "{:.1%}", 6),
    "precision": ("precision", "{:.3f}", 5),
    "recall": ("recall", "{:.3f}", 5),
    "IS": ("inception_score", "{:.2f}", 6),
    "coverage": ("coverage", "{:.3f}", 5),
    "density": ("density", "{:.3f}", 5),
    "KID": ("kid", "{:.5f}", 8),
}
"""Titles, entries, forms and widths of the metrics that the terminal shows, as far as they fit."""
TEMPERATURE = TableColumn("temp", 4)


def plan_table(plan: "SweepPlan") -> tuple[str, list[TableColumn]]:
    """Return a line with what all rows share, and the columns of the table for the terminal."""
    from unmask.evaluation.sweeping import describe_row

    cells = [describe_row("setting", plan, setting, several) for setting, several in plan.list_choices()]
    varied, shared = [], []
    for name, title in SHOWN_SETTINGS.items():
        values = {row[name] for row in cells if row[name]}
        if len(values) > 1:
            varied.append(TableColumn(title, max(map(len, values))))
        shared += [f"{title} {value}" for value in values if len(values) == 1]
    if len(plan.temperatures) > 1:
        varied.append(TEMPERATURE)
    else:
        shared.append(f"temperature {plan.temperatures[0]:g}")
    orders = TableColumn("order", max(len("tokenizer bound"), *(len(row["order"]) + 2 for row in cells)))
    metrics = [TableColumn(title, width) for title, (_, _, width) in SHOWN_METRICS.items()]
    shared.append(f"{plan.samples:,} samples a row")
    return ", ".join(shared), fit_columns([orders, *varied], metrics)


def show_row(row: "SweepRow", columns: list[TableColumn]) -> str:
    """Return a row of the table for the terminal."""
    kinds = {"floor": "real images", "limit": "tokenizer bound", "again": f"* {row.cells['order']}"}
    shown = {title: row.cells[name] for name, title in SHOWN_SETTINGS.items()}
    if "temperature" in row.figures:
        shown[TEMPERATURE.title] = f"{row.figures['temperature']:g}"
    for title, (name, form, _) in SHOWN_METRICS.items():
        shown[title] = form.format(row.figures[name]) if name in row.figures else ""
    shown["order"] = kinds.get(row.cells["kind"], row.cells["order"])
    return format_cells(columns, [shown.get(column.title, "") or "–" for column in columns])
