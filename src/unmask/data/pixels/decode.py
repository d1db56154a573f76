"""Decode a still image: whole, upright, in sRGB, or refused with a reason."""

import contextlib
import struct
import threading
import zlib
from io import BufferedReader, BytesIO

import numpy as np
from PIL import Image

from . import BadImage
from .colours import to_srgb
from .jpeg import check_jpeg_once

MAX_PIXELS = 64_000_000  # of a dataset's image
MAX_SIDE = 65_535  # the longest of a JPEG; Pillow keeps two pointers for each row
LARGE = 16_000_000  # pixels: of larger images one is decoded at a time, whatever the number of threads
DARK = "12 bits or fewer, or nearly black? Scale it to 65535, or save 8 bits"
STRIP = 1 << 20  # pixels that are put on white at a time
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

_ALONE = threading.Lock()


def decode_image(
    file: BufferedReader | BytesIO, *, most: int = MAX_PIXELS, alpha: bool = False, exact: bool = True
) -> Image.Image:
    """Decode an image, upright, in mode RGB or L with transparency over white; raise BadImage or one of IMAGE_DAMAGE.

    Args:
        most: Refuse more pixels than this, before decoding.
        alpha: Return RGBA instead, with the colours as stored.
        exact: Follow every code of a JPEG (`pixels.jpeg`), about 0.26 ms per KB; else only ask libjpeg for damage.
    """
    head = file.read(32)
    file.seek(0)
    image = Image.open(file, formats=FORMATS)
    check_size(image.size, most)
    # MPO is a phone's JPEG with a depth or gain map behind the photo: not animated.
    # Not n_frames: to count the pages of a TIFF reads all of them.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise BadImage("animated or many-paged (2 frames or more): export the one you want")
    with _ALONE if image.width * image.height > LARGE else contextlib.nullcontext():
        if image.format in ("JPEG", "MPO"):
            file.seek(0)
            data = file.read()
            check_length(image.size, len(data))
            check_jpeg_once(data, image.mode, exact=exact)
        if image.format == "PNG":
            image.verify()  # checks every chunk to the end: decoding alone accepts a PNG that is cut after its pixels
            file.seek(0)
            image = Image.open(file, formats=FORMATS)
        image.load()
        refuse_dark(image, head)
        # Read after load(): TIFF rotates itself there, and PNG may store its orientation at the end of the file.
        turn = UPRIGHT.get(image.getexif().get(0x0112, 1))
        if alpha and image.has_transparency_data:
            flat = to_srgb(image).convert("RGBA")
        else:
            flat = flatten(image).convert("RGBA") if alpha else flatten(image)
        return flat if turn is None else flat.transpose(turn)


def check_size(size: tuple[int, int], most: int) -> None:
    """Raise BadImage for more than `most` pixels, or a side of more than MAX_SIDE."""
    width, height = size
    if width * height > most:
        factor = (most / (width * height)) ** 0.5
        smaller = f"{max(1, int(width * factor))}x{max(1, int(height * factor))}"
        raise BadImage(f"{width}x{height} is more than {most} pixels: shrink it first, to {smaller} or less")
    if max(size) > MAX_SIDE:
        raise BadImage(f"{width}x{height}: a side has more than {MAX_SIDE} pixels: cut it first")


def check_length(size: tuple[int, int], length: int) -> None:
    """Raise BadImage if `length` bytes cannot hold a JPEG of this size: each 8x8 block takes at least one bit."""
    if length * 512 < size[0] * size[1]:
        raise BadImage(f"truncated JPEG: {length} bytes cannot hold {size[0]}x{size[1]} pixels")


def flatten(image: Image.Image) -> Image.Image:
    """Convert any pixel mode to 8-bit RGB or L in sRGB, with alpha over white; raise BadImage if it has no white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return to_srgb(flatten_grey16(image))
    if image.mode in ("I", "F"):
        raise BadImage(f"{image.mode} pixels (32-bit or signed) have no agreed white: export as 8 or 16 bits")
    if not image.has_transparency_data:
        image = to_srgb(image)
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        raise BadImage("16-bit colour with a transparent colour: export with an alpha channel")
    image = to_srgb(image)
    flat = Image.new("RGB", image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        flat.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return flat


def flatten_grey16(image: Image.Image) -> Image.Image:
    """Convert 0..65535 to 0..255 by /257, rounded; Pillow's own conversion saturates at 255 instead.

    White is less than 65535 if a TIFF says so (MaxSampleValue), as scanners do with 12 bits.
    """
    values = np.array(image, dtype=np.float32)
    key = image.info.get("transparency")
    tags = getattr(image, "tag_v2", {})
    if tags.get(258, (16,)) != (16,):
        raise BadImage(f"{tags[258]} bits per pixel: export as 8 or 16 bits")
    white = tags.get(281, 65535)
    white = float(white[0] if isinstance(white, tuple) else white)
    if not 255 <= white <= 65535 or values.max() > white:
        white = 65535.0
    if white == 65535 and 0 < values.max() < 4096:
        raise BadImage(f"16-bit grey with no value above {values.max():.0f}: {DARK}")
    if tags.get(262) == 0:  # TIFF's WhiteIsZero
        values = white - values
    if key is not None:
        values[values == key] = white
    flat = Image.fromarray(np.rint(values / (white / 255)).astype(np.uint8))
    if "icc_profile" in image.info:
        flat.info["icc_profile"] = image.info["icc_profile"]
    return flat


def refuse_dark(image: Image.Image, head: bytes) -> None:
    """Raise BadImage for 16-bit colour without a value above 4095, of which Pillow keeps the upper 8 bits."""
    deep = head[24:25] == b"\x10" if image.format == "PNG" else set(getattr(image, "tag_v2", {}).get(258, ())) == {16}
    if deep and image.mode in ("RGB", "RGBA", "LA"):
        highest = max(int(np.asarray(band).max()) for band in image.split()[: 1 if image.mode == "LA" else 3])
        if 0 < highest < 16:
            raise BadImage(f"16-bit colour with no value above 4095: {DARK}")
