"""The tab Learn: a schedule drawn live, and each setting in two sentences."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from unmask.app.commands import write_command
from unmask.app.lessons import MOST_BARS, MOST_TOKENS, draw_schedule, trace_schedule, write_lessons
from unmask.app.studio import Studio, Update, say, tell_errors
from unmask.decoding.named_counts import FIXED, SHAPED
from unmask.decoding.names import list_shapes

HINT = (
    "Bars: tokens that each step reveals. Line: fraction still masked after each step. Dashed: the schedule itself, "
    "g(t), without rounding."
)


@dataclass(frozen=True, kw_only=True)
class LearnTab:
    """A tab that does not depend on the model."""

    outputs: list[Any] = field(default_factory=list)

    def show(self, spec: Any) -> Update:
        """Return no change."""
        return {}


def make_learn_tab(studio: Studio, model: Any) -> LearnTab:
    """Add the tab to the page."""
    gr.Markdown("### A schedule says how many tokens each step reveals")
    with gr.Row():
        style = gr.Dropdown([*SHAPED, *FIXED], value="google", label="Counted as in", elem_id="learn-style",
                            info="Code bases round the same curve differently.")  # fmt: skip
        shape = gr.Dropdown(list(list_shapes(64)), value="cosine", label="Shape", elem_id="learn-shape",
                            info="Fraction still masked over time.")  # fmt: skip
        tokens = gr.Slider(1, MOST_TOKENS, value=256, step=1, label="Tokens", elem_id="learn-tokens")
        steps = gr.Slider(1, MOST_BARS, value=8, step=1, label="Steps", elem_id="learn-steps")
    picture = gr.HTML(draw_schedule(trace_schedule("google", "cosine", 256, 8), "google cosine"), elem_id="learn-curve")
    status = gr.HTML(say(HINT), elem_id="learn-status")
    command = gr.Code(
        label="The same on the command line", language="shell", interactive=False, lines=1, wrap_lines=True
    )
    gr.Markdown("### What each setting means\n\n" + write_lessons())

    @tell_errors(status)
    def draw(style: str, shape: str, tokens: int, steps: int) -> Iterator[Update]:
        title = style if style in FIXED else f"{style} {shape}"
        drawing = trace_schedule(style, shape, int(tokens), int(steps))
        flags = {"style": style, "shape": None if style in FIXED else shape, "tokens": tokens, "steps": steps}
        yield {
            picture: draw_schedule(drawing, title),
            status: say(HINT),
            command: write_command("schedule", [], flags),
        }

    gr.on(
        [style.change, shape.change, tokens.change, steps.change], draw, [style, shape, tokens, steps],
        [picture, status, command], trigger_mode="always_last", concurrency_limit=4, api_visibility="private",
        show_progress="hidden",
    )  # fmt: skip
    return LearnTab()
