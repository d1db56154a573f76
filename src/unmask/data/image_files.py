"""Read image bytes from a file, part of a file, or memory; no other module does. An image is used whole and converted
correctly, or refused with a reason; nothing is guessed, repaired or left out silently."""

import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from unmask.errors import DataError
from unmask.storage.files import escape_line

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # never EPS and similar: they start other programs

# What Pillow's parsers raise on damaged bytes, found by fuzzing.
IMAGE_DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)

# EXIF orientation -> the operation that turns the image upright (CIPA DC-008, tag 0x0112).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Unreadable:
    """A file that was not used, and why; its text is one line whatever bytes the name holds."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{escape_line(self.path)}: {escape_line(self.reason)}"


def read_image(path: str | Path, size: tuple[int, int], channels: int) -> UInt8[Tensor, "c h w"]:
    """Read an image: upright, alpha over white, shrunk to cover `size` (h, w), centre-cropped; or raise DataError."""
    result = try_image(path, size, channels)
    if isinstance(result, Unreadable):
        raise DataError(str(result))
    return result


def try_image(path: str | Path, size: tuple[int, int], channels: int) -> UInt8[Tensor, "c h w"] | Unreadable:
    """Like `read_image`, but return a refused file as Unreadable."""
    with silence_warnings():
        return fit(open_image(path), size, channels)


def fit(image: Image.Image | Unreadable, size: tuple[int, int], channels: int) -> UInt8[Tensor, "c h w"] | Unreadable:
    """Shrink to cover `size` (h, w) and crop the centre, as colour or grey; pass an Unreadable through."""
    if channels not in (1, 3) or min(size) < 1:
        raise ValueError(f"channels {channels}, size {size}: channels must be 1 or 3, and size at least 1x1")
    if isinstance(image, Unreadable):
        return image
    fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), size[::-1], Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).reshape(*size, channels).permute(2, 0, 1).contiguous()


def open_image(path: str | Path) -> Image.Image | Unreadable:
    """Read a still image, upright, in mode RGB or L; call it inside `silence_warnings`."""
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would block forever
            return Unreadable(str(path), "not a regular file")
        if facts.st_size == 0:
            return Unreadable(str(path), "empty file (0 bytes)")
        with open(path, "rb") as file:
            return decode_bytes(file, str(path))
    except OSError as error:
        return Unreadable(str(path), error.strerror or str(error))
    except ValueError as error:  # a name with a null character
        return Unreadable(str(path), str(error))


def decode_bytes(file: BufferedReader | BytesIO, name: str) -> Image.Image | Unreadable:
    """Like `open_image`, from an open file or memory; `name` is the path of an Unreadable."""
    try:
        return decode_image(file)
    except DataError as error:
        return Unreadable(name, str(error))
    except UnidentifiedImageError:
        return Unreadable(name, f"not a readable image ({', '.join(FORMATS)})")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Unreadable(name, f"more than {MAX_PIXELS} pixels: shrink it first")
    except IMAGE_DAMAGE as error:
        known = error.strerror if isinstance(error, OSError) and error.strerror else None
        return Unreadable(name, known or f"damaged ({str(error) or type(error).__name__})")


_FILTERS = threading.Lock()  # Python's warning filters belong to the whole process


@contextmanager
def silence_warnings() -> Iterator[None]:
    """Ignore warnings about odd metadata, but raise Pillow's bomb warning; one thread at a time enters."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(file: BufferedReader | BytesIO) -> Image.Image:
    """Decode a still image, upright, in mode RGB or L; raise DataError with the reason, without the path."""
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{width}x{height} is more than {MAX_PIXELS} pixels: shrink it first")
    # MPO is a phone's JPEG with a depth or gain map behind the photo: not animated.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(f"animated or many-paged ({frames} frames): export the one you want")
    if image.format == "PNG":
        image.verify()  # checks every chunk to the end: decoding alone accepts a PNG that is cut after its pixels
        file.seek(0)
        image = Image.open(file, formats=FORMATS)
    image.load()
    # Read after load(): TIFF rotates itself there, and PNG may store its orientation at the end of the file.
    turn = UPRIGHT.get(image.getexif().get(0x0112, 1))
    flat = flatten(image)
    return flat if turn is None else flat.transpose(turn)


def flatten(image: Image.Image) -> Image.Image:
    """Convert any pixel mode to 8-bit RGB or L, with alpha over white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return flatten_grey16(image)
    if image.mode in ("I", "F"):
        raise DataError(f"{image.mode} pixels (32-bit or signed) have no agreed white: export as 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        raise DataError("16-bit colour with a transparent colour: export with an alpha channel")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def flatten_grey16(image: Image.Image) -> Image.Image:
    """Convert 0..65535 to 0..255 by /257, rounded; Pillow's own conversion saturates at 255 instead."""
    values = np.array(image, dtype=np.float32)
    key = image.info.get("transparency")
    tags = getattr(image, "tag_v2", {})
    if tags.get(258, (16,)) != (16,):
        raise DataError(f"{tags[258]} bits per pixel: export as 8 or 16 bits")
    if tags.get(262) == 0:  # TIFF's WhiteIsZero
        values = 65535 - values
    if key is not None:
        values[values == key] = 65535
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))
