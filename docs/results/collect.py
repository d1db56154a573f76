"""Take a finished, evaluated run into these pages: no figure in them is typed by hand.

    python docs/results/collect.py runs/demo demo "make demo"
    python docs/results/collect.py runs/mnist mnist "unmask train mnist --data DIR; unmask sweep runs/mnist" TABLE.md

Copies report.json and the pictures to docs/results/NAME/, writes the page docs/results/NAME.md, and puts one row per
collected run into the table of README.md.
"""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
PICTURES = ("samples.png", "decode.gif", "decode.png", "order.png", "inpaint.png", "loss.png")
START, END = "<!-- results: made by docs/results/collect.py -->", "<!-- end of results -->"


def main(run: str, name: str, command: str, table: str = "") -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    for picture in PICTURES:
        shutil.copy(Path(run) / picture, folder / picture)
    report = {"made_by": command, **json.loads((Path(run) / "report.json").read_text())}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    if table:
        shutil.copy(table, folder / "sweep.md")
    (HERE / f"{name}.md").write_text(page(name))
    before, rest = README.read_text().split(START)
    README.write_text(before + START + "\n\n" + results_table() + "\n" + END + rest.split(END)[1])


def reports() -> dict[str, dict]:
    """The report of every collected run."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(HERE.glob("*/report.json"))}


def results_table() -> str:
    """The table of the README."""
    rows = [
        "| run | class accuracy of samples (of real held-out images) | Frechet distance (floor) | steps | made by |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, r in reports().items():
        accuracy = f"{100 * r['class_accuracy']:.1f} % ({100 * r['classifier_test_accuracy']:.1f} %)"
        distance = f"{r['frechet']:.2f} ({r['frechet_floor']:.2f})"
        page = f"[{name}](docs/results/{name}.md)"
        rows.append(f"| {page} | {accuracy} | {distance} | {r['steps']} | `{r['made_by']}` |")
    return "\n".join(rows) + "\n"


def page(name: str) -> str:
    """The page of one run: what was done, every figure, the pictures, the sweep and the notes."""
    folder = HERE / name
    r = json.loads((folder / "report.json").read_text())
    figures = {k: v for k, v in r.items() if k not in ("made_by", "nearest_train")}
    figures |= {f"nearest_train.{k}": v for k, v in r["nearest_train"].items()}
    lines = [f"# {name}", "", "```bash", *r["made_by"].split("; "), "```", ""]
    notes = folder / "notes.md"
    lines += [notes.read_text()] if notes.exists() else []
    lines += ["## Pictures", ""]
    lines += [f"![{picture}]({name}/{picture})\n" for picture in PICTURES]
    if (folder / "sweep.md").exists():
        lines += ["## Orders and steps, each at its best temperature", "", (folder / "sweep.md").read_text()]
    lines += ["## Figures", "", "| | |", "| --- | --- |"]
    lines += [f"| {k} | {v:.4f} |" if isinstance(v, float) else f"| {k} | {v} |" for k, v in figures.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
