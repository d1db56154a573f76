"""Processes over gloo, started as torchrun starts them: one is killed, the others end, and the run is resumed."""

import json
import os
import random
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from children import Ending, run_child, run_command
from digests import digest_folder, list_differences
from safetensors.torch import load_file
from tallies import Campaign, Result, lose, survive
from works import COMMANDS, LEAVES, NEEDS, Work

from unmask.cli import main
from unmask.storage.layout import MODEL

RANKS = 2
GRACE, PATIENCE = 3.0, 30.0
"""Seconds after which a rank that is left over gets SIGTERM, and after which it counts as hung."""
HUNG = 999
CLOSE = 1e-3
"""Largest difference of the final weights between one and two processes, as the README states it for Muon."""


def run_ranks(
    words: list[str],
    folder: Path,
    *,
    size: int = RANKS,
    kill: tuple[int, float] | None = None,
    before: Callable[[], None] = lambda: None,
) -> Ending:
    """Run a command on `size` ranks; `kill` is a rank, and the seconds after which it is killed.

    Like torchrun, it ends with 1 if a rank failed; it gives the others a few seconds more to end by themselves.
    """

    def supervise() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [_fork_rank(words, rank, size, port, before) for rank in range(size)]
        if kill is not None:
            time.sleep(kill[1])
            os.kill(children[kill[0]], signal.SIGKILL)
        codes = _wait_for_ranks(children)
        (folder.parent / f"{folder.name}.codes").write_text(json.dumps(codes))
        raise SystemExit(int(any(codes)))

    return run_child(supervise, folder, timeout=300)


def _wait_for_ranks(children: list[int]) -> list[int]:
    """Return how each rank ended; once one has failed, ask the others to end, as torchrun does, and then make them."""
    codes: dict[int, int] = {}
    failed = float("inf")
    asked = False
    while len(codes) < len(children):
        for child in children:
            done, status = os.waitpid(child, os.WNOHANG) if child not in codes else (0, 0)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
                failed = min(failed, time.monotonic()) if codes[child] else failed
        left = [child for child in children if child not in codes]
        if time.monotonic() > failed + GRACE and not asked:
            asked = True
            for child in left:
                os.kill(child, signal.SIGTERM)
        if time.monotonic() > failed + PATIENCE:
            for child in left:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                codes[child] = HUNG
        time.sleep(0.02)
    return [codes[child] for child in children]


def read_codes(folder: Path) -> list[int]:
    """Return how the ranks ended; HUNG is one that did not end."""
    return json.loads((folder.parent / f"{folder.name}.codes").read_text())


def _fork_rank(words: list[str], rank: int, size: int, port: int, before: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        settings = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "MASTER_PORT": port,
            "LOCAL_WORLD_SIZE": size,
        }
        os.environ.update({name: str(value) for name, value in settings.items()}, MASTER_ADDR="127.0.0.1")
        try:
            before()
            main(list(words))
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:  # noqa: BLE001 - a rank reports whatever ended it, as Python would
            traceback.print_exc()
    finally:
        os._exit(code)


def run_ranks_whole(
    work: Work, command: str, more: tuple[str, ...] = (), size: int = RANKS
) -> tuple[dict[str, str], Ending]:
    """Return what undisturbed ranks leave, and how they ended."""
    key = f"{command} {more} on {size} ranks"
    if key not in work.references:
        folder = work.lay_out(NEEDS[command])
        ending = run_ranks([*COMMANDS[command], *more], folder, size=size)
        if ending.code:
            raise RuntimeError(f"{command} on {size} ranks fails untouched: {ending.text[-1500:]}")
        work.references[key] = (digest_folder(folder / LEAVES[command]), ending)
        work.remove(folder)
    return work.references[key]


def kill_one(work: Work, count: int, seed: int, size: int = RANKS) -> Iterator[Result]:
    """Kill one rank at a random time, and resume on as many, with DDP and FSDP in turn."""
    dice = random.Random(f"{seed}-ranks" if size == RANKS else f"{seed}-{size}-ranks")
    for turn in range(count):
        more = ("--training.strategy", ("ddp", "fsdp")[turn % 2])
        wanted, whole = run_ranks_whole(work, "train", more, size)
        folder = work.lay_out(NEEDS["train"])
        kill = (dice.randrange(size), dice.uniform(0, whole.seconds))
        words = [*COMMANDS["train"], *more]
        ending = run_ranks(words, folder, size=size, kill=kill)
        what = f"{more[1]}, rank {kill[0]} killed after {kill[1]:.3f} s"
        if HUNG in read_codes(folder):
            yield lose(
                "hang",
                f"{what}: another rank still ran {PATIENCE:.0f} s later, in spite of SIGTERM: {ending.last_line}",
            )
        else:
            again = run_ranks(words, folder, size=size)
            wrong = again.last_line if again.code else list_differences(digest_folder(folder / LEAVES["train"]), wanted)
            yield lose("other bytes", f"{what}: {wrong}") if wrong else survive("same bytes")
        work.remove(folder)


def change_size(work: Work, count: int, seed: int) -> Iterator[Result]:
    """Kill one of two ranks at a random time, and resume in one process; the weights must be close."""
    dice = random.Random(f"{seed}-sizes")
    folder = work.lay_out(NEEDS["train"])
    run_command(COMMANDS["train"], folder)
    wanted = load_file(folder / LEAVES["train"] / MODEL)
    _, whole = run_ranks_whole(work, "train")
    for _ in range(count):
        folder = work.lay_out(NEEDS["train"])
        after = dice.uniform(0.3, 1.0) * whole.seconds
        run_ranks(COMMANDS["train"], folder, kill=(dice.randrange(RANKS), after))
        last = run_command(COMMANDS["train"], folder)
        what = f"one of two ranks killed after {after:.3f} s, then one process"
        if last.code:
            yield lose("refused", f"{what}: {last.last_line}")
        else:
            found = load_file(folder / LEAVES["train"] / MODEL)
            most = max(float((found[name] - wanted[name]).abs().max()) for name in wanted)
            yield (
                survive(f"weights within {CLOSE:g}") if most <= CLOSE else lose("other weights", f"{what}: {most:.2g}")
            )
        work.remove(folder)


CAMPAIGNS = [
    Campaign("ranks-kill", "train on two ranks, DDP and FSDP, one rank killed at a random time", 20, kill_one, 2),
    Campaign("ranks-kill-four", "the same on four ranks", 10, partial(kill_one, size=4), 1),
    Campaign("ranks-resize", "the same, resumed in one process", 10, change_size, 1),
]
