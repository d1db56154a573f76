"""Run the child process of `data/untrusted.py`: set limits, decode one image, and exit without running anything else.

Request: the flags and the file, on standard input. Answer: a line of JSON, and the pixels, on standard output.
"""

import json
import os
import resource
import sys
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any, NoReturn

from PIL import Image, ImageCms

from . import BadImage
from .decode import FORMATS, IMAGE_DAMAGE, decode_image

PILLOW_EVENTS = ("array.__new__", "builtins.id")  # what Pillow does beyond what reading a weight file takes


def decode_standard_input(
    set_limits: Callable[[int], None], forbid: Callable[[str, tuple[Any, ...]], None]
) -> NoReturn:
    """Run the child with the arguments MOST ALPHA: write the answer, and exit with `os._exit`.

    Args:
        set_limits: Sets limits on memory and time for a file of that many bytes.
        forbid: An audit hook that exits on whatever decoding does not take.
    """
    most, alpha = int(sys.argv[1]), sys.argv[2] == "alpha"
    data = sys.stdin.buffer.read()
    _warm_up()
    out = sys.stdout.buffer
    set_limits(len(data))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # no other file and no connection can be opened
    sys.addaudithook(lambda event, arguments: None if event in PILLOW_EVENTS else forbid(event, arguments))
    said, pixels = _decode(data, most, alpha)
    out.write(json.dumps(said).encode() + b"\n" + pixels)
    out.flush()
    os._exit(0)


def _warm_up() -> None:
    """Decode an image of each format: Pillow imports some modules late, and later no import is allowed."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (8, 8))
    for form in (*FORMATS, "MPO"):
        buffer = BytesIO()
        more = {"save_all": True, "append_images": [image]} if form == "MPO" else {}
        image.save(buffer, form, icc_profile=profile, **more)
        buffer.seek(0)
        decode_image(buffer)


def _decode(data: bytes, most: int, alpha: bool) -> tuple[dict[str, Any], bytes]:
    warnings.simplefilter("ignore")
    try:
        image = decode_image(BytesIO(data), most=most, alpha=alpha)
        return {"mode": image.mode, "size": image.size}, image.tobytes()
    except BadImage as error:
        return {"refused": str(error)}, b""
    except MemoryError:
        return {"refused": "takes too much memory: shrink it first"}, b""
    except Image.DecompressionBombError:
        return {"refused": f"more than {most} pixels: shrink it first"}, b""
    except IMAGE_DAMAGE as error:
        return {"refused": f"damaged or not an image ({type(error).__name__})"}, b""
