"""The likelihood of data under a masked model: a bound for any unmasking order, and the exact value for one order.

Both are in nats, need no samples and no other network, and mean the same for text and for images: divide by the number
of tokens, characters or pixels. Lower is better.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.method.guidance import Predict
from unmask.method.masking import ABSENT, exclude_absent, mask_count
from unmask.method.rand import Rand, choose_wide_dtype
from unmask.method.sampling.decode import CONFIDENCE, Priority, choose_by_score
from unmask.method.schedules import count_reveals


@torch.no_grad()
def estimate_bound(
    predict: Predict, tokens: Int[Tensor, "b l"], *, mask_id: int, rand: Rand, passes: int
) -> Float[Tensor, "b passes"]:
    """Return one estimate per pass of the masked-diffusion bound on -log p(row), in nats; their mean is the bound.

    Each pass masks k of the n tokens and weights its loss by n / k. k is uniform on 1..n and spread evenly over the
    passes. This is the bound with the time integrated out, the same for every schedule (arXiv 2406.03736, eq. 12). It
    equals the mean of -log p over all orders that reveal one token at a time.
    """
    present = tokens != ABSENT
    n = present.sum(1)
    lost = []
    for i in range(passes):
        noise = rand.at(i)
        k = (1 + ((i + noise("count")) / passes * n).long()).minimum(n)
        mask = mask_count(k, exclude_absent(noise("mask", tokens.shape[1]), tokens))
        known = float(1 - (k / n).mean())
        nats = compute_token_nll(predict(torch.where(mask, mask_id, tokens), known), tokens)
        lost.append((nats * mask).sum(1) * n / k)
    return torch.stack(lost, dim=1)


@torch.no_grad()
def compute_exact_nll(
    predict: Predict,
    tokens: Int[Tensor, "b l"],
    ratios: Sequence[float],
    *,
    mask_id: int,
    rand: Rand,
    priority: Priority = CONFIDENCE,
    temperature: float = 1.0,
    known: Bool[Tensor, "b l"] | None = None,
) -> Float[Tensor, "b l"]:
    """Return -log p of every token in nats, for a sampler that first chooses the positions of a step, then samples.

    The choice depends only on visible tokens. So the probability of the data is a product over the steps, and it sums
    to 1 over all data (DUEL, OpenReview FQA0rTzTVd). An order that looks at the sampled token, such as MaskGIT's
    confidence, sees the likeliest token here. If an order is noisy, `rand` gives its noise: the value is then exact for
    these orders, and its mean is a bound for their mixture. `known` tokens are given and cost nothing.
    Raises ValueError for a temperature that is not positive and finite, and for ratios as `check_ratios` does.

    Examples:
        >>> def predict(tokens, t):  # knows nothing: each of 16 tokens is equally likely
        ...     return torch.zeros(*tokens.shape, 16)
        >>> tokens, ratios = torch.randint(16, (2, 9)), unmask.ratios(unmask.Cosine(), 4)
        >>> nats = unmask.compute_exact_nll(predict, tokens, ratios, mask_id=16, rand=unmask.seeded(0, 2))
        >>> round(float(nats.mean()), 2)  # log 16
        2.77
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature {temperature}: must be positive and finite for a likelihood")
    masked = tokens != ABSENT
    if known is not None:
        masked = masked & ~known
    counts = count_reveals(masked.sum(1), ratios)
    nats = torch.zeros(tokens.shape, dtype=choose_wide_dtype(tokens.device), device=tokens.device)
    canvas = torch.where(masked, mask_id, tokens)
    for step in counts.any(1).nonzero().flatten().tolist():
        logits = predict(canvas, step / len(ratios)).float()
        sample = torch.where(masked, logits.argmax(-1), canvas.clamp(min=0))
        t = (step + 1) / len(ratios)
        score = priority(logits, sample, masked=masked, t=t, rand=rand.at(step))
        reveal = choose_by_score(score, masked, counts[step].to(tokens.device))
        nats = torch.where(reveal, compute_token_nll(logits / temperature, tokens), nats)
        canvas = torch.where(reveal, tokens, canvas)
        masked = masked & ~reveal
    return nats


def compute_token_nll(logits: Float[Tensor, "b l k"], tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """Return -log p(token) at every position, in nats; the value at an ABSENT token has no meaning."""
    logits = logits.float()
    chosen = logits.gather(-1, tokens.clamp(min=0)[..., None])[..., 0]
    return (logits.logsumexp(-1) - chosen).to(choose_wide_dtype(logits.device))
