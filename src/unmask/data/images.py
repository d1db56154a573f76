"""Pictures in memory, and the one place where foreign image bytes are read. A file is used whole and converted right,
or refused with a reason; nothing is guessed, patched up or left out in silence."""

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from unmask.errors import DataError

MAX_PIXELS = 64_000_000
MAX_CLASSES = 100_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # EPS and its kin start other programs: never

# What Pillow's parsers raise on damaged bytes, as tried by fuzzing.
DAMAGE = (
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

# EXIF orientation -> what brings the picture upright (CIPA DC-008, tag 0x0112).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) as work goes on."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Equal-sized 8-bit pictures with optional class ids; `classes` names the ids and is () without labels."""

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"] | None
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.pixels.ndim != 4 or self.pixels.dtype != torch.uint8:
            raise DataError(f"pixels are {self.pixels.dtype} {tuple(self.pixels.shape)}, not uint8 (n, c, h, w)")
        if self.labels is None:
            if self.classes:
                raise DataError(f"{len(self.classes)} class names but no labels: give both or neither")
            return
        if self.labels.shape != self.pixels.shape[:1] or self.labels.dtype != torch.int64:
            seen = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise DataError(f"labels are {seen}, not int64 ({len(self.pixels)},): one for each picture")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            span = f"{int(self.labels.min())}..{int(self.labels.max())}"
            raise DataError(f"labels span {span} but there are {len(self.classes)} classes: number them from 0")

    def __len__(self) -> int:
        return len(self.pixels)

    def as_float(self, index: Int[Tensor, " b"] | slice) -> Float[Tensor, "b c h w"]:
        """The chosen pictures, 0..255 spread over [-1, 1]."""
        return self.pixels[index].float() / 127.5 - 1

    def take(self, index: Int[Tensor, " b"]) -> "Images":
        """The chosen pictures with their labels."""
        labels = None if self.labels is None else self.labels[index]
        return Images(pixels=self.pixels[index], labels=labels, classes=self.classes)


@dataclass(frozen=True)
class Bad:
    """A file that was not used, and why; as text it is one line whatever bytes the name holds."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{one_line(self.path)}: {one_line(self.reason)}"


def one_line(text: str) -> str:
    """Escape what would break a line or a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def read_image(path: str | Path, size: tuple[int, int], channels: int) -> UInt8[Tensor, "c h w"]:
    """One picture, upright, alpha over white, shrunk to cover `size` (h, w) and centre-cropped; else DataError."""
    result = try_image(path, size, channels)
    if isinstance(result, Bad):
        raise DataError(str(result))
    return result


def try_image(path: str | Path, size: tuple[int, int], channels: int) -> UInt8[Tensor, "c h w"] | Bad:
    """As `read_image`, but a refused file is returned as Bad."""
    if channels not in (1, 3) or min(size) < 1:
        raise ValueError(f"channels {channels}, size {size}: channels must be 1 or 3, and size at least 1x1")
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait for ever
            return Bad(str(path), "not a regular file")
        if facts.st_size == 0:
            return Bad(str(path), "empty file (0 bytes)")
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to refuse sound pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = decode_image(file)
    except DataError as error:
        return Bad(str(path), str(error))
    except UnidentifiedImageError:
        return Bad(str(path), f"not a readable image ({', '.join(FORMATS)})")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Bad(str(path), f"more than {MAX_PIXELS} pixels: shrink it first")
    except DAMAGE as error:
        known = error.strerror if isinstance(error, OSError) and error.strerror else None
        return Bad(str(path), known or f"damaged ({str(error) or type(error).__name__})")
    fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), size[::-1], Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).reshape(*size, channels).permute(2, 0, 1).contiguous()


def decode_image(file: BinaryIO) -> Image.Image:
    """All pixels of a still picture, upright, in mode RGB or L; DataError holds the reason, without the path."""
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{width}x{height} is more than {MAX_PIXELS} pixels: shrink it first")
    # MPO is what phones call a JPEG with a depth or gain map behind the photo: not animated.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(f"animated or many-paged ({frames} frames): export the one you want")
    if image.format == "PNG":
        image.verify()  # every chunk to the end of the file: decoding alone takes a PNG that was cut after its pixels
        file.seek(0)
        image = Image.open(file, formats=FORMATS)
    image.load()
    # Asked after load(): there TIFF turns itself, and PNG may learn its orientation only at the end of the file.
    turn = UPRIGHT.get(image.getexif().get(0x0112, 1))
    flat = flatten(image)
    return flat if turn is None else flat.transpose(turn)


def flatten(image: Image.Image) -> Image.Image:
    """Any pixel mode to 8-bit RGB or L, with alpha over white."""
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
    """0..65535 to 0..255 by /257, rounded; Pillow's own conversion saturates at 255 instead."""
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


def list_files(root: Path) -> tuple[list[Path], list[Bad]]:
    """Every visible file below `root`, sorted; links are followed unless they lead to what is read anyway."""
    tops: list[Path] = []
    files, bad, folders = [], [], [root]
    while folders:
        folder = folders.pop()
        if not tops or folder.is_symlink():
            real = Path(os.path.realpath(folder))
            if any(real.is_relative_to(top) or top.is_relative_to(real) for top in tops):
                bad.append(Bad(str(folder), f"link to {real}, a loop or a folder that is read anyway"))
                continue
            tops.append(real)
        try:
            names = sorted((n for n in os.listdir(folder) if not n.startswith(".")), reverse=True)
        except OSError as error:
            bad.append(Bad(str(folder), error.strerror or str(error)))
            continue
        inner = [folder / name for name in names]
        folders += [path for path in inner if os.path.isdir(path)]
        files += [path for path in inner if not os.path.isdir(path)]
    return sorted(files), bad


def read_folder(
    root: str | Path, *, size: tuple[int, int], channels: int, progress: Progress | None = None
) -> tuple[Images, list[Bad]]:
    """All good pictures below `root`, each once and sorted by path, and the files that were not used.

    Sub-folders of `root` are the classes, by sorted name. Without sub-folders there are no labels. Pictures both beside
    and inside sub-folders are all used, without labels, and the bad list says so. DataError if none can be read.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"{one_line(str(root))}: no such folder; give one that holds images")
    files, bad = list_files(root)
    pixels = torch.empty(len(files), channels, *size, dtype=torch.uint8)
    good: dict[str, Path] = {}
    for done, path in enumerate(files, 1):
        real = os.path.realpath(path)
        twin = good.get(real)
        result = try_image(path, size, channels) if twin is None else Bad(str(path), f"the same file as {twin}")
        if isinstance(result, Bad):
            bad.append(result)
        else:
            pixels[len(good)] = result
            good[real] = path
        if progress is not None:
            progress(str(path), done, len(files))
    if not good:
        hint = f"; the first: {bad[0]}" if bad else ""
        raise DataError(f"{one_line(str(root))}: no readable image among {len(files)} files{hint}")
    places = [path.relative_to(root).parts for path in good.values()]
    if all(len(parts) > 1 for parts in places):
        classes = tuple(sorted({parts[0] for parts in places}))
        number = {name: i for i, name in enumerate(classes)}
        labels = torch.tensor([number[parts[0]] for parts in places])
        return Images(pixels=pixels[: len(good)], labels=labels, classes=classes), bad
    if any(len(parts) > 1 for parts in places):
        bad.append(Bad(str(root), "images lie beside the class folders, so no labels were made: move them into one"))
    return Images(pixels=pixels[: len(good)], labels=None), bad


def split(images: Images, held_out: int, seed: int) -> tuple[Images, Images]:
    """(train, held out), shuffled by `seed` alone."""
    if not 0 <= held_out < len(images):
        raise DataError(f"cannot hold out {held_out} of {len(images)} images: lower held_out or add images")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.take(order[held_out:]), images.take(order[:held_out])


def number_names(labels: np.ndarray) -> tuple[str, ...]:
    """Names for class ids that have none: their digits."""
    count = int(labels.max()) + 1 if labels.size else 0
    if count > MAX_CLASSES:
        raise DataError(f"labels reach {count - 1}, but {MAX_CLASSES} classes is the most: number them from 0")
    return tuple(str(i) for i in range(count))


def to_images(
    array: np.ndarray,
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
    *,
    size: tuple[int, int] | None = None,
    binary: bool = False,
) -> Images:
    """uint8 (n, h, w) or (n, h, w, c) as Images, area-averaged to `size`; then `binary` makes 0..127 black, else white.

    Without `classes`, labels are named "0", "1" and so on. DataError for another type or shape.
    """
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise DataError(f"images are {array.dtype} {array.shape}, not uint8 (n, h, w) or (n, h, w, c) with c 1 or 3")
    if 0 in array.shape:
        raise DataError(f"images are {array.shape}: no pixels at all")
    if labels is not None and (labels.shape != array.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise DataError(f"labels are {labels.dtype} {labels.shape}, not whole numbers ({len(array)},)")
    if labels is not None and not classes:
        classes = number_names(labels)
    pixels = torch.tensor(array).reshape(*array.shape[:3], -1).permute(0, 3, 1, 2)
    if size is not None and size != pixels.shape[2:]:
        pixels = F.interpolate(pixels.float(), size, mode="area").round().to(torch.uint8)
    if binary:
        pixels = (pixels > 127).to(torch.uint8) * 255
    ids = None if labels is None else torch.tensor(labels.astype(np.int64))
    return Images(pixels=pixels.contiguous(), labels=ids, classes=classes)
