"""The part of a tab that shows one sampling: canvas, slider over its steps, maps, downloads, and lines to copy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from unmask.app.studio import Studio, Update, say, tell_errors
from unmask.app.watching import Recording, draw_maps
from unmask.errors import ConfigError

SAMPLE_FILES = ("PNG", "GIF", "settings")
"""What a sampling can be downloaded as."""


@dataclass(frozen=True, kw_only=True)
class ResultView:
    """The components of one result."""

    status: Any
    canvas: Any
    step: Any
    sure: Any
    order: Any
    files: list[Any]
    command: Any
    python: Any

    @property
    def outputs(self) -> list[Any]:
        """All components."""
        return [self.status, self.canvas, self.step, self.sure, self.order, *self.files, self.command, self.python]

    def show_step(self, recording: Recording, last: int) -> Update:
        """Return the newest step of a sampling of `last` steps."""
        return {
            self.canvas: recording.frames[-1],
            self.status: say(f"step {recording.steps[-1]} of {last}"),
        }

    def show_end(
        self, recording: Recording, lines: tuple[str, str], paths: tuple[str, ...], *, stopped: bool
    ) -> Update:
        """Return the finished result, with the lines to copy and the files to download."""
        sure, order = draw_maps(recording, len(recording.frames) - 1)
        end = len(recording.frames) - 1
        what = "stopped after step" if stopped else "done: step"
        return {
            self.status: say(f"{what} {recording.steps[-1]}"),
            self.sure: sure,
            self.order: order,
            self.step: gr.update(maximum=max(1, end), value=end, interactive=True),
            self.command: lines[0],
            self.python: lines[1],
            **{button: gr.update(value=path, interactive=True) for button, path in zip(self.files, paths, strict=True)},
        }


def make_result_view(
    prefix: str, invitation: str, kinds: Sequence[str] = SAMPLE_FILES, ending: Any = None
) -> ResultView:
    """Add the components to the page.

    Args:
        prefix: What their ids begin with.
        invitation: What the status says at first.
        kinds: What can be downloaded.
        ending: A component that is not rendered yet, to stand below the steps.
    """
    status = gr.HTML(say(invitation), elem_id=f"{prefix}-status")
    canvas = make_picture("Canvas", f"{prefix}-canvas")
    step = gr.Slider(
        0, 1, value=0, step=1, label="Step", info="Go back through the steps.", interactive=False,
        elem_id=f"{prefix}-step",
    )  # fmt: skip
    if ending is not None:
        ending.render()
    with gr.Row():
        sure = make_picture("Confidence of each token", f"{prefix}-sure")
        order = make_picture("Step that unmasked it", f"{prefix}-order")
    with gr.Row():
        files = [gr.DownloadButton(f"Download {kind}", interactive=False, size="md") for kind in kinds]
    command, python = make_lines(prefix)
    return ResultView(
        status=status, canvas=canvas, step=step, sure=sure, order=order, files=files, command=command, python=python
    )


def make_picture(label: str, name: str) -> Any:
    """Add an image that the page shows, without loss."""
    return gr.Image(
        label=label, alt_text=label, format="png", interactive=False, elem_id=name, buttons=["download", "fullscreen"]
    )


def make_lines(prefix: str) -> tuple[Any, Any]:
    """Add the lines that do the same on the command line and in Python."""
    command = gr.Code(
        label="The same on the command line", language="shell", interactive=False, lines=1, wrap_lines=True,
        elem_id=f"{prefix}-command",
    )  # fmt: skip
    python = gr.Code(
        label="The same in Python", language="python", interactive=False, lines=4, wrap_lines=True,
        elem_id=f"{prefix}-python",
    )  # fmt: skip
    return command, python


def connect_steps(studio: Studio, view: ResultView, tab: str) -> None:
    """Let the slider of a result go through the steps of `Session.results[tab]`."""

    @tell_errors(view.status)
    def scrub(request: gr.Request, number: float) -> Iterator[Update]:
        recording = studio.sessions.find(request.session_hash).results.get(tab)
        if recording is None or not recording.frames:
            raise ConfigError("the server no longer keeps this result: generate it again")
        at = min(max(int(number), 0), len(recording.frames) - 1)
        sure, order = draw_maps(recording, at)
        said = say(f"step {recording.steps[at]} of {recording.steps[-1]}")
        yield {view.canvas: recording.frames[at], view.sure: sure, view.order: order, view.status: said}

    view.step.input(  # release comes from a mouse only
        scrub, view.step, [view.status, view.canvas, view.sure, view.order], trigger_mode="always_last",
        concurrency_limit=4, api_visibility="private", show_progress="hidden",
    )  # fmt: skip
