"""Pass the numbers, pictures and texts of a training on to TensorBoard, Weights & Biases or trackio.

A tracker shows what `metrics.jsonl` and `samples/` hold as well. A run keeps one identity in the tracker, however often
it is stopped and resumed: its id stands in the run directory, so a copied or moved run keeps it.
"""

import html
import json
import os
import secrets
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from unmask.errors import ConfigError
from unmask.storage.files import write_text
from unmask.storage.layout import CONFIG, TRACKER_ID

Tracker = Literal["none", "tensorboard", "wandb", "trackio"]
PROJECT = "unmask"
"""The project that runs belong to in W&B and trackio; WANDB_PROJECT names another one."""


@runtime_checkable
class Recorder(Protocol):
    """What a tracker takes."""

    def record(self, step: int, values: dict[str, float]) -> None:
        """Show numbers."""

    def show_picture(self, step: int, name: str, image: Image.Image) -> None:
        """Show an image."""

    def show_text(self, step: int, name: str, text: str) -> None:
        """Show a text."""

    def close(self, *, failed: bool) -> None:
        """Write what is left, and end the session."""


def open_tracker(tracker: Tracker, run: Path, start: int) -> Recorder | None:
    """Open the session of a run that starts or resumes at step `start`; None for the tracker none.

    Raises:
        ConfigError: The package of the tracker is not installed.
    """
    if tracker == "none":
        return None
    config = _read_config(run)
    if tracker == "tensorboard":
        return _TensorBoard(run, start, config)
    return _Session(tracker, run, config)


class _TensorBoard:
    """Event files in RUN/tensorboard. A resumed run hides the steps that it repeats."""

    def __init__(self, run: Path, start: int, config: dict[str, Any]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _make_missing("tensorboard", "TensorBoard", error) from error
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1 if start else None)
        if not start:
            self.writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```", 0)

    def record(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def show_picture(self, step: int, name: str, image: Image.Image) -> None:
        self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def show_text(self, step: int, name: str, text: str) -> None:
        self.writer.add_text(name, f"```\n{text}\n```", step)

    def close(self, *, failed: bool) -> None:
        self.writer.close()


class _Session:
    """A run of W&B or trackio, which have the same functions. W&B drops the steps that a resumed run repeats."""

    def __init__(self, tracker: Literal["wandb", "trackio"], run: Path, config: dict[str, Any]):
        try:
            self.package: Any = import_module(tracker)
        except ImportError as error:
            raise _make_missing(tracker, "Weights & Biases" if tracker == "wandb" else "trackio", error) from error
        self.make_text: Callable[[str], Any]
        identity = _find_identity(run)
        if tracker == "wandb":
            self.make_text = lambda text: self.package.Html(f"<pre>{html.escape(text)}</pre>")
            facts: dict[str, Any] = {"id": identity, "name": run.resolve().name, "dir": str(run)}
        else:  # trackio knows a run by its name
            self.make_text = lambda text: self.package.Markdown(f"```\n{text}\n```")
            facts = {"name": f"{run.resolve().name}-{identity}", "embed": False}
        self.session = self.package.init(project=_choose_project(tracker), config=config, resume="allow", **facts)

    def record(self, step: int, values: dict[str, float]) -> None:
        self.session.log(dict(values), step=step)

    def show_picture(self, step: int, name: str, image: Image.Image) -> None:
        self.session.log({name: self.package.Image(image)}, step=step)

    def show_text(self, step: int, name: str, text: str) -> None:
        self.session.log({name: self.make_text(text)}, step=step)

    def close(self, *, failed: bool) -> None:
        if self.package.__name__ == "wandb":
            self.session.finish(exit_code=int(failed))
        else:
            self.session.finish()


def _choose_project(tracker: str) -> str | None:
    """Return the project; None lets W&B read its environment variable."""
    return None if tracker == "wandb" and os.environ.get("WANDB_PROJECT") else PROJECT


def _find_identity(run: Path) -> str:
    """Return the id of a run, which is made at its first session."""
    path = run / TRACKER_ID
    if not path.is_file():
        run.mkdir(parents=True, exist_ok=True)
        write_text(secrets.token_hex(4) + "\n", path)
    return path.read_text(encoding="utf-8").strip()


def _read_config(run: Path) -> dict[str, Any]:
    """Return the configuration that the run keeps; {} if it keeps none."""
    path = run / CONFIG
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _make_missing(tracker: str, name: str, error: ImportError) -> ConfigError:
    lacking = f" ({error})" if getattr(error, "name", None) not in (None, tracker, "tensorboard") else ""
    return ConfigError(f"--training.tracker {tracker} needs {name}{lacking}: pip install 'unmask[logging]'")
