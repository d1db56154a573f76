"""Ancestral sampling of masked diffusion: the number of tokens per step is random (MDLM, arXiv 2406.07524, 3.2.2).

In the step in which the masked fraction falls from g_t to g_s, each masked token is revealed with probability
(g_t - g_s) / g_t, independently of the others. So token i is revealed in the step with g_s <= u_i < g_t, where u_i is
uniform and drawn before the loop. A step that reveals nothing costs no forward pass (first hitting, arXiv 2409.02908).
In the limit of many steps each pass reveals one token, in random order. This equals `decode` with `Random()` and as
many steps as tokens, which samples exactly the joint law of a `predict` that ignores t.
"""

from collections.abc import Iterator, Sequence

from jaxtyping import Int

from unmask.lazy import Tensor, torch
from unmask.method.guidance import Predict
from unmask.method.rand import Rand
from unmask.method.sampling.decode import State, check_tokens, decode
from unmask.method.schedules import check_ratios


def decode_ancestral(
    predict: Predict,
    tokens: Int[Tensor, "b l"],
    ratios: Sequence[float],
    *,
    mask_id: int,
    rand: Rand,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Iterator[State]:
    """Decode with the law of the reverse diffusion: of n unknown tokens, about n * ratio are masked after a step.

    Only steps that reveal something yield a state, so the last t may be below 1. Raises as `decode` does.
    """
    check_ratios(ratios)
    masked = check_tokens(tokens, mask_id)
    u = rand.at(0)("reveal", tokens.shape[1])
    falling = -torch.tensor(list(ratios), dtype=u.dtype, device=u.device)
    step = torch.searchsorted(falling, -u)  # the first with ratio <= u
    counts = torch.zeros(len(u), len(ratios), dtype=torch.long, device=u.device).scatter_add(1, step, masked.long())
    return decode(predict, tokens, counts.T, mask_id=mask_id, rand=rand, temperature=temperature, top_k=top_k,
                  top_p=top_p, priority=lambda logits, sample, *, masked, t, rand: u)  # fmt: skip
