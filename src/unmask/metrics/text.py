"""Metrics of text that need no model.

They are distinct-n (Li et al. 2016, arXiv 1510.03055), repetition within a text, n-gram divergence from held-out text,
and unigram entropy, against which perplexity is plotted (arXiv 2409.02908).

Each row holds one text, with -1 where there is no token; no n-gram spans such a position. For metrics of words instead
of tokens, number the words with `number_words`. Repetition, doubles and entropy change with the length of a text; all
other metrics change with the amount of text. So compare equal numbers of rows of equal length. NaN means that there is
nothing to count.
"""

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unmask.errors import ConfigError, DataError

TextRows = Int[Tensor, "_ _"]
"""One text per row, -1 where there is no token."""

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]+")


def number_words(texts: Sequence[str]) -> TextRows:
    """Number the words and punctuation marks of each text. Equal words get equal numbers; case is ignored."""
    numbers: dict[str, int] = {}
    rows = [[numbers.setdefault(word, len(numbers)) for word in WORD.findall(text.casefold())] for text in texts]
    if not numbers:
        raise DataError(f"no words in {len(rows)} texts; pass at least one")
    return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=-1)


def number_ngrams(rows: Int[Tensor, "b l"], n: int) -> Int[Tensor, "b _"]:
    """Number the n-gram that begins at each position. Equal n-grams get equal numbers; -1 where there is none."""
    if n < 1:
        raise ConfigError(f"n is {n}; an n-gram has at least 1 token")
    grams = rows.long()
    for i in range(1, n):
        # Add one token at a time and renumber, so that numbers stay below the amount of text for any n.
        first, last = grams[:, :-1], rows[:, i:]
        size = int(last.max()) + 1 if last.numel() else 0
        joined = torch.where((first < 0) | (last < 0), -1, first * size + last)
        values, number = joined.unique(return_inverse=True)
        grams = number - int((values[:1] == -1).sum())
    return grams


def _list_ngrams(rows: TextRows, n: int) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"]]:
    """Return the row and the number of every n-gram."""
    grams = number_ngrams(rows, n)
    row, column = (grams >= 0).nonzero(as_tuple=True)
    return row, grams[row, column]


def _number_within_rows(row: Int[Tensor, "m"], grams: Int[Tensor, "m"]) -> Int[Tensor, "m"]:
    """Return one number for each pair of a row and an n-gram."""
    return row * (grams.max() + 1) + grams


def compute_distinct(rows: TextRows, n: int) -> float:
    """Compute distinct-n over all rows together: the number of different n-grams over the number of all."""
    _, grams = _list_ngrams(rows, n)
    return grams.unique().numel() / len(grams) if len(grams) else math.nan


def compute_repetition(rows: TextRows, n: int) -> float:
    """Compute the share of n-grams that occur earlier in the same row."""
    row, grams = _list_ngrams(rows, n)
    return 1 - _number_within_rows(row, grams).unique().numel() / len(grams) if len(grams) else math.nan


def compute_doubles(rows: TextRows) -> float:
    """Compute the share of tokens that equal their predecessor, among tokens that have one ("Max Max" in words)."""
    before, after = rows[:, :-1], rows[:, 1:]
    pairs = (before >= 0) & (after >= 0)
    if not pairs.any():
        return math.nan
    return int((pairs & (before == after)).sum()) / int(pairs.sum())


def compute_unigram_entropy(rows: Int[Tensor, "b l"]) -> Float64[Tensor, "b"]:
    """Compute the entropy of the token frequencies within each row, in nats; 0 for a row without tokens."""
    row, tokens = (rows >= 0).nonzero(as_tuple=True)
    out = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    if len(row) == 0:
        return out
    _, kind, counts = _number_within_rows(row, rows[row, tokens].long()).unique(return_inverse=True, return_counts=True)
    length = row.bincount(minlength=len(rows))
    surprise = (length[row].double() / counts[kind]).log()
    return out.index_add(0, row, surprise / length[row])


def compute_ngram_kl(samples: TextRows, held_out: TextRows, n: int, *, smoothing: float = 0.5) -> float:
    """Compute KL(samples || held-out) of n-gram frequencies, in nats.

    It is above 0 even for two parts of one text, and falls with their length: compare it with the value for as much
    held-out text.

    Args:
        samples: Sampled texts.
        held_out: Held-out texts.
        n: Tokens per n-gram.
        smoothing: Added to the count of every n-gram, in both sets, so that the result is finite. Higher values make
            unseen n-grams cost less.
    """
    if not 0 < smoothing < float("inf"):
        raise ConfigError(f"smoothing is {smoothing}; it must be positive and finite, such as 0.5")
    width = max(samples.shape[1], held_out.shape[1])
    both = torch.cat([_widen(samples, width), _widen(held_out, width)])
    row, grams = _list_ngrams(both, n)
    ours = row < len(samples)
    if not ours.any() or ours.all():
        return math.nan
    _, kind = grams.unique(return_inverse=True)
    counts = torch.stack([kind[part].bincount(minlength=int(kind.max()) + 1) for part in (ours, ~ours)])
    smooth = counts.double() + smoothing
    p, q = smooth / smooth.sum(1, keepdim=True)
    return max(0.0, (p * (p / q).log()).sum().item())  # rounding may leave -1e-16


def _widen(rows: TextRows, width: int) -> TextRows:
    return F.pad(rows.long(), (0, width - rows.shape[1]), value=-1)
