"""The controls that say what to generate: classes or a prompt, how many images, the seed."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from unmask.app.generating import IMAGES_AT_ONCE, MOST_PROMPT, Wish
from unmask.app.settings import SettingControls
from unmask.app.studio import Update
from unmask.pretrained.conditions import takes_prompts
from unmask.recipes.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class WishControls:
    """The controls that say what to generate."""

    labels: Any
    prompt: Any
    num: Any
    seed: Any

    @property
    def inputs(self) -> list[Any]:
        """The controls in the order of `read`."""
        return [self.labels, self.prompt, self.num, self.seed]

    @staticmethod
    def read(labels: Any, prompt: Any, num: Any, seed: Any) -> Wish:
        """Return the wish that the controls say."""
        return Wish(labels=tuple(map(str, labels or ())), prompt=prompt or "", num=int(num or 1), seed=int(seed or 0))


def make_wishes(prefix: str, num: int = 4) -> WishControls:
    """Add the controls to the page; their ids begin with `prefix`."""
    labels = gr.Dropdown(
        [], multiselect=True, allow_custom_value=True, label="Classes", elem_id=f"{prefix}-labels",
        info="By name or number, repeated in turn. None means all classes in turn.",
    )  # fmt: skip
    prompt = gr.Textbox(
        label="Prompt",
        visible=False,
        placeholder="a cat in the snow",
        max_length=MOST_PROMPT,
        elem_id=f"{prefix}-prompt",
    )
    with gr.Row():
        images = gr.Slider(1, IMAGES_AT_ONCE, value=num, step=1, label="Images", elem_id=f"{prefix}-num")
        seed = gr.Number(
            0, label="Seed", precision=0, info="The same seed gives the same images.", elem_id=f"{prefix}-seed"
        )
    return WishControls(labels=labels, prompt=prompt, num=images, seed=seed)


def show_classes(control: Any, spec: Any, *, many: bool) -> Update:
    """Return what a control of classes shows when a model is chosen; it is hidden for a model without classes."""
    names: list[str] = []
    num_classes = 0
    if isinstance(spec, ModelSpec) and not takes_prompts(spec.model):
        num_classes = spec.model.num_classes
        names = list(spec.classes) or list(map(str, range(num_classes)))
    return {control: gr.update(choices=names, value=[] if many else None, visible=bool(num_classes))}


def show_model(wishes: WishControls, settings: SettingControls, spec: Any) -> Update:
    """Return what the controls of a tab show when a model is chosen."""
    asks = isinstance(spec, ModelSpec) and takes_prompts(spec.model)
    return {
        **show_classes(wishes.labels, spec, many=True),
        wishes.prompt: gr.update(visible=asks),
        settings.controls["steps"]: gr.update(value=spec.sampling.steps),
    }
