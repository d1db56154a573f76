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

from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageCms, JpegImagePlugin, MpoImagePlugin
from PIL import PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401  # nothing may be imported later

from . import BadImage
from .decode import FORMATS, IMAGE_DAMAGE, decode_image

HARMLESS = ("array.__new__", "builtins.id")  # what Pillow does beyond what reading a weight file takes


def run_job(set_limits: Callable[[int], None], forbid: Callable[[str, tuple[Any, ...]], None]) -> NoReturn:
    """Run `job MOST ALPHA`: write the answer, and exit with `os._exit`; the arguments set limits and refuse actions."""
    most, alpha = int(sys.argv[1]), sys.argv[2] == "alpha"
    data = sys.stdin.buffer.read()
    _warm_up()
    out = sys.stdout.buffer
    set_limits(len(data))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # no other file and no connection can be opened
    sys.addaudithook(lambda event, arguments: None if event in HARMLESS else forbid(event, arguments))
    said, pixels = _decode(data, most, alpha)
    out.write(json.dumps(said).encode() + b"\n" + pixels)
    out.flush()
    os._exit(0)


def _warm_up() -> None:
    """Decode an image of each format, so that whatever Pillow imports late is there."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for form in FORMATS:
        buffer = BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, form, icc_profile=profile)
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
