"""The table of a sweep on the disk: `sweep.csv`, to which finished rows are added; Markdown and plots made from it."""

import csv
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.errors import ConfigError
from unmask.figures import images as figures

SETTING = ("order", "schedule", "steps", "noise", "scale", "ramp", "top_k", "top_p", "temperatures")
KEY = ("kind", *SETTING, "tune", "samples", "seed")
ORIGIN = ("weights", "features", "judge", "pictures", "labels")
SWEEP_METRICS = (
    "temperature",
    "frechet",
    "frechet_infinity",
    "inception_score",
    "inception_score_deviation",
    "kid",
    "kid_deviation",
    "precision",
    "recall",
    "density",
    "coverage",
    "class_accuracy",
    "border",
    "inside",
)
COLUMNS = (*KEY, *ORIGIN, "commit", *SWEEP_METRICS)
CHECK = "check"
"""The last column: a digest of the rest of the row. Tables of earlier versions lack it."""

COLUMN_TITLES = {
    "floor": "real training images (floor)",
    "limit": "these through the tokenizer (limit)",
    "again": "best, again with a fresh seed: ",
}
SHOWN_COLUMNS = {
    "temperature": ("temperature", "{:.12g}"),
    "FD": ("frechet", "{:.3f}"),
    "FD∞": ("frechet_infinity", "{:.3f}"),
    "IS": ("inception_score", "{:.2f}"),
    "KID": ("kid", "{:.5f}"),
    "precision": ("precision", "{:.4f}"),
    "recall": ("recall", "{:.4f}"),
    "density": ("density", "{:.4f}"),
    "coverage": ("coverage", "{:.4f}"),
    "class accuracy": ("class_accuracy", "{:.2%}"),
    "border t": ("border", "{:.2f}"),
    "inside t": ("inside", "{:.2f}"),
}
HEAD = (
    f"| order | schedule | steps | noise | scale | {' | '.join(SHOWN_COLUMNS)} |",
    "| --- | --- | ---: | ---: | ---: " + "| ---: " * len(SHOWN_COLUMNS) + "|",
)
AXES = {"steps": "steps", "noise": "noise", "scale": "guidance scale", "temperatures": "temperature"}
PANELS = {"frechet": "Frechet distance", "inception_score": "Inception score"}
PLOTS = tuple(f"{axis.split()[-1]}-{name.replace('_', '-')}.png" for axis in AXES.values() for name in PANELS)
SWEEP_FILES = ("sweep.csv", "sweep.md", *PLOTS)
"""The files of a sweep."""


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One line: `cells` as they stand under KEY, and the figures; those that cannot be measured are not there.

    Its kind is floor or limit, which frame the others; setting; or again, the best setting with a fresh seed.
    """

    cells: Mapping[str, str]
    figures: Mapping[str, float]


def format_number(value: float | int | None) -> str:
    """Format a number for the table."""
    return "" if value is None else f"{value:.12g}"


class SweepTable:
    """The finished rows in a sweep.csv, all of one origin (see ORIGIN). Only `begin` and `add` write."""

    def __init__(self, path: Path, origin: Mapping[str, str], commit: str):
        self.path, self.origin, self.commit = path, origin, commit
        self._head: tuple[str, ...] = (*COLUMNS, CHECK)
        self.rows = dict(self._read()) if path.exists() else {}

    def find(self, cells: Mapping[str, str]) -> Mapping[str, float] | None:
        """Return the metrics of a finished row, or None."""
        return self.rows.get(_key(cells))

    def begin(self) -> None:
        """Cut off what a kill left of a last line; write the head if there is none."""
        with open(self.path, "ab+") as file:
            file.seek(0)
            whole = len(_whole(file.read()))
            file.truncate(whole)
        if not whole:
            self._append(self._head)

    def add(self, cells: Mapping[str, str], found: Mapping[str, float], *, write: bool) -> Mapping[str, float]:
        """Keep a finished row, on the disk too if this process writes; returns the figures that a table has."""
        kept = {name: float(found[name]) for name in SWEEP_METRICS if name in found}
        self.rows[_key(cells)] = kept
        if write:
            values = [repr(kept[name]) if name in kept else "" for name in SWEEP_METRICS]
            row = [*_key(cells), *(self.origin[name] for name in ORIGIN), self.commit, *values]
            self._append([*row, compute_check(row)][: len(self._head)])
        return kept

    def _append(self, values: Sequence[str]) -> None:
        format_row = io.StringIO()
        csv.writer(format_row, lineterminator="\n").writerow(values)
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(format_row.getvalue())
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> list[tuple[tuple[str, ...], dict[str, float]]]:
        remedy = "give another --out, or delete it"
        try:
            head, *lines = list(csv.reader(io.StringIO(_whole(self.path.read_bytes()).decode()), strict=True)) or [[]]
            if head and tuple(head) not in (COLUMNS, self._head):
                raise ConfigError(f"{self.path} is no table of this version's sweep: {remedy}")
            self._head = tuple(head) or self._head
            rows = [dict(zip(self._head, format_row, strict=True)) for format_row in lines]
            for number, row in enumerate(rows, 2):
                if row.get(CHECK, "") != (compute_check(list(row.values())[:-1]) if CHECK in row else ""):
                    raise ValueError(f"line {number} is not as it was written")
            found = [({name: float(row[name]) for name in SWEEP_METRICS if row[name]}, row) for row in rows]
        except (csv.Error, ValueError) as error:
            raise ConfigError(f"{self.path} is damaged ({error}): {remedy}") from error
        for row in rows:
            for name in ORIGIN:
                if row[name] != self.origin[name]:
                    there, here = row[name][:12] or "none", self.origin[name][:12] or "none"
                    raise ConfigError(f"{self.path} is of other {name}, {there} there and {here} here: {remedy}")
        return [(_key(row), kept) for kept, row in found]


def compute_check(values: Sequence[str]) -> str:
    """Return a short digest of the cells of a row, by which a changed cell is noticed."""
    return hashlib.sha256("\0".join(values).encode()).hexdigest()[:12]


def _whole(data: bytes) -> bytes:
    """Without a last line that has no end."""
    return data[: data.rfind(b"\n") + 1]


def _key(cells: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(cells[name] for name in KEY)


# -- Markdown ----------------------------------------------------------------------------------------------------------


def format_row(row: SweepRow) -> str:
    """Return a row of the Markdown table."""
    c = row.cells
    scale = c["scale"] if c["ramp"] in ("", "constant") else f"{c['scale']} ({c['ramp']})"
    cells = [COLUMN_TITLES.get(c["kind"], "") + c["order"], c["schedule"], c["steps"], c["noise"], scale]
    cells += [form.format(row.figures[name]) if name in row.figures else "" for name, form in SHOWN_COLUMNS.values()]
    return f"| {' | '.join(cell or '–' for cell in cells)} |"


def format_page(rows: Sequence[SweepRow], caption: str, made: Mapping[str, object]) -> str:
    """Return the text of sweep.md."""
    lines = [*HEAD, *map(format_row, rows), "", caption, ""]
    if not all("kid" in row.figures and "frechet_infinity" in row.figures for row in rows):
        lines += ["–: there is nothing to tell, or there are too few samples for this figure.", ""]
    by = f"`{made['command']}`, commit {made['commit']}, torch {made['torch']}, {made['hardware']}"
    return "\n".join([*lines, f"Made by {by}.", ""])


# -- plots -------------------------------------------------------------------------------------------------------------


def draw_sweep(rows: Sequence[SweepRow], out: Path) -> None:
    """Frechet distance and Inception score against each number that was swept over, as `steps-frechet.png`.

    A line per combination of the other settings, the best if there are many. A plot of an earlier sweep goes.
    """
    frame = {row.cells["kind"]: row.figures for row in rows if row.cells["kind"] in ("floor", "limit")}
    for axis, xlabel in AXES.items():
        lines = _lines([row for row in rows if row.cells["kind"] == "setting"], axis)
        kept = dict(list(lines.items())[: len(figures.LINES)])
        for name, ylabel in PANELS.items():
            path = out / f"{xlabel.split()[-1]}-{name.replace('_', '-')}.png"
            series = {
                label: ([float(r.cells[axis]) for r in points], [r.figures[name] for r in points])
                for label, points in kept.items()
                if all(name in r.figures for r in points)
            }
            if not series:
                path.unlink(missing_ok=True)
                continue
            many = f" (the best {len(kept)} of {len(lines)} lines)" if len(kept) < len(lines) else ""
            ys = [y for _, values in series.values() for y in values]
            figures.plot_curves(
                series if len(series) > 1 else {ylabel: next(iter(series.values()))},
                path,
                xlabel=xlabel,
                ylabel=ylabel,
                title=f"{ylabel} over {xlabel}{many}",
                logx=axis == "steps",
                logy=0 < 10 * min(ys) < max(ys),
                references={COLUMN_TITLES[kind]: found[name] for kind, found in frame.items() if name in found},
            )


def _lines(rows: Sequence[SweepRow], axis: str) -> dict[str, list[SweepRow]]:
    """Return the rows that differ in the axis alone, from left to right; the line with the least distance comes first.

    Lines are named by the settings in which they differ.
    """
    others = [name for name in SETTING if name != axis]
    groups: dict[tuple[str, ...], list[SweepRow]] = {}
    for row in rows:
        if row.cells[axis]:
            groups.setdefault(tuple(row.cells[name] for name in others), []).append(row)
    groups = {key: sorted(group, key=lambda r: float(r.cells[axis])) for key, group in groups.items() if len(group) > 1}
    ranked = sorted(groups, key=lambda key: min(row.figures["frechet"] for row in groups[key]))
    telling = [i for i in range(len(others)) if len({key[i] for key in ranked}) > 1]
    return {", ".join(_said(others[i], key[i]) for i in telling if key[i]): groups[key] for key in ranked}


def _said(name: str, value: str) -> str:
    words = {"order": "", "schedule": "", "ramp": "", "temperatures": "temperature "}
    return words.get(name, f"{name} ") + value
