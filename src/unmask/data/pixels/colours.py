"""Convert colours to sRGB by the profile (ICC) that an image carries."""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image

from . import BadImage

TOLERANCE = 2  # of 255: a profile that changes no colour by more is sRGB, under whatever name
GREYS = ("1", "L", "LA", "La")


def to_srgb(image: Image.Image) -> Image.Image:
    """Return the image in sRGB, with its transparency; the same object if it has no profile or the profile is sRGB."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    space = bytes(profile[16:20])
    if space == b"CMYK" and image.mode == "CMYK":
        mode = "CMYK"
    elif space == b"GRAY" and image.mode in GREYS:
        mode = "L"
    elif space == b"RGB " and image.mode != "CMYK":
        mode = "RGB"
    else:
        raise BadImage(f"its colour profile is not one for {image.mode} pixels: save it as sRGB")
    transform = build_transform(bytes(profile), mode)
    if transform is None:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    converted = transform.apply(image if image.mode == mode else image.convert(mode))
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@lru_cache(16)
def build_transform(profile: bytes, mode: str):
    """Return the transform (`ImageCms`) from a profile to sRGB, or None if they are the same."""
    try:
        from PIL import ImageCms
    except ImportError as error:
        raise BadImage("its colour profile takes a Pillow with LittleCMS to read: save it as sRGB") from error
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise BadImage(f"its colour profile is damaged ({error}): save it as sRGB") from error
    if mode == "CMYK":
        return transform
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)  # steps of 15: greys, and a grid of colours
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(1, -1, 3)
    probe = Image.fromarray(grid) if mode == "RGB" else Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    plain, seen = np.asarray(probe.convert("RGB"), np.int16), np.asarray(transform.apply(probe), np.int16)
    return None if np.abs(plain - seen).max() <= TOLERANCE else transform
