"""Keep the results of campaigns in one JSON file, and make the page of it."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from unmask.runtime.provenance import describe_environment

SECTIONS = {
    "kill": ("Killed", "kill -9; then the same command again. Survived: every file that remains has the bytes of an "
             "undisturbed run, apart from clocks."),
    "ranks": ("Several processes", "Two or four processes over gloo, forked as torchrun starts them; one is killed, "
              "and the run is resumed."),
    "corrupt": ("Damaged files", "One change to one file: a bit turned, a page of zeros, a cut, an extension, an "
                "emptied, missing or swapped file. Survived: refused in one line, said and healed, or the same result "
                "as before. Silent: another result without a word."),
    "disk": ("Failing disk", "One write step fails once, with ENOSPC, EIO, EACCES or EMFILE. Survived: exit code 6 "
             "and one line, and the same command again leaves the bytes of an undisturbed run."),
    "hostile": ("Hostile files", "Made to run a program, to fill the memory, to wait for ever or to deceive. Survived: "
                "used or refused in one line, nothing run, no death, within the limits of memory and time."),
    "signal": ("Signals", "SIGTERM, SIGINT, SIGHUP and SIGUSR1. Survived: a documented exit code, and "
               "the resumed run has the bytes of an undisturbed one."),
    "memory": ("Memory", "Survived: within the stated bound."),
    "nan": ("NaN", "Survived: stopped before the optimizer's step, named, and nothing bad on the disk."),
}  # fmt: skip
HEAD = "| attacked | tried | survived | lost | silent | how it ended |\n| --- | ---: | ---: | ---: | ---: | --- |"


def read_results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"campaigns": {}}


def store_result(row_file: Path, out: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """Put the row of one campaign into the JSON file; return the row."""
    row = json.loads(row_file.read_text())
    there = describe_environment(torch.device("cpu"))
    row |= {name: there[name] for name in ("commit", "hardware", "torch", "python")}
    limit = f" --limit {flags.limit:g}" if flags.limit is not None else ""
    chosen = f"--scale {flags.scale:g} --seed {flags.seed}{limit}"
    row["command"] = f"python tests/campaign/run.py --only {row['name']} {chosen}"
    results = read_results(out)
    results["campaigns"][row["name"]] = row
    out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return row


def write_page(out: Path) -> None:
    """Write the page beside the JSON file."""
    out.with_suffix(".md").write_text(make_page(read_results(out)), encoding="utf-8")


def make_page(results: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    rows = list(results["campaigns"].values())
    counted = [row for row in rows if not row["name"].startswith("memory-")]  # those count samples and rows
    total = {key: sum(row[key] for row in counted) for key in ("tried", "survived", "lost", "silent")}
    lines = [
        "# Reliability", "",
        "What happens to a run when the machine, the disk or a file fails, or a file is hostile. `make campaign` "
        "attacks the commands at toy size and writes this page; `tests/campaign` holds the attacks. A row states what "
        "was tried, not what was planned.", "",
        f"**{total['tried']:,} attacks: {total['survived']:,} survived, {total['lost']:,} lost, "
        f"{total['silent']:,} silent.**", "",
    ]  # fmt: skip
    for key, (title, about) in SECTIONS.items():
        own = sorted((row for row in rows if row["name"].split("-")[0] == key), key=lambda row: row["name"])
        if own:
            lines += [f"## {title}", "", about, "", HEAD, *map(_format_row, own), ""]
    lines += ["## What was lost", "", *(_list_losses(rows) or ["Nothing."]), ""]
    lines += ["## How it was made", "", *_describe_making(rows)]
    return "\n".join(lines) + "\n"


def _format_row(row: dict[str, Any]) -> str:
    how = ", ".join(f"{num:,} {what}" for what, num in sorted(row["how"].items(), key=lambda item: -item[1]))
    facts = "".join(f"; {name} {value}" for name, value in row["facts"].items())
    numbers = " | ".join(f"{row[key]:,}" for key in ("tried", "survived", "lost", "silent"))
    return f"| {row['about']} | {numbers} | {how}{facts} |"


def _list_losses(rows: list[dict[str, Any]]) -> list[str]:
    return [f"* {row['about']}: {_quote(note)}" for row in rows for note in row["notes"]]


def _quote(note: str) -> str:
    return "`" + note.replace("`", "'").replace("\n", " ") + "`"


def _describe_making(rows: list[dict[str, Any]]) -> list[str]:
    """Return who made the rows: one line per commit, hardware and flags."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        flags = row["command"].partition(f"--only {row['name']} ")[2]
        groups.setdefault((row["commit"], row["hardware"], row["torch"], flags), []).append(row)
    lines = []
    for (commit, hardware, version, flags), own in groups.items():
        minutes = sum(row["seconds"] for row in own) / 60
        names = "all rows" if len(groups) == 1 else ", ".join(sorted(row["name"] for row in own))
        lines.append(
            f"* `python tests/campaign/run.py {flags}`, commit {commit}, {hardware}, torch {version}; "
            f"{minutes:.0f} minutes summed over campaigns: {names}."
        )
    short = sum(row["tried"] < row["planned"] for row in rows)
    if short:
        lines.append(f"* {short} of {len(rows)} campaigns ended early, after the seconds of `--limit`.")
    return lines
