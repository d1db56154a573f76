"""How likely data is under a masked model: a bound that holds for any order, and the exact value for one given order.

Both are in nats, need no sample and no other network to judge, and mean the same for text and for pictures: divide by
the number of tokens, characters or pixels. Lower is better.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from unmask.method.guidance import Predict
from unmask.method.masking import ABSENT, exclude_absent, mask_count
from unmask.method.rand import Rand
from unmask.method.sampling.decode import CONFIDENCE, Priority, choose_by_score
from unmask.method.schedules import count_reveals


@torch.no_grad()
def estimate_bound(
    predict: Predict, tokens: Int[Tensor, "b l"], *, mask_id: int, rand: Rand, passes: int
) -> Float64[Tensor, "b passes"]:
    """Estimates, one per pass, of the bound on -log p(row) by masked diffusion; their mean is the bound.

    Each pass masks k of the n tokens, k uniform on 1..n and spread evenly over the passes, and weighs what it loses by
    n / k: the bound with the time integrated out (arXiv 2406.03736, eq. 12; the same for every schedule). It equals the
    mean, over all orders, of -log p under one token at a time.
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
) -> Float64[Tensor, "b l"]:
    """-log p of every token under a sampler that first chooses the positions of a step and then draws them.

    Which positions are revealed depends on what is visible only, so the probability of the data is a product over the
    steps, and summed over all data it is 1 (DUEL, OpenReview FQA0rTzTVd). An order that looks at the drawn token, as
    MaskGIT's confidence does, looks at the likeliest one here. Noise in the order is that of `rand`: the figure is then
    exact for these orders, and its mean a bound for the mixture of them. `known` tokens are given, at no cost.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature {temperature}: a likelihood needs a finite one above 0")
    masked = tokens != ABSENT
    if known is not None:
        masked = masked & ~known
    counts = count_reveals(masked.sum(1), ratios)
    nats = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
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


def compute_token_nll(logits: Float[Tensor, "b l k"], tokens: Int[Tensor, "b l"]) -> Float64[Tensor, "b l"]:
    """-log p(token) at every place, in nats; at an ABSENT one it means nothing."""
    logits = logits.float()
    chosen = logits.gather(-1, tokens.clamp(min=0)[..., None])[..., 0]
    return (logits.logsumexp(-1) - chosen).double()
