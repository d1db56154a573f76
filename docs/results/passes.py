"""Show what `unmask tune` finds: counts by exact likelihood, and samples with few forward passes.

    python docs/results/passes.py runs/mnist-0 runs/small-0 ...
    python docs/results/passes.py

The script copies what the page needs from each run directory to docs/results/passes/ (tune/ and, if it is there, the
rival sweep of a faithful MaskGIT in rival/sweep.csv), and writes passes.md from these copies.
"""

import shutil
import sys
from pathlib import Path

from orders import rows

HERE = Path(__file__).parent
FOLDER = HERE / "passes"
DATA = {"mnist": "MNIST", "small": "Characters of Shakespeare", "cifar10": "CIFAR-10 tokens"}


def main(*runs: str) -> None:
    for run in map(Path, runs):
        (FOLDER / run.name).mkdir(parents=True, exist_ok=True)
        for name in ("tune.md", "counts.png", "frontier.png"):
            if (run / "tune" / name).exists():
                shutil.copy(run / "tune" / name, FOLDER / run.name / name)
        if (run / "rival/sweep.csv").exists():
            shutil.copy(run / "rival/sweep.csv", FOLDER / run.name / "rival.csv")
    (HERE / "passes.md").write_text("\n".join(page()) + "\n")


def page() -> list[str]:
    out = ["# passes", "", (FOLDER / "notes.md").read_text()]
    for folder in sorted(f for f in FOLDER.iterdir() if (f / "tune.md").exists()):
        out += [f"## {DATA[folder.name.rpartition('-')[0]]}: {folder.name}", "", *show(folder), *rival(folder)]
    return [*out, "## How it was made", "", "```bash", (FOLDER / "commands.sh").read_text().rstrip(), "```"]


def show(folder: Path) -> list[str]:
    """Return the report of a tuning with its headings one level lower."""
    text = (folder / "tune.md").read_text().replace("## ", "### ")
    for name, alt in (("counts.png", "nats per token by passes"), ("frontier.png", "Frechet distance by passes")):
        text = text.replace(f"]({name})", f"](passes/{folder.name}/{name})")
        text = text.replace(f"![nats by passes](passes/{folder.name}/{name})", f"![{alt}](passes/{folder.name}/{name})")
    return [text]


def rival(folder: Path) -> list[str]:
    """Return the table of a faithful MaskGIT at each guidance that was tried."""
    tried = [row for row in rows(folder / "rival.csv") if row["kind"] == "setting"]
    if not tried:
        return []
    lines = [
        "### MaskGIT",
        "",
        "The cosine schedule and confidence with noise, on as many samples of the same seed.",
        "",
    ]
    lines += [
        "| passes | noise | guidance | Frechet distance | recall | class accuracy |",
        "| ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in tried:
        figures = f"{float(row['frechet']):.3f} | {float(row['recall']):.3f} | {float(row['class_accuracy']):.1%}"
        lines.append(f"| {row['steps']} | {row['noise']} | {row['ramp']} to {row['scale']} | {figures} |")
    return [*lines, "", f"Commit {tried[0]['commit']}.", ""]


if __name__ == "__main__":
    main(*sys.argv[1:])
