"""Unmasking orders beyond the core: the moment sampler, and margins that keep their distance."""

from dataclasses import dataclass

from unmask.errors import FACTORS, SIDES, check_ranges
from unmask.lazy import torch
from unmask.method.rand import Rand
from unmask.method.sampling.priorities import Canvas, Logits, Mask, PriorityScore, compute_margin

ROUNDS = 32


@dataclass(frozen=True)
class Moment:
    """log sum_v p^beta + Gumbel, beta = 1 + 1 / (noise (1 - t)): `Confidence` that ignores the sampled token.

    The moment sampler (arXiv 2510.04525). `Confidence` samples first, which sharpens the tokens that it reveals. This
    chooses positions by the mean weight that `Confidence` would give their samples, then samples at temperature 1/beta
    (`compute_moment_temperatures`). Both have the same law if many tokens are masked and few revealed, else not.
    """

    noise: float = 4.5
    """As in `Confidence`, at least 0; it falls to exactly 0 at the last step."""

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"Moment(noise={self.noise}): must be a finite number >= 0; 0 is deterministic")
        check_ranges(self, {"noise": FACTORS})

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        log_p, alpha = logits.log_softmax(-1), self.noise * (1 - t)
        if alpha == 0:
            return log_p.amax(-1)
        gumbel = -torch.log(-torch.log(rand("order", sample.shape[1])))
        return alpha * ((log_p * (1 + 1 / alpha)).logsumexp(-1) + gumbel)  # times alpha: finite as it falls to 0


def compute_moment_temperatures(noise: float, steps: int) -> list[float]:
    """Return the temperature 1/beta = alpha / (1 + alpha) of each step of `Moment(noise)`, and 1 for the last step.

    The last step reveals all remaining tokens. There MaskGIT, whose law this follows, does not sharpen its samples.
    """
    alphas = [noise * (1 - (step + 1) / steps) for step in range(steps - 1)]
    return [alpha / (1 + alpha) for alpha in alphas] + [1.0]


@dataclass(frozen=True)
class MarginRepulsion:
    """`Margin`, but tokens within `radius` of each other on the grid are not revealed together while others are left.

    Greedy by margin: each chosen position defers the masked ones within Chebyshev distance `radius`. Deferred positions
    follow, by margin, after all chosen ones. Each of 32 rounds chooses all local maxima at once and does not wait for
    the device. Positions undecided then (on long slopes of margins, such as exact ties) rank between the two groups.
    """

    radius: int
    """Distance in cells, at least 0; 0 is `Margin`."""
    grid: tuple[int, ...]
    """Shape of the canvas: one to three axes."""

    def __post_init__(self) -> None:
        if not (1 <= len(self.grid) <= 3 and min(self.grid) >= 1 and self.radius >= 0):
            raise ValueError(f"{self}: grid must have one to three axes of at least one cell, and radius be >= 0")
        check_ranges(self, {"grid": SIDES, "radius": (0, 16_384)})

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        cells = torch.Size(self.grid).numel()
        if cells != sample.shape[1]:
            raise ValueError(f"{self} has {cells} cells, but the canvas has {sample.shape[1]}")
        rank = compute_margin(logits).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        key = (cells - rank).float()  # distinct and at least 1
        left, taken = masked, torch.zeros_like(masked)
        for _ in range(ROUNDS):
            now = left & (self._pool_maximum(key * left) == key)
            taken = taken | now
            left = left & ~(self._pool_maximum(now.float()) > 0)
        return key + cells * (2.0 * taken + left)

    def _pool_maximum(self, x: PriorityScore) -> PriorityScore:
        """Return the largest value within the radius of each cell, axis by axis."""
        x = x.view(-1, *self.grid)
        for axis in range(1, x.dim()):
            rows = x.movedim(axis, -1)
            pooled = torch.nn.functional.max_pool1d(rows.flatten(0, -2), 2 * self.radius + 1, 1, self.radius)
            x = pooled.view(rows.shape).movedim(-1, axis)
        return x.flatten(1)
