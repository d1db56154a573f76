"""Adaptive decoding: the uncertainty of the model decides for each row how many tokens a step reveals.

Certain rows end after a few forward passes, uncertain ones reveal one token at a time. The rules look at the
distributions, not at the samples: choose, then sample.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxtyping import Float, Int

from unmask.errors import FACTORS, check_ranges
from unmask.lazy import Tensor, torch
from unmask.method.guidance import Predict
from unmask.method.rand import Rand, choose_wide_dtype
from unmask.method.sampling.decode import (
    State,
    check_temperatures,
    check_tokens,
    choose_by_score,
    predict_logits,
    raise_if_not_finite,
    sample_tokens,
)
from unmask.method.sampling.priorities import Logits, Mask, compute_negative_entropy

Choice = tuple[Float[Tensor, "b l"], Int[Tensor, "b"]]
RevealRule = Callable[[Logits, Mask], Choice]
"""`rule(logits, masked) -> score, count`: reveal the `count` masked tokens of each row with the highest score."""


@dataclass(frozen=True)
class EntropyBound:
    """Reveal the most certain tokens while sum H - max H <= gamma nats over them (EB-Sampler, arXiv 2505.24857).

    The difference bounds the error of sampling them independently.
    """

    gamma: float
    """Bound in nats, at least 0. 0 reveals one token and those with entropy 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf"):
            raise ValueError(f"EntropyBound(gamma={self.gamma}): must be a finite number >= 0, in nats")
        check_ranges(self, {"gamma": FACTORS})

    def __call__(self, logits: Logits, masked: Mask) -> Choice:
        score = compute_negative_entropy(logits).to(choose_wide_dtype(logits.device))
        rising = -score.masked_fill(~masked, -torch.inf).sort(dim=1, descending=True).values
        before = torch.nn.functional.pad(rising.cumsum(1)[:, :-1], (1, 0))  # sorted, so the last H is the largest
        return score, (before <= self.gamma).sum(1)


@dataclass(frozen=True)
class Threshold:
    """Reveal all tokens whose likeliest value has a probability >= tau (Fast-dLLM, arXiv 2505.22618, section 3.3)."""

    tau: float = 0.9
    """Probability above 0 and at most 1 (the paper's 0.9)."""

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"Threshold(tau={self.tau}): must be a probability above 0 and at most 1")

    def __call__(self, logits: Logits, masked: Mask) -> Choice:
        score = logits.softmax(-1).amax(-1)
        return score, ((score >= self.tau) & masked).sum(1)


def decode_adaptive(
    predict: Predict,
    tokens: Int[Tensor, "b l"],
    *,
    mask_id: int,
    rand: Rand,
    rule: RevealRule,
    max_steps: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Iterator[State]:
    """Reveal in each step the tokens that the rule chooses, at least one per row, until none is masked.

    `max_steps` bounds the number of forward passes (default: one per token). A row reveals more tokens than the rule
    chooses only if it could not end in time otherwise. `State.t` is the revealed fraction of all unknown tokens of the
    batch. `predict` gets step / max_steps instead, so that no row depends on the others. Waits for the device once per
    step. Raises as `decode` does.
    """
    steps = tokens.shape[1] if max_steps is None else max_steps
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: must be at least 1, or None for one step per token")
    (warmth,) = check_temperatures(temperature, 1)
    masked = check_tokens(tokens, mask_id)
    unknown = left = int(masked.sum())
    broken = torch.zeros((), dtype=torch.bool, device=tokens.device)
    step = 0
    yield State(tokens, torch.zeros_like(masked), 0, 0.0)
    while left:
        logits, bad = predict_logits(predict, tokens, step / steps, mask_id, masked)
        broken |= bad
        live = masked.any(1)  # the others are done, and cost nothing more
        some = masked[live]
        score, count = rule(logits, some)
        least = -(-some.sum(1) // (steps - step))
        kept = torch.zeros_like(masked)
        kept[live] = choose_by_score(score, some, count.maximum(least))
        drawn = sample_tokens(logits, warmth, top_k, top_p, rand.at(step)("token", tokens.shape[1])[live])
        tokens = tokens.masked_scatter(kept, drawn[kept[live]])
        masked = masked & ~kept
        left, step = int(masked.sum()), step + 1
        yield State(tokens, kept, step, 1 - left / unknown)
    raise_if_not_finite(broken)
