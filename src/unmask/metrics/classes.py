"""Scores from the class probabilities of a classifier: the Inception score (Salimans et al. 2016, arXiv 1606.03498).
With another classifier than Inception it is not comparable to a published one, and a report has to name it."""

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.errors import ConfigError, DataError


def compute_inception_score(probabilities: Float[Tensor, "n k"], splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL divergence of p(class | image) from p(class): mean and standard deviation over splits.

    The deviation's divisor is `splits`. The score lies between 1 and k; more samples raise it. Splits are runs of rows
    in the order given, nothing is shuffled: samples that lie sorted by class must be shuffled before, or each split
    sees few classes and the score falls.
    """
    if not 1 <= splits <= len(probabilities):
        raise ConfigError(f"{splits} splits of {len(probabilities)} samples; use 1 or more, each of at least 1 sample")
    probabilities = probabilities.double()
    sums = probabilities.sum(dim=1)
    if not ((sums - 1).abs().amax() <= 1e-3 and probabilities.amin() >= 0):  # NaN fails both
        found = f"least {probabilities.amin():.3g}, rows sum to {sums.amin():.3g}..{sums.amax():.3g}"
        raise DataError(f"these are not probabilities ({found}); pass the softmax of the logits")
    # The mean of KL(p || q) with q the mean of all p is the entropy of q less the mean entropy of the p.
    scores = torch.stack(
        [
            (_compute_entropy(part.mean(dim=0)) - _compute_entropy(part).mean()).exp()
            for part in probabilities.tensor_split(splits)
        ]
    )
    return scores.mean().item(), scores.std(correction=0).item()


def _compute_entropy(probabilities: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    """In nats; a class of probability 0 adds none."""
    return -torch.xlogy(probabilities, probabilities).sum(dim=-1)
