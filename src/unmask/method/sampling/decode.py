"""THE loop: iterative parallel decoding (MaskGIT, arXiv 2202.04200, section 3.2).

Start from tokens of which some, or all, are masked. In each step predict every masked token at once, draw a value for
each, reveal the most trusted ones, and leave the rest masked for the next step. Generation is in-painting with nothing
known. What "most trusted" means is the `priority`; how many are revealed, the `ratios`; who predicts, `predict`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from unmask.method.guidance import Predict
from unmask.method.rand import Rand
from unmask.method.sampling.priorities import Confidence
from unmask.method.schedules import count_reveals

Priority = Callable[..., Float[Tensor, "b l"]]
"""`priority(logits, sample, *, masked, t, rand) -> score`: the highest are revealed first.

t is the time after the step, `sample` is the canvas with every masked token drawn, `masked` says which these are.
"""


CONFIDENCE = Confidence()
CHUNK = 2**18  # logits drawn from at once: what fits a CPU's cache, but no more than 16 parts


@dataclass(frozen=True)
class State:
    """One step of decoding: the canvas, what this step revealed, and the time t it has reached (0 at the start)."""

    tokens: Int[Tensor, "b l"]
    revealed: Bool[Tensor, "b l"]
    step: int
    t: float


def decode(
    predict: Predict,
    tokens: Int[Tensor, "b l"],
    ratios: Sequence[float] | Int[Tensor, "steps b"],
    *,
    mask_id: int,
    rand: Rand,
    priority: Priority = CONFIDENCE,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    remask: bool = False,
) -> Iterator[State]:
    """Yield the starting canvas and then one state per step; the last one is the answer.

    `ratios` are the fractions still masked after each step, of the tokens unknown at the start, counted for each row on
    its own (`reveal_counts`), or these counts themselves; a step in which no row reveals anything costs no forward
    pass. `temperature` divides the logits before top-k, top-p and sampling, as a number or one per step, and 0 takes
    the likeliest token; the priority sees the logits as predicted. Known tokens never change, and `mask_id` has no
    logit, so it cannot come out.
    With `remask`, what earlier steps revealed competes with the new draws for the same number of places, and whatever
    loses is masked again (Mask-Predict, arXiv 1904.09324; x-transformers' `can_mask_prev_unmasked`).
    Raises ValueError for bad tokens, ratios or temperatures, for logits of another shape and, at the end, for logits
    that are no distribution.
    """
    masked = unknown = check_tokens(tokens, mask_id)
    counts = ratios.cpu() if isinstance(ratios, Tensor) else count_reveals(masked.sum(1), ratios)
    if not torch.equal(counts.sum(0), masked.sum(1).cpu()):
        raise ValueError("the counts of each row must add up to its masked tokens")
    steps = counts.any(1).nonzero().flatten().tolist()  # with more steps than unknown tokens some have nothing to do
    temperatures = check_temperatures(temperature, len(counts))
    counts = (counts.cumsum(0) if remask else counts).to(tokens.device)
    broken = torch.zeros((), dtype=torch.bool, device=tokens.device)
    yield State(tokens, torch.zeros_like(masked), 0, 0.0)
    for step in steps:
        noise = rand.at(step)
        t = (step + 1) / len(counts)
        logits, bad = predict_logits(predict, tokens, step / len(counts), mask_id)
        broken |= bad
        drawn = sample_tokens(logits, temperatures[step], top_k, top_p, noise("token", tokens.shape[1]))
        sample = torch.where(masked, drawn, tokens)
        score = priority(logits, sample, masked=masked, t=t, rand=noise)
        candidates = unknown if remask else masked
        kept = choose_by_score(score, candidates, counts[step])
        tokens = torch.where(candidates, torch.where(kept, sample, mask_id), tokens)
        yield State(tokens, kept & masked, step + 1, t)
        masked = candidates & ~kept
    raise_if_not_finite(broken)


@torch.no_grad()
def predict_logits(
    predict: Predict, tokens: Int[Tensor, "b l"], t: float, mask_id: int
) -> tuple[Float[Tensor, "b l k"], Bool[Tensor, ""]]:
    """The logits, and whether any place has no distribution: NaN, +inf, or nothing but -inf. Does not wait for it."""
    logits = predict(tokens, t).float()
    if logits.shape != (*tokens.shape, mask_id):
        raise ValueError(f"predict gave logits of shape {tuple(logits.shape)}; expected {(*tokens.shape, mask_id)}")
    return logits, ~logits.amax(-1).isfinite().all()


def raise_if_not_finite(broken: Bool[Tensor, ""]) -> None:
    """ValueError if any logits were broken; called at the end, as it waits for the device."""
    if broken:
        raise ValueError(
            "predict gave logits that are NaN, infinite or all -inf: the tokens mean nothing; check the weights"
        )


def choose_by_score(
    score: Float[Tensor, "b l"], masked: Bool[Tensor, "b l"], count: Int[Tensor, "b"]
) -> Bool[Tensor, "b l"]:
    """The `count` masked positions of each row with the highest score; no score, not even NaN, picks a known one."""
    finite = score.nan_to_num(nan=-1e30, posinf=1e30, neginf=-1e30)
    rank = finite.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < count[:, None]) & masked


def sample_tokens(
    logits: Float[Tensor, "b l k"],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    u: Float64[Tensor, "b l"],
) -> Int[Tensor, "b l"]:
    """One token per position by inverting the distribution function at `u`: one uniform a position, not one a category.

    The sums run in float64, so that a category of probability 1e-7 is drawn as often as it should be. Positions are
    taken in parts, which bounds the memory and keeps the work in a CPU's cache; the draws do not depend on the parts.
    """
    if temperature == 0:
        return logits.argmax(-1)
    rows = max(1, CHUNK // logits.shape[-1], u.numel() // 16)
    parts = zip(logits.flatten(0, 1).split(rows), u.flatten().split(rows), strict=True)
    return torch.cat([_invert(part, temperature, top_k, top_p, at) for part, at in parts]).view(u.shape)


def _invert(
    logits: Float[Tensor, "n k"], temperature: float, top_k: int | None, top_p: float | None, u: Float64[Tensor, "n"]
) -> Int[Tensor, "n"]:
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature  # without the maximum a tiny temperature overflows
    p = keep_likeliest(scaled, top_k, top_p).softmax(-1)
    cdf = p.cumsum(-1, dtype=torch.float64)
    # Counting "<=" steps over categories of probability 0, which `searchsorted` from the right does.
    index = torch.searchsorted(cdf, (u * cdf[..., -1])[..., None], right=True)[..., 0]
    return index.clamp(max=logits.shape[-1] - 1)


def keep_likeliest(
    logits: Float[Tensor, "*n k"], top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "*n k"]:
    """Send all but the likeliest tokens to -inf: the `top_k` largest (ties stay), or the smallest set of mass `top_p`.

    The token that crosses `top_p` stays (nucleus sampling, arXiv 1904.09751), so at least one always does.
    """
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: must be at least 1, or None to keep every token")
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p != 1:
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p}: must lie in (0, 1], or be None to keep every token")
        ordered, index = logits.sort(dim=-1, descending=True, stable=True)
        p = ordered.softmax(-1)
        before = p.cumsum(-1, dtype=torch.float64) - p
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, index, before >= top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits


def check_tokens(tokens: Int[Tensor, "b l"], mask_id: int) -> Bool[Tensor, "b l"]:
    """Which tokens are masked; ValueError for ids outside 0..mask_id. Waits for the device once, before the loop."""
    if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) <= mask_id):
        raise ValueError(f"tokens must lie in 0..{mask_id} (mask_id), got {int(tokens.min())}..{int(tokens.max())}")
    return tokens == mask_id


def check_temperatures(temperature: float | Sequence[float], steps: int) -> list[float]:
    """One temperature per step; ValueError for another number of them, or for one that is negative or not finite."""
    many = [float(temperature)] * steps if isinstance(temperature, (int, float)) else [float(x) for x in temperature]
    if len(many) != steps or not all(0 <= x < float("inf") for x in many):
        raise ValueError(f"temperature {temperature}: give one finite number >= 0, or {steps} of them, one per step")
    return many
