"""Fidelity and variety apart: precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage
(Naeem et al. 2020, arXiv 2002.09797). Balls around the samples, reaching to their k-th neighbour, stand for the
manifold of a set; Euclidean distances over features. Precision and recall stay below 1 even for two sets of one
distribution: report those of as many real samples beside them."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from unmask.errors import ConfigError
from unmask.metrics.frechet import check_finite


def compute_prdc(
    real: Float[Tensor, "n d"],
    fake: Float[Tensor, "m d"],
    *,
    k_precision: int = 3,
    k_density: int = 5,
    block: int = 2048,
) -> dict[str, float]:
    """Shares of fakes in a real ball (precision), of reals in a fake ball (recall) or with a fake in their own
    (coverage); and real balls per fake over k (density, which may pass 1).

    The k-th neighbour is never the sample itself, and a ball is open, as in the authors' `prdc`. Differs from arXiv
    1904.06991, whose balls are closed: that shows only where distances tie. Memory is n + m + block^2.
    """
    if min(k_precision, k_density, block) < 1:
        given = f"k_precision {k_precision}, k_density {k_density}, block {block}"
        raise ConfigError(f"{given}: all must be at least 1")
    need = max(k_precision, k_density) + 1
    if len(real) < need or len(fake) <= k_precision:
        wanted = f"{need} real and {k_precision + 1} fake"
        raise ConfigError(f"these k need at least {wanted} samples, got {len(real)} and {len(fake)}; use more samples")
    check_finite(real)
    check_finite(fake)
    centre = real.double().mean(dim=0)  # distances stay, and what rounding takes from them shrinks
    real, fake = real.double() - centre, fake.double() - centre
    near_real, near_fake = _find_near_squares(real, need - 1, block), _find_near_squares(fake, k_precision, block)
    precise_ball, dense_ball = (_shrink_balls(real, near_real[:, k - 1]) for k in (k_precision, k_density))
    recall_ball = _shrink_balls(fake, near_fake[:, k_precision - 1])

    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool, device=real.device)
    inside = torch.zeros((), dtype=torch.long, device=real.device)
    for row in range(0, len(real), block):
        rows = slice(row, row + block)
        for column in range(0, len(fake), block):
            columns = slice(column, column + block)
            squares = _compute_squares(real[rows], fake[columns])
            dense = squares < dense_ball[rows, None]
            inside += dense.sum()
            covered[rows] |= dense.any(dim=1)
            precise[columns] |= (squares < precise_ball[rows, None]).any(dim=0)
            recalled[rows] |= (squares < recall_ball[columns]).any(dim=1)
    return {
        "precision": precise.double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": inside.item() / (k_density * len(fake)),
        "coverage": covered.double().mean().item(),
    }


def _compute_squares(a: Float64[Tensor, "p d"], b: Float64[Tensor, "q d"]) -> Float64[Tensor, "p q"]:
    """Squared distances as |a|^2 + |b|^2 - 2 a.b: faster than differences; `_ball` bears the rounding."""
    return torch.addmm(b.square().sum(dim=1), a, b.T, alpha=-2).add_(a.square().sum(dim=1)[:, None]).clamp_(min=0)


def _find_near_squares(points: Float64[Tensor, "n d"], k: int, block: int) -> Float64[Tensor, "n k"]:
    """Squared distances to the k nearest other points, ascending."""
    best = points.new_full((len(points), k), float("inf"))
    for row in range(0, len(points), block):
        rows = slice(row, row + block)
        for column in range(0, len(points), block):
            squares = _compute_squares(points[rows], points[column : column + block])
            if column == row:
                squares.fill_diagonal_(float("inf"))
            least = squares.topk(min(k, squares.shape[1]), dim=1, largest=False).values
            best[rows] = torch.cat([best[rows], least], dim=1).topk(k, dim=1, largest=False).values
    return best


def _shrink_balls(centres: Float64[Tensor, "n d"], square: Float64[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """The squared radius, less what rounding can do, so that what ties with it is outside, whatever the block.

    A squared distance from c is wrong by (d + 3) eps (|c|^2 + |b|^2) at most; a b on the sphere has
    |b|^2 <= 2 |c|^2 + 2 r^2; and radius and distance may err against each other. Copies (distance 0) thus stay inside
    every ball that is wider than 2e-6 of its centre's norm.
    """
    slack = 8 * (centres.shape[1] + 8) * torch.finfo(centres.dtype).eps
    return square - slack * (centres.square().sum(dim=1) + square)
