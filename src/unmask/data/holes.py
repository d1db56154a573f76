"""Masked regions of images: which tokens they hide and what fills them, as pure functions. True is masked."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Which tokens a masked region hides. A convolutional tokenizer works best with dilate=1."""

    share: float = 0.0
    """Hide a token if at least this fraction of its pixels is masked (0: any pixel, 1: all pixels)."""
    dilate: int = 0
    """Hide also every token within this many steps of a hidden one, diagonals included."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.dilate < 0:
            raise ConfigError(
                f"cells: share {self.share} must lie in [0, 1] (0 any pixel, 1 all), dilate {self.dilate} be at least 0"
            )


ANY = Cells()


def mask_tokens(hole: Bool[Tensor, "b h w"], grid: tuple[int, int], cells: Cells = ANY) -> Bool[Tensor, "b l"]:
    """Return the tokens to sample; raise ConfigError if the grid does not divide the image or a mask hides none."""
    (num, height, width), (rows, columns) = hole.shape, grid
    if height % rows or width % columns:
        raise ConfigError(f"{height}x{width} pixels are not a multiple of {rows}x{columns} tokens: resize or crop")
    area = height * width // (rows * columns)
    count = hole.reshape(num, rows, height // rows, columns, width // columns).sum((2, 4))
    masked = count >= max(1, math.ceil(cells.share * area - 1e-9))
    reach = min(cells.dilate, max(grid))
    masked = F.max_pool2d(masked[:, None].float(), 2 * reach + 1, 1, reach)[:, 0].flatten(1) > 0
    lost = hole.flatten(1).any(1) & ~masked.any(1)
    if lost.any():
        first = int(lost.nonzero()[0])
        raise ConfigError(
            f"the mask of image {first} has {int(hole[first].sum())} pixels, but covers share={cells.share} of no "
            f"token ({area} pixels): lower the share; 0 takes any pixel"
        )
    return masked


def fill_smoothly(images: Float[Tensor, "b c h w"], hole: Bool[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
    """Fill masked regions smoothly from visible pixels (push-pull, Gortler et al. 1996); grey 0 if none is visible."""
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
    """Return the images with their masked regions filled.

    Over the outermost `feather` pixels of a region, the fill blends into the smooth continuation of the surroundings.
    The edge of the image does not count as a border of the region.
    """
    if feather:
        smooth = fill_smoothly(images, hole)[:, None]
        filled = smooth + compute_ramp(hole, feather)[:, None, None] * (filled - smooth)
    return torch.where(hole[:, None, None], filled, images[:, None])


def compute_ramp(hole: Bool[Tensor, "b h w"], feather: int) -> Float[Tensor, "b h w"]:
    """Return weights from 0 outside to 1 inside: d / (feather + 1) at chessboard distance d from visible pixels."""
    depth, inside = hole.float(), hole
    for _ in range(feather):
        if not inside.any():
            break
        inside = F.max_pool2d((~inside)[:, None].float(), 3, 1, 1)[:, 0] == 0
        depth = depth + inside
    return depth / (feather + 1)


def make_masks(num: int, height: int, width: int) -> Bool[Tensor, "n h w"]:
    """Make masks (True is masked) of the right half, the lower half and the central box of an image, in rotation."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    box = (y >= height // 4) & (y < height - height // 4) & (x >= width // 4) & (x < width - width // 4)
    kinds = torch.stack([(x >= width // 2).expand(height, width), (y >= height // 2).expand(height, width), box])
    return kinds[torch.arange(num) % len(kinds)]
