"""Mask schedules: the fraction of tokens still masked, g(t), as t runs from 0 (all masked) to 1 (all known).

A schedule is any callable `t -> g(t)` with g(0) = 1, g(1) = 0, never rising (MaskGIT, arXiv 2202.04200, section 3.3).
Training draws t uniformly and masks a fraction g(t); sampling consumes plain data made here: a list of ratios, one per
step, ending in 0. The second half of the page holds the per-step token counts of every code base in the field, each
under its own name, because equal names ("cosine", "arccos") mean different counts in each of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Schedule = Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]


def _time(t: Float[Tensor, "..."] | float) -> Float[Tensor, "..."]:
    return torch.as_tensor(t, dtype=torch.float64).clamp(0, 1)


@dataclass(frozen=True)
class Cosine:
    """g(t) = cos(pi t / 2): few tokens early, many late. MaskGIT's default (arXiv 2202.04200, section 4)."""

    def __call__(self, t: Float[Tensor, "..."] | float) -> Float[Tensor, "..."]:
        return torch.cos(_time(t) * (math.pi / 2))


@dataclass(frozen=True)
class Power:
    """g(t) = 1 - t^exponent: 1 is linear ("uniform"), 2 square, 3 cubic, 0.5 root (arXiv 2202.04200, section 3.3)."""

    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not self.exponent > 0:
            raise ValueError(
                f"Power(exponent={self.exponent}): the exponent must be positive; 1 is the linear schedule"
            )

    def __call__(self, t: Float[Tensor, "..."] | float) -> Float[Tensor, "..."]:
        return 1 - _time(t) ** self.exponent


@dataclass(frozen=True)
class Arccos:
    """g(t) = (2/pi) arccos(t): the inverse function of `Cosine`, with the same mean 2/pi but thinner tails."""

    def __call__(self, t: Float[Tensor, "..."] | float) -> Float[Tensor, "..."]:
        return torch.arccos(_time(t)) * (2 / math.pi)


@dataclass(frozen=True)
class Log:
    """g(t) = -log(t) / log(tokens), held at 1 below t = 1/tokens (google-research/maskgit, mask_schedule.py)."""

    tokens: int

    def __post_init__(self) -> None:
        _at_least("Log", tokens=self.tokens, least=2)

    def __call__(self, t: Float[Tensor, "..."] | float) -> Float[Tensor, "..."]:
        return (-torch.log2(_time(t)) / math.log2(self.tokens)).clamp(0, 1)


@dataclass(frozen=True)
class Exp:
    """g(t) = 1 - tokens^-(1-t), set to 1 at t = 0 where the formula gives 1 - 1/tokens (same source as `Log`)."""

    tokens: int

    def __post_init__(self) -> None:
        _at_least("Exp", tokens=self.tokens, least=2)

    def __call__(self, t: Float[Tensor, "..."] | float) -> Float[Tensor, "..."]:
        t = _time(t)
        return torch.where(t > 0, 1 - 2 ** (-math.log2(self.tokens) * (1 - t)), 1.0)


@dataclass(frozen=True)
class Sigmoid:
    """g(t) falls along the logistic curve from `start` to `end`, scaled to run from 1 to 0 (open-muse, sampling.py)."""

    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (self.start < self.end and self.temperature > 0):
            raise ValueError(f"{self}: needs start < end and a positive temperature, as in Sigmoid(-3, 3, 1)")

    def __call__(self, t: Float[Tensor, "..."] | float) -> Float[Tensor, "..."]:
        at = _time(t) * (self.end - self.start) + self.start
        first, now, last = (
            torch.sigmoid(x / self.temperature) for x in (_time(0.0) + self.start, at, _time(0.0) + self.end)
        )
        return (last - now) / (last - first)


Shape = Cosine | Power | Arccos | Log | Exp | Sigmoid
"""Every schedule of this page, as one closed type: what a configuration may hold."""


# -- from a schedule to what a sampler consumes ------------------------------------------------------------------------


def ratios(schedule: Schedule, steps: int) -> list[float]:
    """The fraction still masked after each of `steps` steps: g(1/steps), g(2/steps), ..., 0."""
    _at_least("ratios", steps=steps)
    return [*schedule(torch.arange(1, steps, dtype=torch.float64) / steps).tolist(), 0.0]


def annealed(start: float, steps: int) -> list[float]:
    """Temperatures that fall evenly to 0, which is greedy: start (1 - s/steps) for s = 1..steps.

    x-transformers' rule with its start 1; it stops at 0.001 where this takes the likeliest token.
    """
    _at_least("annealed", steps=steps)
    return [start * (1 - s / steps) for s in range(1, steps + 1)]


def likelihood_weight(schedule: Schedule, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """-g'(t) / g(t): what a token masked at time t counts for in the likelihood bound (arXiv 2406.07524, eq. 10).

    By automatic differentiation, so for any schedule. For 1 - t it is 1 / (1 - t); for the cosine (pi/2) tan(pi t/2).
    """
    with torch.enable_grad():
        at = t.detach().double().requires_grad_()
        g = schedule(at)
        (slope,) = torch.autograd.grad(g.sum(), at)
    return -slope / g.detach()


def ratios_from_counts(counts: Sequence[int]) -> list[float]:
    """The ratios that make a sampler reveal these `counts` of sum(counts) unknown tokens; zeros become at least 1."""
    total = sum(counts)
    if total <= 0 or min(counts) < 0:
        raise ValueError(f"counts {list(counts)}: must be non-negative and reveal at least one token in all")
    known = torch.tensor(counts).cumsum(0)
    return ((total - known).double() / total).tolist()


def reveal_counts(unknown: Int[Tensor, "b"], ratios: Sequence[float]) -> Int[Tensor, "steps b"]:
    """How many tokens each row reveals at each step, from its own number of `unknown` ones at the start.

    After step s a row holds floor(unknown * ratio_s) masked tokens, but every step reveals at least one, and leaves at
    least one for each step to come: Google's rule where that does not stall. A row with fewer unknown tokens than steps
    reveals them one by one, spread evenly over the steps, so that all rows end at the last step.
    Raises ValueError unless the ratios lie in [0, 1], never rise, and end in 0.
    """
    r = torch.tensor(list(ratios), dtype=torch.float64)
    if len(r) == 0 or not (r.min() >= 0 and r.max() <= 1 and r[-1] == 0 and bool((r.diff() <= 0).all())):
        raise ValueError(f"ratios {list(ratios)[:12]}: must lie in [0, 1], never rise, and end in 0")
    unknown, steps = unknown.cpu().long(), len(r)
    step = torch.arange(1, steps + 1)[:, None]
    # The slack undoes rounding: (k / n) * n may come out just below k, and floor would then lose a token.
    wanted = torch.floor(unknown.double() * r[:, None] + 1e-6).long().maximum(steps - step)
    # m_s <= m_{s-1} - 1, as a running minimum of m_s + s with the start in front.
    many = torch.cat([unknown[None], wanted + step]).cummin(0).values[1:] - step
    few = unknown - step * unknown // steps
    masked = torch.where(unknown >= steps, many, few)
    return -torch.cat([unknown[None], masked]).diff(dim=0)


# -- per-step counts as each code base has them ------------------------------------------------------------------------


def _at_least(name: str, least: int = 1, **numbers: int) -> None:
    for field, number in numbers.items():
        if number < least:
            raise ValueError(f"{name}({field}={number}): {field} must be at least {least}")


def _steps_of(remaining: Sequence[int], tokens: int) -> list[int]:
    """Differences of a list of remaining counts, forced to stay within the tokens there are and to end at 0."""
    counts, left = [], tokens
    for after in [*remaining[:-1], 0]:
        after = min(left, max(0, after))
        counts.append(left - after)
        left = after
    return counts


def google(tokens: int, steps: int, schedule: Schedule) -> list[int]:
    """google-research/maskgit: floor(N g((s+1)/T)) stay masked, at least 1 until the last step; reveal at least 1."""
    _at_least("google", tokens=tokens, steps=steps)
    remaining, left = [], tokens
    for ratio in schedule(torch.arange(1, steps + 1, dtype=torch.float64) / steps).tolist():
        left = max(1, min(left - 1, math.floor(tokens * ratio)))
        remaining.append(left)
    return _steps_of(remaining, tokens)


def valeoai_v1(tokens: int, steps: int, schedule: Schedule) -> list[int]:
    """valeoai/Maskgit-pytorch v1: the curve is a *density*; counts are proportional to g(r), r from 1 down to 0.

    The original may end in a zero or negative count for many steps (its loop stops before); here the list ends early.
    """
    _at_least("valeoai_v1", tokens=tokens, steps=steps)
    density = schedule(torch.linspace(1, 0, steps, dtype=torch.float64))
    if steps == 1:
        return [tokens]
    counts = (density / density.sum() * tokens).round().clamp(min=1).long()
    return _steps_of((tokens - counts.cumsum(0)).tolist(), tokens)


def halton(tokens: int, steps: int) -> list[int]:
    """valeoai/Halton-MaskGIT, halton_sampler.py: int(N (1 - (2/pi) arccos((s+1)/T))) known after step s, or s + 1."""
    _at_least("halton", tokens=tokens, steps=steps)
    known = [int(tokens * (1 - math.acos((s + 1) / steps) / (math.pi * 0.5))) for s in range(steps)]
    return _steps_of([tokens - max(s + 1, k) for s, k in enumerate(known)], tokens)


def halton_confidence(tokens: int, steps: int, schedule: Schedule) -> list[int]:
    """valeoai/Halton-MaskGIT, confidence_sampler.py: int(N (1 - g(r))) known, r from 0 to 1, so step 0 reveals one."""
    _at_least("halton_confidence", tokens=tokens, steps=steps)
    known = (tokens * (1 - schedule(torch.linspace(0, 1, steps, dtype=torch.float64)))).long()
    return _steps_of([tokens - max(s + 1, int(k)) for s, k in enumerate(known)], tokens)


def x_transformers(tokens: int, steps: int, schedule: Schedule) -> list[int]:
    """lucidrains/x-transformers: int(N g((s+1)/T)) still masked; a step may reveal nothing."""
    _at_least("x_transformers", tokens=tokens, steps=steps)
    remaining = (schedule(torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:]) * tokens).long()
    return _steps_of(remaining.tolist(), tokens)


def muse(tokens: int, steps: int, schedule: Schedule) -> list[int]:
    """lucidrains/muse-maskgit-pytorch: time starts at 0 and ends at 1, so the last step predicts a single token."""
    _at_least("muse", tokens=tokens, steps=steps)
    masked = (schedule(torch.linspace(0, 1, steps, dtype=torch.float64)) * tokens).long().clamp(min=1)
    return _steps_of([*masked.tolist()[1:], 0], tokens)


def nanofm(tokens: int, steps: int) -> list[int]:
    """EPFL nanoMaskGIT: N // T per step, the remainder in the last. With T > N, one per step until none is left."""
    _at_least("nanofm", tokens=tokens, steps=steps)
    used = min(steps, tokens)
    counts = [tokens // used] * used
    counts[-1] += tokens % used
    return counts + [0] * (steps - used)


def llada(tokens: int, steps: int) -> list[int]:
    """ML-GSAI/LLaDA: N // T per step, the remainder spread over the first steps."""
    _at_least("llada", tokens=tokens, steps=steps)
    return [tokens // steps + (s < tokens % steps) for s in range(steps)]


def fourm(tokens: int, steps: int) -> list[int]:
    """apple/ml-4m: rounded differences of the half cosine (1 + cos(pi s/T))/2, a hump; the last takes the rest."""
    _at_least("fourm", tokens=tokens, steps=steps)
    curve = 0.5 * (1 + torch.cos(torch.arange(steps + 1, dtype=torch.float64) / steps * math.pi))
    counts = (-curve.diff() * tokens).round().long()
    return _steps_of((tokens - counts.cumsum(0)).tolist(), tokens)
