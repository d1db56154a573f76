"""Scores from the class probabilities of a classifier: the Inception score (Salimans et al. 2016, arXiv 1606.03498).

Only scores with the Inception network are comparable to published ones. A report must name the classifier.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.errors import ConfigError, DataError


def compute_inception_score(probabilities: Float[Tensor, "n k"], splits: int = 10) -> tuple[float, float]:
    """Compute the Inception score: exp of the mean KL divergence of p(class | image) from p(class).

    The score lies between 1 and k. More samples raise it. Splits are consecutive rows, and nothing is shuffled: shuffle
    samples that are sorted by class first. Otherwise each split sees few classes and the score falls.

    Args:
        probabilities: Class probabilities of each sample.
        splits: Number of parts; each part gets a score.

    Returns:
        Mean and standard deviation (divisor `splits`) of the score over the splits.

    Raises:
        ConfigError: If there are more splits than samples, or none.
        DataError: If rows are not probabilities.
    """
    if not 1 <= splits <= len(probabilities):
        raise ConfigError(f"{splits} splits of {len(probabilities)} samples; use 1 or more, each of at least 1 sample")
    probabilities = probabilities.double()
    sums = probabilities.sum(dim=1)
    if not ((sums - 1).abs().amax() <= 1e-3 and probabilities.amin() >= 0):  # NaN fails both
        found = f"least {probabilities.amin():.3g}, rows sum to {sums.amin():.3g}..{sums.amax():.3g}"
        raise DataError(f"these are not probabilities ({found}); pass the softmax of the logits")
    # With q the mean of all p, the mean of KL(p || q) is the entropy of q minus the mean entropy of p.
    scores = torch.stack(
        [
            (_compute_entropy(part.mean(dim=0)) - _compute_entropy(part).mean()).exp()
            for part in probabilities.tensor_split(splits)
        ]
    )
    return scores.mean().item(), scores.std(correction=0).item()


def _compute_entropy(probabilities: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    """Return the entropy in nats. A class of probability 0 adds nothing."""
    return -torch.xlogy(probabilities, probabilities).sum(dim=-1)
