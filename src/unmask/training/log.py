"""The training log: a progress bar and lines for people, metrics.jsonl for programs, TensorBoard or W&B on request."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TextIO

from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from unmask.errors import ConfigError
from unmask.runtime.output import OptionalOutput
from unmask.storage.files import write_atomic
from unmask.storage.layout import METRICS
from unmask.training.curve import read_metrics

Tracker = Literal["none", "tensorboard", "wandb"]
Recorder = Callable[[int, dict[str, float]], None]
"""`record(step, values)` passes numbers on to a tracker."""


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
        self.console = Console(file=output, highlight=False, quiet=run is None, soft_wrap=True)  # type: ignore[arg-type]
        self._notes: list[str] = []
        self._track: Recorder = _open_tracker(tracker, run) if run is not None else _ignore
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

    def say(self, text: str) -> None:
        """Print one line above the progress bar."""
        self.console.print(text, markup=False)

    def show_progress(self, step: int, loss: float, rate: float) -> None:
        """Update the progress bar: steps done, loss, and tokens or images per second."""
        self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", rate=rate)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Append numbers to metrics.jsonl and to the tracker."""
        if self._file is not None:
            seconds = round(time.perf_counter() - self._began, 3)
            self._file.write(json.dumps({"step": step, "seconds": seconds, **values}) + "\n")
            self._file.flush()
            self._track(step, values)

    def save_picture(self, step: int, name: str, image: Image.Image) -> None:
        """Save an image as `samples/<name>-<step>.png`."""
        if self.run is not None:
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True)
            image.save(folder / f"{name}-{step:08d}.png")

    def save_text(self, step: int, name: str, text: str) -> None:
        """Save a text as `samples/<name>-<step>.txt`."""
        if self.run is not None:
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True)
            (folder / f"{name}-{step:08d}.txt").write_text(text + "\n", encoding="utf-8")


def _reopen(path: Path, start: int, report: Callable[[str], None]) -> tuple[TextIO, float]:
    """Drop the rows after step `start`, and damaged lines. Return the open file and the seconds trained."""
    kept = [row for row in read_metrics(path, report=report) if 0 < row["step"] <= start]
    with write_atomic(path, durable=False) as part:  # a kill in between must not lose the curve
        part.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path.open("a"), kept[-1]["seconds"] if kept else 0.0


def _ignore(step: int, values: dict[str, float]) -> None:
    pass


def _open_tracker(tracker: Tracker, run: Path | None) -> Recorder:
    if tracker == "none" or run is None:
        return _ignore
    if tracker == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise ConfigError("--training.tracker tensorboard needs TensorBoard: pip install 'unmask[logging]'") from e
        writer = SummaryWriter(str(run / "tensorboard"))

        def to_tensorboard(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        return to_tensorboard
    try:
        import wandb
    except ImportError as e:
        raise ConfigError("--training.tracker wandb needs Weights & Biases: pip install 'unmask[logging]'") from e
    session = wandb.init(project="unmask", name=run.name, dir=str(run))

    def to_wandb(step: int, values: dict[str, float]) -> None:
        session.log(values, step=step)

    return to_wandb
