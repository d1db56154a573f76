"""Separate metrics of fidelity and diversity.

Precision and recall are from Kynkäänniemi et al. 2019 (arXiv 1904.06991), density and coverage from Naeem et al. 2020
(arXiv 2002.09797). A ball around each row, with its k-th neighbour on the surface, stands for the manifold of a set.
Distances are Euclidean, over features. Precision and recall stay below 1 even for two sets of one distribution: report
them beside the values for as many real samples.
"""

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
    """Compute precision, recall, density and coverage.

    * precision: share of samples inside the ball of any real row.
    * recall: share of real rows inside the ball of any sample.
    * density: number of real balls around a sample, over k. It may exceed 1.
    * coverage: share of real rows with a sample inside their own ball.

    The k-th neighbour is never the row itself. A ball is open, as in the authors' package `prdc`. Differs from arXiv
    1904.06991, where balls are closed: the results differ only where distances tie. Memory grows with n + m + block^2.

    Args:
        real: Features of real images.
        fake: Features of samples.
        k_precision: Neighbour that sets the radius for precision and recall.
        k_density: Neighbour that sets the radius for density and coverage.
        block: Rows compared at once.

    Raises:
        ConfigError: If there are too few rows, or a number is below 1.
        DataError: If a feature is not finite.
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
    centre = real.double().mean(dim=0)  # distances stay the same, and their rounding errors shrink
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
    """Compute squared distances as |a|^2 + |b|^2 - 2 a.b. It is faster than differences; `_shrink_balls` allows for
    the rounding errors.
    """
    return torch.addmm(b.square().sum(dim=1), a, b.T, alpha=-2).add_(a.square().sum(dim=1)[:, None]).clamp_(min=0)


def _find_near_squares(points: Float64[Tensor, "n d"], k: int, block: int) -> Float64[Tensor, "n k"]:
    """Return squared distances to the k nearest other points, ascending."""
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
    """Reduce each squared radius by the largest rounding error, so that a tie is outside, whatever the block size.

    A squared distance from c is wrong by at most (d + 3) eps (|c|^2 + |b|^2). A point b on the sphere has
    |b|^2 <= 2 |c|^2 + 2 r^2. The errors of radius and distance may have opposite signs. So copies (distance 0) stay
    inside every ball that is wider than 2e-6 of its centre's norm.
    """
    slack = 8 * (centres.shape[1] + 8) * torch.finfo(centres.dtype).eps
    return square - slack * (centres.square().sum(dim=1) + square)
