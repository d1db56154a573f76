"""`unmask score`: orders and step budgets ranked by the likelihood of held-out data."""

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
    choose_device,
    choose_say,
    fetch_model,
)
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.decoding.choices import ORDER_CHOICES, SCHEDULE_CHOICES
from unmask.errors import ConfigError, look_up
from unmask.published.names import MODEL_NAMES
from unmask.storage.outputs import check_results

if TYPE_CHECKING:
    from unmask.decoding.sampling import Sampling
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
        measured = flags.published
        subject, own, _, folder = open_subject(
            opened, here, measured.source, flags.out, measured.policy, choose_say(here)
        )
        out = flags.out or folder / "score"
        rows = []
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
                first = chosen[0][0]
                head = [] if len(rows) > 1 else [scoring.format_score_head(subject.units, first)]
                print("\n".join([*head, scoring.format_score(row, subject.units, first)]), flush=True)
        if here.is_main:
            facts: dict[str, object] = {
                "rows": min(flags.rows, len(subject.rows)),
                "passes": flags.passes,
                "seed": flags.seed,
            }
            scoring.write_scores(rows, subject.units, out, facts, here)
            print(f"\nwrote into {out}: score.md, score.csv, score.png")
