"""The tab Text: watch texts fill in, and go back through their steps."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from unmask.app.settings import SettingControls, make_settings
from unmask.app.studio import (
    COMPUTE,
    Studio,
    Update,
    choose_settings,
    make_stoppable,
    report_to,
    require_text,
    say,
    tell_errors,
)
from unmask.app.tabs.results import make_lines
from unmask.app.writing import (
    PAGE_TEXTS,
    TextRecording,
    TextWish,
    decode_texts,
    stream_texts,
    write_text_downloads,
    write_text_lines,
)
from unmask.recipes.spec import TextModelSpec

LONGEST_TEXT = 20_000
"""Characters that the page takes."""
OFFERED_TOKENS = 256
"""The length that the page offers before a model is chosen."""


@dataclass(frozen=True, kw_only=True)
class TextControls:
    """The controls that say what to write."""

    text: Any
    num: Any
    length: Any
    seed: Any

    @property
    def inputs(self) -> list[Any]:
        """The controls in the order of `read`."""
        return [self.text, self.num, self.length, self.seed]

    @staticmethod
    def read(text: Any, num: Any, length: Any, seed: Any, *, context: int) -> TextWish:
        """Return what the controls say; a length of the whole context is none."""
        tokens = int(length or 0)
        limit = tokens if 0 < tokens < context else None
        return TextWish(text=text or "", num=int(num or 1), length=limit, seed=int(seed or 0))


@dataclass(frozen=True, kw_only=True)
class TextTab:
    """The parts of the tab that depend on the model."""

    controls: TextControls
    settings: SettingControls

    @property
    def outputs(self) -> list[Any]:
        """What `show` changes."""
        return [self.controls.length, self.settings.controls["steps"]]

    def show(self, spec: Any) -> Update:
        """Return what the tab shows for a model."""
        if not isinstance(spec, TextModelSpec):
            return {}
        context = spec.tokenizer.context
        return {
            self.controls.length: gr.update(maximum=context, value=context),
            self.settings.controls["steps"]: gr.update(value=spec.sampling.steps),
        }


@dataclass(frozen=True, kw_only=True)
class TextView:
    """The components of one result."""

    status: Any
    texts: Any
    step: Any
    files: list[Any]
    command: Any
    python: Any

    @property
    def outputs(self) -> list[Any]:
        """All components."""
        return [self.status, self.texts, self.step, *self.files, self.command, self.python]

    def show_step(self, recording: TextRecording) -> Update:
        """Return the newest step."""
        number = len(recording.states) - 1
        said = say(f"step {recording.states[-1].step} of {recording.steps}")
        return {self.texts: recording.render(number), self.status: said}

    def show_end(
        self, recording: TextRecording, lines: tuple[str, str], paths: tuple[str, ...], *, stopped: bool
    ) -> Update:
        """Return the finished result, with the lines to copy; a stopped one has no files to download."""
        end = len(recording.states) - 1
        what = "stopped after step" if stopped else "done: step"
        files = paths or (None,) * len(self.files)
        return {
            self.status: say(f"{what} {recording.states[-1].step}"),
            self.texts: recording.render(end),
            self.step: gr.update(maximum=max(1, end), value=end, interactive=True),
            self.command: lines[0],
            self.python: lines[1],
            **{
                button: gr.update(value=path, interactive=path is not None)
                for button, path in zip(self.files, files, strict=True)
            },
        }


def make_text_controls() -> TextControls:
    """Add the controls that say what to write to the page."""
    text = gr.Textbox(
        label="Text", lines=5, max_length=LONGEST_TEXT, placeholder="ROMEO:", elem_id="text-prompt",
        info="It is continued. Or write [MASK:12] where 12 tokens are missing, and only these are filled in.",
    )  # fmt: skip
    with gr.Row():
        num = gr.Slider(1, PAGE_TEXTS, value=1, step=1, label="Texts", elem_id="text-num")
        length = gr.Slider(
            1, OFFERED_TOKENS, value=OFFERED_TOKENS, step=1, label="Length", info="Tokens at most, with your text.",
            elem_id="text-length",
        )  # fmt: skip
    seed = gr.Number(0, label="Seed", precision=0, info="The same seed gives the same texts.", elem_id="text-seed")
    return TextControls(text=text, num=num, length=length, seed=seed)


def make_text_view() -> TextView:
    """Add the components that show a result to the page."""
    status = gr.HTML(say("Choose a text model, write the beginning of a text and press Write."), elem_id="text-status")
    texts = gr.HTML(label="Texts", show_label=True, container=True, elem_id="text-result")
    step = gr.Slider(
        0, 1, value=0, step=1, label="Step", interactive=False, elem_id="text-step",
        info="Go back through the steps. Red tokens came first, blue ones last; given text is black.",
    )  # fmt: skip
    with gr.Row():
        files = [
            gr.DownloadButton(f"Download {kind}", interactive=False, size="md", elem_id=f"text-{kind}")
            for kind in ("txt", "html")
        ]
    command, python = make_lines("text")
    return TextView(status=status, texts=texts, step=step, files=files, command=command, python=python)


def make_text_tab(studio: Studio, model: Any) -> TextTab:
    """Add the tab to the page; `model` is the control that holds the name of the model."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            controls = make_text_controls()
            settings = make_settings(text=True, prefix="text")
            with gr.Row():
                start = gr.Button("Write", variant="primary", elem_id="text-start")
                stop = gr.Button("Stop", elem_id="text-stop")
        with gr.Column(scale=3, min_width=320):
            view = make_text_view()

    @tell_errors(view.status)
    def write_texts(request: gr.Request, name: str, *values: Any) -> Iterator[Update]:
        session, name = studio.sessions.find(request.session_hash), studio.check_choice(name)
        yield {view.status: say(f"loading {name}")}
        with session.run_job(), studio.holder.use(name, report_to(session)) as opened:
            pipeline, most = require_text(opened), len(controls.inputs)
            wish = controls.read(*values[:most], context=pipeline.model.length)
            given = settings.read(values[most:], pipeline.sampling)
            sampling = choose_settings(pipeline.sampling, pipeline.model.grid, given)
            recording, steps = stream_texts(pipeline, wish, sampling)
            session.results["text"] = recording
            for _ in steps:
                yield view.show_step(recording)
                if session.stop.is_set():
                    break
            stopped = not recording.is_complete(pipeline.model.mask_id)
            folder, lines = studio.make_folder(request), write_text_lines(name, wish, given)
            paths = () if stopped else write_text_downloads(folder, recording, decode_texts(pipeline, recording))
        yield view.show_end(recording, lines, paths, stopped=stopped)

    start.click(
        write_texts, [model, *controls.inputs, *settings.inputs], view.outputs, concurrency_id=COMPUTE,
        concurrency_limit=1, api_visibility="private", show_progress="minimal", show_progress_on=view.status,
    )  # fmt: skip
    make_stoppable(studio, stop, view.status)
    connect_text_steps(studio, view)
    return TextTab(controls=controls, settings=settings)


def connect_text_steps(studio: Studio, view: TextView) -> None:
    """Let the slider go through the steps of the last texts."""

    @tell_errors(view.status)
    def scrub(request: gr.Request, number: float | int) -> Iterator[Update]:
        recording = studio.sessions.find(request.session_hash).results.get("text")
        if recording is None or not recording.states:
            return
        at = min(max(int(number), 0), len(recording.states) - 1)
        said = say(f"step {recording.states[at].step} of {recording.states[-1].step}")
        yield {view.texts: recording.render(at), view.status: said}

    view.step.input(
        scrub, view.step, [view.status, view.texts], trigger_mode="always_last", concurrency_limit=4,
        api_visibility="private", show_progress="hidden",
    )  # fmt: skip
