"""Images as the training set of a tokenizer: random crops and mirror images, as pure functions of uniform noise."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from unmask.data.pictures import Pictures
from unmask.errors import ConfigError


def crop(
    pixels: UInt8[Tensor, "b c h w"], size: tuple[int, int], top: Int[Tensor, "b"], left: Int[Tensor, "b"]
) -> UInt8[Tensor, "b c _ _"]:
    """Cut a window of `size` from each image, at the row `top` and column `left` of that image."""
    rows = top[:, None] + torch.arange(size[0], device=pixels.device)
    columns = left[:, None] + torch.arange(size[1], device=pixels.device)
    which = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    # Separated advanced indices put their axes first: b h w c.
    return pixels[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Float images of `size`: random crops, mirrored half the time; without noise, the centre, not mirrored."""

    pictures: Pictures
    """The images, at least as large as `size`."""
    size: tuple[int, int]
    """Height and width of the crops, in pixels."""
    flip: bool = True
    """Mirror half of the crops."""

    def __post_init__(self) -> None:
        _, height, width = self.pictures.shape
        if height < self.size[0] or width < self.size[1]:
            raise ConfigError(
                f"the images are {height}x{width}, smaller than {self.size[0]}x{self.size[1]}: raise --data.size"
            )

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def dim(self) -> int:
        """Numbers in an image of `size`."""
        return self.pictures.shape[0] * self.size[0] * self.size[1]

    def read_rows(
        self, index: Int[Tensor, "b"], device: torch.device, u: Float[Tensor, "b"] | None = None
    ) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"] | None]:
        """Read the chosen images in [-1, 1], to `device`; the digits of `u` in [0, 1) choose mirror, row and column."""
        pixels = self.pictures.read(index).to(device)
        room = (pixels.shape[2] - self.size[0], pixels.shape[3] - self.size[1])
        if u is not None:
            mirror, u = _take_digit(u.double(), 2)
            top, u = _take_digit(u, room[0] + 1)
            left, u = _take_digit(u, room[1] + 1)
            if max(room):
                pixels = crop(pixels, self.size, top.to(device), left.to(device))
            if self.flip:
                pixels = torch.where((mirror == 1).to(device)[:, None, None, None], pixels.flip(3), pixels)
        else:
            pixels = self._cut_centre(pixels)
        labels = self.pictures.labels
        return pixels.float() / 127.5 - 1, None if labels is None else labels[index].to(device)

    def read_good(
        self, index: Int[Tensor, "b"], device: torch.device
    ) -> tuple[Float[Tensor, "g c h w"], Int[Tensor, "g"]]:
        """Read the readable ones of the chosen images, without noise, and their positions in `index`."""
        pixels, places, _ = self.pictures.try_read(index)
        return self._cut_centre(pixels.to(device)).float() / 127.5 - 1, places

    def _cut_centre(self, pixels: UInt8[Tensor, "b c _ _"]) -> UInt8[Tensor, "b c h w"]:
        top, left = ((there - here) // 2 for there, here in zip(pixels.shape[2:], self.size, strict=True))
        return pixels[:, :, top : top + self.size[0], left : left + self.size[1]]


def _take_digit(u: Float[Tensor, "b"], base: int) -> tuple[Int[Tensor, "b"], Float[Tensor, "b"]]:
    """Split u into its leading digit in that base, and the rest, which is uniform again."""
    digit = (u * base).long().clamp(max=base - 1)
    return digit, u * base - digit
