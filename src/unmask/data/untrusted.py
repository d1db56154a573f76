"""Decode a stranger's image in a child process with limits, for programs that face strangers, such as a web page.

A flaw in a decoder then reaches a process that sees no keys, opens no file and no connection, and has little memory and
time. What comes back is pixels: they are counted, and nothing is unpickled.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import PIL
import simplejpeg
from PIL import Image

from unmask.data.masks import MAX_PHOTO
from unmask.errors import DataError
from unmask.storage.files import escape_line
from unmask.storage.foreign import reader

CHILD = (
    "import sys; sys.path += sys.argv.pop(1).splitlines(); "
    "from unpacking.job import forbid, set_limits; from pixels.job import decode_standard_input; "
    "decode_standard_input(set_limits, forbid)"
)
MAX_BYTES = 64 << 20
"""The longest file, in bytes."""
SECONDS = 30.0
BANDS = {"L": 1, "RGB": 3, "RGBA": 4}


def decode_untrusted(
    data: bytes, name: str = "image", *, most: int = MAX_PHOTO, alpha: bool = False, seconds: float = SECONDS
) -> Image.Image:
    """Decode an image as `image_files` does, in a child process with 1 GiB of memory and 10 to 12 s of CPU time.

    Args:
        name: What the error calls the image.
        most: The largest number of pixels.
        alpha: Return RGBA, with the colours as stored; otherwise RGB or L, over white.
        seconds: The longest time to wait.

    Raises:
        DataError: The image is refused, or its process died or took too long.
    """
    if len(data) > MAX_BYTES:
        raise _make_error(name, f"more than {MAX_BYTES >> 20} MiB: send a smaller file")
    libraries = [Path(str(module.__file__)).parents[1] for module in (PIL, numpy, simplejpeg)]
    folders = [
        Path(reader.__file__).parent,
        Path(__file__).parent,
        *libraries,
    ]
    code = [sys.executable, "-I", "-c", CHILD, "\n".join(map(str, folders)), str(most), "alpha" if alpha else "flat"]
    environment = {name: os.environ[name] for name in reader.LIBRARIES if name in os.environ}
    with tempfile.TemporaryFile() as out:  # a file, so that the child's limit on written bytes holds
        try:
            done = subprocess.run(
                code,
                input=data,
                stdout=out,
                stderr=subprocess.DEVNULL,
                env=environment | {"OPENBLAS_NUM_THREADS": "1"},
                cwd=tempfile.gettempdir(),
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _make_error(name, f"could not be decoded in {seconds:.0f} s: send it in another format") from error
        if done.returncode:
            raise _make_error(name, f"its decoding ended with status {done.returncode}: send it in another format")
        out.seek(0)
        return _read_answer(out.readline(10_000), out.read(4 * most + 1), name, most)


def _read_answer(line: bytes, pixels: bytes, name: str, most: int) -> Image.Image:
    """Return the image that a child sent; it may have been taken over, so believe nothing."""
    try:
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise _make_error(name, str(answer["refused"])[:500])
        mode, (width, height) = answer["mode"], answer["size"]
        sound = type(width) is type(height) is int and min(width, height) > 0 and width * height <= most
        if not sound or len(pixels) != width * height * BANDS[mode]:
            raise ValueError("sizes that do not fit")
        return Image.frombytes(mode, (width, height), pixels)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _make_error(name, "its decoding gave no image: send it in another format") from error


def _make_error(name: str, reason: str) -> DataError:
    return DataError(f"{escape_line(name)}: {escape_line(reason)}")
