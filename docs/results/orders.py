"""Compare unmasking orders over several trainings: by exact likelihood, and by the Frechet distance of their samples.

    python docs/results/orders.py runs/small-0 runs/small-1 runs/small-2 runs/mnist-0 ...
    python docs/results/orders.py

The script copies what the page needs from each run directory (score/score.csv, sweep/sweep.csv and their origin) to
docs/results/orders/, and writes orders.md and orders/orders.png from these copies. Without a run, it makes both again
from the copies.
"""

import csv
import json
import shutil
import sys
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
FOLDER = HERE / "orders"
DATA = {  # the first part of a run's name: its training data
    "small": "Characters of Shakespeare",
    "mnist": "MNIST",
    "cifar-small": "CIFAR-10",
    "cifar10": "CIFAR-10, full training",
}
FIRST, AT = "halton", 8  # the order that others are compared with, and the passes of the table of ranks
COLOURS = {
    "halton": "#000000", "margin-repulsion": "#3366cc", "random": "#888888", "margin": "#109618", "entropy": "#ff9900",
    "confidence-without-noise": "#dd4477", "confidence": "#990099", "raster": "#dc3912",
}  # fmt: skip
Settings = dict[tuple[int, float], dict[str, list[float]]]
"""(passes, guidance; 0 for a likelihood) -> order -> a number per training."""


def main(*runs: str) -> None:
    for run in runs:
        gather(Path(run))
    groups = {prefix: sorted(f for f in FOLDER.iterdir() if named(f.name) == prefix) for prefix in DATA}
    groups = {prefix: folders for prefix, folders in groups.items() if folders}
    nats, frechet = ({p: read(folders) for p, folders in groups.items()} for read in (read_nats, read_sweep))
    draw(nats, frechet)
    (HERE / "orders.md").write_text("\n".join(page(groups, nats, frechet)) + "\n")


def named(run: str) -> str:
    return run.rstrip("0123456789").rstrip("-") if "-" in run else run


def gather(run: Path, folder: Path = FOLDER) -> None:
    """Copy the finished tables of a run to a folder, and the facts of its training that the page quotes."""
    to = folder / run.name
    to.mkdir(parents=True, exist_ok=True)
    for name in ("score/score.csv", "score/score.json", "sweep/sweep.csv", "sweep-temperature/sweep.csv"):
        unfinished = name.endswith("sweep.csv") and all(row["kind"] != "again" for row in rows(run / name))
        if (run / name).exists() and not unfinished:
            shutil.copy(run / name, to / ("temperature.csv" if "temperature" in name else Path(name).name))
    config = json.loads((run / "config.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = {"seed": config["training"]["seed"], "steps": config["training"]["steps"]}
    training |= {"validation_loss": [x for x in lines if "validation_loss" in x][-1]["validation_loss"]}
    (to / "training.json").write_text(json.dumps(training, indent=2) + "\n")


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def read_nats(folders: list[Path]) -> Settings:
    """Read nats per token; the bound has 0 passes."""
    out: Settings = {}
    for row in (row for folder in folders for row in rows(folder / "score.csv")):
        out.setdefault((int(row["steps"]), 0.0), {}).setdefault(row["order"], []).append(float(row["nats"]))
    return out


def read_sweep(folders: list[Path], figure: str = "frechet") -> Settings:
    """Read Frechet distances, or another metric of the sweeps; baseline and tokenizer bound have 0 passes."""
    out: Settings = {}
    for row in (row for folder in folders for row in rows(folder / "sweep.csv") if row["kind"] != "again"):
        setting = row["kind"] == "setting"
        where, order = ((int(row["steps"]), float(row["scale"])), row["order"]) if setting else ((0, 0.0), row["kind"])
        out.setdefault(where, {}).setdefault(order, []).append(float(row[figure] or "nan"))
    return {where: out[where] for where in sorted(out)}


def apart(orders: dict[str, list[float]], order: str) -> list[float]:
    """Return the differences to the first order, each within its training."""
    return [a - b for a, b in zip(orders[order], orders[FIRST], strict=True)]


def said(values: list[float], form: str) -> str:
    """Format the mean and its standard error over the trainings."""
    if len(values) < 2:
        return format(values[0], form)
    return f"{mean(values):{form}} ± {stdev(values) / len(values) ** 0.5:{form.lstrip('+')}}"


def ranks(orders: dict[str, list[float]]) -> dict[str, float]:
    """Return the mean rank of each order over the trainings, from 1."""
    places: dict[str, list[int]] = {order: [] for order in orders}
    for i in range(len(orders[FIRST])):
        for place, order in enumerate(sorted(orders, key=lambda order: orders[order][i]), 1):
            places[order].append(place)
    return {order: mean(values) for order, values in places.items()}


def page(groups: dict[str, list[Path]], nats: dict[str, Settings], frechet: dict[str, Settings]) -> list[str]:
    out = ["# orders", "", (FOLDER / "notes.md").read_text(), "![orders](orders/orders.png)", ""]
    out += [f"## Ranks at {AT} passes", "", *rank_table(nats, frechet), "", "## By likelihood", ""]
    for prefix, settings in nats.items():
        seeds = count(settings)
        out += [f"### {DATA[prefix]}: nats per token, n = {seeds}", "", *table(settings, ".4f"), ""]
        if seeds == 1:
            bars = [float(row["difference_error"]) for row in rows(groups[prefix][0] / "score.csv")]
            out += [
                f"One training: the standard errors of the differences, over held-out rows, reach {max(bars):.4f}.",
                "",
            ]
    out += ["## By Frechet distance", ""]
    for prefix, settings in frechet.items():
        if settings:
            out += [f"### {DATA[prefix]}: Frechet distance, n = {count(settings)}", "", *table(settings, ".3f"), ""]
            out += [*judged(groups[prefix]), "", *beside(groups[prefix], settings), ""]
    out += ["## Frechet distance at other temperatures", "", *temperature_table(groups["cifar10"][0]), ""]
    out += ["## How it was made", "", "```bash", (FOLDER / "commands.sh").read_text().rstrip(), "```", ""]
    return [*out, *origin(groups)]


def count(settings: Settings) -> int:
    return max((len(values) for orders in settings.values() for values in orders.values()), default=0)


def rank_table(nats: dict[str, Settings], frechet: dict[str, Settings]) -> list[str]:
    """Return the mean rank of every order where all data have been measured."""
    columns = {f"{DATA[p]}: likelihood": s[AT, 0.0] for p, s in nats.items() if (AT, 0.0) in s}
    for p, settings in frechet.items():
        columns |= {f"{DATA[p]}: FD, guidance {g:g}": o for (n, g), o in settings.items() if n == AT}
    placed = [ranks(orders) for orders in columns.values()]
    lines = [f"| order | {' | '.join(columns)} |", "| --- " + "| ---: " * len(columns) + "|"]
    for order in COLOURS:
        cells = [f"{r[order]:.1f}" if order in r else "–" for r in placed]
        lines.append(f"| {order} | {' | '.join(cells)} |")
    return lines


def table(settings: Settings, form: str) -> list[str]:
    """Return a row per order and a column per setting: the first order's value, and the difference of the others."""
    frame, columns = settings[0, 0.0], [where for where in settings if where[0]]
    names = [f"{n} passes" + (f", guidance {g:g}" if g else "") for n, g in columns]
    lines = [f"| order | {' | '.join(names)} |", "| --- " + "| ---: " * len(names) + "|"]
    lines += [f"| {name} | {' | '.join([said(values, form)] * len(columns))} |" for name, values in frame.items()]
    lines.append(f"| {FIRST} | {' | '.join(said(settings[where][FIRST], form) for where in columns)} |")
    for order in [order for order in COLOURS if order in settings[columns[0]] and order != FIRST]:
        lines.append(f"| {order} | {' | '.join(said(apart(settings[w], order), '+' + form) for w in columns)} |")
    return lines


def judged(folders: list[Path]) -> list[str]:
    """Say which features and how many samples were used, and how far a fresh sampling seed moves the best."""
    found = [rows(folder / "sweep.csv") for folder in folders]
    judges = sorted({row["judge"][:12] for sweep in found for row in sweep})
    samples = sorted({row["samples"] for sweep in found for row in sweep})
    moved = []
    for sweep in [sweep for sweep in found if sweep]:
        best = [row for row in sweep if row["kind"] == "setting"]
        moved += [
            float(a["frechet"]) - min(float(row["frechet"]) for row in best) for a in sweep if a["kind"] == "again"
        ]
    one = "one classifier, so all are comparable" if len(judges) == 1 else "comparable within one training only"
    fresh = ", ".join(f"{x:+.3f}" for x in moved)
    return [f"{' and '.join(samples)} samples each, in the features of {', '.join(judges)}: {one}. "
            f"A fresh seed moves the best of each training by {fresh}."]  # fmt: skip


def beside(folders: list[Path], settings: Settings) -> list[str]:
    """Return other metrics of the same samples: the price of a lower distance."""
    figures = ("precision", "recall", "coverage", "class_accuracy", "border", "inside")
    others = {figure: read_sweep(folders, figure) for figure in figures}
    lines = [f"| at {AT} passes | guidance | {' | '.join(figures).replace('_', ' ')} |"]
    lines.append("| --- | ---: " + "| ---: " * len(figures) + "|")
    for n, g in [where for where in settings if where[0] == AT]:
        for order in [order for order in COLOURS if order in settings[n, g]]:
            lines.append(f"| {order} | {g:g} | {' | '.join(said(others[f][n, g][order], '.3f') for f in figures)} |")
    return lines


def temperature_table(folder: Path) -> list[str]:
    """Return the full training again, at temperatures other than 1."""
    found = [
        row for name in ("sweep", "temperature") for row in rows(folder / f"{name}.csv") if row["kind"] == "setting"
    ]
    warmths = sorted({row["temperature"] for row in found}, key=float, reverse=True)
    lines = ["| order | temperature | Frechet distance | precision | recall | class accuracy |"]
    lines.append("| --- " + "| ---: " * 5 + "|")
    for row in sorted(found, key=lambda row: ([*COLOURS].index(row["order"]), warmths.index(row["temperature"]))):
        figures = [f"{float(row[name]):.3f}" for name in ("frechet", "precision", "recall", "class_accuracy")]
        if sum(other["order"] == row["order"] for other in found) > 1:
            lines.append(f"| {row['order']} | {float(row['temperature']):g} | {' | '.join(figures)} |")
    one = found[0]
    setting = f"{one['samples']} samples each, {one['steps']} passes, guidance {one['scale']} ({one['ramp']})"
    return [*lines, "", f"{DATA['cifar10']}, {setting}."]


def origin(groups: dict[str, list[Path]]) -> list[str]:
    """Return a table of the origin of every number."""
    lines = ["| run | seed | training steps | validation loss | rows | scored by commit | swept by commit | hardware |",
             "| --- | ---: | ---: | ---: | ---: | --- | --- | --- |"]  # fmt: skip
    for folder in [folder for folders in groups.values() for folder in folders]:
        made, path = json.loads((folder / "training.json").read_text()), folder / "score.json"
        score = json.loads(path.read_text()) if path.exists() else {"facts": {}, "environment": {}}
        here = score["environment"]
        swept = ", ".join(sorted({row["commit"] for row in rows(folder / "sweep.csv")})) or "–"
        lines.append(f"| {folder.name} | {made['seed']} | {made['steps']} | {made['validation_loss']:.4f} "
                     f"| {score['facts'].get('rows', '–')} | {here.get('commit', '–')} | {swept} "
                     f"| {here.get('hardware', '–')} |")  # fmt: skip
    return lines


def draw(nats: dict[str, Settings], frechet: dict[str, Settings]) -> None:
    """Plot the differences to the first order: likelihoods above, Frechet distances below."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 8), dpi=110, layout="constrained")
    for ax, prefix in zip(axes[0], ("small", "mnist", "cifar-small"), strict=True):
        settings = nats[prefix]
        lines(ax, {f"{n}": settings[n, g] for n, g in settings if n})
        ax.set(title=f"{DATA[prefix]}, n = {count(settings)}", xlabel="passes", ylabel=f"nats per token above {FIRST}")
        ax.set_yscale("symlog", linthresh=0.02)
    digits, photos, full = frechet["mnist"], frechet["cifar-small"], frechet["cifar10"]
    lines(axes[1, 1], {f"{n}": digits[n, g] for n, g in digits if n})
    axes[1, 1].set(title=f"{DATA['mnist']}, n = {count(digits)}", xlabel="passes")
    axes[1, 1].set_yscale("symlog", linthresh=0.1)
    lines(axes[1, 2], {f"guidance {g:g}": photos[n, g] for n, g in photos if n == AT})
    lines(axes[1, 2], {f"guidance {g:g},\nfull training": full[n, g] for n, g in full if n == AT})
    axes[1, 2].set(title=f"{DATA['cifar-small']}, n = {count(photos)}, at {AT} passes")
    axes[1, 2].set_yscale("symlog", linthresh=1)
    for ax in axes[1]:
        ax.set_ylabel(f"Frechet distance above {FIRST}")
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e9ecef")
    names = {name: h for ax in axes.flat for h, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    axes[1, 0].set_axis_off()
    axes[1, 0].legend([names[order] for order in COLOURS], list(COLOURS), loc="center", frameon=False, fontsize=12)
    figure.savefig(FOLDER / "orders.png")


def lines(ax: plt.Axes, columns: dict[str, dict[str, list[float]]]) -> None:
    """Plot one line per order, with the standard error over trainings (side by side in a single column)."""
    orders = [order for order in COLOURS if order in next(iter(columns.values()))]
    start = len(ax.get_xticklabels()) if ax.has_data() else 0
    for i, order in enumerate(orders):
        values = [apart(by_order, order) for by_order in columns.values()]
        bars = [stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0 for v in values]
        x = [start + place + (i - len(orders) / 2) * 0.03 for place in range(len(values))]
        ax.errorbar(x, [mean(v) for v in values], bars, color=COLOURS[order], label=order, marker="o", markersize=4,
                    capsize=3)  # fmt: skip
    before = [label.get_text() for label in ax.get_xticklabels()][:start]
    ax.set_xticks(range(start + len(columns)), [*before, *columns])


if __name__ == "__main__":
    main(*sys.argv[1:])
