"""`unmask tokenize-text` and `evaluate-text`: text to tokens, and what the text from a run is worth."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unmask.cli.flag_types import show_default
from unmask.cli.flags import (
    Device,
    OutputFlags,
    WeightsFlags,
    choose_device,
)
from unmask.cli.outcomes import describe_outcome, hash_if_there
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.cli.tables import TableColumn, fit_columns, format_cells, format_titles
from unmask.data.shards.dataset import META
from unmask.decoding import choices
from unmask.decoding.names import SAMPLERS, list_orders
from unmask.decoding.sampling import Parallel, Sampling
from unmask.errors import ConfigError, look_up
from unmask.method.sampling.priorities import Halton, Raster
from unmask.metrics.configs import JudgeConfig
from unmask.recipes import TextRecipe, reading
from unmask.runtime.progress import show_progress
from unmask.storage.outputs import check_results

if TYPE_CHECKING:
    from unmask.evaluation.text_table import WritingRow
    from unmask.pipelines.text import TextPipeline


@dataclass(frozen=True, kw_only=True)
class TokenizeTextFlags(OutputFlags):
    recipe: Annotated[TextRecipe, tyro.conf.arg(name="")]
    out: Path
    """Folder to write; give it as --data to unmask train."""


def run_tokenize_text(arguments: list[str]) -> None:
    """Run `unmask tokenize-text`."""
    name, rest = split_positional(arguments, "tokenize-text RECIPE --data FILE --out DIR, where RECIPE is one on text")
    default = reading.find_recipe(name, TextRecipe)
    rest = [re.sub(r"^--data(?==|$)", "--data.path", word) for word in rest]
    start = TokenizeTextFlags(recipe=default, out=Path("tokens") / Path(name).stem)
    flags = parse(TokenizeTextFlags, rest, f"tokenize-text {name}", start)
    from unmask.experiments.text import prepare_text

    with catch_value_errors(), catch_disk_errors(flags.out), show_progress(shown=True) as progress:
        before = hash_if_there(flags.out / META)
        ready = prepare_text(flags.recipe, flags.out, progress, overwrite=flags.overwrite)
    for note in ready.notes:
        print(note, file=sys.stderr)
    for part, held in (("train", ready.meta.train), ("test", ready.meta.test)):
        print(f"{part:5s} {held.documents:,} documents, {held.characters:,} characters, {held.tokens:,} tokens")
    print(f"{describe_outcome(flags.out / META, before, flags.out)}: {ready.vocab_size:,} kinds of tokens")
    print(f"next: unmask train {name} --data {flags.out}")


@dataclass(frozen=True, kw_only=True)
class EvaluateTextFlags(OutputFlags):
    orders: Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{choices.ORDER_CHOICES[:-1]}, own}} ...")] = (
        "confidence",
        "halton",
        "margin-repulsion",
        "raster",
    )
    """Unmasking orders; own is that of the run, such as its critic."""
    samplers: Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{choices.SAMPLER_CHOICES} ...")] = ("parallel",)
    """How tokens are revealed; a sampler without an order stands in the table once."""
    steps: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Numbers of forward passes."""
    temperatures: tuple[float, ...] = (1.0,)
    """Divisors of the logits; several give a frontier of perplexity against entropy. valeoai's multiplies them."""
    samples: int = 200
    """Texts of each setting, of the model's whole context."""
    published_judge: Annotated[
        str | None, tyro.conf.arg(name="judge", metavar="{gpt2, gpt2-large, DIR}"), show_default("none")
    ] = None
    """Also measure the generative perplexity under this causal language model, as other papers quote it."""
    judge: JudgeConfig = JudgeConfig()
    seed: int = 0
    """Seed of the texts."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    out: Annotated[Path | None, show_default("RUN/writing")] = None
    """Folder for the table, the plot and the samples."""


def _settings(flags: EvaluateTextFlags, pipeline: "TextPipeline") -> Iterator[tuple[str, Sampling]]:
    """Ways to sample with the names they go by."""
    table = {"own": pipeline.sampling.priority, **list_orders(pipeline.model.grid)}
    for order, sampler, steps, temperature in product(flags.orders, flags.samplers, flags.steps, flags.temperatures):
        kind = look_up(SAMPLERS, sampler, "sampler")
        plain = replace(pipeline.sampling, steps=steps, temperature=temperature, sampler=kind, remask=False)
        if isinstance(kind, Parallel):
            again = sampler == "remask"
            if again and isinstance(table.get(order), Halton | Raster):
                continue  # these never change their mind
            yield (
                f"{order}, remask" if again else order,
                replace(plain, priority=look_up(table, order, "order"), remask=again),
            )
        else:
            yield sampler, plain


def run_evaluate_text(arguments: list[str]) -> None:
    """Run `unmask evaluate-text`."""
    name, rest = split_positional(arguments, "evaluate-text RUN, where RUN is the run of a text model")
    flags = parse(EvaluateTextFlags, rest, f"evaluate-text {name}")
    from unmask.evaluation import text_table
    from unmask.experiments.text import reopen_text
    from unmask.metrics.causal_judge import load_causal_judge
    from unmask.pipelines.text import TextPipeline
    from unmask.runtime.distributed import join_world

    run, out = Path(name), flags.out or Path(name) / "writing"
    check_results(flags.out, text_table.WRITING_FILES, overwrite=flags.overwrite)
    with catch_value_errors(), catch_disk_errors(out), join_world(choose_device(flags.device)) as here:
        opened = WeightsFlags().open(name, here)
        opened.require_text_spec(f"evaluate {name}")
        recipe = opened.config
        if not isinstance(recipe, TextRecipe):
            raise ConfigError(f"{name} is a text model without its data: give the run that trained it")
        pipeline = TextPipeline.from_pretrained(run, device=str(here.device), spec=recipe)
        settings = list(dict.fromkeys(_settings(flags, pipeline)))
        published = None if flags.published_judge is None else load_causal_judge(flags.published_judge, here.device)
        rows: list[text_table.WritingRow] = []
        columns: list[TableColumn] = []
        for row in text_table.measure_writing(
            reopen_text(recipe, run),
            pipeline,
            settings,
            run,
            num=flags.samples,
            seed=flags.seed,
            judge=flags.judge,
            world=here,
            published=published,
        ):
            rows.append(row)
            if here.is_main:
                columns = columns if columns else plan_text_table(settings, row)
                head = [] if len(rows) > 1 else [format_titles(columns)]
                print("\n".join([*head, show_writing(row, columns)]), flush=True)
        facts: dict[str, object] = {"samples": flags.samples, "seed": flags.seed, "judge": str(flags.judge)}
        if published is not None:
            facts["generative perplexity under"] = published.name
        if here.is_main:
            text_table.write_writing(rows, out, facts, here)
            print("floor: what held-out text itself gets, the value to aim at; lower is not better")
            print(f"\nwrote into {out}: writing.md with all metrics, writing.csv, frontier.png, samples.md")


TEXT_COLUMNS = {
    "perplexity": "perplexity",
    "entropy": "entropy",
    "generative_perplexity": "gen. ppl",  # text_table.GENERATIVE, whose module imports torch
    "ngram_kl_2": "2-gram KL",
    "distinct_2": "distinct-2",
    "repetition_4": "repetition",
    "word_doubles": "doubles",
}
"""Entries of a row and their titles, as far as the terminal has room for them."""


def plan_text_table(settings: "list[tuple[str, Sampling]]", row: "WritingRow") -> list[TableColumn]:
    """Return the columns of the table for the terminal, whose first row this is."""
    from unmask.evaluation import text_table

    names = [text_table.HELD_OUT, text_table.TRAINING, *(name for name, _ in settings)]
    needed = [TableColumn("order", max(map(len, names))), TableColumn("steps", 5)]
    if len({sampling.temperature for _, sampling in settings}) > 1:
        needed.append(TableColumn("temp", 4))
    there = [title for name, title in TEXT_COLUMNS.items() if name in row.figures]
    return fit_columns(needed, [TableColumn(title, 7) for title in there])


def show_writing(row: "WritingRow", columns: list[TableColumn]) -> str:
    """Return a row of the table for the terminal."""
    from unmask.evaluation import text_table

    forms = text_table.list_columns(row)
    shown = {title: forms[name].format(row.figures[name]) for name, title in TEXT_COLUMNS.items() if name in forms}
    shown |= {"order": row.order}
    if row.steps:
        shown |= {"steps": str(row.steps), "temp": f"{row.temperature:g}"}
    return format_cells(columns, [shown.get(column.title, "–") for column in columns])
