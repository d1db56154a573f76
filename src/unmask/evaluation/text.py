"""Measure generated texts: each metric stands beside the same metric of held-out text.

`_floor` is the metric of held-out text itself, and the value to aim at. Less is not better for a perplexity, which
repetition lowers, and more is not better for `distinct`. So perplexity is plotted against entropy over temperatures;
held-out text is a point in that plane. Metrics that change with the amount of text use as many rows of both. An n-gram
divergence is measured from other held-out rows, which neither side contains. If those come from other works than the
training text, training text misses the floor as well: measure rows of it, and ask no generator for less divergence.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.data.tokens import Tokens
from unmask.errors import ConfigError
from unmask.method.rand import to_double
from unmask.metrics.configs import JudgeConfig
from unmask.metrics.judge import Judge, load_judge, measure_surprise, read_text_digest, save_judge, train_judge
from unmask.metrics.text import (
    TextRows,
    compute_distinct,
    compute_doubles,
    compute_ngram_kl,
    compute_repetition,
    compute_unigram_entropy,
    number_words,
)
from unmask.runtime.distributed import World, barrier
from unmask.runtime.progress import Progress

Decode = Callable[[Int[Tensor, "l"]], str]
"""A row of tokens to its text, as tokenizers have it: -1 is no token."""

SIZES = (1, 2, 3)
REPEATED = 4  # tokens or words; shorter repetitions are what language is made of


def open_judge(
    rows: Tokens,
    config: JudgeConfig,
    path: Path,
    world: World,
    *,
    vocab_size: int,
    end_id: int,
    text: str,
    progress: Progress | None = None,
) -> Judge:
    """Return a judge trained on these training rows, once per configuration, and kept in `path`.

    `text` is the digest of the rows' text and tokenizer: with another digest, another judge is trained.
    """
    barrier(world)
    if world.is_main and not _fits(path, config, vocab_size, end_id, text):
        made = train_judge(rows, config, vocab_size=vocab_size, end_id=end_id, device=world.device, progress=progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_judge(made, path, text)
    barrier(world)
    return load_judge(path).to(world.device)


def _fits(path: Path, config: JudgeConfig, vocab_size: int, end_id: int, text: str) -> bool:
    if not path.exists():
        return False
    found = load_judge(path)
    there = (found.config, found.vocab_size, found.end_id, read_text_digest(path))
    return there == (config, vocab_size, end_id, text)


def measure_texts(
    samples: TextRows, held_out: TextRows, judge: Judge, decode: Decode | None = None
) -> dict[str, float]:
    """Compute every metric of the samples, with `_floor` for held-out rows; with `decode` also metrics of words.

    Nats, perplexity and entropy are per token of the judge's tokenizer. ConfigError for rows that do not compare.
    """
    (line,) = find_frontier({1.0: samples}, held_out, judge, decode)
    del line["temperature"]
    return line


def find_frontier(
    samples: Mapping[float, TextRows], held_out: TextRows, judge: Judge, decode: Decode | None = None
) -> list[dict[str, float]]:
    """Measure the samples of each temperature, from the lowest on; `temperature` names it."""
    # Neighbours in a text are alike: without this, the halves would be two plays or two authors.
    real = held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0)).to(held_out.device)]
    floor = _named(_judged(real, judge), "", "_floor")
    lines = []
    for temperature, rows in sorted(samples.items()):
        _check(rows, real)
        found = {"temperature": temperature, **_judged(rows, judge), **floor}
        found |= _beside(rows.to(real.device), real, "")
        if decode is not None:
            numbered = number_words([decode(row) for row in (*rows, *real)])
            found |= _beside(numbered[: len(rows)], numbered[len(rows) :], "word_")
        lines.append(found)
    return lines


def _check(samples: TextRows, held_out: TextRows) -> None:
    if len(samples) < 1 or len(held_out) < 2:
        raise ConfigError(f"{len(samples)} samples, {len(held_out)} held-out rows: give 1 and 2 or more")
    if samples.shape[1] != held_out.shape[1]:
        raise ConfigError(
            f"samples are {samples.shape[1]} tokens long and held-out rows {held_out.shape[1]}: cut them alike, as "
            "longer ones repeat more"
        )


def _judged(rows: TextRows, judge: Judge) -> dict[str, float]:
    nats = to_double(measure_surprise(judge, rows)).sum() / (rows >= 0).sum().cpu()
    return {"nats_per_token": nats.item(), "perplexity": nats.exp().item()}


def _beside(samples: TextRows, real: TextRows, prefix: str) -> dict[str, float]:
    """Measure samples and held-out rows; at most half of the latter, the others being the reference."""
    num = min(len(samples), len(real) // 2)
    found = _figures(samples) | _counted(samples[:num], real[num:])
    floor = _figures(real) | _counted(real[:num], real[num:])
    return _named(found, prefix, "") | _named(floor, prefix, "_floor")


def _figures(rows: TextRows) -> dict[str, float]:
    """Compute the metrics that do not depend on the number of rows."""
    return {
        "entropy": compute_unigram_entropy(rows).mean().item(),
        f"repetition_{REPEATED}": compute_repetition(rows, REPEATED),
        "doubles": compute_doubles(rows),
    }


def _counted(rows: TextRows, reference: TextRows) -> dict[str, float]:
    """Compute the metrics that fall with the number of rows."""
    shares = {f"distinct_{n}": compute_distinct(rows, n) for n in SIZES}
    return shares | {f"ngram_kl_{n}": compute_ngram_kl(rows, reference, n) for n in SIZES}


def _named(figures: Mapping[str, float], prefix: str, suffix: str) -> dict[str, float]:
    return {f"{prefix}{name}{suffix}": value for name, value in figures.items()}
