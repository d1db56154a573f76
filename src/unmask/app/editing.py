"""Edit a photo step by step, for the tab Edit: the region to fill, the variants, and what to download.

The photo comes from a stranger, so a child process decodes it (`data/untrusted.py`). The browser sends back only
the strokes of the brush. So pixels outside the region stay those of the upload, even if a browser changes colours.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from unmask.app.commands import Variable, write_command, write_python
from unmask.app.watching import Recording, Watcher, check_batch, record, start_recording
from unmask.data.masks import make_rectangle
from unmask.data.untrusted import decode_untrusted
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.figures import images as figures
from unmask.pipelines.editing import PhotoView, extend_canvas, fill_photo, stream_inpainting, view_photo
from unmask.pipelines.image import Pipeline
from unmask.pipelines.labels import resolve_filled_labels
from unmask.pipelines.load import change_prompts
from unmask.pretrained.conditions import takes_prompts
from unmask.runtime.shortage import check_memory
from unmask.storage.config import to_json
from unmask.storage.files import write_text

MOST_VARIANTS = 8
"""Variants at once on the page."""
SMALLEST_VIEW, LARGEST_VIEW = 320, 1600
"""Pixels of the longer side of the picture that somebody paints on."""
PIXEL_BYTES = 45
"""Memory that editing takes for each pixel of a photo, in bytes."""
HALF = 128
"""A pixel is masked if the brush covers this much of it, of 255."""
EDIT_FILES = ("photo.png", "mask.png", "decode.gif", "settings.json")
"""What can be downloaded, beside the variants."""

RegionKind = Literal["paint", "box", "extend"]


@dataclass(frozen=True, kw_only=True)
class Region:
    """Where to fill: what was painted, a box, or new pixels around the photo."""

    kind: RegionKind = "paint"
    """Which of the others counts."""
    strokes: bytes | None = None
    """The layer of the brush, as an image file; opaque where something is painted."""
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    """x, y, width and height."""
    extend: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Pixels on the left, above, on the right and below."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What to fill in."""

    label: str = ""
    """A class by name or number; "" is no class."""
    prompt: str = ""
    """For a text-to-image model: the text."""
    variants: int = 4
    """How many results."""
    seed: int = 0
    """The seed."""
    feather: int = 0
    """Pixels inside the border over which the result blends into its surroundings."""


# -- the photo and its region ------------------------------------------------------------------------------------------


def open_photo(data: bytes) -> UInt8[Tensor, "3 h w"]:
    """Decode an upload; DataError if it is no image, or too large."""
    image = decode_untrusted(data, "the photo").convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def choose_view_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size (h, w) of the picture to paint on: a small photo is enlarged, a large one reduced."""
    longest = max(size)
    factor = max(1, SMALLEST_VIEW // longest) if longest <= LARGEST_VIEW else LARGEST_VIEW / longest
    height, width = (max(1, round(n * factor)) for n in size)
    return height, width


def draw_view(photo: UInt8[Tensor, "3 h w"]) -> Image.Image:
    """Draw the photo for the brush."""
    height, width = choose_view_size((photo.shape[1], photo.shape[2]))
    image = to_picture(photo)
    kind = Image.Resampling.NEAREST if width > image.width else Image.Resampling.BOX
    return image if image.size == (width, height) else image.resize((width, height), kind)


def read_strokes(data: bytes | None, size: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """Return the pixels of a photo of `size` (h, w) that the brush covers by half.

    Raises:
        ConfigError: Nothing is painted, or everything.
        DataError: The layer of the brush cannot be read.
    """
    hole = torch.zeros(size, dtype=torch.bool)
    if data is not None:
        layer = decode_untrusted(data, "the painted mask", most=LARGEST_VIEW**2, alpha=True).getchannel("A")
        hole = torch.from_numpy(np.array(layer.resize(size[::-1], Image.Resampling.BOX)) >= HALF)
    if not hole.any():
        raise ConfigError("nothing is painted: paint over the part to fill, or give a box")
    if hole.all():
        raise ConfigError("everything is painted over, so nothing guides the fill: leave a part of the photo")
    return hole


def mask_photo(photo: UInt8[Tensor, "3 h w"], region: Region) -> tuple[UInt8[Tensor, "3 _ _"], Bool[Tensor, "_ _"]]:
    """Return the photo, on a larger canvas if it is extended, and its mask; ConfigError without a region."""
    size = (photo.shape[1], photo.shape[2])
    if region.kind == "extend":
        return extend_canvas(photo, *region.extend)
    if region.kind == "box":
        return photo, make_rectangle(size, *region.box)
    return photo, read_strokes(region.strokes, size)


def draw_region(photo: UInt8[Tensor, "3 h w"], region: Region) -> Image.Image:
    """Draw the photo with its region hatched, reduced or enlarged for the page."""
    shown, hole = mask_photo(photo, region)
    height, width = hole.shape
    factor = min(1.0, LARGEST_VIEW / 2 / max(height, width))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    images = F.interpolate(shown[None].float(), size, mode="area") / 127.5 - 1
    hidden = F.interpolate(hole[None, None].float(), size, mode="area")[0] >= 0.5
    scale = max(1, SMALLEST_VIEW // max(size))
    return figures.draw_grid(figures.overlay_mask(images, hidden.flatten(1), size), 1, scale=scale, gap=0)


def to_picture(photo: UInt8[Tensor, "3 h w"]) -> Image.Image:
    """Return a photo as a PIL image."""
    return Image.fromarray(photo.permute(1, 2, 0).contiguous().numpy())


# -- the edit ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PhotoEdit:
    """A photo while it is edited."""

    pipeline: Pipeline
    photo: UInt8[Tensor, "3 h w"]
    """The photo, on a larger canvas if it is extended."""
    hole: Bool[Tensor, "h w"]
    """Its mask."""
    view: PhotoView
    """What the model sees."""
    edit: Edit
    """What to fill in."""

    def stream(self, sampling: Sampling) -> tuple[Recording, Iterator[int]]:
        """Return a recording, and an iterator that adds a step to it each time and yields its number.

        Raises:
            ShortageError: The variants, or their steps, do not fit into memory.
        """
        check_batch(self.pipeline, self.edit.variants, sampling.steps)
        ids = _choose_label(self.pipeline, self.edit)
        recording = start_recording(self.pipeline, self.edit.variants)
        watcher = Watcher(self.pipeline.model.mask_id)
        states = stream_inpainting(
            self.pipeline, self.view.images, self.view.hidden, ids, seed=self.edit.seed, sampling=sampling,
            variants=self.edit.variants, watch=watcher.watch,
        )  # fmt: skip
        return recording, record(self.pipeline, recording, states, watcher)

    def finish(self, recording: Recording) -> list[Image.Image]:
        """Return the variants, as whole photos; pixels outside the mask stay identical."""
        tokens = recording.tokens[-1]
        filled = fill_photo(self.pipeline, self.photo, self.hole, self.view, tokens, self.edit.feather)
        return [to_picture(one) for one in filled]


def prepare_edit(pipeline: Pipeline, photo: UInt8[Tensor, "3 h w"], region: Region, edit: Edit) -> PhotoEdit:
    """Return the photo, its mask and what the model sees of it.

    Raises:
        ConfigError: A region or a number that cannot be.
        DataError: The layer of the brush cannot be read.
        ShortageError: The photo, or so many variants, do not fit into memory.
    """
    if not 1 <= edit.variants <= MOST_VARIANTS:
        raise ConfigError(f"{edit.variants} variants: take 1 to {MOST_VARIANTS}")
    if edit.feather < 0:
        raise ConfigError(f"feather {edit.feather}: must be at least 0")
    if takes_prompts(pipeline.model.config):
        pipeline = change_prompts(pipeline, [edit.prompt])
    larger, hole = mask_photo(photo, region)
    check_memory((PIXEL_BYTES + 3 * edit.variants) * hole.numel(), torch.device("cpu"), "take a smaller photo")
    view = view_photo(pipeline, larger, hole)
    return PhotoEdit(pipeline=pipeline, photo=larger, hole=hole, view=view, edit=edit)


def _choose_label(pipeline: Pipeline, edit: Edit) -> Tensor | None:
    """Return the class to fill in, if there is one; text 0 is class 0 of a text-to-image model."""
    if takes_prompts(pipeline.model.config):
        return torch.tensor([0])
    return resolve_filled_labels(edit.label, pipeline.classes, pipeline.empty_classes) if edit.label else None


# -- what is left ------------------------------------------------------------------------------------------------------


def make_edit_folder(folder: Path) -> Path:
    """Return a new folder in place of the last one, so that no browser shows the last variants for the new ones."""
    for old in folder.glob("edit-*"):
        shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix="edit-", dir=folder))


def write_edit_lines(
    name: str, pipeline: Pipeline, region: Region, edit: Edit, settings: dict[str, Any]
) -> tuple[str, str]:
    """Return the command line and the Python lines that make the same variants from photo.png and mask.png."""
    asks = takes_prompts(pipeline.model.config)
    where = {"mask": "mask.png"} if region.kind == "paint" else {region.kind: getattr(region, region.kind)}
    what = {"label": None if asks else edit.label or None, "prompt": edit.prompt if asks else None}
    flags = {"variants": edit.variants, "seed": edit.seed, "feather": edit.feather or None}
    command = write_command("inpaint", [name, "photo.png"], where | what | flags | settings)
    label = 0 if asks else edit.label or None
    arguments = [Variable("photo"), Variable("mask"), *([] if label is None else [label])]
    python = write_python(
        name, "images = pipe.inpaint", arguments, flags | settings, before=_write_opening(region),
        prompts=[edit.prompt] if asks else None,
    )  # fmt: skip
    return command, python


def _write_opening(region: Region) -> str:
    """Return lines of Python that open photo.png and make or open its mask."""
    opened = 'Image.open("photo.png")'
    if region.kind == "paint":
        return f'from PIL import Image\n\nphoto, mask = {opened}, Image.open("mask.png")'
    if region.kind == "box":
        x, y, width, height = region.box
        made = f'mask = Image.new("L", photo.size)\nmask.paste(255, {(x, y, x + width, y + height)})'
        return f"from PIL import Image\n\nphoto = {opened}\n{made}"
    left, top, _, _ = region.extend
    box = f"({left}, {top}, {left} + known.width, {top} + known.height)"
    made = (
        f"photo = ImageOps.expand(known, {region.extend}, (128, 128, 128))\n"
        f'mask = Image.new("L", photo.size, 255)\nmask.paste(0, {box})'
    )
    return f"from PIL import Image, ImageOps\n\nknown = {opened}\n{made}"


def write_edit_downloads(
    folder: Path, photo: UInt8[Tensor, "3 h w"], job: PhotoEdit, recording: Recording, said: dict[str, Any],
    sampling: Sampling,
) -> list[str]:  # fmt: skip
    """Write the photo upright as PNG, its mask, the animation and the settings; return their paths."""
    paths = [folder / name for name in EDIT_FILES]
    figures.write_picture(to_picture(photo), paths[0])
    figures.write_picture(Image.fromarray(job.hole.numpy().astype(np.uint8) * 255), paths[1])
    figures.write_animation(recording.frames, paths[2])
    write_text(json.dumps(said | {"sampling": to_json(sampling)}, indent=2), paths[3])
    return [str(path) for path in paths]


def write_variants(folder: Path, variants: list[Image.Image]) -> list[str]:
    """Write each variant as PNG, named as the command names them, and return their paths."""
    names = ["inpainted.png"] if len(variants) == 1 else [f"inpainted-{i}.png" for i in range(1, len(variants) + 1)]
    for variant, name in zip(variants, names, strict=True):
        figures.write_picture(variant, folder / name)
    return [str(folder / name) for name in names]


def describe_edit(name: str, region: Region, edit: Edit, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what was asked for, for settings.json."""
    where: dict[str, Any] = {} if region.kind == "paint" else {region.kind: getattr(region, region.kind)}
    return {"model": name, "region": region.kind, **where, **vars(edit), "changed": settings}
