"""The hole of a photo, from the flag that says where it is; and the pictures that `unmask inpaint` writes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from unmask.cli.editing import InpaintFlags
from unmask.data.holes import Cells
from unmask.data.masks import find_turn, make_rectangle, read_cutout, read_mask, read_photo
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.evaluation import gallery
from unmask.figures import images as figures
from unmask.pipelines import editing
from unmask.pipelines.image import Pipeline
from unmask.storage.files import escape_line

COMPARISON_SIZE = 512  # pixels of the longer side of each picture in the comparison


def read_hole(path: Path, flags: InpaintFlags) -> tuple[UInt8[Tensor, "3 h w"], Bool[Tensor, "h w"]]:
    """Read the photo and its masked region, from the one flag that says where it is."""
    given = {"--mask": flags.mask is not None, "--alpha": flags.alpha}
    given |= {"--box": flags.box is not None, "--extend": flags.extend is not None}
    if sum(given.values()) != 1:
        found = " and ".join(name for name, there in given.items() if there) or "no region"
        raise ConfigError(f"{found} given: say where to fill with one of {', '.join(given)}")
    if flags.alpha:
        return read_cutout(path)
    photo = read_photo(path)
    height, width = photo.shape[1:]
    if flags.mask is not None:
        turn = find_turn(path, flags.mask)
        if turn is not None:
            print(
                f"{escape_line(str(flags.mask))} has the size of the photo as stored, so it is turned upright with it"
            )
        return photo, read_mask(flags.mask, (height, width), turn)
    if flags.box is not None:
        return photo, make_rectangle((height, width), *flags.box)
    assert flags.extend is not None
    return editing.extend_canvas(photo, *flags.extend)


def draw_side_by_side(
    photo: UInt8[Tensor, "3 h w"], hole: Bool[Tensor, "h w"], edited: UInt8[Tensor, "v 3 h w"]
) -> Image.Image:
    """Side by side: the photo, its hole, and each variant; large ones shrunk, small ones enlarged."""
    height, width = photo.shape[1:]
    factor = min(1.0, COMPARISON_SIZE / max(height, width))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    pictures = [F.interpolate(x[None].float(), size, mode="area") for x in (photo, *edited)]
    hidden = F.interpolate(hole[None, None].float(), size, mode="area")[0] >= 0.5
    images = torch.cat(pictures) / 127.5 - 1
    shown = figures.overlay_mask(images[:1], hidden.flatten(1), size)
    titles = ["photo", "masked", *([f"{i}" for i in range(1, len(edited) + 1)] if len(edited) > 1 else ["inpainted"])]
    scale = max(1, 112 // size[1])
    gap = -(-4 // scale)
    return figures.draw_grid(
        torch.cat([images[:1], shown, images[1:]]), len(titles), scale=scale, gap=gap, labels=titles
    )


def draw_frames(
    pipeline: Pipeline,
    photo: UInt8[Tensor, "3 h w"],
    hole: Bool[Tensor, "h w"],
    label: int | None,
    sampling: Sampling,
    cells: Cells,
    flags: InpaintFlags,
) -> list[Image.Image]:
    """Draw every step of the decoding as the model sees it, the variants side by side."""
    view = editing.view_photo(pipeline, photo, hole, flags.context)
    states = editing.stream_inpainting(
        pipeline,
        view.images,
        view.hidden,
        None if label is None else torch.tensor([label]),
        seed=flags.seed,
        sampling=sampling,
        cells=cells,
        variants=flags.variants,
        stop=flags.stop,
    )
    return gallery.draw_decoding(pipeline, list(states), figures.choose_scale(view.images))


def write_variant(picture: Image.Image, out: Path, suffix: str) -> None:
    """Written beside `out`, and said."""
    path = name_variant(out, suffix)
    figures.write_picture(picture, path)
    print(f"wrote {path}")


def name_variant(out: Path, suffix: str) -> Path:
    """Return the file of a variant, or of the comparison, beside `out`."""
    return out.with_name(f"{out.stem}{suffix}{out.suffix}")
