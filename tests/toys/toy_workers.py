"""Tokenize with two processes that never finish: each locks a file of its own and waits for a signal.

As a script, `toy_workers.py FOLDER`: the command around them.
"""

import fcntl
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from unmask.cli.ending import finish_in_one_line
from unmask.data.images import Images
from unmask.data.shards.tokenizing import CENTER, ShardPlan, claim_folder
from unmask.data.shards.workers import tokenize_parallel

PLAN = ShardPlan(
    tokenizer="0123456789abcdef" * 4, vocab_size=256, grid=(2, 3), size=(4, 6), shape=(1, 4, 6), classes=(),
    source='{"data": "fake"}', train=2, test=1, views=(CENTER,), shard_size=1,
)  # fmt: skip


@dataclass(frozen=True)
class Waits:
    """An encoder that says that it is there, and then waits for ever, or as long as this process lives."""

    folder: Path

    def __call__(self):
        file = open(self.folder / f"worker-{os.getpid()}.lock", "w")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        print(file.name, flush=True)
        while True:
            signal.pause()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    pictures = Images(pixels=torch.zeros(2, 1, 4, 6, dtype=torch.uint8), labels=None)
    with finish_in_one_line("tokenize"), claim_folder(folder / "codes", PLAN):
        tokenize_parallel(pictures, Waits(folder), folder / "codes", "train", PLAN, processes=2)
