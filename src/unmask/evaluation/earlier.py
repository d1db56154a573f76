"""Look at the report that is there, before another one takes its place."""

from collections.abc import Mapping
from pathlib import Path

from unmask.errors import CheckpointError, ConfigError
from unmask.storage.config import load_json
from unmask.storage.files import escape_line

SAME = ("num_samples", "num_pictures", "seed", "sampling", "features", "judge", "labels", "cells", "train_steps")
"""The entries in which two reports agree if they were made with the same settings."""


def read_report(path: Path) -> dict[str, object]:
    """Return a report, or {} if there is none that can be read."""
    try:
        found = load_json(path)
    except (ConfigError, CheckpointError):
        return {}
    return found if isinstance(found, dict) else {}


def check_report(path: Path, entry: str, num: int, flag: str, *, overwrite: bool = False, advice: str = "") -> None:
    """Refuse to replace a report by one on fewer samples or images.

    Args:
        path: The report.json.
        entry: Where a report keeps the number.
        num: The number for the new report.
        flag: The flag that gives the number.
        overwrite: Replace it all the same.
        advice: What else the user may do, such as "or give another --out".

    Raises:
        ConfigError: The report there has more.
    """
    there = read_report(path).get(entry)
    if isinstance(there, int) and there > num and not overwrite:
        others = f", {advice}" if advice else ""
        raise ConfigError(
            f"{escape_line(str(path))} is on {there:,} {flag.lstrip('-')}, and {flag} {num:,} would replace it: "
            f"give as many, or add --overwrite{others}"
        )


def describe_replaced(before: Mapping[str, object], after: Mapping[str, object]) -> str | None:
    """Return a line if a report was replaced by one with the same settings, else None."""
    if not before or any(before.get(name) != after.get(name) for name in SAME):
        return None
    return "replaced the report of an earlier evaluation with the same settings"
