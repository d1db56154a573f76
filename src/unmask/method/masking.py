"""Which tokens to mask in training: pure functions of uniform noise `u`. True means masked, that is, to be predicted.

All take the wanted fraction per row and one uniform per token, and all mask at least one token of every row, so that no
row is without a target (MaskGIT, arXiv 2202.04200, section 3.1). A place without a token has noise 2: it never is one.
"""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

ABSENT = -1
"""Stands where a row that ended early has no token: nothing to mask, to predict, or to attend to."""


def exclude_absent(u: Float[Tensor, "b l"], tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """The noise with 2, which no rule here masks, wherever there is no token."""
    return u.masked_fill(tokens == ABSENT, 2.0)


def mask_count(count: Int[Tensor, "b"], u: Float[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Mask exactly `count` tokens of each row: those with the smallest u. Counts are limited to 1..l."""
    rank = u.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return (rank < count.clamp(1, u.shape[1])[:, None]) & (u < 2)


def mask_exact(ratio: Float64[Tensor, "b"], u: Float[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Mask ceil(ratio * l) of the l tokens of each row (x-transformers and MAGE round this way).

    With ratios uniform in (0, 1) every count 1..l is equally likely: nanoMaskGIT's rule.
    """
    # The slack undoes rounding: (k / l) * l may come out just above k, and ceil would then add a token.
    return mask_count((ratio * (u < 2).sum(1) - 1e-6).ceil().long(), u)


def mask_bernoulli(ratio: Float[Tensor, "b"], u: Float[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Mask each token independently with probability `ratio`; a row without any masks its token with the smallest u."""
    return (u < ratio[:, None]) | mask_count(torch.ones_like(ratio, dtype=torch.long), u)


def split_complementary(
    mask: Bool[Tensor, "b l"], u: Float[Tensor, "b l"]
) -> tuple[Bool[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """A mask and its complement, so each token is a target exactly once over the pair.

    A fully masked row first shows the token with the largest u, as its complement would have no target. Needs l >= 2.
    """
    if mask.shape[1] < 2:
        raise ValueError("complementary masks need at least 2 tokens per row; train single tokens without them")
    present = u < 2
    full = (mask | ~present).all(dim=1, keepdim=True)
    first = mask & ~(full & ~mask_count(present.sum(1) - 1, u))
    return first, ~first & present


def stratify_times(u: Float[Tensor, "b"], row: Int[Tensor, "b"], num_rows: int) -> Float[Tensor, "b"]:
    """Times in (0, 1), one in each of `num_rows` equal strata over the *global* batch: (row + u) / num_rows."""
    return (row % num_rows + u) / num_rows
