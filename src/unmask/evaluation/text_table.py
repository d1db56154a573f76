"""Ways to write side by side: orders, steps and temperatures, each measured on fresh samples beside held-out text."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unmask.data.tokens import Tokens
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.evaluation.text import measure_texts, open_judge
from unmask.experiments.text import TextExperiment
from unmask.figures.images import plot_curves
from unmask.metrics.causal_judge import CausalJudge, measure_generative_perplexity
from unmask.metrics.configs import JudgeConfig
from unmask.pipelines.text import TextPipeline
from unmask.runtime.distributed import World
from unmask.runtime.provenance import describe_environment
from unmask.storage.config import write_json
from unmask.storage.files import write_text
from unmask.storage.lock import remove_killed_writes
from unmask.tokenizers.text import TextTokenizer

WRITING_COLUMNS = {
    "perplexity": "{:.2f}",
    "entropy": "{:.3f}",
    "ngram_kl_1": "{:.3f}",
    "ngram_kl_2": "{:.3f}",
    "ngram_kl_3": "{:.3f}",
    "distinct_2": "{:.3f}",
    "repetition_4": "{:.3f}",
    "word_doubles": "{:.3%}",
}
GENERATIVE = "generative_perplexity"
"""The column of a published judge, where there is one."""
HELD_OUT, TRAINING = "held-out text (floor)", "training text"


@dataclass(frozen=True, kw_only=True)
class WritingRow:
    """A way to write and what it gave: its figures, and the first of its texts."""

    order: str
    steps: int
    temperature: float
    figures: dict[str, float]
    text: str


def measure_writing(
    ready: TextExperiment,
    pipeline: TextPipeline,
    settings: Sequence[tuple[str, Sampling]],
    run: Path,
    *,
    num: int,
    seed: int,
    judge: JudgeConfig,
    world: World,
    published: CausalJudge | None = None,
) -> Iterator[WritingRow]:
    """Yield rows for held-out text, training text, then `num` samples of each way to sample, by its name.

    The judge is trained on the training text once and kept in the run. A `published` judge measures the generative
    perplexity as well. ConfigError if there is too little text.
    """
    if num < 2 or not settings:
        raise ConfigError(f"{num} samples of {len(settings)} settings: 2 or more samples, and a setting")
    tokenizer = ready.tokenizer
    reader = open_judge(
        ready.train,
        judge,
        run / "judge.safetensors",
        world,
        vocab_size=tokenizer.vocab_size,
        end_id=tokenizer.end_id,
        text=ready.meta.train.sha256,
    )
    front = pipeline.make_canvas("").front  # a given end token is no part of what was written
    real = _spread(ready.test, 2 * num, world)[:, front:]
    learned = _spread(ready.train, num, world)[:, front:]
    training = measure_texts(learned, real, reader, tokenizer.decode)
    floor = {name.removesuffix("_floor"): value for name, value in training.items() if name.endswith("_floor")}
    floor |= _read_with(published, real, tokenizer)
    training |= _read_with(published, learned, tokenizer)
    yield WritingRow(order=HELD_OUT, steps=0, temperature=0.0, figures=floor, text=tokenizer.decode(real[0]))
    yield WritingRow(order=TRAINING, steps=0, temperature=0.0, figures=training, text="")
    for name, sampling in settings:
        rows = sample_rows(pipeline, num, seed, sampling).to(world.device)[:, front:]
        yield WritingRow(
            order=name,
            steps=sampling.steps,
            temperature=sampling.list_temperatures(sampling.steps)[0],
            figures=measure_texts(rows, real, reader, tokenizer.decode) | _read_with(published, rows, tokenizer),
            text=tokenizer.decode(rows[0]),
        )


def _read_with(judge: CausalJudge | None, rows: Int[Tensor, "n l"], tokenizer: TextTokenizer) -> dict[str, float]:
    """Return the generative perplexity of rows of tokens; {} without a judge."""
    if judge is None:
        return {}
    texts = [split_documents(row.tolist(), tokenizer) for row in rows]
    return {GENERATIVE: measure_generative_perplexity(judge, texts)}


def split_documents(tokens: Sequence[int], tokenizer: TextTokenizer) -> list[str]:
    """Return the texts of a row, which end tokens divide; one after the last end token may be empty."""
    pieces: list[list[int]] = [[]]
    for token in tokens:
        if token == tokenizer.end_id:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return [tokenizer.decode(np.array(piece, np.int64)) for piece in pieces]


def _spread(rows: Tokens, num: int, world: World) -> Int[Tensor, "n l"]:
    num = min(num, len(rows))
    return rows.read_rows(torch.arange(num) * len(rows) // num, world.device)[0]


def sample_rows(pipeline: TextPipeline, num: int, seed: int, sampling: Sampling) -> Int[Tensor, "n l"]:
    """`num` whole rows of tokens from nothing."""
    return torch.stack([*pipeline.finish(pipeline.make_canvas(""), num, seed=seed, sampling=sampling)])


def format_writing_head(row: WritingRow) -> str:
    """Return the first two lines of the Markdown table, whose first row this is."""
    names = [name.replace("_", " ") for name in list_columns(row)]
    return f"| order | steps | temperature | {' | '.join(names)} |\n| --- |{' ---: |' * (len(names) + 2)}"


def list_columns(row: WritingRow) -> dict[str, str]:
    """Return the metrics of a row that tables show, each with its form."""
    return {**WRITING_COLUMNS, **({GENERATIVE: "{:.2f}"} if GENERATIVE in row.figures else {})}


def format_writing(row: WritingRow) -> str:
    cells = [form.format(row.figures[name]) for name, form in list_columns(row).items()]
    setting = [row.order, str(row.steps or "–"), f"{row.temperature:g}" if row.steps else "–"]
    return f"| {' | '.join([*setting, *cells])} |"


WRITING_FILES = ("writing.json", "writing.md", "writing.csv", "samples.md", "frontier.png")
"""The files of `write_writing`."""


def write_writing(rows: Sequence[WritingRow], out: Path, facts: dict[str, object], world: World) -> None:
    """writing.md, writing.csv, writing.json, samples.md, and frontier.png: perplexity against entropy."""
    remove_killed_writes(out)
    here = describe_environment(world.device)
    said = ", ".join(f"{name} {value}" for name, value in facts.items())
    made = f"{said}. `{here['command']}`, commit {here['commit']}, {here['hardware']}."
    write_text(
        "\n".join([format_writing_head(rows[0]), *map(format_writing, rows), "", made]) + "\n", out / "writing.md"
    )
    table = io.StringIO()
    names = sorted({name for row in rows for name in row.figures if not name.endswith("_floor")})
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["order", "steps", "temperature", *names])
    writer.writerows([row.order, row.steps, row.temperature, *(row.figures.get(n, "") for n in names)] for row in rows)
    write_text(table.getvalue(), out / "writing.csv")
    write_json(out / "writing.json", {"facts": facts, "environment": here})
    shown = [
        f"### {r.order}, {r.steps} steps, temperature {r.temperature:g}\n\n```\n{r.text}\n```\n"
        for r in rows
        if r.steps
    ]
    write_text("\n".join(shown), out / "samples.md")
    draw_frontier(rows, out / "frontier.png")


def draw_frontier(rows: Sequence[WritingRow], path: Path) -> None:
    """Plot perplexity against entropy: a line over temperatures for each setting, or over steps for each order."""
    sampled = [row for row in rows if row.steps]
    several = len({row.temperature for row in sampled}) > 1
    names = [f"{row.order}, {row.steps} steps" if several else row.order for row in sampled]
    series = {}
    for name in dict.fromkeys(names):
        own = [row.figures for row, its in zip(sampled, names, strict=True) if its == name]
        series[name] = ([f["entropy"] for f in own], [f["perplexity"] for f in own])
    floor = next(row.figures for row in rows if row.order == HELD_OUT)
    series["held-out text"] = ([floor["entropy"]], [floor["perplexity"]])
    over = "temperatures" if several else "steps " + ", ".join(str(n) for n in dict.fromkeys(r.steps for r in sampled))
    plot_curves(
        series,
        path,
        xlabel=f"entropy, nats per token (over {over})",
        ylabel="perplexity under the judge",
        title="A perplexity alone rewards repetition",
        logy=True,
    )
