"""What a hole in a picture hides, and what may stand in its place, as pure functions. True in a mask is the hole."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Which tokens a hole hides: those with at least `share` of their pixels in it (0: any pixel, 1: all of them), then
    every cell within `dilate` steps of one, diagonals too. A convolutional tokenizer likes dilate=1."""

    share: float = 0.0
    dilate: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.dilate < 0:
            raise ConfigError(
                f"cells: share {self.share} must lie in [0, 1] (0 any pixel, 1 all), dilate {self.dilate} be at least 0"
            )


ANY = Cells()


def mask_tokens(hole: Bool[Tensor, "b h w"], grid: tuple[int, int], cells: Cells = ANY) -> Bool[Tensor, "b l"]:
    """The tokens to draw anew; ConfigError where the cells do not divide the picture, or a hole would hide none."""
    (num, height, width), (rows, columns) = hole.shape, grid
    if height % rows or width % columns:
        raise ConfigError(f"{height}x{width} pixels are no whole multiple of {rows}x{columns} tokens: resize or crop")
    area = height * width // (rows * columns)
    count = hole.reshape(num, rows, height // rows, columns, width // columns).sum((2, 4))
    masked = count >= max(1, math.ceil(cells.share * area - 1e-9))
    reach = min(cells.dilate, max(grid))
    masked = F.max_pool2d(masked[:, None].float(), 2 * reach + 1, 1, reach)[:, 0].flatten(1) > 0
    lost = hole.flatten(1).any(1) & ~masked.any(1)
    if lost.any():
        first = int(lost.nonzero()[0])
        raise ConfigError(
            f"the hole of image {first} has {int(hole[first].sum())} pixels, but share={cells.share} of no cell "
            f"({area} pixels): lower the share; 0 takes any pixel"
        )
    return masked


def fill_smoothly(images: Float[Tensor, "b c h w"], hole: Bool[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
    """The holes filled smoothly from what is visible (push-pull, Gortler et al. 1996), grey 0 where nothing is."""
    hidden = hole[:, None]
    sums, weights = [torch.where(hidden, 0.0, images)], [(~hidden).to(images)]
    while max(sums[-1].shape[2:]) > 1:
        for level in (sums, weights):
            level.append(F.avg_pool2d(level[-1], 2, ceil_mode=True, count_include_pad=False))
    fill = sums[-1] / weights[-1].clamp(min=torch.finfo(images.dtype).tiny)
    for total, weight in zip(sums[-2::-1], weights[-2::-1], strict=True):
        fill = total + (1 - weight) * F.interpolate(fill, total.shape[2:], mode="bilinear")
    return torch.where(hidden, fill.clamp(-1, 1), images)


def paste(
    images: Float[Tensor, "b c h w"], filled: Float[Tensor, "b v c h w"], hole: Bool[Tensor, "b h w"], feather: int = 0
) -> Float[Tensor, "b v c h w"]:
    """The images with their holes filled. Over the outermost `feather` pixels of a hole, the filling grows out of the
    smooth continuation of the surroundings; the rim of the picture is no border."""
    if feather:
        smooth = fill_smoothly(images, hole)[:, None]
        filled = smooth + compute_ramp(hole, feather)[:, None, None] * (filled - smooth)
    return torch.where(hole[:, None, None], filled, images[:, None])


def compute_ramp(hole: Bool[Tensor, "b h w"], feather: int) -> Float[Tensor, "b h w"]:
    """Rises from 0 outside to 1 within a hole: d / (feather + 1) at chessboard distance d from the visible."""
    depth, inside = hole.float(), hole
    for _ in range(feather):
        if not inside.any():
            break
        inside = F.max_pool2d((~inside)[:, None].float(), 3, 1, 1)[:, 0] == 0
        depth = depth + inside
    return depth / (feather + 1)


def make_masks(num: int, height: int, width: int) -> Bool[Tensor, "n h w"]:
    """In turn the right half, the lower half, and the box in the middle of an image, as a mask (True is the hole)."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    box = (y >= height // 4) & (y < height - height // 4) & (x >= width // 4) & (x < width - width // 4)
    kinds = torch.stack([(x >= width // 2).expand(height, width), (y >= height // 2).expand(height, width), box])
    return kinds[torch.arange(num) % len(kinds)]
