"""Find the counts that a model samples best with, for given numbers of forward passes (`unmask tune`).

One half of the held-out rows gives the costs of `evaluation/costs.py`, and dynamic programming the counts. The other
half scores them by exact likelihood beside the usual schedules, so the figures do not flatter the choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from unmask.decoding.names import list_orders
from unmask.decoding.rules import RolledHalton
from unmask.decoding.sampling import ListedCounts, Parallel, Reveal, Sampling
from unmask.errors import ConfigError, look_up
from unmask.evaluation.costs import choose_counts, choose_cuts, measure_costs
from unmask.evaluation.scoring import (
    ScoredSubject,
    average_nats,
    build_measure,
    estimate_error,
    measure_nats,
)
from unmask.method.sampling.priorities import Halton, Random, Raster
from unmask.method.schedules import Arccos, Cosine, Power, count_reveals
from unmask.runtime.distributed import World
from unmask.runtime.progress import Progress
from unmask.storage.config import load_json, write_json

FixedOrder = Halton | RolledHalton | Random | Raster
"""Orders that are known in advance."""
LEAST_ROWS = 100
"""Fewest held-out rows that choose counts, and as many that score them."""
FOUND = "tuned"
RIVALS: dict[str, Reveal] = {"cosine": Cosine(), "uniform": Power(1.0), "arccos": Arccos(), "square": Power(2.0)}
"""Schedules that are scored beside the counts that were found."""
COSTS = "costs.json"


@dataclass(frozen=True, kw_only=True)
class CountsScore:
    """Nats per token of some counts on rows that did not choose them, and the paired difference to the tuned counts."""

    passes: int
    schedule: str
    counts: tuple[int, ...]
    nats: float
    error: float
    difference: float
    difference_error: float


@dataclass(frozen=True, kw_only=True)
class TuningRows:
    """Held-out rows: those that choose, and those that score."""

    choose: Int[Tensor, "n"]
    score: Int[Tensor, "n"]


def split_held_out(available: int, wanted: int) -> TuningRows:
    """Spread twice `wanted` rows over all that are held out, fewer if there are fewer; every other one scores.

    ConfigError if there are too few.
    """
    num = min(wanted, available // 2)
    if num < LEAST_ROWS:
        raise ConfigError(
            f"{num} held-out rows to choose counts, and as many to score them: tuning needs at least {LEAST_ROWS} of "
            "each; hold out more, or raise --rows"
        )
    index = torch.arange(2 * num) * available // (2 * num)
    return TuningRows(choose=index[::2], score=index[1::2])


def find_order(name: str, grid: tuple[int, ...]) -> FixedOrder:
    """Return an order that is known in advance; ConfigError for one that looks at the logits."""
    order = look_up(list_orders(grid), name, "order")
    if not isinstance(order, FixedOrder):
        raise ConfigError(
            f"--order {name} looks at the logits: tune an order known in advance, halton, random or raster"
        )
    return order


def tune_counts(
    subject: ScoredSubject,
    order: FixedOrder,
    passes: Sequence[int],
    rows: TuningRows,
    length: int,
    *,
    seed: int,
    world: World,
    kept: tuple[Path, dict[str, object]] | None = None,
    progress: Progress | None = None,
) -> dict[int, list[int]]:
    """Return the counts with the least exact cost, for each number of passes.

    Args:
        subject: The model and its held-out rows.
        order: An order known in advance.
        passes: Numbers of forward passes, each at most `length`.
        rows: The rows that choose are read.
        length: Tokens of the canvas.
        seed: The seed of an order that draws.
        world: The processes; the rows are shared out over them.
        kept: A file that keeps the costs, and what they depend on; a second call reads them there.
        progress: Called with ("rows", done, total).
    """
    cuts = choose_cuts(length)
    for number in passes:
        if not 1 <= number < len(cuts):
            raise ConfigError(f"--passes {number}: give from 1 to {len(cuts) - 1} for a canvas of {length} tokens")
    costs = None if kept is None else _read_costs(*kept)
    if costs is None:
        costs = measure_costs(subject, order, cuts, index=rows.choose, seed=seed, world=world, progress=progress)
        if kept is not None and world.is_main:
            write_json(kept[0], {"facts": kept[1], "costs": [row[i + 1 :].tolist() for i, row in enumerate(costs)]})
    return {number: choose_counts(costs, cuts, number) for number in passes}


def _read_costs(path: Path, facts: dict[str, object]) -> Float64[Tensor, "cuts cuts"] | None:
    """Return costs that an earlier call kept, unless they depend on something else."""
    found = load_json(path) if path.is_file() else None
    if not isinstance(found, dict) or found.get("facts") != facts:
        return None
    size = len(found["costs"])
    costs = torch.full((size, size), torch.inf, dtype=torch.float64)
    for i, row in enumerate(found["costs"]):
        costs[i, i + 1 :] = torch.tensor(row, dtype=torch.float64)
    return costs


def score_counts(
    subject: ScoredSubject,
    order: FixedOrder,
    found: dict[int, list[int]],
    rows: TuningRows,
    length: int,
    own: Sampling,
    *,
    seed: int,
    world: World,
) -> list[CountsScore]:
    """Score the counts that were found, and those of the usual schedules and of the model's own."""
    scores = []
    for passes, counts in found.items():
        first: Tensor | None = None
        for name, schedule in {FOUND: ListedCounts(tuple(counts)), **RIVALS, "own": own.schedule}.items():
            setting = Sampling(schedule=schedule)
            nats, num = measure_nats(
                subject, subject.plain, rows.score, build_measure(subject, order, setting, passes), seed, world
            )
            first = nats if first is None else first
            plan = replace(setting, steps=passes).ratios(length)
            scores.append(
                CountsScore(
                    passes=passes,
                    schedule=name,
                    counts=tuple(count_reveals(torch.tensor([length]), plan)[:, 0].tolist()),
                    nats=average_nats(nats, num),
                    error=estimate_error(nats, num),
                    difference=average_nats(nats - first, num),
                    difference_error=estimate_error(nats - first, num),
                )
            )
    return scores


def make_preset(own: Sampling, order: FixedOrder, counts: Sequence[int]) -> Sampling:
    """Return the model's own sampling in this order with these counts."""
    warmth = own.temperature[0] if isinstance(own.temperature, tuple) else own.temperature
    return replace(
        own,
        steps=len(counts),
        schedule=ListedCounts(tuple(counts)),
        priority=order,
        temperature=warmth,
        annealing=None,
        sampler=Parallel(),
        remask=False,
        block=0,
    )


def format_counts(scores: Sequence[CountsScore]) -> list[str]:
    """Return the table of likelihoods in Markdown."""
    lines = [
        "| passes | schedule | tokens per pass | nats per token | difference to tuned |",
        "| ---: | --- | --- | ---: | ---: |",
    ]
    for s in scores:
        apart = "–" if s.schedule == FOUND else f"{s.difference:+.4f} ± {s.difference_error:.4f}"
        counts = " ".join(map(str, s.counts)) if len(s.counts) <= 16 else f"{' '.join(map(str, s.counts[:15]))} …"
        lines.append(f"| {s.passes} | {s.schedule} | {counts} | {s.nats:.4f} ± {s.error:.4f} | {apart} |")
    return lines
