"""PIL images to tensors and back, for the pipelines."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from unmask.data.masks import check_mask
from unmask.data.pixels import BadImage
from unmask.data.pixels.decode import flatten
from unmask.errors import ConfigError, DataError


def check_pictures(pictures: Mapping[str, object]) -> None:
    """Raise ConfigError for a named argument that is no PIL image."""
    for name, picture in pictures.items():
        if not isinstance(picture, Image.Image):
            raise ConfigError(f"the {name} is of type {type(picture).__name__}: give a PIL image")


def to_pil(images: Float[Tensor, "b c h w"]) -> list[Image.Image]:
    """Return images in [-1, 1] as PIL images: one channel as "L", three as "RGB"."""
    levels = ((images.detach().cpu().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray((x[0] if len(x) == 1 else x.permute(1, 2, 0)).numpy()) for x in levels]


def to_photo(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """Return a photo's pixels as sRGB, with transparency put over white; DataError for pixels without a white."""
    try:
        flat = flatten(image)
    except BadImage as error:
        raise DataError(f"the photo: {error}") from error
    return torch.from_numpy(np.array(flat.convert("RGB"))).permute(2, 0, 1).contiguous()


def to_mask(image: Image.Image, size: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """Return True where a mask is white (128 or more); ConfigError for another `size` (h, w) or an empty mask."""
    if image.size != size[::-1]:
        found = f"the mask is {image.width}x{image.height}, the photo {size[1]}x{size[0]}"
        raise ConfigError(f"{found}: make them the same size")
    mask = torch.from_numpy(np.array(image.convert("L")) >= 128)
    check_mask(mask)
    return mask
