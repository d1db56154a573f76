"""Tokenize one split with several processes; the result does not depend on which process does which shard."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from unmask.data.image_files import Unreadable
from unmask.data.pictures import Pictures
from unmask.data.shards.tokenizing import Encode, ShardPlan, SplitName, read_finished, tokenize_shards
from unmask.errors import ShortageError, UnmaskError, describe_os_error
from unmask.runtime.progress import Progress
from unmask.runtime.shortage import describe_shortage


def tokenize_parallel(
    pictures: Pictures,
    encoder: Callable[[], Encode],
    out: Path,
    part: SplitName,
    plan: ShardPlan,
    *,
    batch: int = 64,
    processes: int = 1,
    progress: Progress | None = None,
) -> list[Unreadable]:
    """Like `tokenize_shards`, with the shards divided among `processes`; a picklable `encoder` builds `encode` in each.

    The first error of a worker stops all workers and is raised here. Finished shards are kept.
    """
    processes = min(processes, max(1, plan.count_shards(part)))
    if processes < 1:
        raise ValueError(f"processes {processes}: must be at least 1")
    if processes == 1:
        return tokenize_shards(pictures, encoder(), out, part, plan, batch=batch, progress=progress)
    # Spawn: a forked process can use neither a GPU nor, safely, torch's threads.
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // processes)
    workers: list[SpawnProcess] = []
    pipes: dict[Connection, int] = {}
    try:
        for rank in range(processes):
            mine, theirs = context.Pipe(duplex=False)
            job = (theirs, threads, pictures, encoder, out, part, plan, batch, rank, processes)
            workers.append(context.Process(target=_work, args=job, daemon=True))
            workers[-1].start()
            theirs.close()  # so that the pipe ends with the worker
            pipes[mine] = rank
        _follow(pipes, workers, len(pictures), progress)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
        for pipe in pipes:
            pipe.close()
    return [bad for done in read_finished(out, part, plan) for bad in done.bad]


def _follow(pipes: dict[Connection, int], workers: list[SpawnProcess], total: int, progress: Progress | None) -> None:
    """Read the workers' messages until all have finished; raise the first error."""
    seen = [0] * len(workers)
    running = dict(pipes)
    while running:
        for pipe in wait(list(running)):
            assert isinstance(pipe, Connection)
            rank = running[pipe]
            message = _receive(pipe, workers[rank])
            if message is None:
                del running[pipe]
                continue
            name, seen[rank] = message
            if progress is not None:
                progress(name, sum(seen), total)


def _receive(pipe: Connection, worker: SpawnProcess) -> tuple[str, int] | None:
    """Return (shard, images seen) as a worker progresses, or None once it is done."""
    try:
        message = pipe.recv()
    except (EOFError, ConnectionResetError) as error:
        worker.join()
        raise UnmaskError(
            f"a tokenizing process ended without a message (exit code {worker.exitcode}; out of memory?): run the same "
            "command again to continue, with fewer processes if it comes back"
        ) from error
    if isinstance(message, UnmaskError):
        raise message
    return message


def _work(
    pipe: Connection,
    threads: int,
    pictures: Pictures,
    encoder: Callable[[], Encode],
    out: Path,
    part: SplitName,
    plan: ShardPlan,
    batch: int,
    rank: int,
    size: int,
) -> None:
    """Run a worker; its last message is None, or the error that ended it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; only the parent handles it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)

    def tell(name: str, seen: int, total: int) -> None:
        pipe.send((name, seen))

    try:
        tokenize_shards(pictures, encoder(), out, part, plan, batch=batch, rank=rank, size=size, progress=tell)
        pipe.send(None)
    except BrokenPipeError:
        return  # the parent was killed: nobody waits for the rest
    except UnmaskError as error:
        pipe.send(error)
    except (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        shortage = describe_shortage(error)
        if shortage is not None:
            return pipe.send(ShortageError(f"a tokenizing process: {shortage}: lower --batch or --processes"))
        lines = describe_os_error(error).splitlines() or [""]
        pipe.send(UnmaskError(f"a tokenizing process failed: {type(error).__name__}: {lines[0]}"))


def _end_with_parent() -> None:
    """Wait until the parent is gone, whatever ended it, and end this process: nobody wants its shards any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
