"""Read images from a file, part of a file, or memory, with `pixels`; no other module does. An image is used whole and
converted correctly, or refused with a reason; nothing is guessed, repaired or left out without a word."""

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from unmask.data.pixels import BadImage
from unmask.data.pixels.decode import FORMATS, IMAGE_DAMAGE, MAX_PIXELS, decode_image
from unmask.errors import DataError, describe_os_error
from unmask.lazy import Tensor, torch
from unmask.storage.files import escape_line


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
    mode = "L" if channels == 1 else "RGB"
    whole = image if image.mode == mode else image.convert(mode)
    fitted = ImageOps.fit(whole, size[::-1], Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).reshape(*size, channels).permute(2, 0, 1).contiguous()


def open_image(
    path: str | Path, *, most: int = MAX_PIXELS, alpha: bool = False, exact: bool = True
) -> Image.Image | Unreadable:
    """Read a still image, upright, in mode RGB or L (RGBA with `alpha`); call it inside `silence_warnings`.

    See `decode_image` for the arguments.
    """
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would block forever
            return Unreadable(str(path), "not a regular file")
        if facts.st_size == 0:
            return Unreadable(str(path), "empty file (0 bytes)")
        with open(path, "rb") as file:
            return decode_bytes(file, str(path), most=most, alpha=alpha, exact=exact)
    except OSError as error:
        return Unreadable(str(path), describe_os_error(error))
    except ValueError as error:  # a name with a null character
        return Unreadable(str(path), str(error))


def decode_bytes(
    file: BufferedReader | BytesIO, name: str, *, most: int = MAX_PIXELS, alpha: bool = False, exact: bool = True
) -> Image.Image | Unreadable:
    """Like `open_image`, from an open file or memory; `name` is the path of an Unreadable."""
    try:
        return decode_image(file, most=most, alpha=alpha, exact=exact)
    except BadImage as error:
        return Unreadable(name, str(error))
    except UnidentifiedImageError:
        return Unreadable(name, f"not a readable image ({', '.join(FORMATS)})")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Unreadable(name, f"more than {most} pixels: shrink it first")
    except IMAGE_DAMAGE as error:
        known = describe_os_error(error) if isinstance(error, OSError) and error.strerror else None
        return Unreadable(name, known or f"damaged ({str(error) or type(error).__name__})")


_FILTERS = threading.Lock()  # Python's warning filters belong to the whole process


@contextmanager
def silence_warnings() -> Iterator[None]:
    """Ignore warnings about odd metadata, but raise Pillow's bomb warning; one thread at a time enters."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
