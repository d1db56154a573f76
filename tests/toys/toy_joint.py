"""Three binary tokens with a known joint law: its conditionals as a `predict`, and a sampler's law enumerated."""

import math
from collections.abc import Callable
from itertools import product

import torch
from scipy import stats

K, LENGTH = 2, 3
JOINT = torch.tensor([0.22, 0.03, 0.02, 0.17, 0.05, 0.29, 0.13, 0.09], dtype=torch.float64)
WORDS = list(product(range(K), repeat=LENGTH))
CANVASES = list(product(range(K + 1), repeat=LENGTH))


def conditionals(canvas: tuple[int, ...]) -> list[list[float]]:
    """p(x_i = v | the known tokens), by summing the joint law."""
    p = [[0.0] * K for _ in range(LENGTH)]
    for weight, word in zip(JOINT.tolist(), WORDS, strict=True):
        if all(c in (K, w) for c, w in zip(canvas, word, strict=True)):
            for i, value in enumerate(word):
                p[i][value] += weight
    return [[x / sum(row) for x in row] for row in p]


TABLE = torch.tensor([conditionals(c) for c in CANVASES], dtype=torch.float64).log()


def exact(tokens: torch.Tensor, t: float) -> torch.Tensor:
    return TABLE[(tokens * torch.tensor([9, 3, 1])).sum(1)].float()


def word_counts(tokens: torch.Tensor) -> torch.Tensor:
    """How often each of the 8 words came out."""
    return (tokens * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8)


def fits(counts: torch.Tensor, law: torch.Tensor) -> float:
    """p-value of the chi-square test."""
    assert math.isclose(law.sum().item(), 1, abs_tol=1e-9)
    return float(stats.chisquare(counts.numpy(), (law * counts.sum()).numpy()).pvalue)


def enumerated(ratios: list[float], sigma: Callable[[float, float], float]) -> torch.Tensor:
    """The law of the final words: all canvases, with each place revealed, kept or masked again on its own."""
    now = {(K,) * LENGTH: 1.0}
    for before, after in zip([1.0, *ratios], ratios, strict=False):
        s, later = sigma(before, after), dict.fromkeys(CANVASES, 0.0)
        show = ((1 - after) - (1 - s) * (1 - before)) / before if before else 0.0
        for canvas, weight in now.items():
            p = conditionals(canvas)
            for new in CANVASES:
                move = weight
                for i, (old, value) in enumerate(zip(canvas, new, strict=True)):
                    if old == K:
                        move *= 1 - show if value == K else show * p[i][value]
                    else:
                        move *= s if value == K else (1 - s) * (old == value)
                later[new] += move
        now = later
    return torch.tensor([now[word] for word in WORDS], dtype=torch.float64)
