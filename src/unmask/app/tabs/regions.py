"""The controls that say where to fill: a brush, a box, or new pixels around the photo."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from unmask.app.editing import Region, RegionKind, draw_region, draw_view, open_photo
from unmask.app.sessions import Session
from unmask.app.studio import Studio, Update, say, tell_errors
from unmask.errors import ConfigError

BRUSH = "#ff2d95"
"""The colour of the brush."""
BOX = ("x", "y", "width", "height")
EDGES = ("left", "top", "right", "bottom")
PHOTO = "edit photo"
"""Where `Session.results` keeps the photo."""
FIND_LAYER = "value => value?.layers?.[0]?.path ?? ''"
"""In the browser: the upload that holds the layer of the brush."""


class NoBlobs(dict[str, Any]):
    """Keep nothing: gradio would keep in memory whatever programs send to the editor beside its uploads."""

    def __setitem__(self, name: str, blobs: Any) -> None:
        """Drop it."""


@dataclass(frozen=True, kw_only=True)
class RegionControls:
    """The controls that say where to fill."""

    photo: Any
    kind: Any
    editor: Any
    layer: Any
    preview: Any
    box: list[Any]
    sides: list[Any]
    groups: dict[RegionKind, list[Any]]
    """What each kind of region shows."""

    @property
    def inputs(self) -> list[Any]:
        """The controls in the order of `read_region`."""
        return [self.kind, *self.box, *self.sides]

    def show_kind(self, kind: RegionKind) -> Update:
        """Return which of the controls a kind of region shows."""
        shown = self.groups[kind]
        return {
            part: gr.update(visible=part in shown)
            for part in dict.fromkeys(p for parts in self.groups.values() for p in parts)
        }


def read_region(kind: RegionKind, numbers: Sequence[Any], strokes: bytes | None = None) -> Region:
    """Return the region that the controls say."""
    x, y, width, height, left, top, right, bottom = (int(number or 0) for number in numbers)
    return Region(kind=kind, strokes=strokes, box=(x, y, width, height), extend=(left, top, right, bottom))


def require_photo(session: Session) -> Any:
    """Return the photo of a page; ConfigError without one."""
    photo = session.results.get(PHOTO)
    if photo is None:
        raise ConfigError("upload a photo first")
    return photo


def make_regions() -> RegionControls:
    """Add the controls to the page."""
    photo = gr.File(label="Photo (at most 16 megapixels)", type="binary", height=120, elem_id="edit-photo")
    kind = gr.Radio(
        [("Paint", "paint"), ("Box", "box"), ("Extend the canvas", "extend")], value="paint",
        label="Region to fill, in pixels", elem_id="edit-kind",
    )  # fmt: skip
    with gr.Column() as painting:
        editor = gr.ImageEditor(
            label="Paint over the part to fill", type="pil", format="png", sources=(), transforms=(), layers=False,
            buttons=[], canvas_size=(480, 320), elem_id="edit-editor",
            brush=gr.Brush(colors=[BRUSH], default_color=BRUSH, color_mode="fixed"),
        )  # fmt: skip
    editor.blob_storage = NoBlobs()
    layer = gr.Textbox("", visible=False, label="Layer of the brush")
    with gr.Column(visible=False) as drawn:
        preview = gr.Image(
            label="The region is hatched", alt_text="The photo with its region hatched", format="png",
            interactive=False, buttons=["fullscreen"], elem_id="edit-preview",
        )  # fmt: skip
    with gr.Row(visible=False) as box_row:
        box = [_make_number(name, f"edit-{name}") for name in BOX]
    with gr.Row(visible=False) as side_row:
        sides = [_make_number(name, f"edit-{name}") for name in EDGES]
    groups: dict[RegionKind, list[Any]] = {
        "paint": [painting], "box": [drawn, box_row], "extend": [drawn, side_row]
    }  # fmt: skip
    return RegionControls(
        photo=photo, kind=kind, editor=editor, layer=layer, preview=preview, box=box, sides=sides, groups=groups
    )


def _make_number(name: str, elem: str) -> Any:
    return gr.Number(0, label=name, precision=0, min_width=90, elem_id=elem)


def connect_regions(studio: Studio, controls: RegionControls, status: Any) -> None:
    """Connect the controls with each other; errors are told in `status`."""
    _connect_photo(studio, controls, status)
    _connect_kinds(studio, controls, status)


def _connect_photo(studio: Studio, controls: RegionControls, status: Any) -> None:
    """Let an upload appear under the brush, with a box in its middle."""

    @tell_errors(status)
    def receive(request: gr.Request, data: bytes | None, kind: RegionKind) -> Iterator[Update]:
        session = studio.sessions.find(request.session_hash)
        session.results.pop(PHOTO, None)
        yield {controls.editor: None, controls.preview: None, status: say("no photo" if data is None else "reading")}
        if data is None:
            return
        photo = open_photo(data)
        session.results[PHOTO] = photo
        height, width = photo.shape[1:]
        values = [width // 4, height // 4, max(1, width // 2), max(1, height // 2), width // 4, 0, width // 4, 0]
        view = {"background": draw_view(photo), "layers": [], "composite": None}
        yield {
            controls.editor: view,
            status: say(f"photo of {width}x{height} pixels: choose the region to fill"),
            **dict(zip([*controls.box, *controls.sides], values, strict=True)),
            **({} if kind == "paint" else {controls.preview: draw_region(photo, read_region(kind, values))}),
        }

    controls.photo.change(
        receive, [controls.photo, controls.kind],
        [status, controls.editor, controls.preview, *controls.box, *controls.sides], concurrency_limit=2,
        api_visibility="private", show_progress="minimal", show_progress_on=status,
    )  # fmt: skip


def _connect_kinds(studio: Studio, controls: RegionControls, status: Any) -> None:
    """Let the page show the controls of the chosen kind, and the region that its numbers give."""

    def draw_preview(request: gr.Request, kind: RegionKind, numbers: Sequence[Any]) -> Iterator[Update]:
        photo = studio.sessions.find(request.session_hash).results.get(PHOTO)
        if photo is not None and kind != "paint":
            yield {
                controls.preview: draw_region(photo, read_region(kind, numbers)),
                status: say("the region is hatched"),
            }

    @tell_errors(status)
    def choose_kind(request: gr.Request, kind: RegionKind, *numbers: Any) -> Iterator[Update]:
        yield controls.show_kind(kind)
        yield from draw_preview(request, kind, numbers)

    @tell_errors(status)
    def preview(request: gr.Request, kind: RegionKind, *numbers: Any) -> Iterator[Update]:
        yield from draw_preview(request, kind, numbers)

    settings: dict[str, Any] = {
        "trigger_mode": "always_last", "concurrency_limit": 4, "api_visibility": "private",
        "show_progress": "hidden", "show_progress_on": status,
    }  # fmt: skip
    shown = [status, controls.preview]
    controls.kind.change(choose_kind, controls.inputs, [*shown, *controls.show_kind("paint")], **settings)
    gr.on([number.input for number in (*controls.box, *controls.sides)], preview, controls.inputs, shown, **settings)


def send_layer(controls: RegionControls, button: Any) -> Any:
    """Let a button send the layer of the brush; return the event, for what follows it.

    The browser alone handles this event. As an input of an event of the server, gradio's editor would upload itself
    at each message from then on.
    """
    return button.click(None, controls.editor, controls.layer, js=FIND_LAYER)


def read_layer(path: str, uploads: Path) -> bytes | None:
    """Return an upload undecoded; None if there is none, and for a file elsewhere, which no page may read."""
    file = Path(path).resolve()
    return file.read_bytes() if path and file.is_relative_to(uploads.resolve()) and file.is_file() else None
