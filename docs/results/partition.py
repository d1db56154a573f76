"""Compare partition models with plain networks of the same size: by exact likelihood, and by their samples.

    python docs/results/partition.py runs/mnist-partition-0 runs/mnist-half-0 ...
    python docs/results/partition.py

The script copies what the page needs from each run directory to docs/results/partition/, as orders.py does, and writes
partition.md from these copies and from the benchmark.
"""

import sys
from pathlib import Path

from orders import Settings, gather, origin, read_nats, read_sweep, said

HERE = Path(__file__).parent
FOLDER = HERE / "partition"
BENCHMARKS = ("partition.txt", "partition-avx2.txt")
DATA = {"mnist": "MNIST", "small": "Characters of Shakespeare", "cifar10": "CIFAR-10 tokens"}
NETWORKS = {  # how a run's name goes on: its network and training
    "": "plain",
    "-partition": "partition",
    "-half": "plain, half of the steps",
    "-half-partition": "partition, half of the steps",
    "-1+3": "partition, 1 + 3 blocks",
    "-3+1": "partition, 3 + 1 blocks",
    "-wide": "partition, 1.5 times as wide",
}
PAIRS = {"-partition": "", "-half-partition": "-half"}
"""Partition runs and the plain runs that they are compared with, seed by seed."""


def main(*runs: str) -> None:
    for run in runs:
        gather(Path(run), FOLDER)
    (HERE / "partition.md").write_text("\n".join(page()) + "\n")


def find(name: str) -> list[Path]:
    """Return the folders of one network, a seed each, in order."""
    return sorted(f for f in FOLDER.glob(f"{name}-[0-9]") if f.is_dir())


def page() -> list[str]:
    out = ["# partition", "", (FOLDER / "notes.md").read_text()]
    made = {data: {kind: find(data + kind) for kind in NETWORKS if find(data + kind)} for data in DATA}
    for data, networks in made.items():
        if "-partition" in networks:
            out += [f"## {DATA[data]}", "", *table(networks, read_nats, ".4f", "nats per token, Halton order"), ""]
            if any(read_sweep(folders) for folders in networks.values()):
                out += [*table(networks, read_sweep, ".3f", "Frechet distance, Halton order"), ""]
    out += ["## Cost", ""]
    for name in BENCHMARKS:
        out += ["```text", (HERE / "benchmarks" / name).read_text().rstrip(), "```", ""]
    out += ["## How it was made", "", "```bash", (FOLDER / "commands.sh").read_text().rstrip(), "```", ""]
    return [
        *out,
        *origin({data: [f for folders in networks.values() for f in folders] for data, networks in made.items()}),
    ]


def table(networks: dict[str, list[Path]], read, form: str, figure: str) -> list[str]:
    """Return a row per network, and one for the difference of each pair, taken seed by seed and then averaged."""
    found: dict[str, Settings] = {kind: read(folders) for kind, folders in networks.items()}
    found = {kind: settings for kind, settings in found.items() if settings}
    columns = sorted({(n, g, order) for s in found.values() for (n, g), orders in s.items() for order in orders
                      if order in ("halton", "bound")})  # fmt: skip
    names = ["bound" if order == "bound" else f"{n} passes" for n, _, order in columns]
    lines = [f"| {figure} | seeds | {' | '.join(names)} |", "| --- " + "| ---: " * (1 + len(names)) + "|"]
    for kind, settings in found.items():
        values = [settings.get((n, g), {}).get(order, []) for n, g, order in columns]
        cells = [said(v, form) if v else "–" for v in values]
        lines.append(f"| {NETWORKS[kind]} | {max(map(len, values))} | {' | '.join(cells)} |")
        if (plain := found.get(PAIRS.get(kind, kind))) and kind in PAIRS:
            others = [plain.get((n, g), {}).get(order, []) for n, g, order in columns]
            apart = [[a - b for a, b in zip(v, o, strict=False)] for v, o in zip(values, others, strict=True)]
            cells = [said(v, "+" + form) if v else "–" for v in apart]
            lines.append(f"| *difference* | {max(map(len, apart))} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main(*sys.argv[1:])
