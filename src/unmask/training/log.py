"""The training log: a progress bar and lines for people, metrics.jsonl for programs, and a tracker on request."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from PIL import Image
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from unmask.runtime.output import OptionalOutput, make_console
from unmask.storage.files import write_atomic
from unmask.storage.layout import METRICS
from unmask.training.curve import read_metrics
from unmask.training.trackers import Tracker, open_tracker


class TrainLog:
    """The log of one run. Rank 0 passes the run directory; the other ranks pass None and stay silent.

    `metrics.jsonl` holds one object per line with `step` and the `seconds` of training so far. A resumed run first
    drops the lines of steps that it repeats, and damaged ones, which it names.
    """

    def __init__(
        self, run: Path | None, *, steps: int, start: int = 0, tracker: Tracker = "none", unit: str = "tokens/s"
    ):
        self.run = run
        output = None if sys.stdout is None else OptionalOutput(sys.stdout, "standard output")
        self.console = make_console(output, quiet=run is None)
        self._notes: list[str] = []
        self._tracker = open_tracker(tracker, run, start) if run is not None and start < steps else None
        self._file: TextIO | None
        self._file, before = (None, 0.0) if run is None else _reopen(run / METRICS, start, self._notes.append)
        self._began = time.perf_counter() - before
        columns = [
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]:,.0f} " + unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        self._bar = Progress(
            *columns, console=self.console, disable=run is None or start >= steps, refresh_per_second=4
        )
        self._task = self._bar.add_task("train", total=steps, completed=start, loss="–", rate=0.0)

    def __enter__(self) -> "TrainLog":
        self._bar.start()
        for note in self._notes:
            self.say(note)
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        if self._file is not None:
            self._file.close()
        if self._tracker is not None:
            self._tracker.close(failed=error[0] is not None)

    def say(self, text: str) -> None:
        """Print a line above the progress bar; a terminal breaks it between words."""
        self.console.print(text, markup=False)

    def show_step(self, step: int) -> None:
        """Move the progress bar to the number of steps done."""
        self._bar.update(self._task, completed=step)

    def show_progress(self, step: int, loss: float, rate: float) -> None:
        """Update the progress bar: steps done, loss, and tokens or images per second."""
        self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", rate=rate)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Append numbers to metrics.jsonl and to the tracker."""
        if self._file is not None:
            seconds = round(time.perf_counter() - self._began, 3)
            self._file.write(json.dumps({"step": step, "seconds": seconds, **values}) + "\n")
            self._file.flush()
        if self._tracker is not None:
            self._tracker.record(step, values)

    def save_picture(self, step: int, name: str, image: Image.Image) -> None:
        """Save an image as `samples/<name>-<step>.png`, and show it in the tracker."""
        if self.run is not None:
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True)
            image.save(folder / f"{name}-{step:08d}.png")
        if self._tracker is not None:
            self._tracker.show_picture(step, name, image)

    def save_text(self, step: int, name: str, text: str) -> None:
        """Save a text as `samples/<name>-<step>.txt`, and show it in the tracker."""
        if self.run is not None:
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True)
            (folder / f"{name}-{step:08d}.txt").write_text(text + "\n", encoding="utf-8")
        if self._tracker is not None:
            self._tracker.show_text(step, name, text)


def _reopen(path: Path, start: int, report: Callable[[str], None]) -> tuple[TextIO, float]:
    """Drop the rows after step `start`, and damaged lines. Return the open file and the seconds trained."""
    kept = [row for row in read_metrics(path, report=report) if 0 < row["step"] <= start]
    with write_atomic(path, durable=False) as part:  # a kill in between must not lose the curve
        part.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path.open("a"), kept[-1]["seconds"] if kept else 0.0
