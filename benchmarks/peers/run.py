"""Sampling and training of other packages beside ours: same sizes, random weights, one thread, one process.

    OMP_NUM_THREADS=1 python benchmarks/peers/run.py --size small mnist
    OMP_NUM_THREADS=1 python benchmarks/peers/run.py --peer x-transformers ../Halton-MaskGIT --size base --rounds 2

A peer is a name that --help lists, or the folder of a checkout; by default all that are installed. Each runs its own
sampling loop and its own loss, without guidance. Where its numbers can become bfloat16 in several ways, all are tried,
and the fastest is compared. Times are CPU seconds, interleaved; the median of the paired ratios is what to look at.
GFLOP counts the matrix products and convolutions of one call, and passes the calls of the network, so that nobody
compares unequal work. In training AdamW and its settings are the same for all. The size base needs 14 GB of memory.
"""

import argparse
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from checkout_peers import find_checkout_peers
from diffusers_peer import AmusedPeer
from hf_bert_peer import BertPeer
from muse_peer import MusePeer
from naive_peer import NaivePeer
from ours import Ours, OursHalton, OursInt8, OursPartition, OursPlain
from peer import Peer
from sizes import SIZES, Size
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from x_transformers_peer import XTransformersPeer

from unmask.errors import ConfigError
from unmask.runtime.provenance import describe_environment

PEERS: dict[str, type[Peer]] = {
    peer.name: peer for peer in (XTransformersPeer, MusePeer, AmusedPeer, BertPeer, NaivePeer)
}
OURS: tuple[type[Peer], ...] = (Ours, OursPlain, OursHalton, OursInt8, OursPartition)
TRIALS = 2
FAULTS = (ConfigError, RuntimeError, TypeError, ValueError, AttributeError, IndexError)
"""What a package raises that cannot compute in a type."""
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}
"""The kernels that torch's counter does not know."""
Work = Callable[[Peer], object]


@dataclass
class Row:
    """A peer in its best cast, the work of one call, and the CPU seconds of each round."""

    peer: Peer
    passes: int
    gflop: float
    seconds: list[float] = field(default_factory=list)


def find_peers(names: Sequence[str]) -> list[type[Peer]]:
    """Return the peers of these names or folders, or all that are installed; exit with 2 if a named one is missing."""
    found: list[type[Peer]] = []
    for name in names or PEERS:
        kinds = [PEERS[name]] if name in PEERS else find_checkout_peers(Path(name))
        problem = "" if kinds else f"{name} is neither a peer ({', '.join(PEERS)}) nor a checkout of one"
        for kind in kinds:
            problem = find_problem(kind)
            found += [] if problem else [kind]
        if problem:
            print(problem, file=sys.stderr if names else sys.stdout)
        if problem and names:
            sys.exit(2)
    return found


def find_problem(kind: type[Peer]) -> str:
    """Return why a package cannot be measured, or nothing."""
    if not kind.is_installed():
        return f"{kind.name} is not installed: pip install --no-deps {kind.package}"
    try:
        kind(SIZES["tiny"])
    except (ImportError, RuntimeError) as error:  # diffusers raises both
        return f"{kind.name} cannot be imported: {get_first_line(error)}"
    return ""


def get_first_line(error: Exception) -> str:
    """Return the type of an error and the first line of its text."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def cpu_seconds(work: Work, peer: Peer) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    work(peer)
    return time.process_time() - start


def count_work(kind: type[Peer], size: Size, work: Work) -> tuple[int, float]:
    """Return the forward passes of one call, and its GFLOP; both in float32, where every product is seen."""
    peer = kind(size)
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel for a whole layer, which is not counted
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        work(peer)
    torch.backends.mha.set_fastpath_enabled(True)
    passes = peer.passes
    del peer
    gc.collect()
    return passes, counter.get_total_flops() / 1e9


def choose_cast(kind: type[Peer], size: Size, work: Work, casts: Sequence[str]) -> Row | None:
    """Try all casts, print their times and their faults, and return the fastest; None if all fail."""
    best, least, notes = None, float("inf"), []
    for cast in casts:
        try:
            peer = kind(size, cast)
            work(peer)
            seconds = min(cpu_seconds(work, peer) for _ in range(TRIALS))
        except FAULTS as error:
            notes.append(f"{cast} fails: {get_first_line(error)}")
            continue
        notes.append(f"{cast} {seconds:.3f} s")
        if seconds < least:
            best, least = peer, seconds
        del peer
        gc.collect()  # a peer and its counted network hold each other
    print(f"    {kind.name}: {'; '.join(notes)}", flush=True)
    return None if best is None else Row(best, *count_work(kind, size, work))


def free_network(kind: type[Peer], size: Size) -> Row:
    """Return a row whose network answers with fixed logits."""
    peer = kind(size)
    peer.free_network()
    peer.run_sampling()
    return Row(peer, peer.passes, 0.0)


def format_table(rows: Sequence[Row], references: Sequence[Row], markdown: bool) -> str:
    """Return one line per row: the median, the work, and the ratio to each reference with its range."""
    head = ["what", "cast", "CPU s", "passes", "GFLOP", "GFLOP/s", "M weights"]
    for reference in references:
        head += [f"/ {reference.peer.name}", "range"]
    lines = [head]
    for row in rows:
        weights = row.peer.weights / 1e6
        seconds = statistics.median(row.seconds)
        line = [row.peer.name, row.peer.cast, f"{seconds:.4f}", f"{row.passes}"]
        line += [f"{row.gflop:.3g}", f"{row.gflop / seconds:.3g}"] if row.gflop else ["-", "-"]
        line.append(f"{weights:.3g}")
        for reference in references:
            pairs = sorted(a / b for a, b in zip(row.seconds, reference.seconds, strict=True))
            line += [f"{statistics.median(pairs):.2f}", f"{pairs[0]:.2f}..{pairs[-1]:.2f}"]
        lines.append(line)
    if markdown:
        lines.insert(1, ["---", "---", *["---:"] * (len(head) - 2)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        [cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))]  # noqa: B905
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def compare(
    rows: Sequence[Row | None], work: Work, rounds: int, markdown: bool, references: Sequence[type[Peer]]
) -> None:
    """Time all rows in each round, and print the table."""
    some = [row for row in rows if row]
    for _ in range(rounds):
        for row in some:
            row.seconds.append(cpu_seconds(work, row.peer))
    print(f"{format_table(some, [row for row in some if type(row.peer) in references], markdown)}\n", flush=True)


def measure(kinds: Sequence[type[Peer]], name: str, rounds: int, markdown: bool) -> None:
    """Print the three tables of a size. No table keeps its networks, which may be large."""
    size, sample, train = SIZES[name], Peer.run_sampling, Peer.train_step
    print(f"{name}: {size}, {rounds} rounds\n\n{name}: sampling of a batch; all casts first", flush=True)
    tried = (choose_cast(kind, size, sample, kind.sampling_casts) for kind in kinds)
    compare([*tried], sample, rounds, markdown, (Ours, OursHalton))
    print(f"{name}: one training step; all casts first", flush=True)
    tried = (choose_cast(kind, size, train, kind.training_casts) for kind in kinds if kind.trains)
    compare([*tried], train, rounds, markdown, (Ours,))
    print(f"{name}: the sampling loop alone, with fixed logits instead of a network", flush=True)
    free = (free_network(kind, size) for kind in kinds if kind.can_be_freed)
    compare([*free], sample, rounds, markdown, (Ours, OursHalton))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", nargs="+", default=[], metavar="NAME", help=f"{', '.join(PEERS)}, or a checkout")
    parser.add_argument("--size", nargs="+", default=["small"], choices=list(SIZES), help="sizes to measure")
    parser.add_argument("--rounds", type=int, default=5, help="paired measurements of each table")
    parser.add_argument("--markdown", action="store_true", help="print tables for a page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # packages warn of what torch deprecates
    print(describe_environment(torch.device("cpu")))
    peers = find_peers(options.peer)
    versions: list[type[Peer]] = [*peers, Ours]
    for kind in versions:
        print(f"{kind.name}: {kind.describe_version()}")
    print()
    for name in options.size:
        measure([*OURS, *peers], name, options.rounds, options.markdown)


if __name__ == "__main__":
    main()
