"""Who is revealed first: a priority `(logits, sample, *, masked, t, rand) -> score` per position, highest first.

`Confidence` looks at the token that was drawn (sample, then choose). All others look at the distribution or at the
position alone (choose, then sample), so the choice cannot favour likely draws and does not sharpen the samples.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.method.rand import Rand

Logits = Float[Tensor, "b l k"]
Canvas = Int[Tensor, "b l"]
Mask = Bool[Tensor, "b l"]
PriorityScore = Float[Tensor, "b l"]
ROUNDS = 32


@dataclass(frozen=True)
class Confidence:
    """log p(drawn token) + noise (1 - t) Gumbel: MaskGIT's order (arXiv 2202.04200, appendix; parallel_decode.py).

    `noise` is its "choice temperature", 4.5 in the official configuration; it falls to exactly 0 at the last step.
    Gumbel noise on the *log* probability draws positions without replacement in proportion to p^(1 / (noise (1 - t))).
    """

    noise: float = 4.5

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"Confidence(noise={self.noise}): must be a finite number >= 0; 0 is deterministic")

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        log_p = logits.gather(-1, sample[..., None])[..., 0] - logits.logsumexp(-1)
        if self.noise == 0 or t == 1:
            return log_p
        gumbel = -torch.log(-torch.log(rand("order", sample.shape[1])))
        return log_p + self.noise * (1 - t) * gumbel


@dataclass(frozen=True)
class Moment:
    """log sum_v p^beta + Gumbel, beta = 1 + 1 / (noise (1 - t)): `Confidence` without a look at the draw.

    The moment sampler (arXiv 2510.04525): where `Confidence` draws first, and so sharpens what it reveals, this chooses
    positions by the mean of the weights that `Confidence` would give their draws, and then draws at temperature 1/beta
    (`moment_temperatures`). One law in the limit of many masked tokens and few revealed; with few masked they differ.
    """

    noise: float = 4.5

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"Moment(noise={self.noise}): must be a finite number >= 0; 0 is deterministic")

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        log_p, alpha = logits.log_softmax(-1), self.noise * (1 - t)
        if alpha == 0:
            return log_p.amax(-1)
        gumbel = -torch.log(-torch.log(rand("order", sample.shape[1])))
        return alpha * ((log_p * (1 + 1 / alpha)).logsumexp(-1) + gumbel)  # times alpha: finite as it falls to 0


def compute_moment_temperatures(noise: float, steps: int) -> list[float]:
    """1/beta = alpha / (1 + alpha) for each step of `Moment(noise)`, and 1 in the last.

    There everything left is revealed: MaskGIT, whose law this follows, then takes its draws as they are.
    """
    alphas = [noise * (1 - (step + 1) / steps) for step in range(steps - 1)]
    return [alpha / (1 + alpha) for alpha in alphas] + [1.0]


@dataclass(frozen=True)
class MaxLogit:
    """The largest raw logit, not normalised across positions: nanoMaskGIT's rule. `Margin` is the sounder relative."""

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        return logits.amax(-1)


@dataclass(frozen=True)
class Margin:
    """Probability of the likeliest token minus that of the second (Kim et al., arXiv 2502.06768, section 4)."""

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        return _margin(logits)


def _margin(logits: Logits) -> PriorityScore:
    best = logits.softmax(-1).topk(min(2, logits.shape[-1]), dim=-1).values
    return best[..., 0] - best[..., 1:].sum(-1)


@dataclass(frozen=True)
class MarginRepulsion:
    """`Margin`, but no two tokens within `radius` of each other on the grid come together while others are left.

    Greedy by margin among the masked places: each one taken puts off those within Chebyshev distance `radius`, which
    follow by margin after all that were taken. Done by taking all local maxima at once, for 32 rounds and without
    waiting for the device: what is undecided then (on a long slope of margins, as of exact ties) comes between the two.
    """

    radius: int
    grid: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (1 <= len(self.grid) <= 3 and min(self.grid) >= 1 and self.radius >= 0):
            raise ValueError(f"{self}: needs one to three axes of at least one cell, and a radius >= 0")

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        cells = torch.Size(self.grid).numel()
        if cells != sample.shape[1]:
            raise ValueError(f"{self} has {cells} cells, but the canvas has {sample.shape[1]}")
        rank = _margin(logits).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        key = (cells - rank).float()  # distinct and at least 1
        left, taken = masked, torch.zeros_like(masked)
        for _ in range(ROUNDS):
            now = left & (self._widest(key * left) == key)
            taken = taken | now
            left = left & ~(self._widest(now.float()) > 0)
        return key + cells * (2.0 * taken + left)

    def _widest(self, x: PriorityScore) -> PriorityScore:
        """The largest value within the radius of each cell, axis by axis."""
        x = x.view(-1, *self.grid)
        for axis in range(1, x.dim()):
            rows = x.movedim(axis, -1)
            pooled = torch.nn.functional.max_pool1d(rows.flatten(0, -2), 2 * self.radius + 1, 1, self.radius)
            x = pooled.view(rows.shape).movedim(-1, axis)
        return x.flatten(1)


@dataclass(frozen=True)
class Entropy:
    """Minus the entropy of the predicted distribution in nats: the surest position first."""

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        return compute_negative_entropy(logits)


def compute_negative_entropy(logits: Logits) -> PriorityScore:
    """sum_v p log p in nats, at most 0."""
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * log_p.clamp(min=-1e30)).sum(-1)  # the clamp keeps 0 * -inf from becoming NaN


@dataclass(frozen=True)
class Random:
    """Uniformly random order, drawn anew in each step: the masked-diffusion order without its random counts."""

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        return rand("order", sample.shape[1])


@dataclass(frozen=True)
class Raster:
    """Left to right, top to bottom, as an autoregressive model would."""

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        return -torch.arange(sample.shape[1], device=sample.device).float().expand(sample.shape)


@dataclass(frozen=True)
class Halton:
    """The Halton sequence over the grid, so that tokens revealed together lie far apart (arXiv 2503.17076, section 4).

    Works for any grid of one, two or three axes and covers every cell. Differs from the published code, which cuts the
    sequence at 10,000 points and leaves 6 cells of a 64 x 64 grid masked.
    """

    grid: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (1 <= len(self.grid) <= 3 and min(self.grid) >= 1):
            raise ValueError(f"Halton(grid={self.grid}): needs one to three axes of at least one cell")

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        order = compute_halton_order(self.grid)
        if len(order) != sample.shape[1]:
            raise ValueError(f"Halton(grid={self.grid}) has {len(order)} cells, but the canvas has {sample.shape[1]}")
        return -order.argsort().to(sample.device).float().expand(sample.shape)


@lru_cache(maxsize=32)
def compute_halton_order(grid: tuple[int, ...]) -> Int[Tensor, "l"]:
    """Flat cell indices in the order in which the Halton points k = 1, 2, ... (bases 2, 3, 5) first enter them."""
    cells = torch.Size(grid).numel()
    points = 4 * cells + 16
    while True:
        flat = torch.zeros(points, dtype=torch.int64)
        for base, size in zip((2, 3, 5), grid, strict=False):
            flat = flat * size + (_radical_inverse(base, points) * size).long().clamp(max=size - 1)
        cell, where = flat.unique(return_inverse=True)
        if len(cell) == cells:
            first = torch.full((cells,), points).scatter_reduce(0, where, torch.arange(points), "amin")
            return first.argsort()
        points *= 2


def _radical_inverse(base: int, points: int) -> Float[Tensor, "points"]:
    """The digits of 1..points in `base`, mirrored at the radix point (van der Corput), in float64."""
    k = torch.arange(1, points + 1)
    value, weight = torch.zeros(points, dtype=torch.float64), 1.0
    while bool((k > 0).any()):
        weight /= base
        value += weight * (k % base)
        k = k // base
    return value
