"""The list of models on top of the page, a button that looks for new ones, and the demo, which makes the first."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from unmask.app.starting import stream_lines, write_demo_command
from unmask.app.studio import Studio, Update, make_stoppable, say, tell_errors
from unmask.storage.layout import MODEL

MOST_DEMO_LINES = 200
"""Lines of the demo that the page shows."""


@dataclass(frozen=True, kw_only=True)
class ModelList:
    """The components."""

    model: Any
    refresh: Any
    panel: Any
    start: Any
    stop: Any
    status: Any
    lines: Any

    def show(self, studio: Studio, chosen: str | None) -> Update:
        """Return the models that are there now; `chosen` stays if it still is, else the first one is chosen."""
        names = [(choice.title, choice.name) for choice in studio.choices]
        if chosen not in [name for _, name in names]:
            chosen = names[0][1] if names else None
        return {self.model: gr.update(choices=names, value=chosen), self.panel: gr.update(visible=not studio.has_runs)}


def make_model_list(studio: Studio) -> ModelList:
    """Add the list to the page, and the demo if there is no run."""
    names = [(choice.title, choice.name) for choice in studio.choices]
    with gr.Row(equal_height=True):
        model = gr.Dropdown(
            names, value=names[0][1] if names else None, label="Model", elem_id="model", scale=5,
            info="Runs, exports and published models, which are downloaded at their first use.",
        )  # fmt: skip
        refresh = gr.Button("Refresh", elem_id="model-refresh", scale=0, min_width=100)
    with gr.Column(visible=not studio.has_runs, elem_id="demo") as panel:
        gr.Markdown(
            "**No run yet.** The demo trains a model of handwritten digits on this machine, in a few minutes. "
            "It is `unmask demo`."
        )
        with gr.Row():
            start = gr.Button("Run the demo", variant="primary", elem_id="demo-start")
            stop = gr.Button("Stop", elem_id="demo-stop")
        status = gr.HTML(elem_id="demo-status")
        lines = gr.Textbox(label="Lines of the demo", lines=10, max_lines=10, interactive=False, elem_id="demo-lines")
    return ModelList(model=model, refresh=refresh, panel=panel, start=start, stop=stop, status=status, lines=lines)


def bind_model_list(studio: Studio, models: ModelList, page: Any, about: Any) -> None:
    """Let a reload of the page and the button look for models; errors are told in `about`. Let the demo start."""

    @tell_errors(about)
    def look(chosen: str | None) -> Iterator[Update]:
        studio.update_choices()
        yield models.show(studio, chosen)

    @tell_errors(models.status)
    def run_demo(request: gr.Request, chosen: str | None) -> Iterator[Update]:
        session = studio.sessions.find(request.session_hash)
        out = studio.root / "demo"
        last: deque[str] = deque(maxlen=MOST_DEMO_LINES)
        with session.run_job():
            yield {models.status: say("the demo runs"), models.lines: ""}
            if not (out / MODEL).is_file():
                for line in stream_lines(write_demo_command(out, studio.holder.device), session.stop):
                    last.append(line)
                    yield {models.lines: "\n".join(last)}
        if session.stop.is_set():
            yield {models.status: say("stopped: run the demo again to resume it")}
            return
        studio.update_choices()
        yield {models.status: say("the demo is done")} | models.show(studio, out.as_posix())

    found = [about, models.model, models.panel]
    page.load(look, models.model, found, api_visibility="private", show_progress="hidden")
    models.refresh.click(look, models.model, found, api_visibility="private", show_progress="hidden")
    models.start.click(
        run_demo, models.model, [models.status, models.lines, models.model, models.panel], concurrency_id="demo",
        concurrency_limit=1, api_visibility="private", show_progress="hidden",
    )  # fmt: skip
    make_stoppable(studio, models.stop, models.status)
