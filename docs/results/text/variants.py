"""Compare variants of a training at about the same cost: their validation loss, and the texts that they write.

    python docs/results/text/variants.py OUT runs/small-0 runs/self-0 runs/critic-0 runs/small-1 ...
    python docs/results/text/variants.py OUT

The script reads metrics.jsonl and writing/ of the runs, which are named by variant and seed. It compares the other
variants with the first. It writes training.csv and writing.csv into OUT and makes variants.md and variants.png from
them. Without runs, it uses the two CSV files in OUT.
"""

import csv
import json
import sys
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = {"small": "plain", "self": "self-conditioning", "critic": "critic"}
COLOURS = {"plain": "#000000", "self-conditioning": "#3366cc", "critic": "#dc3912"}
REAL = ("held-out text (floor)", "training text")
FIGURES = {"perplexity": ".2f", "entropy": ".3f", "ngram_kl_2": ".3f", "ngram_kl_3": ".3f", "repetition_4": ".4f",
           "word_doubles": ".4f"}  # fmt: skip
Row = dict[str, str]


def main(out: str, *runs: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if runs:
        write(folder / "training.csv", [trained(Path(run)) for run in runs])
        write(folder / "writing.csv", [row for run in runs for row in written(Path(run))])
    training, writing = read(folder / "training.csv"), read(folder / "writing.csv")
    (folder / "variants.md").write_text("\n".join(page(training, writing)) + "\n")
    draw(writing, folder / "variants.png")


def variant(run: Path) -> Row:
    name, seed = run.name.rsplit("-", 1)
    return {"variant": NAMES[name], "seed": seed}


def trained(run: Path) -> Row:
    """Return the cost of the training, and the validation loss at its end."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert json.loads((run / "config.json").read_text())["training"]["seed"] == int(variant(run)["seed"])
    here = json.loads((run / "writing" / "writing.json").read_text())
    return variant(run) | {
        "steps": steps[-1]["step"],
        "seconds": round(steps[-1]["seconds"]),
        "validation_loss": [line for line in lines if "validation_loss" in line][-1]["validation_loss"],
        "samples": here["facts"]["samples"],
        "command": here["environment"]["command"],
        "commit": here["environment"]["commit"],
        "hardware": here["environment"]["hardware"],
    }


def written(run: Path) -> list[Row]:
    """Return the metrics of the texts of a run; "own" is replaced by the name of the recipe's order."""
    order = json.loads((run / "config.json").read_text())["sampling"]["priority"]["type"]
    own = {"FromCritic": "critic's order"}.get(order, order.lower())
    return [
        variant(run) | row | {"order": row["order"].replace("own", own)} for row in read(run / "writing/writing.csv")
    ]


def read(path: Path) -> list[Row]:
    return list(csv.DictReader(path.read_text().splitlines()))


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def said(values: list[float], form: str) -> str:
    """Format the mean and its standard error over the trainings."""
    if len(values) < 2:
        return format(values[0], form)
    return f"{mean(values):{form}} ± {stdev(values) / len(values) ** 0.5:{form.lstrip('+')}}"


def page(training: list[Row], writing: list[Row]) -> list[str]:
    names = list(dict.fromkeys(row["variant"] for row in training))
    lines = ["| variant | seeds | steps | seconds | validation loss |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in names:
        mine = [row for row in training if row["variant"] == name]
        loss, seconds = (
            said([float(r["validation_loss"]) for r in mine], ".4f"),
            " and ".join(r["seconds"] for r in mine),
        )
        lines.append(f"| {name} | {len(mine)} | {mine[0]['steps']} | {seconds} | {loss} |")
    lines += ["", "### Metrics of their texts, at equal numbers of steps", "", *written_table(names, writing), ""]
    lines += ["### Difference to plain, within each seed", "", *apart_table(names, writing), ""]
    commits, hardware = (", ".join(sorted({row[key] for row in training})) for key in ("commit", "hardware"))
    command = training[0]["command"].replace(training[0]["command"].split()[2], "RUN")
    samples = f"{training[0]['samples']} texts of each training, temperature 1, scored by the same LSTM"
    return [*lines, f"{samples}. `{command}`, commit {commits}, {hardware}."]


def settings(writing: list[Row]) -> list[tuple[str, str]]:
    """Return (order, steps), fewer steps first."""
    found = dict.fromkeys((row["order"], row["steps"]) for row in writing if row["order"] not in REAL)
    return sorted(found, key=lambda setting: int(setting[1]))


def of(writing: list[Row], name: str, order: str, steps: str, figure: str) -> dict[str, float]:
    """Return seed -> value."""
    wanted = (name, order, steps)
    return {r["seed"]: float(r[figure]) for r in writing if (r["variant"], r["order"], r["steps"]) == wanted}


def written_table(names: list[str], writing: list[Row]) -> list[str]:
    lines = [f"| way | steps | variant | {' | '.join(FIGURES).replace('_', ' ')} |"]
    lines.append("| --- | ---: | --- " + "| ---: " * len(FIGURES) + "|")
    for real in REAL:
        row = next(row for row in writing if row["order"] == real)
        lines.append(f"| {real} | – | – | {' | '.join(format(float(row[f]), form) for f, form in FIGURES.items())} |")
    for order, steps in settings(writing):
        for name in [name for name in names if of(writing, name, order, steps, "entropy")]:
            cells = [said([*of(writing, name, order, steps, f).values()], form) for f, form in FIGURES.items()]
            lines.append(f"| {order} | {steps} | {name} | {' | '.join(cells)} |")
    return lines


def apart_table(names: list[str], writing: list[Row]) -> list[str]:
    """Return the differences where a variant and the first have the same order and steps."""
    lines = [f"| way | steps | variant | {' | '.join(FIGURES).replace('_', ' ')} |"]
    lines.append("| --- | ---: | --- " + "| ---: " * len(FIGURES) + "|")
    for order, steps in settings(writing):
        for name in names[1:]:
            cells = []
            for figure, form in FIGURES.items():
                mine, first = (of(writing, n, order, steps, figure) for n in (name, names[0]))
                both = sorted({*mine} & {*first})
                cells += [said([mine[seed] - first[seed] for seed in both], "+" + form)] if both else []
            lines += [f"| {order} | {steps} | {name} | {' | '.join(cells)} |"] if cells else []
    return lines


def draw(writing: list[Row], path: Path) -> None:
    """Plot perplexity against entropy: a colour per variant, a marker per order."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.6), dpi=110, layout="constrained", sharex=True, sharey=True)
    orders = list(dict.fromkeys(order for order, _ in settings(writing)))
    marks = dict(zip(orders, "osDv^<>P*Xhp", strict=False))
    floor = next(row for row in writing if row["order"] == REAL[0])
    for ax, steps in zip(axes, dict.fromkeys(steps for _, steps in settings(writing)), strict=True):
        for row in [row for row in writing if row["steps"] == steps]:
            ax.plot(float(row["entropy"]), float(row["perplexity"]), marks[row["order"]], color=COLOURS[row["variant"]],
                    alpha=0.75, label=row["order"])  # fmt: skip
        ax.plot(float(floor["entropy"]), float(floor["perplexity"]), "*", color="#ff9900", markersize=15)
        ax.annotate("held-out text", (float(floor["entropy"]), float(floor["perplexity"])), xytext=(-12, -4),
                    textcoords="offset points", ha="right", va="top")  # fmt: skip
        ax.set(title=f"{steps} steps", xlabel="entropy of a text's characters, nats", ylabel="perplexity", yscale="log")
        ax.set_yticks([5, 7, 10, 15, 20, 30], ["5", "7", "10", "15", "20", "30"])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e9ecef")
    ways = [plt.Line2D([], [], color="#888888", marker=marks[order], linestyle="", label=order) for order in orders]
    kinds = [plt.Line2D([], [], color=colour, linewidth=4, label=name) for name, colour in COLOURS.items()]
    figure.legend(handles=[*kinds, *ways], loc="outside lower center", ncols=7, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
