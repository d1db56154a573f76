"""The page: a model on top, and a tab for each thing to do with it."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from unmask.app.studio import Studio, Update, say, tell_errors
from unmask.app.tabs.compare import make_compare_tab
from unmask.app.tabs.edit import make_edit_tab
from unmask.app.tabs.generate import make_generate_tab
from unmask.app.tabs.learn import make_learn_tab
from unmask.app.tabs.model_list import bind_model_list, make_model_list
from unmask.app.tabs.text import make_text_tab

TITLE = "unmask"
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important }
.note, .error { margin: 0; padding: .4em .8em; border-radius: 8px; background: var(--background-fill-secondary) }
.error { background: #fde8e8; color: #8a1c1c }
.image-frame { padding-top: 2.4rem }
.schedule { overflow: hidden }
footer { display: none !important }
.schedule { width: 100%; max-width: 900px; display: block; font: 11px system-ui, sans-serif }
.schedule .bars { fill: #c7d2fe }
.schedule .labels { fill: currentColor; opacity: .75 }
.schedule polyline { fill: none; stroke-width: 2 }
.schedule .after { stroke: #4338ca }
.schedule .curve { stroke: #d97706; stroke-dasharray: 5 4 }
"""
"""The page's own style."""
TABS: dict[str, Callable[[Studio, Any], Any]] = {
    "Generate": make_generate_tab,
    "Compare": make_compare_tab,
    "Edit": make_edit_tab,
    "Text": make_text_tab,
    "Learn": make_learn_tab,
}
"""The tabs by their titles. Each function adds a tab, and returns what has `outputs`, and `show` for a new model."""


def make_theme() -> Any:
    """Return a theme that loads no font from elsewhere."""
    return gr.themes.Soft(
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def build_page(studio: Studio) -> gr.Blocks:
    """Return the page; `server.serve` opens it."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# unmask\nA masked generator fills in a canvas of masked tokens in a few parallel steps.")
        models = make_model_list(studio)
        model = models.model
        about = gr.HTML(elem_id="about")
        with gr.Tabs():
            tabs = [_make_tab(studio, model, title) for title in TABS]

        @tell_errors(about)
        def choose(name: str | None) -> Iterator[Update]:
            spec = studio.read_spec(name)
            yield {about: say(describe_spec(spec))} | {k: v for tab in tabs for k, v in tab.show(spec).items()}

        shown = [about, *(output for tab in tabs for output in tab.outputs)]
        bind_model_list(studio, models, page, about)
        page.load(choose, model, shown, api_visibility="private", show_progress="hidden")
        model.change(choose, model, shown, api_visibility="private", show_progress="hidden")
        page.unload(make_farewell(studio))
    return page


def _make_tab(studio: Studio, model: Any, title: str) -> Any:
    with gr.Tab(title, id=title.lower()):
        return TABS[title](studio, model)


def make_farewell(studio: Studio) -> Any:
    """Return what forgets a closed page; after the last one, the model is freed too."""

    def leave(request: gr.Request) -> None:
        if not studio.sessions.close(request.session_hash):
            studio.holder.free_if_idle()

    return leave


def describe_spec(spec: Any) -> str:
    """Return in a line what a model is."""
    parts = [f"{'x'.join(map(str, spec.grid))} tokens", f"{spec.sampling.steps} steps by default"]
    if getattr(spec, "classes", ()):
        parts.insert(0, f"{len(spec.classes)} classes")
    if spec.trained_on:
        parts.append(f"trained on {spec.trained_on}")
    return ", ".join(parts)
