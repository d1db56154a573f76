"""Read `metrics.jsonl`, the training curve of a run: one JSON object a line, with `step` and `seconds`."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One line of the curve: `step`, the `seconds` of training so far, and metrics."""


def read_metrics(path: Path, *, report: Callable[[str], None]) -> list[Row]:
    """Return the sound rows of a `metrics.jsonl`, in the order of the file; a missing file has none.

    A damaged line is skipped, and `report` receives one line that names all of them. A last line that a killed process
    cut short is skipped without a report.
    """
    if not path.exists():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    rows = [_parse_row(line) for line in [*lines, rest]]
    damaged = [number for number, row in enumerate(rows[: len(lines)], 1) if row is None]
    if damaged:
        some = ", ".join(map(str, damaged[:5])) + (f" and {len(damaged) - 5} more" if len(damaged) > 5 else "")
        report(f"{path} is damaged in line {some}: these lines are left out, the rest of the curve is used")
    return [row for row in rows if row is not None]


def describe_curve(path: Path) -> dict[str, Any]:
    """Return the size and sha256 of a `metrics.jsonl` as it is now, which a checkpoint keeps; {} if there is none."""
    data = path.read_bytes() if path.is_file() else b""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} if data else {}


def has_curve_changed(path: Path, then: Mapping[str, Any]) -> bool:
    """Return whether the beginning of a `metrics.jsonl` is not what `describe_curve` described."""
    if not then:
        return False
    data = path.read_bytes()[: then["bytes"]] if path.is_file() else b""
    return hashlib.sha256(data).hexdigest() != then["sha256"]


def _parse_row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # ValueError includes bytes that are not UTF-8
        return None
    if not isinstance(row, dict) or not row.keys() >= {"step", "seconds"} or not isinstance(row["step"], int):
        return None
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in row.values())
    return row if numbers else None
