"""Metrics of a tokenizer's reconstructions, and how much of the codebook is in use.

They are the peak signal-to-noise ratio (PSNR) and the structural similarity (SSIM, Wang et al. 2004,
doi:10.1109/TIP.2003.819861).
"""

import math

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from unmask.errors import ConfigError, DataError
from unmask.method.rand import to_double

WINDOW = 11  # pixels; window, sigma, K1 and K2 as in the paper
SIGMA = 1.5
K1, K2 = 0.01, 0.03


def compute_psnr(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float64[Tensor, "b"]:
    """Compute 10 log10(peak^2 / mean squared error) in dB of each pair, clamped to [-1, 1]; inf for equal images."""
    a, b = _scale_to_unit(a, b)
    return -10 * (a - b).square().mean(dim=(1, 2, 3)).log10()  # the peak is 1


def compute_ssim(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float64[Tensor, "b"]:
    """Compute the structural similarity of each pair, clamped to [-1, 1]: eq. 13 of the paper, 1 for equal images.

    It is the mean over channels and over every position where the whole window fits. Tools that pad the border give
    slightly different values. The formula depends on an offset, so it is applied to intensities in 0..1, not -1..1.
    """
    if min(a.shape[2:]) < WINDOW:
        height, width = a.shape[2:]
        raise ConfigError(f"SSIM needs images of {WINDOW}x{WINDOW} pixels or larger, got {height}x{width}; use PSNR")
    a, b = _scale_to_unit(a, b)
    mean_a, mean_b = _blur(a), _blur(b)
    spread_a, spread_b = _blur(a * a) - mean_a * mean_a, _blur(b * b) - mean_b * mean_b
    shared = _blur(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2  # the range is 1
    light = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    structure = (2 * shared + c2) / (spread_a + spread_b + c2)
    return (light * structure).mean(dim=(1, 2, 3))


def compute_code_statistics(counts: Int[Tensor, "k"]) -> dict[str, float]:
    """Compute codebook statistics from how often each token occurs.

    Returns:
        `usage`: share of the codebook that occurs. `bits_per_token`: entropy of a single token. `perplexity`: 2 to that
        power, the size of an evenly used codebook with the same entropy.
    """
    total = counts.sum()
    if total < 1 or counts.amin() < 0:
        raise DataError(f"{len(counts)} counts with sum {int(total)} are no token counts; count at least one token")
    share = to_double(counts) / total
    entropy = -torch.xlogy(share, share).sum()
    return {
        "usage": (counts > 0).double().mean().item(),
        "perplexity": entropy.exp().item(),
        "bits_per_token": (entropy / math.log(2)).item(),
    }


def _scale_to_unit(
    a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]
) -> tuple[Float64[Tensor, "b c h w"], Float64[Tensor, "b c h w"]]:
    """Scale both to 0..1. Unequal shapes raise ConfigError, since they would broadcast silently."""
    if a.shape != b.shape:
        raise ConfigError(f"images are {tuple(a.shape)} and {tuple(b.shape)}; compare pairs of one shape")
    return to_double(a).clamp(-1, 1) / 2 + 0.5, to_double(b).clamp(-1, 1) / 2 + 0.5


def _blur(images: Float64[Tensor, "b c h w"]) -> Float64[Tensor, "b c y x"]:
    """Return means under the Gaussian window, wherever the whole window fits."""
    height, width = images.shape[2:]
    return _build_band(height, images) @ images @ _build_band(width, images).T


def _build_band(size: int, like: Float64[Tensor, "..."]) -> Float64[Tensor, "p s"]:
    """Build a matrix with the window at each position, one per row. The product is 3 to 9 times faster than a
    convolution.
    """
    place = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    weight = torch.exp(-place.square() / (2 * SIGMA**2))
    band = like.new_zeros(size - WINDOW + 1, size)
    for offset, value in enumerate(weight / weight.sum()):
        band.diagonal(offset)[: len(band)] = value
    return band
