"""What a run says: a progress bar and lines for people, JSON lines for programs, TensorBoard or W&B if asked for."""

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
from unmask.storage.files import write_atomic
from unmask.storage.layout import METRICS

Tracker = Literal["none", "tensorboard", "wandb"]
Record = Callable[[int, dict[str, float]], None]


class Log:
    """Rank 0 writes and speaks; with `run` None (the other ranks) nothing is written or said.

    `metrics.jsonl` holds one object per line with `step` and the `seconds` of training so far; lines of steps that a
    resumed run repeats are dropped first.
    """

    def __init__(
        self, run: Path | None, *, steps: int, start: int = 0, tracker: Tracker = "none", unit: str = "tokens/s"
    ):
        self.run = run
        self.console = Console(file=sys.stdout, highlight=False, quiet=run is None, soft_wrap=True)
        self._track: Record = _tracker(tracker, run) if run is not None else _nothing
        self._file: TextIO | None
        self._file, before = (None, 0.0) if run is None else _reopened(run / METRICS, start)
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

    def __enter__(self) -> "Log":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        if self._file is not None:
            self._file.close()

    def say(self, text: str) -> None:
        """One line for the person, above the progress bar."""
        self.console.print(text, markup=False)

    def progress(self, step: int, loss: float, rate: float) -> None:
        """Move the bar: `step` steps are done, `rate` units per second."""
        self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", rate=rate)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Append numbers to metrics.jsonl and to the tracker."""
        if self._file is not None:
            seconds = round(time.perf_counter() - self._began, 3)
            self._file.write(json.dumps({"step": step, "seconds": seconds, **values}) + "\n")
            self._file.flush()
            self._track(step, values)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Keep an image as `samples/<name>-<step>.png`."""
        if self.run is not None:
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True)
            image.save(folder / f"{name}-{step:08d}.png")

    def text(self, step: int, name: str, text: str) -> None:
        """Keep a text as `samples/<name>-<step>.txt`."""
        if self.run is not None:
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True)
            (folder / f"{name}-{step:08d}.txt").write_text(text + "\n", encoding="utf-8")


def _reopened(path: Path, start: int) -> tuple[TextIO, float]:
    """The file, cut to the lines up to step `start`, and the seconds trained until then; a line cut short goes too."""
    kept, seconds = [], 0.0
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            step, so_far = row["step"], row["seconds"]
        except (json.JSONDecodeError, KeyError, TypeError):
            break
        if step <= start and start > 0:
            kept.append(line + "\n")
            seconds = so_far
    with write_atomic(path, durable=False) as part:  # a kill in between must not cost the curve
        part.write_text("".join(kept))
    return path.open("a"), seconds


def _nothing(step: int, values: dict[str, float]) -> None:
    pass


def _tracker(tracker: Tracker, run: Path | None) -> Record:
    if tracker == "none" or run is None:
        return _nothing
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
