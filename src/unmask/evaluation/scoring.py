"""Rank unmasking orders and step budgets by the likelihood of held-out data, in one table with a plot.

There are no samples and no other network, so the only noise is the choice of held-out rows. All settings see the same
rows: differences are paired, and small ones show.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from unmask.data.tokens import Tokens, count_rows_at_once
from unmask.decoding.sampling import Order, Sampling
from unmask.errors import ConfigError
from unmask.figures.images import plot_curves
from unmask.method.guidance import Condition, Predict
from unmask.method.likelihood import compute_exact_nll, estimate_bound
from unmask.method.masking import ABSENT
from unmask.method.rand import Rand, to_double
from unmask.runtime.distributed import World, sum_over_ranks
from unmask.runtime.provenance import describe_environment
from unmask.storage.config import write_json
from unmask.storage.files import write_text
from unmask.storage.lock import remove_killed_writes

NatsMeasure = Callable[[Predict, Tensor, Rand], Tensor]
"""What some rows cost under a `predict`, in nats."""

SCORED_ROWS = 64
BOUND = "bound"


@dataclass(frozen=True, kw_only=True)
class ScoredSubject:
    """A model to score, as a `predict` for given classes, and held-out rows that it never saw.

    `plain` is the same without a memory of earlier passes: the bound takes new masks in each pass and must have none.
    `units` divides nats for other units: {"bits per character": characters per token}.
    """

    predict: Callable[[Condition], Predict]
    plain: Callable[[Condition], Predict]
    rows: Tokens
    mask_id: int
    units: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class OrderScore:
    """Nats per token of one setting, its standard error over the rows, and the paired difference to the first order."""

    order: str
    steps: int
    nats: float
    error: float
    difference: float = 0.0
    difference_error: float = 0.0


def score_subject(
    subject: ScoredSubject,
    orders: Sequence[tuple[str, Order]],
    sampling: Sampling,
    steps: Sequence[int],
    *,
    num: int,
    passes: int,
    seed: int,
    world: World,
) -> Iterator[OrderScore]:
    """Yield the likelihood bound, then each order at each number of steps, on `num` held-out rows spread over all.

    ConfigError if there are too few rows for a standard error.
    """
    num = min(num, len(subject.rows))
    if num < 2 or not orders or not steps or min(steps) < 1 or passes < 1:
        raise ConfigError(
            f"{num} held-out rows, {len(orders)} orders, steps {list(steps)}, {passes} passes: at least 2 rows, and 1 "
            "of the others"
        )
    index = torch.arange(num) * len(subject.rows) // num

    def under(make: Callable[[Condition], Predict], measure: NatsMeasure) -> tuple[Tensor, Tensor]:
        return measure_nats(subject, make, index, measure, seed, world)

    free, num_tokens = under(
        subject.plain, lambda p, x, r: estimate_bound(p, x, mask_id=subject.mask_id, rand=r, passes=passes).mean(1)
    )
    yield OrderScore(order=BOUND, steps=0, nats=average_nats(free, num_tokens), error=estimate_error(free, num_tokens))
    length = subject.rows.read_rows(index[:1], world.device)[0].shape[1]
    for budget in dict.fromkeys(min(budget, length) for budget in steps):
        first: Tensor | None = None
        for name, order in orders:
            nats, _ = under(subject.predict, build_measure(subject, order, sampling, budget))
            first = nats if first is None else first
            apart = nats - first
            yield OrderScore(
                order=name,
                steps=budget,
                nats=average_nats(nats, num_tokens),
                error=estimate_error(nats, num_tokens),
                difference=average_nats(apart, num_tokens),
                difference_error=estimate_error(apart, num_tokens),
            )


def build_measure(subject: ScoredSubject, order: Order, sampling: Sampling, steps: int) -> NatsMeasure:
    def measure(predict: Predict, tokens: Tensor, rand: Rand) -> Tensor:
        budget = Sampling(steps=steps, schedule=sampling.schedule)
        plan, bound = budget.ratios(tokens.shape[1]), budget.bind_order(order, steps)
        return compute_exact_nll(predict, tokens, plan, mask_id=subject.mask_id, rand=rand, priority=bound).sum(1)

    return measure


def measure_nats(
    subject: ScoredSubject,
    make: Callable[[Condition], Predict],
    index: Int[Tensor, "n"],
    measure: NatsMeasure,
    seed: int,
    world: World,
) -> tuple[Float64[Tensor, "n"], Float64[Tensor, "n"]]:
    """-log p of each row, and its number of tokens; the rows are shared out over the ranks."""
    out = to_double(torch.zeros(2, len(index), device=world.device))
    mine = torch.arange(world.rank, len(index), world.size)
    length = subject.rows.read_rows(index[:1], world.device)[0].shape[1]
    for part in mine.split(count_rows_at_once(SCORED_ROWS, length, subject.mask_id, world.device)):
        tokens, condition = subject.rows.read_rows(index[part], world.device)
        rand = Rand(seed, index[part].to(world.device), len(subject.rows))
        nats = measure(make(condition), tokens, rand)
        out[:, part.to(out.device)] = to_double(torch.stack([nats, (tokens != ABSENT).sum(1).to(nats.dtype)]))
    nats, num_tokens = sum_over_ranks(out, world).cpu()
    return nats, num_tokens


def average_nats(nats: Float64[Tensor, "n"], num_tokens: Float64[Tensor, "n"]) -> float:
    """Per token: the sum over all rows, divided once."""
    return float(nats.sum() / num_tokens.sum())


def estimate_error(nats: Float64[Tensor, "n"], num_tokens: Float64[Tensor, "n"]) -> float:
    """Return the standard error of that ratio (the delta method)."""
    apart = nats - average_nats(nats, num_tokens) * num_tokens
    return float(apart.std() / (num_tokens.mean() * math.sqrt(len(nats))))


# -- the table ---------------------------------------------------------------------------------------------------------


def format_score_head(units: Sequence[tuple[str, float]], first: str) -> str:
    """Return the first two lines of the Markdown table."""
    cells = ["order", "steps", "nats per token", *(name for name, _ in units), f"difference to {first}"]
    return f"| {' | '.join(cells)} |\n| --- |{' ---: |' * (len(cells) - 1)}"


def format_score(row: OrderScore, units: Sequence[tuple[str, float]], first: str) -> str:
    """Return a setting as a line of the table; the standard error follows ±."""
    others = [f"{row.nats / math.log(2) / per:.4f}" for _, per in units]
    apart = "–" if row.order in (BOUND, first) else f"{row.difference:+.4f} ± {row.difference_error:.4f}"
    name = "bound: any order, one token a pass" if row.order == BOUND else row.order
    return f"| {' | '.join([name, str(row.steps or '–'), f'{row.nats:.4f} ± {row.error:.4f}', *others, apart])} |"


def describe_dtype(dtype: torch.dtype | None) -> dict[str, object]:
    """Return the number type of the weights as a fact of the table, or nothing if no one chose it."""
    return {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}


SCORE_FILES = ("score.json", "score.md", "score.csv", "score.png")
"""The files of `write_scores`."""


def write_scores(
    rows: Sequence[OrderScore], units: Sequence[tuple[str, float]], out: Path, facts: dict[str, object], world: World
) -> None:
    """score.md, score.csv, score.json and score.png in the folder `out`."""
    remove_killed_writes(out)
    first = next(row.order for row in rows if row.order != BOUND)
    said = ", ".join(f"{name} {value}" for name, value in facts.items())
    here = describe_environment(world.device)
    shown = [format_score_head(units, first), *(format_score(row, units, first) for row in rows)]
    lines = [*shown, "", f"{said}. `{here['command']}`, commit "
             f"{here['commit']}, {here['hardware']}."]  # fmt: skip
    write_text("\n".join(lines) + "\n", out / "score.md")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    names = ("order", "steps", "nats", "error", "difference", "difference_error")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    write_text(table.getvalue(), out / "score.csv")
    write_json(out / "score.json", {"facts": facts, "environment": here})
    series = {
        order: ([row.steps for row in rows if row.order == order], [row.nats for row in rows if row.order == order])
        for order in dict.fromkeys(row.order for row in rows if row.order != BOUND)
    }
    plot_curves(
        series,
        out / "score.png",
        xlabel="steps",
        ylabel="nats per token",
        title="Exact likelihood of held-out data",
        logx=True,
        references={"bound, any order": next(row.nats for row in rows if row.order == BOUND)},
    )
