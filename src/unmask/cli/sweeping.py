"""`unmask sweep`: ways to sample a run side by side, in one table."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unmask.cli.flag_types import show_default
from unmask.cli.flags import MeasuredFlags, OutputFlags, ReferenceFlags, choose_device, choose_say, fetch_model
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.errors import ConfigError
from unmask.evaluation.plans import SweepChoices, plan_sweep
from unmask.published.names import MODEL_NAMES
from unmask.runtime.progress import show_progress
from unmask.storage.outputs import check_results

if TYPE_CHECKING:
    from unmask.evaluation.sweeping import SweepPlan
    from unmask.published.opening import OpenedModel
    from unmask.runtime.distributed import World


@dataclass(frozen=True, kw_only=True)
class SweepFlags(SweepChoices, OutputFlags):
    """What to compare, and in which features."""

    network: Annotated[ReferenceFlags, tyro.conf.arg(name="")] = field(default_factory=ReferenceFlags)
    published: Annotated[MeasuredFlags, tyro.conf.arg(name="")] = field(default_factory=MeasuredFlags)
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
    from unmask.evaluation import sweep_table
    from unmask.evaluation.runs import open_run
    from unmask.evaluation.sweeping import sweep_run

    with catch_disk_errors(flags.out or Path("runs")), show_progress(shown=here.is_main) as progress:
        features, judge = flags.network.open(here)
        run = open_run(
            opened,
            here,
            data=flags.published.source,
            out=flags.out,
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
        for place, row in enumerate(rows):
            progress("rows", place + 1, len(plan.list_choices()) + 3)  # baseline, bound, and the best again
            if here.is_main:
                print("\n".join([*(() if place else sweep_table.HEAD), sweep_table.format_row(row)]), flush=True)
        if here.is_main:
            plots = "".join(f", {path.name}" for path in sorted(out.glob("*.png")))
            print(f"\nwrote into {out}: sweep.md, sweep.csv{plots}")
