"""The sampling loop: iterative parallel decoding (MaskGIT, arXiv 2202.04200, section 3.2).

Start from tokens that are partly or fully masked. In each step predict all masked tokens at once, sample a value for
each, reveal the most trusted ones, and leave the rest masked. Generation is inpainting with nothing known. The
`priority` defines "most trusted", the `ratios` say how many tokens are revealed, and `predict` predicts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int

from unmask.lazy import Tensor, torch
from unmask.method.guidance import Predict
from unmask.method.rand import Rand, choose_wide_dtype
from unmask.method.sampling.priorities import Confidence
from unmask.method.schedules import count_reveals

Priority = Callable[..., Float[Tensor, "b l"]]
"""`priority(logits, sample, *, masked, t, rand) -> score`: the highest scores are revealed first.

t is the time after the step, `sample` is the canvas with every masked token sampled, `masked` marks these tokens.
"""


class NonFiniteLogits(ValueError):
    """The model predicted NaN or infinity: its weights are damaged, or its training diverged."""


CONFIDENCE = Confidence()
CHUNK = 2**18  # logits to sample from at once: they fit a CPU's cache; at most 16 parts


@dataclass(frozen=True)
class State:
    """One step of decoding: the canvas, the tokens that it revealed, and the time t after it (0 at the start)."""

    tokens: Int[Tensor, "b l"]
    """The canvas after the step; the mask id where a token is still masked."""
    revealed: Bool[Tensor, "b l"]
    """True where the step revealed a token."""
    step: int
    """Number of the step, 0 for the starting canvas."""
    t: float
    """Time after the step, from 0 (all masked) to 1 (all known)."""


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
    """Yield the starting canvas, then one state per step; the last one is the result.

    Known tokens never change. `mask_id` has no logit, so it is never sampled.

    Args:
        ratios: Fractions of each row's unknown tokens still masked after each step (`count_reveals` counts them), or
            these counts themselves. A step that reveals nothing costs no forward pass, unless counts come with
            `remask`: then it may exchange tokens.
        priority: Scores the positions. It sees the logits as predicted, before `temperature`. If it needs none, and
            `predict` takes places, only the places that a step reveals are predicted.
        temperature: Divides the logits before top-k, top-p and sampling; one number, or one per step. 0 is greedy.
        remask: Let tokens of earlier steps compete with the new ones for the same number of positions, and mask the
            losers again (Mask-Predict, arXiv 1904.09324; x-transformers' `can_mask_prev_unmasked`).

    Raises:
        ValueError: Wrong tokens, ratios or temperatures, logits of a wrong shape, or, at the end, non-finite logits.
    """
    masked = unknown = check_tokens(tokens, mask_id)
    counts = ratios.cpu() if isinstance(ratios, Tensor) else count_reveals(masked.sum(1), ratios)
    if not torch.equal(counts.sum(0), masked.sum(1).cpu()):
        raise ValueError("ratios: the counts of each row must add up to its number of masked tokens")
    exchanges = remask and isinstance(ratios, Tensor)
    takes_places = getattr(predict, "takes_places", False)
    if takes_places == "masked" and remask:
        raise ValueError("remask: this model predicts no token that is known; sample without remask")
    placed = takes_places and not remask and not getattr(priority, "needs_logits", True)
    idle = (counts == 0).any(1).tolist() if takes_places and not remask else [False] * len(counts)
    # With more steps than unknown tokens some steps reveal nothing.
    steps = range(len(counts)) if exchanges else counts.any(1).nonzero().flatten().tolist()
    temperatures = check_temperatures(temperature, len(counts))
    counts = (counts.cumsum(0) if remask else counts).to(tokens.device)
    broken = torch.zeros((), dtype=torch.bool, device=tokens.device)
    yield State(tokens, torch.zeros_like(masked), 0, 0.0)
    for step in steps:
        noise = rand.at(step)
        t = (step + 1) / len(counts)
        if placed:
            score = priority(tokens.new_empty(*tokens.shape, 0).float(), tokens, masked=masked, t=t, rand=noise)
            kept = choose_by_score(score, masked, counts[step])
            logits, bad = _ask(predict, tokens, step / len(counts), mask_id, kept)
            broken |= bad
            u = noise("token", tokens.shape[1])[kept][None]
            drawn = sample_tokens(logits[None], temperatures[step], top_k, top_p, u)[0]
            tokens, masked = tokens.masked_scatter(kept, drawn), masked & ~kept
            yield State(tokens, kept, step + 1, t)
            continue
        live = masked & (counts[step] > 0)[:, None] if idle[step] else None
        logits, bad = predict_logits(predict, tokens, step / len(counts), mask_id, live)
        broken |= bad
        if live is not None:
            some, logits = logits, logits.new_zeros(*tokens.shape, mask_id)
            logits[live.any(1)] = some
        drawn = sample_tokens(logits, temperatures[step], top_k, top_p, noise("token", tokens.shape[1]))
        sample = torch.where(masked, drawn, tokens)
        score = priority(logits, sample, masked=masked, t=t, rand=noise)
        candidates = unknown if remask else masked
        kept = choose_by_score(score, candidates, counts[step])
        tokens = torch.where(candidates, torch.where(kept, sample, mask_id), tokens)
        yield State(tokens, kept & masked, step + 1, t)
        masked = candidates & ~kept
    raise_if_not_finite(broken)


def predict_logits(
    predict: Predict, tokens: Int[Tensor, "b l"], t: float, mask_id: int, live: Bool[Tensor, "b l"] | None = None
) -> tuple[Float[Tensor, "r l k"], Bool[Tensor, ""]]:
    """Return the logits, and (without waiting for it) whether any position is broken: NaN, +inf, or only -inf.

    With `live` positions, rows without any are left out, and the logits of other positions may be 0.
    """
    places = live if getattr(predict, "takes_places", False) else None
    logits, broken = _ask(predict, tokens, t, mask_id, places)
    if live is None:
        return logits, broken
    rows = live.any(1)
    if places is None:
        return logits[rows], broken
    out = logits.new_zeros(int(rows.sum()), tokens.shape[1], mask_id)
    return out.masked_scatter_(live[rows][..., None], logits), broken


def _ask(
    predict: Predict, tokens: Int[Tensor, "b l"], t: float, mask_id: int, places: Bool[Tensor, "b l"] | None
) -> tuple[Float[Tensor, "*n k"], Bool[Tensor, ""]]:
    """Return the logits of all positions or of `places`, without gradients, and whether any is broken."""
    with torch.no_grad():
        logits = (predict(tokens, t) if places is None else predict(tokens, t, places)).float()  # type: ignore[call-arg]
    shape = (*tokens.shape, mask_id) if places is None else (int(places.sum()), mask_id)
    if logits.shape != shape:
        raise ValueError(f"predict returned logits of shape {tuple(logits.shape)}, not {shape}")
    return logits, ~logits.amax(-1).isfinite().all()


def raise_if_not_finite(broken: Bool[Tensor, ""]) -> None:
    """Raise NonFiniteLogits if any logits were broken. This waits for the device, so call it once, at the end."""
    if broken:
        raise NonFiniteLogits(
            "predict returned logits that are NaN, infinite or all -inf: the tokens are invalid; check the weights"
        )


def choose_by_score(
    score: Float[Tensor, "b l"], masked: Bool[Tensor, "b l"], count: Int[Tensor, "b"]
) -> Bool[Tensor, "b l"]:
    """Choose the `count` masked positions of each row with the highest score; no score, not even NaN, picks another."""
    finite = score.nan_to_num(nan=-1e30, posinf=1e30, neginf=-1e30)
    rank = finite.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < count[:, None]) & masked


def sample_tokens(
    logits: Float[Tensor, "b l k"],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    u: Float[Tensor, "b l"],
) -> Int[Tensor, "b l"]:
    """Sample one token per position by inverting the distribution function at `u`: one uniform per position.

    Sums run in float64 (on MPS in float32), so that a category of probability 1e-7 has its right frequency. Positions
    are processed in parts, which bounds the memory and fits a CPU's cache. The parts do not change the result.
    """
    if temperature == 0:
        return logits.argmax(-1)
    rows = max(1, CHUNK // logits.shape[-1], u.numel() // 16)
    parts = zip(logits.flatten(0, 1).split(rows), u.flatten().split(rows), strict=True)
    return torch.cat([_invert(part, temperature, top_k, top_p, at) for part, at in parts]).view(u.shape)


def _invert(
    logits: Float[Tensor, "n k"], temperature: float, top_k: int | None, top_p: float | None, u: Float[Tensor, "n"]
) -> Int[Tensor, "n"]:
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature  # unshifted, a tiny temperature would overflow
    p = keep_likeliest(scaled, top_k, top_p).softmax(-1)
    cdf = p.cumsum(-1, dtype=choose_wide_dtype(p.device))
    # Counting "<=", as `searchsorted` from the right does, skips categories of probability 0.
    index = torch.searchsorted(cdf, (u * cdf[..., -1])[..., None], right=True)[..., 0]
    return index.clamp(max=logits.shape[-1] - 1)


def keep_likeliest(
    logits: Float[Tensor, "*n k"], top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "*n k"]:
    """Set all logits to -inf but the `top_k` largest (ties stay), and those of the smallest set of mass `top_p`.

    The token that crosses `top_p` stays (nucleus sampling, arXiv 1904.09751), so at least one token always stays.
    """
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: must be at least 1, or None to keep every token")
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p != 1:
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p}: must be above 0 and at most 1, or None to keep every token")
        ordered, index = logits.sort(dim=-1, descending=True, stable=True)
        p = ordered.softmax(-1)
        before = p.cumsum(-1, dtype=choose_wide_dtype(p.device)) - p
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, index, before >= top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits


def check_tokens(tokens: Int[Tensor, "b l"], mask_id: int) -> Bool[Tensor, "b l"]:
    """Return the masked tokens; raise ValueError for ids outside 0..mask_id. Waits for the device once."""
    if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) <= mask_id):
        raise ValueError(f"tokens {int(tokens.min())}..{int(tokens.max())}: must lie in 0..{mask_id} (mask_id)")
    return tokens == mask_id


def check_temperatures(temperature: float | Sequence[float], steps: int) -> list[float]:
    """Return one temperature per step; raise ValueError for a wrong number of them, or a negative or infinite one."""
    many = [float(temperature)] * steps if isinstance(temperature, (int, float)) else [float(x) for x in temperature]
    if len(many) != steps or not all(0 <= x < float("inf") for x in many):
        raise ValueError(f"temperature {temperature}: must be finite and >= 0, one number or {steps}, one per step")
    return many
