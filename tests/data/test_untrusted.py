"""A stranger's image is decoded in a child with limits; a bomb, a hang and a traitor are survived."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.data import untrusted
from unmask.data.pixels.decode import decode_image
from unmask.data.untrusted import decode_untrusted
from unmask.errors import DataError

CLEAN = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF"])
def test_the_pixels_are_those_of_the_reader(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"exif": exif} if kind in ("JPEG", "PNG", "TIFF") else {}
    more |= {"save_all": True, "append_images": [CLEAN]} if kind == "MPO" else {}
    data = encoded(CLEAN, kind, **more)
    found, right = decode_untrusted(data), decode_image(io.BytesIO(data))
    assert (found.mode, found.size) == (right.mode, right.size)
    assert found.tobytes() == right.tobytes()


def test_transparency_comes_with_it():
    cutout = CLEAN.convert("RGBA")
    cutout.putalpha(CLEAN.getchannel("R"))
    assert decode_untrusted(encoded(cutout), alpha=True).tobytes() == cutout.tobytes()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not an image"),
        (b"<svg/>", "not an image"),
        (encoded(CLEAN)[:-20], "damaged"),
        (encoded(Image.new("1", (8000, 8000))), "8000x8000 is more than 16000000 pixels"),
    ],
    ids=["nothing", "svg", "cut", "bomb"],
)
def test_what_the_reader_refuses_is_refused(data, said):
    with pytest.raises(DataError, match=said) as caught:
        decode_untrusted(data, "upload\n.png")
    assert "\n" not in str(caught.value)


def test_a_file_of_too_many_bytes_is_not_even_sent(monkeypatch):
    monkeypatch.setattr(untrusted, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="send a smaller file"):
        decode_untrusted(bytes(11))


HOSTILE = """
import sys
sys.path += sys.argv.pop(1).splitlines()
from unpacking.job import forbid, set_limits
import pixels.job
def taken_over(data, most, alpha):
    {body}
pixels.job._decode = taken_over
pixels.job.decode_standard_input(set_limits, forbid)
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("while True: pass", "could not be decoded in 2 s"),
        ("return bytearray(2 << 30)", "ended with status"),
        ("open('/etc/passwd')", "ended with status 97"),
        ("import socket; socket.socket()", "ended with status"),
        ("import os; os.kill(os.getpid(), 11)", "ended with status"),
        ("return {'mode': 'RGB', 'size': [9, 9]}, bytes(3)", "gave no image"),
        ("return {'mode': 'RGB', 'size': [9000000, 9]}, bytes(3)", "gave no image"),
        ("return {'mode': 'RGB', 'size': [-1, -1]}, bytes(3)", "gave no image"),
        ("return {'mode': 'I', 'size': [1, 1]}, bytes(4)", "gave no image"),
        ("return [1], b''", "gave no image"),
        ("return {}, bytes(70 << 20)", "ended with status"),
    ],
)
def test_a_child_that_was_taken_over_is_survived(monkeypatch, body, said):
    monkeypatch.setattr(untrusted, "CHILD", HOSTILE.format(body=body))
    with pytest.raises(DataError, match=said):
        decode_untrusted(encoded(CLEAN), seconds=2.0 if "while" in body else 30.0)


def test_the_child_has_limits_of_its_own():
    """So it ends even when the parent is gone."""
    names = ("CPU", "AS", "NOFILE", "NPROC")
    body = f"import resource; print(*(resource.getrlimit(getattr(resource, 'RLIMIT_' + k))[0] for k in {names}))"
    folders = [Path(untrusted.reader.__file__).parent, Path(untrusted.__file__).parent]
    program = HOSTILE.format(body=f"{body}; raise SystemExit")
    code = [sys.executable, "-I", "-c", program, "\n".join(map(str, folders)), "100", "flat"]
    said = subprocess.run(code, input=b"x", capture_output=True, check=False).stdout.split()
    assert [int(x) for x in said] == [10, 1 << 30, 0, 0]
