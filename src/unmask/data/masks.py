"""Masks made by a user: a black-and-white image, the transparent part of the photo itself, or a rectangle."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from unmask.data.image_files import Unreadable, open_image, silence_warnings
from unmask.data.pixels.decode import FORMATS, IMAGE_DAMAGE, UPRIGHT
from unmask.errors import ConfigError, DataError
from unmask.storage.files import escape_line

MAX_PHOTO = 16_000_000  # pixels of a photo to edit: editing takes about 45 bytes for each
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def read_photo(path: str | Path) -> UInt8[Tensor, "3 h w"]:
    """Read a whole image, upright, alpha over white; raise DataError if it cannot be read."""
    return _to_colours(_open_or_raise(path))


def read_mask(path: str | Path, size: tuple[int, int], turn: Image.Transpose | None = None) -> Bool[Tensor, "h w"]:
    """Read a mask of `size` (h, w), turned first: white (128 or more) is masked; DataError for another size."""
    image = _open_or_raise(path, alpha=True)
    if turn is not None:
        image = image.transpose(turn)
    if image.size != size[::-1]:
        found = f"the mask is {image.width}x{image.height}, the photo {size[1]}x{size[0]}"
        raise DataError(f"{escape_line(str(path))}: {found}: make it the same size")
    if np.array(image.getchannel("A")).min() < 255:
        raise DataError(
            f"{escape_line(str(path))}: a mask with transparent parts can mean both: save it in black and white"
        )
    hole = torch.from_numpy(np.array(image.convert("L")) >= 128)
    check_mask(hole, f"{escape_line(str(path))}: ")
    return hole


def find_turn(photo: str | Path, mask: str | Path) -> Image.Transpose | None:
    """Return the turn that a mask needs which was drawn on the photo as stored, before its EXIF orientation applies.

    Return None if the mask has the size of the upright photo, or if the orientation keeps width and height: a mask
    belongs to the photo as viewers show it. Unreadable files are left for the readers to refuse.
    """
    sizes, orientations = [], []
    for path in (photo, mask):
        try:
            with silence_warnings(), Image.open(path, formats=FORMATS) as image:
                sizes.append(image.size)
                orientations.append(image.getexif().get(0x0112, 1))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning, *IMAGE_DAMAGE):
            return None
    same_raster = sizes[0] == sizes[1] and sizes[0][0] != sizes[0][1]
    return UPRIGHT[orientations[0]] if same_raster and orientations[0] in TURNED and orientations[1] == 1 else None


def read_cutout(path: str | Path) -> tuple[UInt8[Tensor, "3 h w"], Bool[Tensor, "h w"]]:
    """Read a photo, with its colours as stored, and its mask: the pixels with alpha below 128."""
    image = _open_or_raise(path, alpha=True)
    hole = torch.from_numpy(np.array(image.getchannel("A")) < 128)
    check_mask(hole, f"{escape_line(str(path))}, by its transparency: ")
    return _to_colours(image.convert("RGB")), hole


def make_rectangle(size: tuple[int, int], x: int, y: int, width: int, height: int) -> Bool[Tensor, "h w"]:
    """Make the mask of a rectangle with upper left corner (x, y), in a photo of `size` (h, w)."""
    if min(x, y) < 0 or min(width, height) < 1 or x + width > size[1] or y + height > size[0]:
        raise ConfigError(
            f"the box x={x} y={y} width={width} height={height} does not lie in the photo of {size[1]}x{size[0]}: it "
            "needs a pixel or more, all of them inside"
        )
    hole = torch.zeros(size, dtype=torch.bool)
    hole[y : y + height, x : x + width] = True
    check_mask(hole)
    return hole


def check_mask(hole: Bool[Tensor, "h w"], where: str = "") -> None:
    """Raise ConfigError if a mask is empty or covers the whole image."""
    if not hole.any():
        raise ConfigError(
            f"{where}the mask is empty, so there is nothing to fill: make the region to fill white or transparent"
        )
    if hole.all():
        raise ConfigError(f"{where}the mask covers the whole image, so nothing guides the fill: use unmask sample")


def _open_or_raise(path: str | Path, *, alpha: bool = False) -> Image.Image:
    with silence_warnings():
        image = open_image(path, most=MAX_PHOTO, alpha=alpha)
    if isinstance(image, Unreadable):
        raise DataError(str(image))
    return image


def _to_colours(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
