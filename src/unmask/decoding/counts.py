"""Count the tokens revealed per step as each published code base does.

Each code base has its own function, because equal names of schedules ("cosine", "arccos") mean different counts in
them. `ratios_from_counts` turns counts into ratios for a sampler.

Counts round as the originals do, mostly in float32: there cos(pi/3) is 0.49999997, so half of 256 tokens are 127.
"""

import math
from collections.abc import Callable, Sequence

from jaxtyping import Float, Int

from unmask.lazy import Tensor, torch
from unmask.method.schedules import Arccos, Cosine, Power, Shape, check_at_least


def _steps_of(remaining: Sequence[int], tokens: int) -> list[int]:
    """Return the differences of remaining counts, clamped to 0..tokens and made to end at 0."""
    counts, left = [], tokens
    for after in [*remaining[:-1], 0]:
        after = min(left, max(0, after))
        counts.append(left - after)
        left = after
    return counts


def count_google(tokens: int, steps: int, schedule: Shape) -> list[int]:
    """Count as google-research/maskgit: floor(N g((s+1)/T)) stay masked, at least 1 before the last step.

    Each step reveals at least 1 token, until 1 is left. The rounding is that of XLA: it multiplies by 1/T in float32,
    and does not round the product before it computes 1 - r^p.
    """
    check_at_least("google", {"tokens": tokens, "steps": steps})
    step, part = torch.arange(1, steps + 1, dtype=torch.float32), torch.tensor(1 / steps, dtype=torch.float32)
    if isinstance(schedule, Power):
        masked = schedule(step.double() * part.double()).float()
    else:
        masked = schedule(step * part, torch.float32)
    return _keep_masked(tokens, masked * tokens)


def count_amused(tokens: int, steps: int) -> list[int]:
    """Count as aMUSEd (diffusers, scheduling_amused.py): Google's rule with the cosine, divided in float32."""
    check_at_least("amused", {"tokens": tokens, "steps": steps})
    time = torch.arange(1, steps + 1, dtype=torch.float32) / steps
    return _keep_masked(tokens, Cosine()(time, torch.float32) * tokens)


def count_titok(tokens: int, steps: int) -> list[int]:
    """Count as TiTok (bytedance/1d-tokenizer, maskgit.py): Google's rule with the arccos, in float64."""
    check_at_least("titok", {"tokens": tokens, "steps": steps})
    return _keep_masked(tokens, Arccos()(torch.arange(1, steps + 1, dtype=torch.float64) / steps) * tokens)


def _keep_masked(tokens: int, wanted: Float[Tensor, "steps"]) -> list[int]:
    """Return counts that keep floor(wanted) masked where each step reveals at least 1 and 1 is left for the last."""
    remaining, left = [], tokens
    for kept in wanted.floor().long().tolist():
        left = max(1, min(left - 1, kept))
        remaining.append(left)
    return _steps_of(remaining, tokens)


def count_rows(unknown: Int[Tensor, "b"], count: Callable[[int], list[int]], steps: int) -> Int[Tensor, "steps b"]:
    """Return the counts of each row by its number of unknown tokens; a row without any reveals nothing."""
    rows = unknown.tolist()
    table = {number: count(number) if number else [0] * steps for number in set(rows)}
    return torch.tensor([table[number] for number in rows], dtype=torch.int64).view(len(rows), steps).T


def count_valeoai_v1(tokens: int, steps: int, schedule: Shape) -> list[int]:
    """Count as valeoai/Maskgit-pytorch v1: the curve is a *density*; counts are proportional to g(r), r from 1 to 0.

    With many steps the original may end in zero or negative counts (its loop stops before); here the list ends early.
    """
    check_at_least("valeoai_v1", {"tokens": tokens, "steps": steps})
    density = schedule(torch.linspace(1, 0, steps, dtype=torch.float32), torch.float32)
    if steps == 1:
        return [tokens]
    counts = (density / density.sum() * tokens).round().clamp(min=1).long()
    return _steps_of((tokens - counts.cumsum(0)).tolist(), tokens)


def count_halton(tokens: int, steps: int) -> list[int]:
    """Count as valeoai/Halton-MaskGIT, halton_sampler.py: int(N (1 - (2/pi) arccos((s+1)/T))) known after step s.

    At least s + 1 are known.
    """
    check_at_least("halton", {"tokens": tokens, "steps": steps})
    known = (1 - Arccos()(torch.arange(1, steps + 1, dtype=torch.float32) / steps, torch.float32)) * tokens
    return _steps_of([tokens - max(s + 1, int(k)) for s, k in enumerate(known.tolist())], tokens)


def count_halton_confidence(tokens: int, steps: int, schedule: Shape) -> list[int]:
    """Count as valeoai/Halton-MaskGIT, confidence_sampler.py: int(N (1 - g(r))) known, r from 0 to 1.

    So step 0 reveals one token.
    """
    check_at_least("halton_confidence", {"tokens": tokens, "steps": steps})
    r = torch.linspace(0, 1, steps, dtype=torch.float32)
    known = r**schedule.exponent if isinstance(schedule, Power) else 1 - schedule(r, torch.float32)
    return _steps_of([tokens - max(s + 1, int(k)) for s, k in enumerate((known * tokens).tolist())], tokens)


def count_x_transformers(tokens: int, steps: int, schedule: Shape) -> list[int]:
    """Count as lucidrains/x-transformers: int(N g((s+1)/T)) still masked; a step may reveal nothing."""
    check_at_least("x_transformers", {"tokens": tokens, "steps": steps})
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float32)[1:]
    return _steps_of((schedule(time, torch.float32) * tokens).long().tolist(), tokens)


def count_muse(tokens: int, steps: int, schedule: Shape) -> list[int]:
    """Count as lucidrains/muse-maskgit-pytorch: time goes from 0 to 1, so the last step predicts a single token."""
    check_at_least("muse", {"tokens": tokens, "steps": steps})
    time = torch.linspace(0, 1, steps, dtype=torch.float32)
    masked = (schedule(time, torch.float32) * tokens).long().clamp(min=1)
    return _steps_of([*masked.tolist()[1:], 0], tokens)


def count_nanofm(tokens: int, steps: int) -> list[int]:
    """Count as EPFL nanoMaskGIT: N // T per step, the remainder in the last; with T > N, one per step to the end."""
    check_at_least("nanofm", {"tokens": tokens, "steps": steps})
    used = min(steps, tokens)
    counts = [tokens // used] * used
    counts[-1] += tokens % used
    return counts + [0] * (steps - used)


def count_llada(tokens: int, steps: int) -> list[int]:
    """Count as ML-GSAI/LLaDA: N // T per step, the remainder spread over the first steps."""
    check_at_least("llada", {"tokens": tokens, "steps": steps})
    return [tokens // steps + (s < tokens % steps) for s in range(steps)]


def count_fourm(tokens: int, steps: int) -> list[int]:
    """Count as apple/ml-4m: rounded differences of (1 + cos(pi s/T))/2, a hump; the last step takes the rest."""
    check_at_least("fourm", {"tokens": tokens, "steps": steps})
    curve = 0.5 * (1 + torch.cos(torch.arange(steps + 1, dtype=torch.float64) / steps * math.pi))
    counts = (-curve.diff() * tokens).round().long()
    return _steps_of((tokens - counts.cumsum(0)).tolist(), tokens)
