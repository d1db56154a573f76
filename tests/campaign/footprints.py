"""Memory: it must not grow with the number of calls, of samples, or of rows on the disk."""

import json
import math
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from children import GIB, Ending, run_child, run_command
from tallies import Campaign, Result, lose, survive
from works import Work

from unmask.data.shards.dataset import Meta, Shard, TokenShards, choose_token_type
from unmask.data.tokens import Batches
from unmask.pipelines.load import load

FLAT = 16 << 20
"""Bytes by which resident memory may grow over all calls after the first tenth."""
BOUND = 3 * GIB // 2
TOKENS, VOCABULARY, SHARD_ROWS = 1024, 1024, 4096


def measure_resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def sample_often(work: Work, count: int, seed: int) -> Iterator[Result]:
    """Call a loaded model many times in one process."""
    folder = work.lay_out(("exported",))

    def task() -> None:
        pipe = load("exported")
        for call in range(count):
            pipe([0, 1], steps=2, seed=seed + call)
            if call == count // 10:
                before = measure_resident()
        print(json.dumps(measure_resident() - before))

    ending = run_child(task, folder, timeout=1800)
    grown = _read_number(ending)
    for _ in range(count):
        yield (
            survive(f"grew by {_to_mib(max(0, grown))} MiB in all")
            if 0 <= max(0, grown) <= FLAT and not ending.code
            else lose("grew", f"{count} calls: {grown} bytes more, code {ending.code}: {ending.last_line}")
        )
    work.remove(folder)


def evaluate_many(work: Work, count: int, seed: int) -> Iterator[Result]:
    """Measure many samples with `evaluate`; each sample is an attempt."""
    folder = work.lay_out(("photos", "evaluated>runs/pixels"))
    words = ["evaluate", "runs/pixels", "--samples", str(count), "--steps", "2", "--seed", str(seed)]
    ending = run_command(words, folder, timeout=1800)
    yield from _judge_peak(ending, count, f"evaluate of {count} samples")
    work.remove(folder)


def read_map(work: Work, count: int, seed: int) -> Iterator[Result]:
    """Read a sparse token dataset in batches of 256 rows, shuffled as in training; each row of it is an attempt."""
    folder = work.lay_out(())
    length, kind = TOKENS, choose_token_type(VOCABULARY)
    names, left = [], count
    while left:
        rows = min(SHARD_ROWS, left)
        name = f"train-{len(names):05d}.tokens.npy"
        np.lib.format.open_memmap(folder / name, "w+", kind, (rows, 1, length))
        names.append(Shard(file=name, rows=rows, sha256="0" * 64, labels=None))
        left -= rows
    side = math.isqrt(length)
    meta = Meta(tokenizer="0" * 64, vocab_size=VOCABULARY, grid=(side, side), views=("centre",), classes=(),
                source="{}", train=tuple(names), test=())  # fmt: skip

    def task() -> None:
        data = TokenShards(folder, meta, meta.train)
        batches = Batches(data, 256, seed, torch.device("cpu"))
        for step in range(min(2000, 1 + count // 256)):
            batches(step, torch.arange(256))

    ending = run_child(task, folder, timeout=1800)
    yield from _judge_peak(ending, count, f"{count} rows of {length} tokens")
    work.remove(folder)


def _judge_peak(ending: Ending, count: int, what: str) -> Iterator[Result]:
    fine = not ending.code and ending.peak <= BOUND
    shown = f"peak {_to_mib(ending.peak)} MiB"
    note = f"{what}: {shown}, code {ending.code}: {ending.last_line}"
    for _ in range(count):
        yield survive(shown) if fine else lose("over 1.5 GiB, or failed", note)


def _read_number(ending: Ending) -> int:
    try:
        return int(ending.text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return -1 if ending.code else 0


def _to_mib(size: int) -> int:
    return round(size / (1 << 20))


CAMPAIGNS = [
    Campaign("memory-calls", "sampling calls in one process", 2000, sample_often, 20),
    Campaign("memory-evaluate", "samples through evaluate, within 1.5 GiB", 50_000, evaluate_many, 100),
    Campaign("memory-map", "rows of 1,024 tokens in a memory map, within 1.5 GiB", 1_280_000, read_map, 10_000),
]  # fmt: skip
