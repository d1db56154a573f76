"""Remasking: ReMDM masks revealed tokens again (arXiv 2503.00307), `edit_tokens` replaces some.

Let alpha be the known fraction, which rises from alpha_t to alpha_s in a step. ReMDM masks a revealed token again with
probability sigma <= sigma_max = min(1, (1 - alpha_s) / alpha_t). It reveals a masked token with probability
(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), which keeps the expected number of masked tokens on schedule. A rule
defines sigma (section 4.1). A rule that is 0 except where the ratio does not change (before == after) gives the paper's
loop. A critic needs no code here: it is a priority that looks at the filled canvas, for `decode(..., remask=True)`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Bool, Float, Int

from unmask.lazy import Tensor, torch
from unmask.method.guidance import Predict
from unmask.method.rand import Rand
from unmask.method.sampling.decode import (
    State,
    check_temperatures,
    check_tokens,
    predict_logits,
    raise_if_not_finite,
    sample_tokens,
)
from unmask.method.schedules import check_ratios

RemaskRule = Callable[[float, float, Float[Tensor, "b l"]], float | Float[Tensor, "b l"]]
"""`rule(before, after, confidence) -> sigma`, with the masked fractions before and after the step.

`confidence` is the probability that a token had when it was sampled; infinite for masked and given tokens.
"""


def compute_sigma_max(before: float, after: float) -> float:
    """Return the largest sigma that can still meet the schedule, if need be by revealing every masked token."""
    return 1.0 if before == 1 else min(1.0, after / (1 - before))


def _check_eta(rule: object, eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"{rule}: eta must lie in [0, 1]; 0 masks no token again")


@dataclass(frozen=True)
class Cap:
    """sigma = min(eta, sigma_max)."""

    eta: float
    """Largest probability to mask a token again, 0 to 1."""

    def __post_init__(self) -> None:
        _check_eta(self, self.eta)

    def __call__(self, before: float, after: float, confidence: Float[Tensor, "b l"]) -> float:
        return min(self.eta, compute_sigma_max(before, after))


@dataclass(frozen=True)
class Rescale:
    """sigma = eta sigma_max."""

    eta: float
    """Share of the largest possible probability, 0 to 1."""

    def __post_init__(self) -> None:
        _check_eta(self, self.eta)

    def __call__(self, before: float, after: float, confidence: Float[Tensor, "b l"]) -> float:
        return self.eta * compute_sigma_max(before, after)


@dataclass(frozen=True)
class ConfidenceWeighted:
    """sigma_i = softmax(-confidence)_i times the sigma of `rule`, over the row's revealed tokens: least certain first.

    A row masks at most one token per step again on average. Masked tokens have sigma 0 as in the paper, so until the
    last step more tokens are masked than the schedule says.
    """

    rule: RemaskRule = Rescale(1.0)
    """Rule for the sigma that the weights multiply."""

    def __call__(self, before: float, after: float, confidence: Float[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        weight = (-confidence).softmax(1).nan_to_num(0.0)  # a row with nothing revealed has no weights
        return weight * self.rule(before, after, confidence)


def decode_remasking(
    predict: Predict,
    tokens: Int[Tensor, "b l"],
    ratios: Sequence[float],
    *,
    mask_id: int,
    rand: Rand,
    rule: RemaskRule,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Iterator[State]:
    """Decode as `decode_ancestral`, and mask revealed tokens again with the rule's probability (ReMDM).

    Tokens given at the start stay. Every step costs one forward pass. A sigma above sigma_max is clipped to it. With
    sigma 0 the samples equal those of `decode_ancestral`, bit for bit. Raises as `decode` does.
    """
    check_ratios(ratios)
    masked = unknown = check_tokens(tokens, mask_id)
    temperatures = check_temperatures(temperature, len(ratios))
    # Given that token i is masked, u[i] is uniform on (0, before), as in `decode_ancestral`.
    u = rand.at(0)("reveal", tokens.shape[1])
    confidence = torch.full(tokens.shape, torch.inf, device=tokens.device)
    broken = torch.zeros((), dtype=torch.bool, device=tokens.device)
    yield State(tokens, torch.zeros_like(masked), 0, 0.0)
    for step, (before, after) in enumerate(pairwise([1.0, *ratios])):
        noise = rand.at(step)
        logits, bad = predict_logits(predict, tokens, step / len(ratios), mask_id)
        broken |= bad
        drawn = sample_tokens(logits, temperatures[step], top_k, top_p, noise("token", tokens.shape[1]))
        p = (logits.gather(-1, drawn[..., None])[..., 0] - logits.logsumexp(-1)).exp()
        sigma = (torch.zeros_like(u) + rule(before, after, confidence)).clamp(0, compute_sigma_max(before, after))
        stay = after - sigma * (1 - before)
        shown = masked & (u >= stay)
        v = noise("remask", tokens.shape[1])
        hidden = unknown & ~masked & (v < sigma)
        u = torch.where(hidden, v / sigma * after, u * (after / stay))  # uniform on (0, after) where masked
        confidence = torch.where(shown, p, confidence.masked_fill(hidden, torch.inf))
        tokens = torch.where(shown, drawn, tokens.masked_fill(hidden, mask_id))
        masked = (masked & ~shown) | hidden
        yield State(tokens, shown, step + 1, (step + 1) / len(ratios))
    raise_if_not_finite(broken)


def edit_tokens(
    logits: Float[Tensor, "b l k"], tokens: Int[Tensor, "b l"], editable: Bool[Tensor, "b l"], margin: float
) -> Int[Tensor, "b l"]:
    """Replace each `editable` token by the likeliest one if that is more probable by over `margin` (0 to 1).

    Token editing as in LLaDA2.1 (arXiv 2602.08676). `logits` are those of the canvas `tokens`. Use it between two
    samplers, or in separate passes. Masked tokens stay. Differs from the paper: a margin between two probabilities, not
    a threshold on one. It needs a network trained to correct visible tokens: others learn nothing about these.
    """
    visible = editable & (tokens < logits.shape[-1])
    p = logits.softmax(-1)
    best, token = p.max(-1)
    own = p.gather(-1, tokens.clamp(max=logits.shape[-1] - 1)[..., None])[..., 0]
    return torch.where(visible & (best - own > margin), token, tokens)
