"""Unmasking orders: a priority `(logits, sample, *, masked, t, rand) -> score` per position; the highest go first.

`Confidence` looks at the sampled token (sample, then choose). All others look only at the distribution or the position
(choose, then sample), so the choice cannot favour likely tokens and does not sharpen the samples. Those that look at
the position alone say `needs_logits = False`: a model then answers only the places that are revealed.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from jaxtyping import Bool, Float, Int

from unmask.errors import FACTORS, SIDES, check_ranges
from unmask.lazy import Tensor, torch
from unmask.method.rand import Rand

Logits = Float[Tensor, "b l k"]
Canvas = Int[Tensor, "b l"]
Mask = Bool[Tensor, "b l"]
PriorityScore = Float[Tensor, "b l"]


@dataclass(frozen=True)
class Confidence:
    """log p(sampled token) + noise (1 - t) Gumbel: MaskGIT's order (arXiv 2202.04200, appendix; parallel_decode.py).

    Gumbel noise on the *log* probability draws positions without replacement in proportion to p^(1 / (noise (1 - t))).
    """

    noise: float = 4.5
    """MaskGIT's "choice temperature" (official value 4.5), at least 0. It falls to exactly 0 at the last step."""

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"Confidence(noise={self.noise}): must be a finite number >= 0; 0 is deterministic")
        check_ranges(self, {"noise": FACTORS})

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        log_p = logits.gather(-1, sample[..., None])[..., 0] - logits.logsumexp(-1)
        if self.noise == 0 or t == 1:
            return log_p
        gumbel = -torch.log(-torch.log(rand("order", sample.shape[1])))
        return log_p + self.noise * (1 - t) * gumbel


@dataclass(frozen=True)
class MaxLogit:
    """The largest raw logit, not normalised across positions: nanoMaskGIT's rule. `Margin` is sounder."""

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        return logits.amax(-1)


@dataclass(frozen=True)
class Margin:
    """Probability of the likeliest token minus the second highest (Kim et al., arXiv 2502.06768, section 4)."""

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        return compute_margin(logits)


def compute_margin(logits: Logits) -> PriorityScore:
    """Return the probability of the likeliest token minus that of the second."""
    best = logits.softmax(-1).topk(min(2, logits.shape[-1]), dim=-1).values
    return best[..., 0] - best[..., 1:].sum(-1)


@dataclass(frozen=True)
class Entropy:
    """Minus the entropy of the predicted distribution in nats: the most certain position first."""

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        return compute_negative_entropy(logits)


def compute_negative_entropy(logits: Logits) -> PriorityScore:
    """Return sum_v p log p in nats, at most 0."""
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * log_p.clamp(min=-1e30)).sum(-1)  # the clamp keeps 0 * -inf from becoming NaN


@dataclass(frozen=True)
class Random:
    """Uniformly random order, independent in each step: the order of masked diffusion, without its random counts."""

    needs_logits: ClassVar[bool] = False

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        return rand("order", sample.shape[1])


@dataclass(frozen=True)
class Raster:
    """Left to right, top to bottom, like an autoregressive model."""

    needs_logits: ClassVar[bool] = False

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        return -torch.arange(sample.shape[1], device=sample.device).float().expand(sample.shape)


@dataclass(frozen=True)
class Halton:
    """The Halton sequence over the grid, so that tokens revealed together lie far apart (arXiv 2503.17076, section 4).

    It covers every cell of any grid of one to three axes. Differs from the published code, which cuts the sequence at
    10,000 points and leaves 6 cells of a 64 x 64 grid masked.
    """

    grid: tuple[int, ...]
    """Shape of the canvas: one to three axes."""
    needs_logits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (1 <= len(self.grid) <= 3 and min(self.grid) >= 1):
            raise ValueError(f"Halton(grid={self.grid}): must have one to three axes of at least one cell")
        check_ranges(self, {"grid": SIDES})

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        order = compute_halton_order(self.grid)
        if len(order) != sample.shape[1]:
            raise ValueError(f"Halton(grid={self.grid}) has {len(order)} cells, but the canvas has {sample.shape[1]}")
        return -order.argsort().to(sample.device).float().expand(sample.shape)


@lru_cache(maxsize=32)
def compute_halton_order(grid: tuple[int, ...]) -> Int[Tensor, "l"]:
    """Return the flat cell indices in the order in which the Halton points 1, 2, ... (bases 2, 3, 5) first hit them."""
    cells = torch.Size(grid).numel()
    points = 4 * cells + 16
    while True:
        flat = torch.zeros(points, dtype=torch.int64)
        for base, size in zip((2, 3, 5), grid, strict=False):
            flat = flat * size + (_invert_radix(base, points) * size).long().clamp(max=size - 1)
        cell, where = flat.unique(return_inverse=True)
        if len(cell) == cells:
            first = torch.full((cells,), points).scatter_reduce(0, where, torch.arange(points), "amin")
            return first.argsort()
        points *= 2


def _invert_radix(base: int, points: int) -> Float[Tensor, "points"]:
    """Return 1..points with their digits in `base` mirrored at the radix point (van der Corput), in float64."""
    k = torch.arange(1, points + 1)
    value, weight = torch.zeros(points, dtype=torch.float64), 1.0
    while bool((k > 0).any()):
        weight /= base
        value += weight * (k % base)
        k = k // base
    return value
