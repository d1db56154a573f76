"""The tab Compare: two ways to sample, side by side, from the same noise."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import gradio as gr

from unmask.app.generating import Wish, stream_wish, write_lines
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
from unmask.app.tabs.results import make_picture
from unmask.app.tabs.wishes import WishControls, make_wishes, show_model
from unmask.app.watching import Recording, draw_maps
from unmask.pipelines.image import Pipeline

LETTERS = ("A", "B")


@dataclass(frozen=True, kw_only=True)
class Side:
    """The components of one of the two."""

    settings: SettingControls
    canvas: Any
    order: Any
    command: Any

    @property
    def shown(self) -> list[Any]:
        """What a comparison changes."""
        return [self.canvas, self.order, self.command]


@dataclass(frozen=True, kw_only=True)
class CompareTab:
    """The parts of the tab that depend on the model."""

    wishes: WishControls
    sides: list[Side]

    @property
    def outputs(self) -> list[Any]:
        """What `show` changes."""
        return [self.wishes.labels, self.wishes.prompt, *(side.settings.controls["steps"] for side in self.sides)]

    def show(self, spec: Any) -> Update:
        """Return what the tab shows for a model."""
        return {k: v for side in self.sides for k, v in show_model(self.wishes, side.settings, spec).items()}


def run_comparison(
    pipeline: Pipeline, wish: Wish, settings: tuple[dict[str, Any], ...]
) -> tuple[list[Recording], Iterator[None]]:
    """Return one recording for each of several settings, and an iterator that runs a step of all of them.

    Noise depends on the seed alone, so what differs comes from the settings.
    """
    samplings = [choose_settings(pipeline.sampling, pipeline.model.grid, given) for given in settings]
    started = [stream_wish(pipeline, wish, sampling) for sampling in samplings]

    def run() -> Iterator[None]:
        for _ in zip_longest(*(steps for _, steps in started)):
            yield

    return [recording for recording, _ in started], run()


def describe_agreement(recordings: list[Recording]) -> str:
    """Return in a sentence how many tokens of two results are equal."""
    first, second = (recording.tokens[-1] for recording in recordings)
    equal = (first == second).float().mean().item()
    steps = " and ".join(str(recording.steps[-1]) for recording in recordings)
    return f"done in {steps} steps; {equal:.0%} of the tokens are equal"


def make_compare_tab(studio: Studio, model: Any) -> CompareTab:
    """Add the tab to the page; `model` is the control that holds the name of the model."""
    wishes = make_wishes("compare")
    with gr.Row(equal_height=False):
        settings = [_make_settings(letter) for letter in LETTERS]
    with gr.Row():
        start = gr.Button("Compare", variant="primary", elem_id="compare-start")
        stop = gr.Button("Stop", elem_id="compare-stop")
    hint = "Change something on one side, such as the unmasking order, and press Compare."
    status = gr.HTML(say(hint), elem_id="compare-status")
    step = gr.Slider(0, 1, value=0, step=1, label="Step", info="Go back through the steps of both.",
                     interactive=False, elem_id="compare-step")  # fmt: skip
    with gr.Row(equal_height=False):
        sides = [_make_side(letter, one) for letter, one in zip(LETTERS, settings, strict=True)]
    split = len(sides[0].settings.inputs)

    @tell_errors(status)
    def compare(
        request: gr.Request, name: str, labels: Any, prompt: str, num: int, seed: int, *values: Any
    ) -> Iterator[Update]:
        session = studio.sessions.find(request.session_hash)
        wish, name = wishes.read(labels, prompt, num, seed), studio.check_choice(name)
        yield {status: say(f"loading {name}")}
        with session.run_job(), studio.holder.use(name, report_to(session)) as opened:
            pipeline = require_image(opened)
            parts = (values[:split], values[split:])
            given = tuple(s.settings.read(part, pipeline.sampling) for s, part in zip(sides, parts, strict=True))
            recordings, steps = run_comparison(pipeline, wish, given)
            session.results["compare"] = recordings
            for number, _ in enumerate(steps):
                yield {status: say(f"step {number}")} | show_sides(sides, recordings, number)
                if session.stop.is_set():
                    break
            commands = {s.command: write_lines(name, pipeline, wish, g)[0] for s, g in zip(sides, given, strict=True)}
        last = max(len(recording.frames) for recording in recordings) - 1
        said = "stopped" if session.stop.is_set() else describe_agreement(recordings)
        yield {
            status: say(said), step: gr.update(maximum=max(1, last), value=last, interactive=True),
            **show_sides(sides, recordings, last, maps=True), **commands,
        }  # fmt: skip

    @tell_errors(status)
    def scrub(request: gr.Request, number: float) -> Iterator[Update]:
        recordings = studio.sessions.find(request.session_hash).results.get("compare")
        if recordings:
            yield {status: say(f"step {max(0, int(number))}")} | show_sides(sides, recordings, int(number), maps=True)

    shown = [status, step, *(component for side in sides for component in side.shown)]
    start.click(
        compare, [model, *wishes.inputs, *(i for side in sides for i in side.settings.inputs)], shown,
        concurrency_id=COMPUTE, concurrency_limit=1, api_visibility="private", show_progress="minimal",
        show_progress_on=status,
    )  # fmt: skip
    step.input(
        scrub, step, shown, trigger_mode="always_last", concurrency_limit=4, api_visibility="private",
        show_progress="hidden",
    )  # fmt: skip
    make_stoppable(studio, stop, status)
    return CompareTab(wishes=wishes, sides=sides)


def _make_settings(letter: str) -> SettingControls:
    with gr.Column(min_width=320):
        gr.Markdown(f"### {letter}")
        return make_settings(prefix=f"compare-{letter.lower()}")


def _make_side(letter: str, settings: SettingControls) -> Side:
    prefix = f"compare-{letter.lower()}"
    with gr.Column(min_width=320):
        canvas = make_picture(f"Canvas {letter}", f"{prefix}-canvas")
        order = make_picture(f"Step that unmasked it, {letter}", f"{prefix}-order")
        command = gr.Code(
            label=f"{letter} on the command line", language="shell", interactive=False, lines=1, wrap_lines=True
        )
    return Side(settings=settings, canvas=canvas, order=order, command=command)


def show_sides(sides: list[Side], recordings: list[Recording], number: int, *, maps: bool = False) -> Update:
    """Return what both sides show after a step; one that ended earlier shows its end."""
    update: Update = {}
    for side, recording in zip(sides, recordings, strict=True):
        if not recording.frames:
            continue
        at = min(max(number, 0), len(recording.frames) - 1)
        update[side.canvas] = recording.frames[at]
        if maps:
            update[side.order] = draw_maps(recording, at)[1]
    return update
