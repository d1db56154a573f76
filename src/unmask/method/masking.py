"""Choose the tokens to mask in training: pure functions of uniform noise `u`. True means masked, so to be predicted.

The masking functions take one fraction per row and one uniform per token. They mask at least one token of every row, so
that every row has a target (MaskGIT, arXiv 2202.04200, section 3.1). Noise 2 marks a position without a token: it is
never masked.
"""

from jaxtyping import Bool, Float, Int

from unmask.lazy import Tensor, torch

ABSENT = -1
"""Value at the positions behind the end of a short row: these are not masked, predicted, or attended to."""


def exclude_absent(u: Float[Tensor, "b l"], tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """Return the noise with 2, which is never masked, at every ABSENT token."""
    return u.masked_fill(tokens == ABSENT, 2.0)


def mask_count(count: Int[Tensor, "b"], u: Float[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Mask exactly `count` tokens of each row: those with the smallest u. Counts are clamped to 1..l."""
    rank = u.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return (rank < count.clamp(1, u.shape[1])[:, None]) & (u < 2)


def mask_exact(ratio: Float[Tensor, "b"], u: Float[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Mask ceil(ratio * l) of the l tokens of each row (x-transformers and MAGE round this way).

    With ratios uniform in (0, 1) every count 1..l is equally likely, which is nanoMaskGIT's rule.
    """
    # The slack undoes rounding: (k / l) * l may be just above k, and ceil would then add a token.
    return mask_count((ratio * (u < 2).sum(1) - 1e-6).ceil().long(), u)


def mask_bernoulli(ratio: Float[Tensor, "b"], u: Float[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Mask each token independently with probability `ratio`; if none is masked, mask the one with the smallest u."""
    return (u < ratio[:, None]) | mask_count(torch.ones_like(ratio, dtype=torch.long), u)


def split_complementary(
    mask: Bool[Tensor, "b l"], u: Float[Tensor, "b l"]
) -> tuple[Bool[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """Return a mask and its complement: over the pair each token is a target exactly once.

    If a row is fully masked, the first mask leaves out the token with the largest u, so that the complement has a
    target. Raises ValueError for rows of fewer than 2 tokens.
    """
    if mask.shape[1] < 2:
        raise ValueError("complementary masks need at least 2 tokens per row; train single tokens without them")
    present = u < 2
    full = (mask | ~present).all(dim=1, keepdim=True)
    first = mask & ~(full & ~mask_count(present.sum(1) - 1, u))
    return first, ~first & present


def gather_places(chosen: Bool[Tensor, "r l"]) -> tuple[Int[Tensor, "r m"], Bool[Tensor, "r m"]]:
    """Return the chosen places of each row in order, padded to the largest number, and which of them are real."""
    count = chosen.sum(1)
    most = int(count.max()) if len(count) else 0
    place = chosen.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    return place, torch.arange(most, device=chosen.device) < count[:, None]


def stratify_times(u: Float[Tensor, "b"], row: Int[Tensor, "b"], num_rows: int) -> Float[Tensor, "b"]:
    """Return times in (0, 1), one in each of `num_rows` equal strata of the *global* batch: (row + u) / num_rows."""
    return (row % num_rows + u) / num_rows
