"""Time to save 400 MB of tensors: a checkpoint with its manifest against `safetensors.save_file` and fsync.

Run it as `python benchmarks/saving.py`. All ways are measured in turn in one process; the least of several times
counts. `training waits` is what a step waits for when the save runs in the background.
"""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from unmask.runtime.distributed import World
from unmask.runtime.memory import keep_freed_memory
from unmask.runtime.provenance import describe_environment
from unmask.storage.files import sync
from unmask.training.checkpoint import save_checkpoint
from unmask.training.saving import Saver

REPEATS = 15
Cost = tuple[float, float]
"""Seconds elapsed, and seconds of the CPU."""
ALONE = World(0, 1, torch.device("cpu"))


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    keep_freed_memory()
    tensors = {f"weight.{i}": torch.randn(1000, 1000) for i in range(100)}
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR", ".")))
    steps = iter(range(1, 10**6))
    saver, known = Saver(), {}

    def save_plainly() -> Cost:
        path = folder / f"plain-{next(steps)}"
        seconds = measure(lambda: (save_file(tensors, path), sync(path)))
        path.unlink()
        return seconds

    def save_and_wait() -> Cost:
        root, token = folder / "foreground", secrets.token_hex(8)
        return measure(lambda: save_checkpoint(root, next(steps), tensors, {}, token=token, known=known))

    waits: list[Cost] = []

    def save_in_background() -> Cost:
        def act() -> None:
            root, step = folder / "background", next(steps)
            waits.append(measure(lambda: saver.save(root, step, tensors, {}, sharded=False, world=ALONE, keep=2)))
            saver.wait()

        return measure(act)

    ways = {
        "save_file and fsync": save_plainly,
        "checkpoint, in the foreground": save_and_wait,
        "checkpoint, in the background": save_in_background,
    }
    try:
        times = [[way() for way in ways.values()] for _ in range(REPEATS)]
    finally:
        shutil.rmtree(folder)
    columns = [*zip(*times, strict=True), waits]
    least = [(min(elapsed for elapsed, _ in column), min(work for _, work in column)) for column in columns]
    size = sum(tensor.nbytes for tensor in tensors.values())
    print({**describe_environment(ALONE.device), "megabytes": round(size / 1e6), "least of": REPEATS})
    print(f"{'':32s}   elapsed           of the CPU")
    for name, (seconds, work) in zip([*ways, "of which training waits"], least, strict=True):
        ratios = f"{seconds / least[0][0]:4.1f} x  {work:6.3f} s {work / least[0][1]:4.1f} x"
        print(f"{name:32s} {seconds:6.3f} s {ratios}")


def measure(action: Callable[[], object]) -> Cost:
    """Return the seconds that `action` takes, and those of the CPU."""
    began, work = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - began, time.process_time() - work


if __name__ == "__main__":
    main()
