"""Mutants of pictures, tar shards and npz files, read as data to train on."""

import io
import random
import tarfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from children import run_items
from corruptions import change_bytes
from PIL import Image
from tallies import Campaign, Result, lose, survive
from works import Work

from unmask.data.image_files import Unreadable, try_image
from unmask.data.masks import read_mask, read_photo
from unmask.data.sources.choice import Arrays, Shards
from unmask.errors import UnmaskError

CHANGES = ("flip", "flip", "flip", "zeros", "cut", "longer", "digit")
SHAPES = ((17, 23), (1, 1), (64, 48))


@cache
def draw_pictures() -> dict[str, bytes]:
    """Return sound pictures of every format, mode and option that Pillow writes here."""
    rand = np.random.default_rng(0)
    found = {}
    for width, height in SHAPES:
        colours = Image.fromarray(rand.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
        forms = {
            "PNG": [(mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
            "JPEG": [("L", {}), ("RGB", {}), ("RGB", {"progressive": True}), ("CMYK", {}), ("RGB", {"quality": 5})],
            "WEBP": [("RGB", {}), ("RGBA", {"lossless": True})],
            "BMP": [("1", {}), ("L", {}), ("P", {}), ("RGB", {})],
            "GIF": [("P", {}), ("L", {})],
            "TIFF": [("L", {}), ("RGB", {}), ("RGB", {"compression": "tiff_lzw"}), ("F", {}), ("I;16", {}),
                     ("1", {"compression": "group4"}), ("RGB", {"compression": "tiff_adobe_deflate"})],
        }  # fmt: skip
        for name, modes in forms.items():
            for mode, options in modes:
                file = io.BytesIO()
                grey = colours.convert("L")
                image = grey.convert("I").convert(mode) if mode == "I;16" else colours.convert("RGB").convert(mode) \
                    if mode not in ("RGBA", "LA") else colours.convert(mode)  # fmt: skip
                image.save(file, name, **options)
                found[f"{name} {mode} {width}x{height} {options}"] = file.getvalue()
    return found


def change_often(data: bytes, dice: random.Random) -> tuple[bytes, str]:
    """Return the bytes with one to five changes, more of them near the start, where the headers are."""
    said = []
    for _ in range(dice.randint(1, 5)):
        if not data:
            break
        head = min(len(data), 64)
        if dice.random() < 0.4:
            first, what = change_bytes(data[:head], dice.choice(("flip", "digit")), dice)
            data = first + data[head:]
        elif dice.random() < 0.2:
            start, length = dice.randrange(len(data)), dice.randrange(1, 65)
            at = dice.randrange(len(data))
            data, what = data[:at] + data[start : start + length] + data[at:], f"{length} bytes of {start} put at {at}"
        else:
            data, what = change_bytes(data, dice.choice(CHANGES), dice)
        said.append(what)
    return data, ", ".join(said)


def attack_pictures(work: Work, count: int, seed: int) -> Iterator[Result]:
    """Read mutants of pictures as training pictures, photos to edit, and masks."""
    folder, sound = work.lay_out(()), draw_pictures()
    names = sorted(sound)

    def attempt(index: int) -> Result:
        dice = random.Random(f"{seed}-pictures-{index}")
        name = dice.choice(names)
        data, what = change_often(sound[name], dice)
        path = folder / "x.picture"
        path.write_bytes(data)
        try:
            return _read_picture(path, index)
        except UnmaskError as error:
            line = str(error)
            return survive("refused") if line.isprintable() else lose("not one line", f"{name}: {what}: {line[:200]!r}")

    yield from run_items(attempt, count, folder)
    work.remove(folder)


def _read_picture(path: Path, index: int) -> Result:
    if index % 10 == 8:
        read_photo(path)
    elif index % 10 == 9:
        read_mask(path, (23, 17))
    else:
        found = try_image(path, (16, 16), 3)
        if isinstance(found, Unreadable):
            return survive("refused")
        if tuple(found.shape) != (3, 16, 16):
            return lose("other shape", f"attempt {index}: {tuple(found.shape)}")
    return survive("read")


def make_shard() -> bytes:
    """Return a sound tar shard of pictures with classes."""
    file, pictures = io.BytesIO(), [draw_pictures()[name] for name in sorted(draw_pictures()) if "PNG RGB " in name]
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(12):
            parts = {"png": pictures[number % len(pictures)], "cls": str(number % 2).encode()}
            for suffix, data in parts.items():
                entry = tarfile.TarInfo(f"{number:04d}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def make_arrays(compressed: bool = False) -> bytes:
    """Return a sound npz file of pictures with classes."""
    file, rand = io.BytesIO(), np.random.default_rng(0)
    write = np.savez_compressed if compressed else np.savez
    write(file, images=rand.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), labels=np.arange(20) % 2)
    return file.getvalue()


def attack_sets(name: str, sounds: Callable[[], list[bytes]], load: Callable[[Path], object], suffix: str):
    """Read mutants of a file that holds a set of pictures, and all pictures in it."""

    def attack(work: Work, count: int, seed: int) -> Iterator[Result]:
        folder, bodies = work.lay_out(()), sounds()
        (folder / "inside").mkdir()

        def attempt(index: int) -> Result:
            dice = random.Random(f"{seed}-{name}-{index}")
            data, what = change_often(dice.choice(bodies), dice)
            path = folder / "inside" / f"x{suffix}"
            path.write_bytes(data)
            try:
                load(path)
                result = survive("read")
            except UnmaskError as error:
                line = str(error)
                result = survive("refused") if line.isprintable() else lose("not one line", f"{what}: {line[:200]!r}")
            left = [p.name for p in folder.rglob("*") if p.name not in ("inside", path.name)]
            return lose("wrote elsewhere", f"{what}: {left[:3]}") if left else result

        yield from run_items(attempt, count, folder)
        work.remove(folder)

    return attack


def load_shard(path: Path) -> None:
    _read_split(Shards(path=str(path), size=8))


def load_arrays(path: Path) -> None:
    _read_split(Arrays(path=str(path)))


def _read_split(source: Shards | Arrays) -> None:
    split = source.load()
    for part in (split.train, split.test):
        if len(part):
            part.read_float(torch.arange(len(part)))


CAMPAIGNS = [
    Campaign("hostile-pictures", "mutants of PNG, JPEG, WebP, BMP, GIF and TIFF, as pictures, photos and masks", 20_000,
             attack_pictures, 50),
    Campaign("hostile-tar", "mutants of tar shards", 1000,
             attack_sets("tar", lambda: [make_shard()], load_shard, ".tar"), 10),
    Campaign("hostile-npz", "mutants of npz files", 1000,
             attack_sets("npz", lambda: [make_arrays(), make_arrays(True)], load_arrays, ".npz"), 10),
]  # fmt: skip
