"""Images in memory, and their conversion from arrays."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from unmask.data.identity import hash_pixels
from unmask.data.image_files import Unreadable
from unmask.errors import DataError
from unmask.lazy import F, Tensor, torch

MAX_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class Images:
    """Equal-sized 8-bit images with optional class ids."""

    pixels: UInt8[Tensor, "n c h w"]
    """All pixels."""
    labels: Int[Tensor, " n"] | None
    """The class id of each image, or None."""
    classes: tuple[str, ...] = ()
    """The names of the classes; () without labels."""
    keys: UInt8[np.ndarray, "n 16"] | None = None
    """The keys of the files that the images were read from (`unmask.data.identity`)."""
    whole_keys: UInt8[np.ndarray, "n 16"] | None = None
    """The same over all bytes of the files."""

    def __post_init__(self):
        if self.pixels.ndim != 4 or self.pixels.dtype != torch.uint8:
            raise DataError(f"pixels are {self.pixels.dtype} {tuple(self.pixels.shape)}, not uint8 (n, c, h, w)")
        check_labels(self.labels, self.classes, len(self.pixels))

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of each image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def read(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """Return the chosen images."""
        return self.pixels[index]

    def try_read(
        self, index: Int[Tensor, " b"]
    ) -> tuple[UInt8[Tensor, "g c h w"], Int[Tensor, " g"], list[Unreadable]]:
        """Like `Pictures.try_read`; images in memory are always good."""
        return self.pixels[index], torch.arange(len(index)), []

    def read_float(self, index: Int[Tensor, " b"] | slice) -> Float[Tensor, "b c h w"]:
        """Return the chosen images, with 0..255 mapped to [-1, 1]."""
        return self.pixels[index].float() / 127.5 - 1

    def take(self, index: Int[Tensor, " b"]) -> "Images":
        """Return the chosen images with their labels."""
        labels = None if self.labels is None else self.labels[index]
        keys, whole = (None if keys is None else keys[index.numpy()] for keys in (self.keys, self.whole_keys))
        return Images(pixels=self.pixels[index], labels=labels, classes=self.classes, keys=keys, whole_keys=whole)

    def compute_keys(self) -> UInt8[np.ndarray, "n 16"]:
        """Return the key of each image: of the file it was read from, else of its pixels."""
        return hash_pixels(self.pixels) if self.keys is None else self.keys

    def compute_whole_keys(self) -> UInt8[np.ndarray, "n 16"]:
        """Return a hash of all bytes of each image; they are in memory, so this is cheap."""
        return self.compute_keys() if self.whole_keys is None else self.whole_keys


def check_labels(labels: Int[Tensor, " n"] | None, classes: tuple[str, ...], count: int) -> None:
    """Raise DataError unless all `count` images have an int64 label with a class, or there are no labels at all."""
    if labels is None:
        if classes:
            raise DataError(f"{len(classes)} class names but no labels: give both or neither")
        return
    if labels.shape != (count,) or labels.dtype != torch.int64:
        seen = f"{labels.dtype} {tuple(labels.shape)}"
        raise DataError(f"labels are {seen}, not int64 ({count},): one for each picture")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        span = f"{int(labels.min())}..{int(labels.max())}"
        raise DataError(f"labels span {span} but there are {len(classes)} classes: number them from 0")


def name_classes(labels: np.ndarray) -> tuple[str, ...]:
    """Name classes by their ids: "0", "1" and so on."""
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
    """Convert uint8 (n, h, w) or (n, h, w, c) to Images.

    Args:
        classes: the names of the labels; by default "0", "1" and so on.
        size: (h, w) to resize to, by area averaging.
        binary: after that, make 0..127 black and the rest white.

    Raises:
        DataError: another type or shape.
    """
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise DataError(f"images are {array.dtype} {array.shape}, not uint8 (n, h, w) or (n, h, w, c) with c 1 or 3")
    if 0 in array.shape:
        raise DataError(f"images are {array.shape}: no pixels at all")
    if labels is not None and (labels.shape != array.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        seen = f"labels are {labels.dtype} {labels.shape}"
        if labels.shape != array.shape[:1]:
            raise DataError(f"{seen} for {len(array)} images: give one for each")
        raise DataError(f"{seen}, not whole numbers: store them with labels.astype(int)")
    if labels is not None and not classes:
        classes = name_classes(labels)
    pixels = torch.tensor(array).reshape(*array.shape[:3], -1).permute(0, 3, 1, 2)
    if size is not None and size != pixels.shape[2:]:
        pixels = F.interpolate(pixels.float(), size, mode="area").round().to(torch.uint8)
    if binary:
        pixels = (pixels > 127).to(torch.uint8) * 255
    ids = None if labels is None else torch.tensor(labels.astype(np.int64))
    return Images(pixels=pixels.contiguous(), labels=ids, classes=classes)
