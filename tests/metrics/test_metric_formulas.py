"""Check metrics of sets and of image pairs against brute force and other libraries."""

import math

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve2d
from torch import nn

from unmask.errors import ConfigError, DataError, NonFiniteError
from unmask.metrics.classes import compute_inception_score
from unmask.metrics.kernel import compute_kernel_distance, compute_unbiased_mmd
from unmask.metrics.manifold import compute_prdc
from unmask.metrics.reconstruction import compute_code_statistics, compute_psnr, compute_ssim


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- precision, recall, density, coverage --


def by_loops(real, fake, k_precision, k_density):
    """Compute the definitions sample by sample in exact arithmetic. The features must be whole numbers."""

    def square(a, b):
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    def balls(points, k):
        return [sorted(square(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    real, fake = ([[int(x) for x in row] for row in points] for points in (real, fake))
    near, dense, far = balls(real, k_precision), balls(real, k_density), balls(fake, k_precision)
    across = [[square(r, f) for f in fake] for r in real]
    n, m = range(len(real)), range(len(fake))
    return {
        "precision": sum(any(across[i][j] < near[i] for i in n) for j in m) / len(fake),
        "recall": sum(any(across[i][j] < far[j] for j in m) for i in n) / len(real),
        "density": sum(across[i][j] < dense[i] for i in n for j in m) / (k_density * len(fake)),
        "coverage": sum(min(across[i]) < dense[i] for i in n) / len(real),
    }


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(6, 30),
    m=st.integers(4, 30),
    dim=st.integers(1, 6),
    top=st.integers(1, 30),
    offset=st.sampled_from([0, 7, 10_000]),
    block=st.integers(1, 40),
    k=st.tuples(st.integers(1, 3), st.integers(1, 5)),
)
def test_prdc_is_its_definition_with_ties_and_copies_whatever_the_block(seed, n, m, dim, top, offset, block, k):
    # Few whole numbers: most distances tie, and many points are copies, some more than k times.
    real, fake = ((uniform(seed + i, size, dim) * top).floor() + offset for i, size in enumerate((n, m)))
    fake[: min(n, m) // 2] = real[: min(n, m) // 2]
    expected = by_loops(real, fake, *k)
    assert compute_prdc(real, fake, k_precision=k[0], k_density=k[1], block=block) == pytest.approx(expected, abs=1e-12)


def test_prdc_agrees_with_the_authors_package():
    package = pytest.importorskip("prdc", reason="skipped: comparison with the package prdc, which is not installed")
    real, fake = normal(0, 301, 8), normal(1, 250, 8) * 0.9 + 0.2
    for k in (3, 5):
        ours = compute_prdc(real, fake, k_precision=k, k_density=k, block=101)
        assert ours == pytest.approx(package.compute_prdc(real.numpy(), fake.numpy(), k), abs=1e-12)
        assert 0.2 < ours["recall"] < ours["precision"] < 1  # neither number is trivial
    mixed = compute_prdc(real.float(), fake.float())
    assert mixed["coverage"] == ours["coverage"]
    assert mixed["precision"] != ours["precision"]


def test_prdc_of_exact_copies():
    real = normal(2, 200, 64) + 50
    same = compute_prdc(real, real[torch.randperm(200, generator=torch.Generator().manual_seed(0))])
    # Every ball holds its own copy and its k - 1 nearest. The k-th lies on the surface, which is outside.
    assert same == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}
    far = compute_prdc(real, real + 1000)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    one_mode = compute_prdc(real, real[:1].repeat(50, 1))
    assert one_mode["precision"] == 1
    assert one_mode["recall"] == 0
    assert one_mode["coverage"] < 0.1


def test_prdc_names_what_is_wrong():
    points = normal(3, 6, 2)
    assert set(compute_prdc(points, points[:4])) == {"precision", "recall", "density", "coverage"}
    with pytest.raises(ConfigError, match="at least 6 real and 4 fake samples, got 5 and 6"):
        compute_prdc(points[:5], points)
    with pytest.raises(ConfigError, match="got 6 and 3"):
        compute_prdc(points, points[:3])
    with pytest.raises(ConfigError, match="k_density 0"):
        compute_prdc(points, points, k_density=0)
    with pytest.raises(ConfigError, match="block 0"):
        compute_prdc(points, points, block=0)
    with pytest.raises(NonFiniteError, match="6 of 6 feature vectors"):
        compute_prdc(points, points / 0)


# -- kernel distance --


def mmd_by_loops(real, fake):
    def k(x, y):
        return (x @ y / len(x) + 1) ** 3

    real, fake = real.numpy(), fake.numpy()
    n, m = range(len(real)), range(len(fake))
    within_real = sum(k(real[i], real[j]) for i in n for j in n if i != j) / (len(n) * (len(n) - 1))
    within_fake = sum(k(fake[i], fake[j]) for i in m for j in m if i != j) / (len(m) * (len(m) - 1))
    return within_real + within_fake - 2 * sum(k(x, y) for x in real for y in fake) / (len(n) * len(m))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 20), m=st.integers(2, 20), block=st.integers(1, 25))
def test_mmd_is_its_double_sum_whatever_the_block(seed, n, m, block):
    real, fake = normal(seed, n, 5), normal(seed + 1, m, 5) + 1
    assert compute_unbiased_mmd(real, fake, block) == pytest.approx(mmd_by_loops(real, fake), rel=1e-10, abs=1e-10)


def test_mmd_agrees_with_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid", reason="skipped: comparison with torchmetrics, not installed")
    real, fake = normal(4, 70, 12), normal(5, 70, 12) * 1.3
    assert compute_unbiased_mmd(real, fake) == pytest.approx(kid.poly_mmd(real, fake).item(), rel=1e-10)


def test_kernel_distance_is_the_mean_over_its_subsets():
    real, fake = normal(6, 90, 6), normal(7, 80, 6) + 0.3
    rand = torch.Generator().manual_seed(3)
    values = []
    for _ in range(7):
        a = real[torch.randperm(90, generator=rand)[:40]]
        values.append(mmd_by_loops(a, fake[torch.randperm(80, generator=rand)[:40]]))
    expected = np.mean(values), np.std(values)
    assert compute_kernel_distance(real, fake, subsets=7, size=40, seed=3) == pytest.approx(expected, rel=1e-9)
    assert compute_kernel_distance(real, fake, subsets=7, size=40, seed=4)[0] != pytest.approx(expected[0], rel=1e-6)
    whole = compute_kernel_distance(real[:80], fake, subsets=2, size=80)  # all rows each time: only the order differs
    assert whole == pytest.approx((compute_unbiased_mmd(real[:80], fake), 0), abs=1e-10)


def test_kernel_distance_has_no_bias_and_sees_a_change():
    # 100 pairs of sets of 30: with the diagonals left in, the mean would be 2 (11.5 - 1.75) / 30 = 0.65 and not 0.
    pairs = [compute_unbiased_mmd(normal(2 * i, 30, 4), normal(2 * i + 1, 30, 4)) for i in range(100)]
    assert abs(np.mean(pairs)) < 4 * np.std(pairs) / 10
    assert min(pairs) < 0
    # In one dimension E (1 + xy)^3 = 1 + 3 E[x] E[y] + 3 E[x^2] E[y^2] + E[x^3] E[y^3].
    real, fake = normal(8, 4000, 1), normal(9, 4000, 1) + 0.5
    moments = {"real": (0, 1, 0), "fake": (0.5, 1.25, 1.625)}
    terms = {
        (a, b): 1 + sum(c * p * q for c, p, q in zip((3, 3, 1), moments[a], moments[b], strict=True))
        for a in moments
        for b in moments
    }
    exact = terms["real", "real"] + terms["fake", "fake"] - 2 * terms["real", "fake"]
    assert compute_unbiased_mmd(real, fake) == pytest.approx(exact, rel=0.15)


def test_kernel_distance_names_what_is_wrong():
    points = normal(10, 20, 2)
    with pytest.raises(ConfigError, match="at least 1000 samples of each, got 20 real"):
        compute_kernel_distance(points, points)
    with pytest.raises(ConfigError, match="subsets 0, size 10"):
        compute_kernel_distance(points, points, subsets=0, size=10)
    with pytest.raises(ConfigError, match="1 and 20 samples"):
        compute_unbiased_mmd(points[:1], points)
    with pytest.raises(ConfigError, match="block 0"):
        compute_unbiased_mmd(points, points, 0)
    with pytest.raises(NonFiniteError, match="not finite"):
        compute_unbiased_mmd(points, points / 0)


# -- Inception score --


def test_inception_score_has_closed_forms():
    assert compute_inception_score(torch.full((100, 8), 1 / 8)) == pytest.approx((1, 0), abs=1e-12)
    balanced = torch.eye(8).repeat(10, 1)
    assert compute_inception_score(balanced) == pytest.approx((8, 0), abs=1e-12)
    # Not shuffled: sorted by class, each of 8 splits sees one class; the whole still scores 8.
    by_class = torch.eye(8).repeat_interleave(10, 0)
    assert compute_inception_score(by_class, 8) == pytest.approx((1, 0), abs=1e-12)
    assert compute_inception_score(by_class, 1) == pytest.approx((8, 0), abs=1e-12)
    # Two splits of known scores 2 and 4: mean 3, deviation 1.
    halves = torch.cat([torch.eye(4)[:2].repeat(4, 1), torch.eye(4).repeat(2, 1)])
    assert compute_inception_score(halves, 2) == pytest.approx((3, 1), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(3, 40), splits=st.integers(1, 3), sharpness=st.floats(0.1, 30))
def test_inception_score_is_exp_of_the_mean_divergence(seed, n, splits, sharpness):
    p = (sharpness * normal(seed, n, 5)).softmax(1)
    scores = []
    for part in np.array_split(p.numpy(), splits):
        scores.append(np.exp(np.mean(np.sum(part * (np.log(part) - np.log(part.mean(0))), 1))))
    assert compute_inception_score(p, splits) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9, abs=1e-9)
    assert 1 - 1e-12 <= compute_inception_score(p, splits)[0] <= 5


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore`:UserWarning")
def test_inception_score_agrees_with_torchmetrics():
    reason = "skipped: comparison with torchmetrics, which is not installed"
    module = pytest.importorskip("torchmetrics.image.inception", reason=reason)
    logits = 3 * normal(11, 120, 7)
    metric = module.InceptionScore(feature=nn.Identity(), splits=4)
    metric.update(logits)
    with torch.random.fork_rng(devices=[]):  # it shuffles with the global generator, as done before here
        torch.manual_seed(0)
        mean, deviation = metric.compute()
        torch.manual_seed(0)
        shuffled = logits[torch.randperm(120)]
    ours = compute_inception_score(shuffled.softmax(1), 4)
    assert ours[0] == pytest.approx(mean.item(), rel=1e-10)
    assert ours[1] == pytest.approx(deviation.item() * math.sqrt(3 / 4), rel=1e-8)  # its divisor is splits - 1


def test_inception_score_names_what_is_wrong():
    with pytest.raises(ConfigError, match="10 splits of 9 samples"):
        compute_inception_score(torch.full((9, 2), 0.5))
    with pytest.raises(ConfigError, match="0 splits"):
        compute_inception_score(torch.full((9, 2), 0.5), 0)
    for bad in (torch.randn(20, 3), torch.full((20, 3), 0.5), torch.full((20, 3), math.nan)):
        with pytest.raises(DataError, match="softmax"):
            compute_inception_score(bad)


# -- reconstruction --


def picture(seed, *shape):
    return 2 * uniform(seed, *shape) - 1


def test_psnr_has_closed_forms():
    flat = torch.zeros(3, 1, 2, 2)
    other = flat.clone()
    other[0] += 0.2  # error 0.2 of a range of 2
    other[1, 0, 0, 0] = 1  # error 1 in a quarter of the pixels
    expected = [20, 10 * math.log10(4 / 0.25), math.inf]
    assert compute_psnr(flat, other).tolist() == pytest.approx(expected, rel=1e-6)
    assert compute_psnr(flat + 1, other + 5).tolist() == [math.inf] * 3  # both clamp to white
    assert compute_psnr(flat - 1, flat + 9).tolist() == [0] * 3  # black against white


def test_psnr_agrees_with_torchmetrics():
    reason = "skipped: comparison with torchmetrics, which is not installed"
    functional = pytest.importorskip("torchmetrics.functional.image", reason=reason)
    a, b = picture(12, 4, 3, 9, 7), picture(13, 4, 3, 9, 7)
    theirs = functional.peak_signal_noise_ratio(a, b, data_range=2.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(compute_psnr(a, b), theirs)


def ssim_by_scipy(a, b):
    """Compute SSIM of one channel in 0..255 with the whole 2-D window, as in the paper."""
    place = np.arange(-5, 6)
    window = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    x, y = (127.5 * (p.double().numpy() + 1) for p in (a, b))
    mean_x, mean_y = (convolve2d(p, window, "valid") for p in (x, y))
    var_x, var_y = (convolve2d(p * p, window, "valid") - m * m for p, m in ((x, mean_x), (y, mean_y)))
    shared = convolve2d(x * y, window, "valid") - mean_x * mean_y
    top = (2 * mean_x * mean_y + c1) * (2 * shared + c2)
    return (top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean()


def test_ssim_is_the_papers_formula():
    a = picture(14, 3, 2, 17, 23)
    b = a + torch.tensor([0.0, 0.1, 1.0])[:, None, None, None] * normal(15, 3, 2, 17, 23)
    found = compute_ssim(a, b)
    clean = b.clamp(-1, 1)
    expected = [np.mean([ssim_by_scipy(a[i, c], clean[i, c]) for c in range(2)]) for i in range(3)]
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    assert found[0] == pytest.approx(1, abs=1e-12)
    assert found.tolist() == sorted(found, reverse=True)
    torch.testing.assert_close(compute_ssim(a.float(), b.float()), found, atol=1e-6, rtol=0)


def test_ssim_agrees_with_torchmetrics_away_from_the_border():
    # It pads by reflection and averages over the padded border too. The map inside is the same.
    reason = "skipped: comparison with torchmetrics, which is not installed"
    module = pytest.importorskip("torchmetrics.functional.image.ssim", reason=reason)
    a, b = picture(16, 3, 2, 20, 16), picture(17, 3, 2, 20, 16)
    _, full = module._ssim_update((a + 1) / 2, (b + 1) / 2, data_range=1.0, return_full_image=True)
    torch.testing.assert_close(compute_ssim(a, b), full[:, :, 5:-5, 5:-5].mean((1, 2, 3)))


def test_ssim_of_flat_images_is_the_light_term():
    a, b = torch.full((1, 1, 11, 11), -0.5), torch.full((1, 1, 11, 11), 0.5)
    assert compute_ssim(a, b).item() == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), rel=1e-9)


def test_image_comparisons_name_what_is_wrong():
    with pytest.raises(ConfigError, match="11x11 pixels or larger, got 10x32"):
        compute_ssim(torch.zeros(1, 1, 10, 32), torch.zeros(1, 1, 10, 32))
    jaxtyping.config.update("jaxtyping_disable", True)  # it would object first
    try:
        for compare in (compute_psnr, compute_ssim):
            with pytest.raises(ConfigError, match=r"\(2, 3, 16, 16\) and \(2, 1, 16, 16\)"):
                compare(torch.zeros(2, 3, 16, 16), torch.zeros(2, 1, 16, 16))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_code_statistics_have_closed_forms():
    even = compute_code_statistics(torch.tensor([5, 5, 0, 5, 5, 0, 0, 0]))
    assert even == pytest.approx({"usage": 0.5, "perplexity": 4, "bits_per_token": 2}, rel=1e-12)
    one = compute_code_statistics(torch.tensor([0, 9, 0, 0], dtype=torch.int32))
    assert one == pytest.approx({"usage": 0.25, "perplexity": 1, "bits_per_token": 0}, abs=1e-12)
    skewed = compute_code_statistics(torch.tensor([2, 1, 1]))
    assert skewed == pytest.approx({"usage": 1, "perplexity": 2**1.5, "bits_per_token": 1.5}, rel=1e-12)
    for bad in (torch.zeros(4, dtype=torch.long), torch.tensor([3, -1])):
        with pytest.raises(DataError, match="at least one token"):
            compute_code_statistics(bad)
