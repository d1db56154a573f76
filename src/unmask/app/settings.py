"""The controls that say how to sample. What is left alone stays as the model has it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from unmask.decoding.names import RAMPS, SAMPLERS, list_orders, list_schedules
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError

MODELS_VALUE = "model's own"
STEPS_ON_PAGE = 256
"""Steps that the page offers: more cost time and hardly improve an image."""
NUMBERS = {"temperature": False, "noise": False, "guidance": False, "top_p": False} | dict.fromkeys(
    ("steps", "top_k", "block"), True
)
"""The settings that are numbers, and whether they are whole ones."""


@dataclass(frozen=True, kw_only=True)
class SettingControls:
    """The controls, by the names of `SamplingSettings`."""

    controls: dict[str, Any]

    @property
    def inputs(self) -> list[Any]:
        """The controls in the order that `read` takes their values."""
        return list(self.controls.values())

    def read(self, values: tuple[Any, ...], own: Sampling) -> dict[str, Any]:
        """Return the settings that differ from the model's own; ConfigError for a text that is no number."""
        given = {
            name: value
            for name, value in zip(self.controls, values, strict=True)
            if value not in (None, MODELS_VALUE, "")
        }
        given |= {name: parse_number(name, value) for name, value in given.items() if name in NUMBERS}
        if given.get("steps") == own.steps:
            del given["steps"]
        return given


def parse_number(name: str, text: Any) -> float | int:
    """Return the number that somebody typed: a whole one for steps, top_k and block."""
    try:
        number = float(str(text).strip().replace(",", "."))
    except ValueError as error:
        raise ConfigError(f"{name.replace('_', ' ')} {text!r} is no number: write one such as 1.5") from error
    if not NUMBERS[name]:
        return number
    if not number.is_integer():
        raise ConfigError(f"{name.replace('_', ' ')} {text} must be a whole number")
    return int(number)


def make_settings(*, text: bool = False, prefix: str) -> SettingControls:
    """Add the controls to the page: those of an image model, or of a text model.

    Args:
        text: Whether they are for a text model, which has no guidance.
        prefix: What the ids of the controls begin with.
    """
    sides = (8, 8)
    controls: dict[str, Any] = {
        "steps": gr.Slider(
            1, STEPS_ON_PAGE, value=8, step=1, label="Steps", info="Forward passes of the model.",
            elem_id=f"{prefix}-steps",
        )
    }  # fmt: skip
    with gr.Row():
        controls["order"] = _choose("Unmasking order", "Which tokens are revealed first.", list_orders(sides), prefix)
        controls["schedule"] = _choose("Schedule", "How many tokens each step reveals.", list_schedules(64), prefix)
    with gr.Row():
        controls["temperature"] = _ask("Temperature", "Below 1 is sharper, 0 is greedy.", prefix)
        controls["noise"] = _ask("Noise", "Randomness of the order confidence.", prefix)
    if not text:
        with gr.Row():
            controls["guidance"] = _ask("Guidance scale", "1 is none, higher keeps to the class.", prefix)
            controls["ramp"] = _choose("Guidance ramp", "How guidance rises to its scale.", RAMPS, prefix)
    with gr.Accordion("More settings", open=False):
        controls["sampler"] = _choose("Sampler", "Some mask tokens again or choose their number.", SAMPLERS, prefix)
        with gr.Row():
            controls["top_k"] = _ask("Top-k", "Sample from this many tokens only.", prefix)
            controls["top_p"] = _ask("Top-p", "Sample from this probability only.", prefix)
        if text:
            controls["block"] = _ask("Block", "Tokens per block, from left to right; 0 is one block.", prefix)
    return SettingControls(controls=controls)


def _choose(label: str, info: str, names: Iterable[str], prefix: str) -> Any:
    name = f"{prefix}-{label.lower().replace(' ', '-')}"
    return gr.Dropdown([MODELS_VALUE, *names], value=MODELS_VALUE, label=label, info=info, elem_id=name)


def _ask(label: str, info: str, prefix: str) -> Any:
    """Add a box for a number: a box of text, since one of numbers shows 0 when it is empty."""
    name = f"{prefix}-{label.lower().replace(' ', '-')}"
    return gr.Textbox("", label=label, info=info, placeholder=MODELS_VALUE, max_length=20, elem_id=name)
