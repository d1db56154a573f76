"""The controls that say how to sample. What is left alone stays as the model has it."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from unmask.decoding.names import RAMPS, SAMPLERS, list_orders, list_schedules
from unmask.decoding.sampling import Sampling

OWN = "the model's own"
MOST_STEPS = 256
"""Steps that the page offers: more cost time and hardly improve an image."""


@dataclass(frozen=True, kw_only=True)
class SettingControls:
    """The controls, by the names of `SamplingSettings`."""

    controls: dict[str, Any]

    @property
    def inputs(self) -> list[Any]:
        """The controls in the order that `read` takes their values."""
        return list(self.controls.values())

    def read(self, values: tuple[Any, ...], own: Sampling) -> dict[str, Any]:
        """Return the settings that differ from the model's own."""
        given = {name: value for name, value in zip(self.controls, values, strict=True) if value not in (None, OWN, "")}
        if given.get("steps") == own.steps:
            del given["steps"]
        for name in ("steps", "top_k", "block"):
            if name in given:
                given[name] = int(given[name])
        return given


def make_settings(*, text: bool = False, open_: bool = True, prefix: str) -> SettingControls:
    """Add the controls to the page: those of an image model, or of a text model.

    Args:
        text: Whether they are for a text model, which has no guidance.
        open_: Whether the less used ones are unfolded.
        prefix: What the ids of the controls begin with.
    """
    controls: dict[str, Any] = {}
    sides = (8, 8)
    controls["steps"] = gr.Slider(
        1, MOST_STEPS, value=8, step=1, label="Steps", info="Forward passes of the model.", elem_id=f"{prefix}-steps"
    )
    with gr.Row():
        controls["order"] = gr.Dropdown(
            [OWN, *list_orders(sides)], value=OWN, label="Unmasking order", info="Which tokens are revealed first."
        )
        controls["schedule"] = gr.Dropdown(
            [OWN, *list_schedules(64)], value=OWN, label="Schedule", info="How many tokens each step reveals."
        )
    with gr.Row():
        controls["temperature"] = gr.Number(
            None, label="Temperature", info="Below 1 is sharper, 0 is greedy.", placeholder=OWN, step=0.1
        )
        controls["noise"] = gr.Number(
            None, label="Noise", info="Randomness of the order confidence.", placeholder=OWN, step=0.5
        )
    if not text:
        with gr.Row():
            controls["guidance"] = gr.Number(
                None, label="Guidance scale", info="1 is none, higher keeps to the class.", placeholder=OWN, step=0.5,
            )  # fmt: skip
            controls["ramp"] = gr.Dropdown(
                [OWN, *RAMPS], value=OWN, label="Guidance ramp", info="How guidance rises to its scale."
            )
    with gr.Accordion("More settings", open=not open_):
        controls["sampler"] = gr.Dropdown(
            [OWN, *SAMPLERS], value=OWN, label="Sampler", info="Some mask tokens again, some choose how many to reveal."
        )
        with gr.Row():
            controls["top_k"] = gr.Number(
                None, label="Top-k", info="Sample from this many tokens only.", placeholder=OWN, precision=0
            )
            controls["top_p"] = gr.Number(
                None, label="Top-p", info="Sample from this probability only.", placeholder=OWN, step=0.05,
            )  # fmt: skip
        if text:
            controls["block"] = gr.Number(
                None, label="Block", info="Tokens per block, from left to right; 0 is one block.", placeholder=OWN,
                minimum=0, precision=0,
            )  # fmt: skip
    return SettingControls(controls=controls)
