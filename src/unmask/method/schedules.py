"""Mask schedules: the fraction g(t) of tokens still masked, for t from 0 (all masked) to 1 (all known).

A schedule is any callable `t -> g(t)` with g(0) = 1 and g(1) = 0 that never rises (MaskGIT, arXiv 2202.04200, section
3.3). Training draws t uniformly and masks a fraction g(t). Sampling takes a plain list of ratios, one per step, that
ends in 0. Code bases use the same name ("cosine", "arccos") for different counts: see `decoding/counts.py`.
Schedules compute in float64. With `dtype` they round as a code base does that computes in another type.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int

from unmask.errors import FACTORS, check_ranges
from unmask.lazy import Tensor, torch
from unmask.method.rand import choose_wide_dtype

Schedule = Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]
Time = Float[Tensor, "..."] | float


def _time(t: Time, dtype: "torch.dtype | None") -> Float[Tensor, "..."]:
    device = t.device if isinstance(t, Tensor) else torch.device("cpu")
    return torch.as_tensor(t, dtype=dtype or choose_wide_dtype(device)).clamp(0, 1)


@dataclass(frozen=True)
class Cosine:
    """g(t) = cos(pi t / 2): reveals few tokens early, many late. MaskGIT's default (arXiv 2202.04200, section 4)."""

    def __call__(self, t: Time, dtype: "torch.dtype | None" = None) -> Float[Tensor, "..."]:
        return torch.cos(_time(t, dtype) * (math.pi / 2))


@dataclass(frozen=True)
class Power:
    """g(t) = 1 - t^exponent (arXiv 2202.04200, section 3.3)."""

    exponent: float = 1.0
    """Positive: 1 is linear ("uniform"), 2 square, 3 cubic, 0.5 root."""

    def __post_init__(self) -> None:
        if not self.exponent > 0:
            raise ValueError(
                f"Power(exponent={self.exponent}): the exponent must be positive; 1 is the linear schedule"
            )
        check_ranges(self, {"exponent": FACTORS})

    def __call__(self, t: Time, dtype: "torch.dtype | None" = None) -> Float[Tensor, "..."]:
        return 1 - _time(t, dtype) ** self.exponent


@dataclass(frozen=True)
class Arccos:
    """g(t) = (2/pi) arccos(t): the inverse function of `Cosine`. It has the same mean, 2/pi, and thinner tails."""

    def __call__(self, t: Time, dtype: "torch.dtype | None" = None) -> Float[Tensor, "..."]:
        return torch.arccos(_time(t, dtype)) / (math.pi / 2)


@dataclass(frozen=True)
class Log:
    """g(t) = -log(t) / log(tokens), and 1 below t = 1/tokens (google-research/maskgit, mask_schedule.py)."""

    tokens: int
    """Number of tokens of the canvas, at least 2."""

    def __post_init__(self) -> None:
        check_at_least("Log", {"tokens": self.tokens}, least=2)
        check_ranges(self, {"tokens": (2, 1 << 31)})

    def __call__(self, t: Time, dtype: "torch.dtype | None" = None) -> Float[Tensor, "..."]:
        return (-torch.log2(_time(t, dtype)) / math.log2(self.tokens)).clamp(0, 1)


@dataclass(frozen=True)
class Exp:
    """g(t) = 1 - tokens^-(1-t), but 1 at t = 0, where the formula gives 1 - 1/tokens (same source as `Log`)."""

    tokens: int
    """Number of tokens of the canvas, at least 2."""

    def __post_init__(self) -> None:
        check_at_least("Exp", {"tokens": self.tokens}, least=2)
        check_ranges(self, {"tokens": (2, 1 << 31)})

    def __call__(self, t: Time, dtype: "torch.dtype | None" = None) -> Float[Tensor, "..."]:
        t = _time(t, dtype)
        return torch.where(t > 0, 1 - 2 ** (-math.log2(self.tokens) * (1 - t)), 1.0)


@dataclass(frozen=True)
class Sigmoid:
    """g(t) follows the logistic curve between two points, scaled to fall from 1 to 0 (open-muse, sampling.py)."""

    start: float = -3.0
    """Point of the curve at t = 0."""
    end: float = 3.0
    """Point of the curve at t = 1, above `start`."""
    temperature: float = 1.0
    """Width of the curve, positive: lower values fall more steeply."""

    def __post_init__(self) -> None:
        if not (self.start < self.end and self.temperature > 0):
            raise ValueError(f"{self}: start must be below end and temperature positive, as in Sigmoid(-3, 3, 1)")
        check_ranges(self, {"start": (-1e3, 1e3), "end": (-1e3, 1e3), "temperature": FACTORS})

    def __call__(self, t: Time, dtype: "torch.dtype | None" = None) -> Float[Tensor, "..."]:
        at = _time(t, dtype) * (self.end - self.start) + self.start
        first, now, last = (
            torch.sigmoid(x / self.temperature)
            for x in (_time(0.0, dtype) + self.start, at, _time(0.0, dtype) + self.end)
        )
        return (last - now) / (last - first)


Shape = Cosine | Power | Arccos | Log | Exp | Sigmoid
"""Every schedule of this file as one closed type, for configurations."""


# -- from a schedule to the input of a sampler -------------------------------------------------------------------------


def ratios(schedule: Schedule, steps: int) -> list[float]:
    """Return the fraction still masked after each of `steps` steps: g(1/steps), g(2/steps), ..., 0."""
    check_at_least("ratios", {"steps": steps})
    return [*schedule(torch.arange(1, steps, dtype=torch.float64) / steps).tolist(), 0.0]


def compute_likelihood_weight(schedule: Schedule, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return -g'(t) / g(t), the weight of a token masked at time t in the likelihood bound (arXiv 2406.07524, eq. 10).

    Automatic differentiation serves any schedule. For 1 - t the weight is 1 / (1 - t); for the cosine it is
    (pi/2) tan(pi t/2).
    """
    with torch.enable_grad():
        at = t.detach().to(choose_wide_dtype(t.device)).requires_grad_()
        g = schedule(at)
        (slope,) = torch.autograd.grad(g.sum(), at)
    return -slope / g.detach()


def ratios_from_counts(counts: Sequence[int]) -> list[float]:
    """Return the ratios that reveal these `counts` of sum(counts) unknown tokens; a 0 becomes at least 1."""
    total = sum(counts)
    if total <= 0 or min(counts) < 0:
        raise ValueError(f"counts {list(counts)}: each must be at least 0, and their sum at least 1")
    known = torch.tensor(counts).cumsum(0)
    return ((total - known).double() / total).tolist()


def check_ratios(ratios: Sequence[float]) -> None:
    """Raise ValueError unless the ratios lie in [0, 1], never rise, and end in 0."""
    pairs = zip([1.0, *ratios], ratios, strict=False)
    if len(ratios) == 0 or ratios[-1] != 0 or not all(0 <= after <= before for before, after in pairs):
        raise ValueError(f"ratios {list(ratios)[:12]}: must lie in [0, 1], never rise, and end in 0")


def count_reveals(unknown: Int[Tensor, "b"], ratios: Sequence[float]) -> Int[Tensor, "steps b"]:
    """Count the tokens that each row reveals at each step, given its number of `unknown` tokens at the start.

    After step s a row holds floor(unknown * ratio_s) masked tokens. Every step reveals at least one token and leaves at
    least one for each later step. This is Google's rule where that rule does not stall. A row with fewer unknown tokens
    than steps reveals them one by one, spread evenly over the steps. So all rows end at the last step.
    Raises ValueError as `check_ratios` does.
    """
    check_ratios(ratios)
    r = torch.tensor(list(ratios), dtype=torch.float64)
    unknown, steps = unknown.cpu().long(), len(r)
    step = torch.arange(1, steps + 1)[:, None]
    # The slack undoes rounding: (k / n) * n may be just below k, and floor would then lose a token.
    wanted = torch.floor(unknown.double() * r[:, None] + 1e-6).long().maximum(steps - step)
    # m_s <= m_{s-1} - 1, as a running minimum of m_s + s with the start in front.
    many = torch.cat([unknown[None], wanted + step]).cummin(0).values[1:] - step
    few = unknown - step * unknown // steps
    masked = torch.where(unknown >= steps, many, few)
    return -torch.cat([unknown[None], masked]).diff(dim=0)


def check_at_least(name: str, numbers: Mapping[str, int], least: int = 1) -> None:
    """Raise ValueError for the first of the named `numbers` below `least`; `name` starts the message."""
    for field, number in numbers.items():
        if number < least:
            raise ValueError(f"{name}({field}={number}): {field} must be at least {least}")
