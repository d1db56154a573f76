"""The tab Edit: fill a part of a photo, or extend it, and watch the variants fill in."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from unmask.app.editing import (
    MOST_VARIANTS,
    Edit,
    RegionKind,
    describe_edit,
    make_edit_folder,
    prepare_edit,
    write_edit_downloads,
    write_edit_lines,
    write_variants,
)
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
from unmask.app.tabs.regions import connect_regions, make_regions, read_layer, read_region, require_photo, send_layer
from unmask.app.tabs.results import connect_steps, make_result_view
from unmask.app.tabs.wishes import show_classes
from unmask.pretrained.conditions import takes_prompts
from unmask.recipes.spec import ModelSpec

DOWNLOADS = ("photo", "mask", "GIF", "settings")
"""What an edit can be downloaded as, beside its variants."""


@dataclass(frozen=True, kw_only=True)
class FillControls:
    """The controls that say what to fill in."""

    label: Any
    prompt: Any
    variants: Any
    feather: Any
    seed: Any

    @property
    def inputs(self) -> list[Any]:
        """The controls in the order of `read`."""
        return [self.label, self.prompt, self.variants, self.feather, self.seed]

    @staticmethod
    def read(label: Any, prompt: Any, variants: Any, feather: Any, seed: Any) -> Edit:
        """Return what the controls say."""
        word = "" if label is None else str(label).strip()
        return Edit(
            label=word, prompt=prompt or "", variants=int(variants or 1), feather=int(feather or 0), seed=int(seed or 0)
        )


@dataclass(frozen=True, kw_only=True)
class EditTab:
    """The parts of the tab that depend on the model."""

    fill: FillControls
    settings: SettingControls

    @property
    def outputs(self) -> list[Any]:
        """What `show` changes."""
        return [self.fill.label, self.fill.prompt, self.settings.controls["steps"]]

    def show(self, spec: Any) -> Update:
        """Return what the tab shows for a model."""
        return {
            **show_classes(self.fill.label, spec, many=False),
            self.fill.prompt: gr.update(visible=isinstance(spec, ModelSpec) and takes_prompts(spec.model)),
            self.settings.controls["steps"]: gr.update(value=spec.sampling.steps),
        }


def make_fill_controls() -> FillControls:
    """Add the controls that say what to fill in to the page."""
    label = gr.Dropdown(
        [], allow_custom_value=True, label="Class inside", elem_id="edit-label",
        info="By name or number. Empty means no class: the surroundings alone guide the fill.",
    )  # fmt: skip
    prompt = gr.Textbox(
        label="Prompt", visible=False, placeholder="a cat in the snow", max_length=1000, elem_id="edit-prompt"
    )
    with gr.Row():
        variants = gr.Slider(1, MOST_VARIANTS, value=4, step=1, label="Variants", elem_id="edit-variants")
        feather = gr.Slider(
            0, 64, value=0, step=1, label="Feather", info="Pixels inside the border that blend.", elem_id="edit-feather"
        )
    seed = gr.Number(0, label="Seed", precision=0, info="The same seed gives the same variants.", elem_id="edit-seed")
    return FillControls(label=label, prompt=prompt, variants=variants, feather=feather, seed=seed)


def make_edit_tab(studio: Studio, model: Any) -> EditTab:
    """Add the tab to the page; `model` is the control that holds the name of the model."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            regions = make_regions()
            fill = make_fill_controls()
            settings = make_settings(prefix="edit")
            with gr.Row():
                start = gr.Button("Fill in", variant="primary", elem_id="edit-start")
                stop = gr.Button("Stop", elem_id="edit-stop")
        with gr.Column(scale=3, min_width=320):
            gallery = gr.Gallery(
                label="Variants: press one to see or download it", format="png", columns=2, object_fit="contain",
                interactive=False, buttons=["download", "download_all", "fullscreen"], elem_id="edit-gallery",
                render=False,
            )  # fmt: skip
            invitation = "Upload a photo, say where to fill, and press Fill in."
            view = make_result_view("edit", invitation, DOWNLOADS, ending=gallery)

    status = view.status
    connect_regions(studio, regions, status)

    @tell_errors(status)
    def edit_region(request: gr.Request, name: str, layer: str, kind: RegionKind, *values: Any) -> Iterator[Update]:
        session, name = studio.sessions.find(request.session_hash), studio.check_choice(name)
        strokes = read_layer(layer, Path(regions.editor.GRADIO_CACHE))
        region, photo = read_region(kind, values[:8], strokes), require_photo(session)
        wish = fill.read(*values[8 : 8 + len(fill.inputs)])
        yield {status: say(f"loading {name}"), gallery: None}
        with session.run_job(), studio.holder.use(name, report_to(session)) as opened:
            pipeline = require_image(opened)
            given = settings.read(values[8 + len(fill.inputs) :], pipeline.sampling)
            sampling = choose_settings(pipeline.sampling, pipeline.model.grid, given)
            job = prepare_edit(pipeline, photo, region, wish)
            recording, steps = job.stream(sampling)
            session.results["edit"] = recording
            for _ in steps:
                yield view.show_step(recording, sampling.steps)
                if session.stop.is_set():
                    break
            height, width = job.hole.shape
            yield {status: say(f"writing photos of {width}x{height} pixels")}
            stopped = bool(recording.masked[-1].any())
            folder = make_edit_folder(studio.make_folder(request))
            variants = [] if stopped else write_variants(folder, job.finish(recording))
            lines = write_edit_lines(name, pipeline, region, wish, given)
            said = describe_edit(name, region, wish, given)
            paths = write_edit_downloads(folder, photo, job, recording, said, sampling)
        shown = [(path, f"variant {number}") for number, path in enumerate(variants, 1)]
        yield view.show_end(recording, lines, tuple(paths), stopped=stopped) | {gallery: shown}

    send_layer(regions, start).success(
        edit_region, [model, regions.layer, *regions.inputs, *fill.inputs, *settings.inputs], [*view.outputs, gallery],
        concurrency_id=COMPUTE, concurrency_limit=1, api_visibility="private", show_progress="minimal",
        show_progress_on=status,
    )  # fmt: skip
    make_stoppable(studio, stop, status)
    connect_steps(studio, view, "edit")
    return EditTab(fill=fill, settings=settings)
