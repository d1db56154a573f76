"""The tab Generate: watch a canvas fill in, go back through its steps, see how sure the model was."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from unmask.app.generating import stream_wish, write_downloads, write_lines
from unmask.app.settings import SettingControls, make_settings
from unmask.app.studio import (
    COMPUTE,
    Studio,
    Update,
    choose_settings,
    make_stoppable,
    report_to,
    require_image,
    say,
    tell_errors,
)
from unmask.app.tabs.results import connect_steps, make_result_view
from unmask.app.tabs.wishes import WishControls, make_wishes, show_model


@dataclass(frozen=True, kw_only=True)
class GenerateTab:
    """The parts of the tab that depend on the model."""

    wishes: WishControls
    settings: SettingControls

    @property
    def outputs(self) -> list[Any]:
        """What `show` changes."""
        return [self.wishes.labels, self.wishes.prompt, self.settings.controls["steps"]]

    def show(self, spec: Any) -> Update:
        """Return what the tab shows for a model."""
        return show_model(self.wishes, self.settings, spec)


def make_generate_tab(studio: Studio, model: Any) -> GenerateTab:
    """Add the tab to the page; `model` is the control that holds the name of the model."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            wishes = make_wishes("generate")
            settings = make_settings(prefix="generate")
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="generate-start")
                stop = gr.Button("Stop", elem_id="generate-stop")
        with gr.Column(scale=3, min_width=320):
            view = make_result_view("generate", "Choose a model and press Generate.")

    @tell_errors(view.status)
    def generate(
        request: gr.Request, name: str, labels: Any, prompt: str, num: int, seed: int, *values: Any
    ) -> Iterator[Update]:
        session = studio.sessions.find(request.session_hash)
        wish, name = wishes.read(labels, prompt, num, seed), studio.check_choice(name)
        yield {view.status: say(f"loading {name}")}
        with session.run_job(), studio.holder.use(name, report_to(session)) as opened:
            pipeline = require_image(opened)
            given = settings.read(values, pipeline.sampling)
            sampling = choose_settings(pipeline.sampling, pipeline.model.grid, given)
            recording, steps = stream_wish(pipeline, wish, sampling)
            session.results["generate"] = recording
            for _ in steps:
                yield view.show_step(recording, sampling.steps)
                if session.stop.is_set():
                    break
            lines = write_lines(name, pipeline, wish, given)
            paths = write_downloads(studio.make_folder(request), recording, name, wish, given, sampling)
        yield view.show_end(recording, lines, paths, stopped=session.stop.is_set())

    start.click(
        generate, [model, *wishes.inputs, *settings.inputs], view.outputs, concurrency_id=COMPUTE, concurrency_limit=1,
        api_visibility="private", show_progress="minimal", show_progress_on=view.status,
    )  # fmt: skip
    make_stoppable(studio, stop, view.status)
    connect_steps(studio, view, "generate")
    return GenerateTab(wishes=wishes, settings=settings)
