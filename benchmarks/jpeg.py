"""Measure the two checks of JPEGs: what they cost, and which damage they find.

    python benchmarks/jpeg.py FOLDER > docs/results/benchmarks/jpeg.txt

FOLDER holds photos; they are shrunk to 512 pixels and saved by Pillow as baseline and progressive. Times are CPU
seconds. A file is visibly damaged if more than 2 % of its pixels change by more than 8 of 255, as Pillow decodes it.
"""

import argparse
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, features

from unmask.data.pixels import BadImage
from unmask.data.pixels.jpeg import check_jpeg, check_warnings
from unmask.runtime.provenance import describe_processor, find_commit

KINDS = {"baseline": {"quality": 80}, "progressive": {"quality": 80, "progressive": True}}
PAGE = 4096
CHECKS = {"libjpeg": check_warnings, "every code": check_jpeg}


def main() -> None:
    """Print a table of costs and one of what is found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--flips", type=int, default=60, help="of a bit, and of a byte, for each file")
    arguments = parser.parse_args()
    photos = [Image.open(path).convert("RGB") for path in sorted(arguments.folder.glob("*.jpg"))]
    for photo in photos:
        photo.thumbnail((512, 512))
    print(f"{describe_processor()}, commit {find_commit()}, libjpeg-turbo of Pillow {features.version('jpg')}")
    files = {kind: [encode(photo, **options) for photo in photos] for kind, options in KINDS.items()}
    for kind, every in files.items():
        size = sum(map(len, every)) / 1e6
        ways = {"Pillow decodes": decode, **{f"checked: {name}": check for name, check in CHECKS.items()}}
        for name, way in ways.items():
            print(f"{kind:12s} {len(every)} files, {size:.2f} MB; {name:20s} {measure(way, every) / size:6.3f} s a MB")
    print("\ndamage       where         files                  libjpeg finds          following every code finds")
    rng = np.random.default_rng(0)
    for kind, every in files.items():
        counts: dict[str, Counter[str]] = {}
        for data in every:
            right = decode(data)
            for what, damaged in damage(data, arguments.flips, rng):
                count_found(damaged, right, counts.setdefault(what, Counter()))
        for what, found in counts.items():
            shown = "".join(
                f"{found[name]:6d} ({found['visible ' + name]:4d} visible)" for name in ("all", "libjpeg", "every code")
            )
            print(f"{kind:12s} {what:10s} {shown}; {found['missed']} visible ones only by following every code")


def encode(photo: Image.Image, **options) -> bytes:
    """Return a JPEG."""
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """Return the pixels that Pillow sees."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int16)


def measure(way: Callable[[bytes], object], files: list[bytes]) -> float:
    """Return the CPU seconds for all files, the least of three times."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        for data in files:
            way(data)
        taken.append(time.process_time() - start)
    return min(taken)


def damage(data: bytes, flips: int, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield damaged files, each with the kind of damage."""
    begin = data.index(b"\xff\xda")
    begin += 2 + int.from_bytes(data[begin + 2 : begin + 4], "big")
    for i in range(2 * flips):
        at, changed = int(rng.integers(begin, len(data) - 2)), bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8)) if i % 2 else int(rng.integers(1, 256))
        yield ("a bit" if i % 2 else "a byte"), bytes(changed)
    for _ in range(flips // 4):
        yield "cut", data[: int(rng.integers(begin, len(data) - 2))].removesuffix(b"\xff") + b"\xff\xd9"
    for at in range(PAGE, len(data) - 2, PAGE):
        end = min(at + PAGE, len(data) - 2)
        yield "zero page", data[:at] + bytes(end - at) + data[end:]


def count_found(damaged: bytes, right: np.ndarray, found: Counter[str]) -> None:
    """Count a damaged file, and by which check it is found; one that Pillow refuses itself is left out."""
    try:
        pixels = decode(damaged)
    except (OSError, ValueError, SyntaxError):
        return
    visible = pixels.shape != right.shape or (np.abs(pixels - right).max(-1) > 8).mean() > 0.02
    names = ["all"]
    for name, check in CHECKS.items():
        try:
            check(damaged)
        except BadImage:
            names.append(name)
    for name in names:
        found.update([name, f"visible {name}"] if visible else [name])
    found["missed"] += visible and names[1:] == ["every code"]


if __name__ == "__main__":
    main()
