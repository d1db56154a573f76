"""Add a finished, evaluated run to these pages. Every number in them comes from a report, and none is typed by hand.

    python docs/results/collect.py runs/demo demo "make demo"
    python docs/results/collect.py runs/cifar10 cifar10 "unmask train cifar10 --data codes/cifar10" \\
        --part "Tokenizers" "unmask evaluate-tokenizer RUN" runs/fsq runs/vq \\
        --part "Guidance" "unmask sweep runs/cifar10 --scales 1 2 3" runs/cifar10/sweep-scale
    python docs/results/collect.py - text "" --part "Orders" "" runs/shakespeare/score
    python docs/results/collect.py speed

The script copies report.json and the images to docs/results/NAME/, writes the page docs/results/NAME.md, and puts one
row per collected run into the table of README.md. A part is a heading, the command ("" if its tables name it), and
folders. Folders of tokenizers become one table. For other folders the page shows the tables (*.md) and images. Without
a run ("-") the page has its notes and parts only, and no row in the README. "speed" puts the rows of peers.txt there.
"""

import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
PICTURES = ("samples.png", "decode.gif", "decode.png", "order.png", "inpaint.png", "loss.png")
START, END = "<!-- results: made by docs/results/collect.py -->", "<!-- end of results -->"
SPEED, SPEED_END = "<!-- speed: made by docs/results/collect.py -->", "<!-- end of speed -->"
PARTS = {"sampling of a batch": "sampling", "one training step": "training"}  # of peers.txt


def main(run: str, name: str, command: str, *rest: str) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    collect_parts(folder, list(rest))
    if run == "-":
        (HERE / f"{name}.md").write_text(page(name))
        return
    for picture in PICTURES:
        shutil.copy(Path(run) / picture, folder / picture)
    report = {"made_by": command, **json.loads((Path(run) / "report.json").read_text())}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (HERE / f"{name}.md").write_text(page(name))
    write_readme(results_table(), START, END)


def write_readme(table: str, start: str, end: str) -> None:
    """Put a table between two marks of the README."""
    before, rest = README.read_text().split(start)
    README.write_text(before + start + "\n\n" + table + "\n" + end + rest.split(end)[1])


def collect_parts(folder: Path, words: list[str]) -> None:
    """Copy the content of each part to `parts/`, with a list of the parts; without words, change nothing."""
    if not words:
        return
    shutil.rmtree(folder / "parts", ignore_errors=True)
    parts = []
    for title, command, *folders in split_parts(words):
        sources = [Path(name) for name in folders]
        for source in sources:
            (folder / "parts" / source.name).mkdir(parents=True)
            for file in sorted(f for f in source.iterdir() if f.suffix in (".md", ".csv", ".png", ".gif")):
                shutil.copy(file, folder / "parts" / source.name / file.name)
            if (source / "report.json").exists():
                shutil.copy(source / "report.json", folder / "parts" / source.name / "report.json")
        parts.append({"title": title, "command": command, "folders": [source.name for source in sources]})
    (folder / "parts" / "parts.json").write_text(json.dumps(parts, indent=2) + "\n")


def split_parts(words: list[str]) -> list[list[str]]:
    """Return the words after each --part."""
    starts = [i for i, word in enumerate(words) if word == "--part"]
    return [words[a + 1 : b] for a, b in zip(starts, [*starts[1:], len(words)], strict=True)]


def show_parts(folder: Path) -> list[str]:
    """Return the Markdown of all parts."""
    lines = []
    path = folder / "parts" / "parts.json"
    for part in json.loads(path.read_text()) if path.exists() else []:
        lines += [f"## {part['title']}", ""]
        lines += ["```bash", *part["command"].split("; "), "```", ""] if part["command"] else []
        where = [folder / "parts" / name for name in part["folders"]]
        if all("psnr" in read_report(place) for place in where):
            lines += [*tokenizer_table(where), ""]
        for place in where:
            lines += [*(file.read_text() for file in sorted(place.glob("*.md")))]
            pictures = sorted([*place.glob("*.png"), *place.glob("*.gif")])
            lines += [f"![{p.stem} of {place.name}]({p.relative_to(HERE).as_posix()})\n" for p in pictures]
    return lines


def read_report(folder: Path) -> dict:
    """Read the folder's report.json, or return an empty dictionary."""
    path = folder / "report.json"
    return json.loads(path.read_text()) if path.exists() else {}


def tokenizer_table(folders: list[Path]) -> list[str]:
    """Return a table with a row per tokenizer."""
    columns = ("rfid", "psnr", "ssim", "usage", "perplexity", "bits_per_image", "train_steps", "train_seconds")
    lines = [
        f"| tokenizer | quantizer | {' | '.join(columns)} | seed | commit |",
        "| --- | --- " + "| ---: " * 9 + "| --- |",
    ]
    for folder in folders:
        r = read_report(folder)
        figures = " | ".join(f"{r[c]:.4g}" for c in columns)
        lines.append(f"| {folder.name} | `{r['quantizer']}` | {figures} | {r['seed']} | {r['commit'][:8]} |")
    return lines


def reports() -> dict[str, dict]:
    """Read the report of every collected run."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(HERE.glob("*/report.json"))}


def results_table() -> str:
    """Return the table of the README."""
    rows = [
        "| run | class accuracy of samples (of real held-out images) | Frechet distance (real-data baseline) | steps "
        "| made by |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, r in reports().items():
        accuracy = f"{100 * r['class_accuracy']:.1f} % ({100 * r['classifier_test_accuracy']:.1f} %)"
        distance = f"{r['frechet']:.2f} ({r['frechet_floor']:.2f})"
        page = f"[{name}](docs/results/{name}.md)"
        rows.append(f"| {page} | {accuracy} | {distance} | {r['steps']} | `{r['made_by']}` |")
    return "\n".join(rows) + "\n"


def speed_table() -> str:
    """Return the table of the README of what peers.txt says: CPU milliseconds an image, by size and by what is done."""
    columns: dict[str, dict[str, float]] = {}
    size = part = None
    batches = {}
    for line in (HERE / "benchmarks" / "peers.txt").read_text().splitlines():
        if found := re.match(r"(\w+): Size\(.*batch=(\d+)", line):
            batches[found[1]] = int(found[2])
        elif found := re.match(r"(\w+): ([\w ]+?)[;,]", line):
            size, part = found[1], PARTS.get(found[2])
        elif part and (found := re.match(r"(\S.*?)  +(\w+) +([\d.]+) +\d+ ", line)):
            milliseconds = 1000 * float(found[3]) / batches[size]
            columns.setdefault(f"{size}, {part}", {})[found[1]] = milliseconds
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [f"| CPU ms an image | {' | '.join(columns)} |", "| --- " + "| ---: " * len(columns) + "|"]
    for name in names:
        cells = (f"{column[name]:.1f}" if name in column else "–" for column in columns.values())
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def page(name: str) -> str:
    """Return the page of one run: its command, notes, images, parts, sweep and metrics."""
    folder = HERE / name
    notes = folder / "notes.md"
    said = [notes.read_text()] if notes.exists() else []
    if not (folder / "report.json").exists():
        return "\n".join([f"# {name}", "", *said, *show_parts(folder)]) + "\n"
    r = json.loads((folder / "report.json").read_text())
    figures = {k: v for k, v in r.items() if k not in ("made_by", "nearest_train")}
    figures |= {f"{group}.{k}": v for group in ("nearest_train", "left_out") for k, v in r.get(group, {}).items()}
    figures.pop("left_out", None)
    lines = [f"# {name}", "", "```bash", *r["made_by"].split("; "), "```", ""]
    lines += [*said, "## Images", ""]
    lines += [f"![{picture}]({name}/{picture})\n" for picture in PICTURES]
    lines += show_parts(folder)
    if (folder / "sweep.md").exists():
        lines += ["## Orders and steps, each at its best temperature", "", (folder / "sweep.md").read_text()]
    lines += ["## Metrics", "", "| | |", "| --- | --- |"]
    lines += [f"| {k} | {v:.4f} |" if isinstance(v, float) else f"| {k} | {v} |" for k, v in figures.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["speed"]:
        write_readme(speed_table(), SPEED, SPEED_END)
    else:
        main(*sys.argv[1:])
