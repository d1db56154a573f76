"""Check metrics against closed forms, scipy and brute force, and the classifier's accuracy on real digits."""

import math
import warnings
from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from unmask.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from unmask.metrics.features import (
    Classifier,
    ClassifierConfig,
    _compute_rate_factor,
    _shift,
    embed,
    hash_network,
    load_classifier,
    save_classifier,
    train_classifier,
)
from unmask.metrics.frechet import Gaussian, compute_frechet_distance, fit_gaussian
from unmask.metrics.neighbours import compare_with_training_set, find_nearest_neighbours


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def diagonal(mean, deviation):
    mean, deviation = torch.tensor(mean).double(), torch.tensor(deviation).double()
    return Gaussian(mean=mean, covariance=deviation.square().diag(), count=10)


def by_scipy(a, b):
    """Compute the formula exactly as in the paper."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = sqrtm((a.covariance @ b.covariance).numpy())
    shift = (a.mean - b.mean).square().sum().item()
    return shift + (a.covariance + b.covariance).trace().item() - 2 * np.trace(root).real


# -- Fréchet distance --


def test_fit_gaussian_is_numpy_cov():
    features = normal(0, 50, 7).float()
    fit = fit_gaussian(features)
    assert fit.count == 50
    np.testing.assert_allclose(fit.mean, features.double().mean(0), atol=1e-14)
    np.testing.assert_allclose(fit.covariance, np.cov(features.double().numpy(), rowvar=False), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), dim=st.integers(1, 24), scale=st.floats(0.01, 100))
def test_frechet_agrees_with_scipy(seed, dim, scale):
    a = fit_gaussian(normal(seed, 3 * dim + 2, dim))
    b = fit_gaussian(scale * normal(seed + 1, 3 * dim + 5, dim) @ normal(seed + 2, dim, dim) + 1)
    expected = by_scipy(a, b)
    assert compute_frechet_distance(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert compute_frechet_distance(b, a) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_frechet_of_diagonal_gaussians_has_a_closed_form():
    a, b = diagonal([0, 1, 2], [1, 2, 0]), diagonal([3, 1, 2], [2, 2, 5])
    assert compute_frechet_distance(a, b) == pytest.approx(9 + 1 + 0 + 25, abs=1e-12)


@pytest.mark.parametrize(("count", "dim"), [(200, 8), (5, 64), (2, 3)])
def test_frechet_of_equal_statistics_is_zero_even_if_singular(count, dim):
    fit = fit_gaussian(normal(3, count, dim))
    assert 0 <= compute_frechet_distance(fit, fit) < 1e-10


def test_frechet_of_singular_covariances_keeps_the_closed_form():
    # Rotated so that no axis is null: without the rank cut the square root turns 1e-16 into 1e-8 per dimension.
    a, b = diagonal([0.0] * 40, [1.0] * 4 + [0.0] * 36), diagonal([0.0] * 40, [0.0] * 2 + [3.0] * 5 + [0.0] * 33)
    turn, _ = torch.linalg.qr(normal(4, 40, 40))
    turned = [Gaussian(mean=g.mean, covariance=turn @ g.covariance @ turn.T, count=10) for g in (a, b)]
    assert compute_frechet_distance(*turned) == pytest.approx(2 * 1 + 2 * 4 + 3 * 9, abs=1e-10)


def test_frechet_sees_a_change_of_mean_spread_and_correlation():
    base = normal(5, 4000, 2)
    same, reference = fit_gaussian(normal(6, 4000, 2)), fit_gaussian(base)
    skew = base @ torch.tensor([[1.0, 0.9], [0.0, 0.436]], dtype=torch.float64)
    for changed in (base + 0.5, base * 1.5, skew):
        assert compute_frechet_distance(fit_gaussian(changed), reference) > 20 * compute_frechet_distance(
            same, reference
        )


def test_frechet_names_what_is_wrong():
    with pytest.raises(ConfigError, match=r"at least 2.*got 1"):
        fit_gaussian(torch.zeros(1, 4))
    with pytest.raises(NonFiniteError, match=r"1 of 3 .*first row 1"):
        fit_gaussian(torch.tensor([[0.0, 1.0], [math.nan, 0.0], [1.0, 1.0]]))
    with pytest.raises(ConfigError, match="3 and 4 dimensions"):
        compute_frechet_distance(diagonal([0.0] * 3, [1.0] * 3), diagonal([0.0] * 4, [1.0] * 4))
    with pytest.raises(ConfigError, match="got 1"):
        Gaussian(mean=torch.zeros(2).double(), covariance=torch.eye(2).double(), count=1)
    with pytest.raises(NonFiniteError, match="not finite"):
        diagonal([math.inf, 0.0], [1.0, 1.0])


# -- nearest neighbours --


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 40), m=st.integers(1, 40), chunk=st.integers(1, 50))
def test_nearest_agrees_with_scikit_learn_for_every_chunk(seed, n, m, chunk):
    queries, references = normal(seed, n, 5), normal(seed + 1, m, 5)
    distance, index = find_nearest_neighbours(queries, references, chunk)
    expected, where = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(references).kneighbors(queries)
    np.testing.assert_allclose(distance, expected[:, 0], rtol=1e-9, atol=1e-12)
    assert index.tolist() == where[:, 0].tolist()


def test_exact_copies_are_at_exactly_zero_and_the_first_wins():
    # Far from the origin, |q|^2 + |r|^2 - 2 q.r in float32 gives about 1, as the control shows.
    train = (normal(7, 300, 64) + 100).float()
    train[200] = train[20]
    distance, index = find_nearest_neighbours(train[[20, 7]], train, chunk=64)
    assert distance.tolist() == [0.0, 0.0]
    assert index.tolist() == [20, 7]
    fast = torch.cdist(train[:100], train, compute_mode="use_mm_for_euclid_dist").amin(1)
    assert fast.max() > 0


def test_nearest_train_tells_copies_from_new_images():
    train, held_out, new = normal(8, 400, 6), normal(9, 101, 6), normal(10, 200, 6)
    copied = compare_with_training_set(torch.cat([train[:150], new[:50]]), train, held_out)
    assert copied["exact_copies"] == 0.75
    assert copied["samples"] == copied["ratio"] == copied["held_out_exact_copies"] == 0
    fresh = compare_with_training_set(new, train, held_out)
    assert fresh["exact_copies"] == 0
    assert 0.85 < fresh["ratio"] < 1.15
    assert compare_with_training_set(new + 5, train, held_out)["ratio"] > 2
    assert fresh["held_out"] == pytest.approx(np.median(torch.cdist(held_out, train).amin(1)))
    assert set(fresh) == {"samples", "held_out", "ratio", "exact_copies", "held_out_exact_copies"}
    assert math.isinf(compare_with_training_set(train, train, train)["ratio"])


def test_nearest_names_what_is_wrong():
    points = torch.zeros(3, 2)
    with pytest.raises(ConfigError, match="0 references"):
        find_nearest_neighbours(points, points[:0])
    with pytest.raises(ConfigError, match=r"chunk .* got 0"):
        find_nearest_neighbours(points, points, chunk=0)
    with pytest.raises(ConfigError, match="0 samples"):
        compare_with_training_set(points[:0], points, points)
    with pytest.raises(DataError, match="NaN"):
        find_nearest_neighbours(points * math.nan, points)


# -- classifier --


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.from_numpy(data.images[order]).float()[:, None] / 8 - 1
    return images, torch.from_numpy(data.target[order]).long()


@pytest.fixture(scope="module")
def classifier(digits):
    images, labels = digits
    return train_classifier(
        images[:1500], labels[:1500], ClassifierConfig(channels=1, num_classes=10, width=16, steps=300)
    )


def test_held_out_digits_are_recognised(classifier, digits):
    images, labels = digits
    with torch.no_grad():
        found = classifier(images[1500:]).argmax(1)
    assert (found == labels[1500:]).float().mean() >= 0.98


def test_feature_distance_grows_with_the_damage(classifier, digits):
    images, _ = digits
    real = fit_gaussian(embed(classifier, images[:900]))
    noise = normal(11, *images[900:].shape).float()
    damaged = [images[900:] + amount * noise for amount in (0, 0.2, 0.5, 1)]
    distances = [compute_frechet_distance(fit_gaussian(embed(classifier, each)), real) for each in damaged]
    assert distances == sorted(distances)
    assert distances[-1] > 10 * distances[0]
    one_class = embed(classifier, images[digits[1] == 3])
    assert compute_frechet_distance(fit_gaussian(one_class), real) > 5 * distances[0]


def test_embed_is_the_input_of_the_head_whatever_batch_and_mode(classifier, digits):
    images = digits[0][:40]
    whole = embed(classifier, images)
    assert whole.shape == (40, 64)
    torch.testing.assert_close(embed(classifier, images, batch=7), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(classifier.head(whole.float()), classifier(images))
    classifier.train()
    before = hash_network(classifier)
    torch.testing.assert_close(embed(classifier, images), whole)
    assert classifier.training
    assert hash_network(classifier) == before
    classifier.eval()


def test_training_is_a_function_of_its_arguments_and_leaves_the_global_generator_alone(digits):
    images, labels = digits[0][:200], digits[1][:200]
    short = ClassifierConfig(channels=1, num_classes=10, width=4, steps=5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = hash_network(train_classifier(images, labels, short))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert hash_network(train_classifier(images, labels, short)) == first
    other = ClassifierConfig(**{**asdict(short), "seed": 1})
    assert hash_network(train_classifier(images, labels, other)) != first


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (28, 31)])
def test_any_image_size_from_eight_up(size):
    model = Classifier(ClassifierConfig(channels=3, num_classes=5, width=4, features=6)).eval()
    images = normal(12, 2, 3, *size).float()
    assert model(images).shape == (2, 5)
    assert model.extract_features(images).shape == (2, 6)


def test_shift_is_one_of_nine_translations_and_meets_them_all():
    images = normal(13, 500, 2, 8, 9).float()
    shifted = _shift(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    hits = torch.stack(
        [(shifted == padded[:, :, y : y + 8, x : x + 9]).flatten(1).all(1) for y in range(3) for x in range(3)]
    )
    assert (hits.sum(0) == 1).all()
    assert (hits.sum(1) > 30).all()


def test_learning_rate_warms_up_and_decays():
    factors = [_compute_rate_factor(step / 100) for step in range(100)]
    assert max(factors) == factors[10] == 1
    assert 0 < factors[0] < 0.1
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 1e-2


def test_save_and_load_keep_every_bit(classifier, digits, tmp_path):
    path = tmp_path / "classifier.safetensors"
    save_classifier(classifier, path)
    loaded = load_classifier(path)
    assert loaded.config == classifier.config
    assert not loaded.training
    assert hash_network(loaded) == hash_network(classifier)
    assert torch.equal(loaded(digits[0][:9]), classifier(digits[0][:9]))
    assert [entry.name for entry in tmp_path.iterdir()] == ["classifier.safetensors"]
    with torch.no_grad():
        loaded.head.bias[0] += 1e-3
    assert hash_network(loaded) != hash_network(classifier)


def test_loading_refuses_what_is_not_a_classifier(tmp_path):
    from safetensors.torch import save_file

    config = ClassifierConfig(channels=1, num_classes=3, width=4)
    good, cut, foreign, wider = (tmp_path / f"{name}.safetensors" for name in ("good", "cut", "foreign", "wider"))
    save_classifier(Classifier(config), good)
    cut.write_bytes(good.read_bytes()[:-100])
    save_file({"weight": torch.zeros(2)}, foreign)
    lie = '{"channels": 1, "num_classes": 3, "width": 8}'
    save_file(Classifier(config).state_dict(), wider, metadata={"config": lie})
    for path in (cut, foreign, wider, tmp_path / "absent.safetensors"):
        with pytest.raises(CheckpointError, match=path.stem):
            load_classifier(path)


def test_classifier_names_what_is_wrong(digits):
    good = ClassifierConfig(channels=1, num_classes=10, width=4, steps=1)
    with pytest.raises(FrozenInstanceError):
        good.width = 8
    for field, value in [("channels", 0), ("num_classes", 1), ("steps", 0), ("learning_rate", math.nan), ("width", -1)]:
        with pytest.raises(ConfigError, match=f"{field}.*{value}"):
            ClassifierConfig(**{**asdict(good), field: value})
    images, labels = digits[0][:20], digits[1][:20]
    with pytest.raises(ConfigError, match="from 1 to"):
        train_classifier(images, labels + 1, good)
    with pytest.raises(ConfigError, match="0 images"):
        train_classifier(images[:0], labels[:0], good)
    with pytest.raises(ConfigError, match="0 images"):
        embed(Classifier(good), images[:0])
    with pytest.raises(ConfigError, match="got 1 channels, 7x8"):
        Classifier(good)(images[:, :, 1:])
    with pytest.raises(ConfigError, match="got 3 channels"):
        Classifier(good)(images.expand(-1, 3, -1, -1))
