"""What the tabs of the page share: the models, the open pages, a folder for downloads, and how errors are told."""

import contextlib
import functools
import hashlib
import html
import stat
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from unmask.app.models import Holder, Kind, ModelChoice, list_choices
from unmask.app.sessions import Session, Sessions
from unmask.decoding.sampling import Sampling
from unmask.decoding.settings import change_sampling
from unmask.errors import ConfigError, UnmaskError
from unmask.pipelines.image import Pipeline
from unmask.pipelines.text import TextPipeline
from unmask.published.catalogue import MODELS
from unmask.published.opening import open_model
from unmask.recipes.spec import ModelSpec, TextModelSpec
from unmask.runtime.progress import Progress
from unmask.runtime.shortage import describe_shortage

COMPUTE = "compute"
"""The queue of jobs that run a model: one at a time over all pages."""
NO_MODEL = "there is no model yet: press Run the demo, which learns to draw digits in a few minutes"
"""What a page without any model says."""
MOST_STORED = 1 << 30
"""Bytes of the files that are kept for all pages: images, uploads, downloads."""
Update = dict[Any, Any]
"""What an event changes: components and their new values."""


class JobStopped(Exception):
    """Somebody pressed stop, or closed the page."""


@dataclass(frozen=True, kw_only=True)
class Studio:
    """What the tabs share."""

    holder: Holder
    """The model in memory."""
    sessions: Sessions
    """The open pages."""
    choices: list[ModelChoice]
    """The models to choose from."""
    folder: Path
    """Where the page's files are: uploads, images, downloads; deleted when the server ends."""
    named: Sequence[str] = ()
    """The models that were named when the page was opened."""
    root: Path = Path("runs")
    """The folder whose runs are offered."""
    published: bool = True
    """Whether the published models are offered."""

    def update_choices(self) -> None:
        """Look for models again: new runs come in, deleted ones go."""
        self.choices[:] = list_choices(
            [name for name in self.named if can_open(name)], self.root, published=self.published
        )

    @property
    def has_runs(self) -> bool:
        """Whether a model of this machine is offered, not only published ones."""
        return any(choice.name not in MODELS for choice in self.choices)

    def list_names(self, kind: Kind) -> list[tuple[str, str]]:
        """Return (title, name) of the models of a kind."""
        return [(choice.title, choice.name) for choice in self.choices if choice.kind == kind]

    def check_choice(self, name: str | None) -> str:
        """Return the name of a model of the list; ConfigError for another one, so that no page opens other folders."""
        if not self.choices:
            raise ConfigError(NO_MODEL)
        if name is None or name not in {choice.name for choice in self.choices}:
            raise ConfigError("choose a model first")
        return name

    def read_spec(self, name: str | None) -> ModelSpec | TextModelSpec:
        """Return what a model is, without its weights."""
        opened = open_model(self.check_choice(name), offline=self.holder.offline)
        return opened.require_text_spec("sample") if opened.is_text else opened.require_image_spec()

    def make_folder(self, request: gr.Request) -> Path:
        """Return the folder of a page's downloads; it is deleted when the page closes, or was idle for long.

        The oldest files of all pages go when they take more than MOST_STORED bytes.
        """
        prune_folder(self.folder, MOST_STORED)
        name = hashlib.sha256((request.session_hash or "").encode()).hexdigest()[:16]
        session = self.sessions.find(request.session_hash)
        session.folder = self.folder / "downloads" / name
        session.folder.mkdir(parents=True, exist_ok=True)
        return session.folder


def can_open(name: str) -> bool:
    """Return whether a model is there."""
    try:
        open_model(name, offline=True)
    except UnmaskError:
        return False
    return True


def prune_folder(folder: Path, most: int) -> None:
    """Delete the oldest files below a folder until the others take at most `most` bytes."""
    files = []
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another page may just have deleted it
            facts = file.lstat()
            if stat.S_ISREG(facts.st_mode):
                files.append((facts.st_mtime, facts.st_size, file))
    left = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if left <= most:
            break
        file.unlink(missing_ok=True)
        left -= size


def report_to(session: Session) -> Progress:
    """Return what shows a download on the page, and stops it when somebody presses stop."""
    shown = gr.Progress()

    def report(what: str, done: int, total: int) -> None:
        if session.stop.is_set():
            raise JobStopped
        shown((done, total), desc=what)

    return report


def choose_settings(own: Sampling, grid: tuple[int, ...], settings: Mapping[str, Any]) -> Sampling:
    """Return the sampling with these settings; ConfigError for a number that it cannot use."""
    try:
        return change_sampling(own, grid, settings)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def require_image(pipeline: Pipeline | TextPipeline) -> Pipeline:
    """Return an image pipeline; ConfigError for a text model."""
    if isinstance(pipeline, TextPipeline):
        raise ConfigError("this is a text model: use the tab Text, or choose an image model")
    return pipeline


def require_text(pipeline: Pipeline | TextPipeline) -> TextPipeline:
    """Return a text pipeline; ConfigError for an image model."""
    if isinstance(pipeline, Pipeline):
        raise ConfigError("this is an image model: use the other tabs, or choose a text model")
    return pipeline


def say(text: str, *, error: bool = False) -> str:
    """Return a line for the page's status, which screen readers read aloud."""
    return f'<p role="{"alert" if error else "status"}" class="{"error" if error else "note"}">{html.escape(text)}</p>'


def tell_errors(status: Any) -> Callable[[Callable[..., Iterator[Update]]], Callable[..., Iterator[Update]]]:
    """Make an event end in a sentence in `status`, where it would raise: a bad input never stops the server."""

    def decorate(function: Callable[..., Iterator[Update]]) -> Callable[..., Iterator[Update]]:
        @functools.wraps(function)
        def told(*arguments: Any) -> Iterator[Update]:
            try:
                yield from function(*arguments)
            except JobStopped:
                yield {status: say("stopped")}
            except Exception as error:  # noqa: BLE001 - the server lives on
                yield {status: say(describe_error(error), error=True)}

        return told

    return decorate


def describe_error(error: Exception) -> str:
    """Return a sentence for the page; what nobody foresaw goes to the terminal with its traceback."""
    if isinstance(error, UnmaskError):
        return str(error)
    shortage = describe_shortage(error)
    if shortage is not None:
        return f"{shortage}: take fewer images, or a smaller model"
    traceback.print_exception(error, file=sys.stderr)
    return f"this failed ({type(error).__name__}): the terminal of unmask app shows where"


def stop_job(studio: Studio, request: gr.Request) -> str:
    """Ask the job of a page to stop at its next step."""
    studio.sessions.find(request.session_hash).stop.set()
    return say("stopping at the next step")


def make_stoppable(studio: Studio, button: Any, status: Any) -> None:
    """Let a button stop the job of its page."""

    def press(request: gr.Request) -> str:
        return stop_job(studio, request)

    button.click(press, None, status, queue=False, api_visibility="private", show_progress="hidden")


def join_names(words: Sequence[str], most: int = 10) -> str:
    """Return the first words of a list in a line."""
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")
