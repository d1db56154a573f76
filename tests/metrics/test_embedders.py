"""Check the feature extractors: 8-bit images, identities, and the features of each network."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.errors import CheckpointError, ConfigError, NonFiniteError
from unmask.figures.images import _convert_pixels
from unmask.metrics import embedders
from unmask.metrics.embedders import (
    ClassifierFeatures,
    Dinov2Features,
    Identity,
    InceptionFeatures,
    check_same_features,
    convert_to_pixels,
    embed_all,
    identify_features,
    load_dinov2,
)
from unmask.metrics.features import (
    Classifier,
    ClassifierConfig,
    _augment,
    _shift,
    embed,
    hash_network,
    load_classifier,
    save_classifier,
    train_classifier,
)
from unmask.metrics.inception import Inception, PlainResize
from unmask.storage.files import hash_file


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.5


@pytest.fixture(scope="module")
def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(ClassifierConfig(channels=3, num_classes=5, width=4, features=6)).eval()


@pytest.fixture(scope="module")
def inception():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Inception().requires_grad_(False).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="DINOv2: no transformers")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Dinov2Model(transformers.Dinov2Config(**size))
        for value in model.parameters():
            torch.nn.init.normal_(value, std=0.2)
    folder = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(folder)
    return folder


# -- 8 bits --


def test_pixels_are_those_of_the_saved_png(small, tmp_path):
    images = normal(1, 4, 3, 9, 10) * 3
    assert torch.equal(convert_to_pixels(images).permute(0, 2, 3, 1), _convert_pixels(images))
    features = ClassifierFeatures(small)
    read = []
    for i, image in enumerate(convert_to_pixels(images)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
        read.append(np.asarray(Image.open(tmp_path / f"{i}.png")))
    again = torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(features(images), features(again))
    assert not torch.allclose(embed(small, images), embed(small, again), atol=1e-6)


def test_pixels_of_what_is_not_finite_are_refused():
    images = normal(1, 3, 1, 8, 8)
    images[1, 0, 2, 3], images[2, 0, 0, 0] = torch.nan, torch.inf
    with pytest.raises(NonFiniteError, match="2 of 3 images"):
        convert_to_pixels(images)


# -- embed_all and identities --


class Mean:
    """Features that are the mean of each channel; they record the batch sizes."""

    name, sha256, preprocessing, dim, num_classes = "mean", "0" * 64, "none", 3, None

    def __init__(self):
        self.sizes = []

    def __call__(self, images):
        self.sizes.append(len(images))
        return images.double().mean((2, 3))

    def classify(self, features):
        raise ConfigError("no classes")

    probabilities = classify


@pytest.mark.parametrize("batch", [1, 4, 7, 100])
def test_embed_all_is_one_answer_for_every_cut(batch):
    images = normal(2, 11, 3, 8, 8)
    expected = images.double().mean((2, 3))
    whole = Mean()
    torch.testing.assert_close(embed_all(whole, images, batch), expected)
    assert max(whole.sizes) <= batch
    assert sum(whole.sizes) == 11
    parts = Mean()
    found = embed_all(parts, (part for part in images.split([5, 0, 6])), batch)
    torch.testing.assert_close(found, expected)
    assert max(parts.sizes) <= batch


def test_embed_all_refuses_nothing_and_no_batch():
    with pytest.raises(ConfigError, match="0 images"):
        embed_all(Mean(), [])
    with pytest.raises(ConfigError, match="0 images"):
        embed_all(Mean(), torch.zeros(0, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"batch .* got 0"):
        embed_all(Mean(), torch.zeros(1, 3, 8, 8), batch=0)


def test_statistics_of_other_features_are_refused_with_both_names(small):
    one = identify_features(ClassifierFeatures(small))
    assert one == Identity(name="classifier-6", sha256=hash_network(small), preprocessing=one.preprocessing, dim=6)
    check_same_features(one, replace(one))
    for field, value in {"name": "other", "sha256": "f" * 64, "preprocessing": "none", "dim": 7}.items():
        other = replace(one, **{field: value})
        with pytest.raises(ConfigError, match="statistics from other features") as caught:
            check_same_features(other, one)
        assert str(one) in str(caught.value)
        assert str(other) in str(caught.value)


# -- classifier --


def test_classifier_features_are_its_penultimate_layer(small):
    features = ClassifierFeatures(small)
    pixels = torch.randint(0, 256, (5, 3, 9, 12), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    images = pixels.float() / 127.5 - 1
    found = features(images)
    assert found.shape == (5, features.dim)
    torch.testing.assert_close(found, small.extract_features(images).double())
    expected = small(images).double().softmax(1)
    torch.testing.assert_close(features.classify(found), expected, atol=1e-6, rtol=1e-5)
    assert expected.shape == (5, features.num_classes)
    assert not found.requires_grad


# -- Inception --


def test_inception_features_and_the_classes_of_the_score(inception):
    features = InceptionFeatures(inception)
    images = normal(4, 2, 3, 32, 32)
    found = features(images)
    assert (found.shape, found.dtype) == ((2, 2048), torch.float64)
    with torch.no_grad():
        expected = inception(features.resize(convert_to_pixels(images))).double()
    torch.testing.assert_close(found, expected)
    # As in the published scores, without the bias.
    shares = (found @ inception.fc.weight.double().T).softmax(1)
    torch.testing.assert_close(features.classify(found), shares)
    assert shares.shape == (2, features.num_classes)
    biased = (found @ inception.fc.weight.double().T + inception.fc.bias.double()).softmax(1)
    assert not torch.allclose(biased, shares, rtol=1e-3, atol=0)


def test_inception_takes_grey_and_any_size_and_rounds_first(inception):
    features = InceptionFeatures(inception, PlainResize())
    grey = normal(5, 1, 1, 14, 20)
    assert torch.equal(features(grey), features(grey.expand(-1, 3, -1, -1)))
    rounded = convert_to_pixels(grey).float() / 127.5 - 1
    assert torch.equal(features(grey), features(rounded))
    with pytest.raises(ConfigError, match="got 4"):
        features(torch.zeros(1, 4, 14, 14))


def test_the_resize_is_part_of_the_identity(inception):
    clean, plain = (
        identify_features(InceptionFeatures(inception)),
        identify_features(InceptionFeatures(inception, PlainResize())),
    )
    assert clean.name == "inception-v3-fid-2048"
    assert clean.dim == 2048
    assert clean.sha256 == plain.sha256 == hash_network(inception)
    with pytest.raises(ConfigError, match=r"clean-fid.*pytorch-fid"):
        check_same_features(clean, plain)


# -- DINOv2 --


def test_dinov2_is_the_class_token_of_what_pillow_resized(dinov2_folder):
    from transformers import Dinov2Model

    features = load_dinov2(dinov2_folder)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(6), dtype=torch.uint8)
    pixels[1] = torch.tensor([250, 20, 60])[:, None, None] + pixels[1] // 64
    large = [
        np.asarray(Image.fromarray(p.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC))
        for p in pixels
    ]
    scaled = (np.stack(large) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    model = Dinov2Model.from_pretrained(dinov2_folder).eval()
    with torch.no_grad():
        inputs = torch.from_numpy(scaled).permute(0, 3, 1, 2).float()
        expected = model(inputs).pooler_output.double()  # the class token after the last normalization
    found = features(pixels.float() / 127.5 - 1)
    assert (found.shape, features.dim, features.name) == ((2, 32), 32, "dinov2-32")
    # Pillow rounds between its two passes, so some pixels differ by one level.
    apart = (expected[0] - expected[1]).abs().max().item()
    torch.testing.assert_close(found, expected, atol=0.01 * apart, rtol=0)
    assert apart > 0.1 * expected.std()
    assert features.sha256 == load_dinov2(dinov2_folder).sha256


def test_dinov2_takes_grey_and_has_no_classes(dinov2_folder):
    features = load_dinov2(dinov2_folder)
    assert isinstance(features, Dinov2Features)
    grey = normal(7, 2, 1, 8, 8)
    torch.testing.assert_close(features(grey), features(grey.expand(-1, 3, -1, -1)))
    assert features.num_classes is None
    with pytest.raises(ConfigError, match="dinov2-32 has no classes"):
        features.classify(features(grey))


def test_a_dinov2_that_does_not_fit_is_refused(dinov2_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(dinov2_folder / "model.safetensors")
    weights.pop("layernorm.weight")
    (tmp_path / "config.json").write_bytes((dinov2_folder / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not a DINOv2.*layernorm\.weight"):
        load_dinov2(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no DINOv2 can be loaded") as caught:
        load_dinov2(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_configuration_of_a_dinov2_names_no_code(dinov2_folder, tmp_path):
    folder = tmp_path / "dinov2"
    shutil.copytree(dinov2_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_attn_implementation": "evil/kernel"}))
    assert load_dinov2(folder).sha256 == load_dinov2(dinov2_folder).sha256


def test_dinov2_comes_from_a_pinned_commit_and_is_checked(dinov2_folder, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, **more: asked.append((repo, more)) or str(dinov2_folder))
    assert load_dinov2("me/small@abc").name == "dinov2-32"
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the published file"):
        load_dinov2()
    monkeypatch.setattr(embedders, "DINOV2_SHA256", hash_file(dinov2_folder / "model.safetensors"))
    assert load_dinov2().name == "dinov2-32"
    assert [(repo, len(more["revision"])) for repo, more in asked] == [
        ("me/small", 3), ("facebook/dinov2-large", 40), ("facebook/dinov2-large", 40)
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match="OWNER/NAME@REVISION"):
        load_dinov2("facebook/dinov2-small")
    assert len(asked) == 3


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"unmask\[dinov2\]"):
        load_dinov2("anything")


# -- training the classifier on photos --

PHOTO = ClassifierConfig(
    channels=3, num_classes=3, width=4, steps=40, residual=True, flip=True, shift=3, precision="bf16"
)


@pytest.fixture(scope="module")
def stripes():
    """Return three kinds of noisy stripes, and labels."""
    rand = torch.Generator().manual_seed(8)
    labels = torch.arange(300) % 3
    wave = torch.arange(16).mul(2).sin().expand(16, 16)
    patterns = torch.stack([wave, wave.T, torch.zeros(16, 16)])[labels]
    noise = torch.randn(300, 3, 16, 16, generator=rand) * 0.3
    return convert_to_pixels(0.5 * patterns[:, None] + noise), labels


def test_bytes_and_floats_train_the_same_classifier_and_tell_how_far_it_is(stripes, tmp_path):
    pixels, labels = stripes
    told = []
    trained = train_classifier(pixels, labels, PHOTO, lambda *state: told.append(state))
    assert told == [("classifier", step, 40) for step in range(1, 41)]
    assert hash_network(train_classifier(pixels.float() / 127.5 - 1, labels, PHOTO)) == hash_network(trained)
    judge = ClassifierFeatures(trained)
    assert (judge.classify(embed(trained, pixels)).argmax(1) == labels).double().mean() > 0.95
    torch.testing.assert_close(embed(trained, pixels), embed(trained, pixels.float() / 127.5 - 1))
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in trained.parameters())
    save_classifier(trained, tmp_path / "it.safetensors")
    assert hash_network(load_classifier(tmp_path / "it.safetensors")) == hash_network(trained)


@pytest.mark.parametrize(
    "change", [{"residual": False}, {"flip": False}, {"shift": 2}, {"precision": "fp32"}, {"seed": 1}]
)
def test_every_option_of_the_training_changes_the_result(stripes, change):
    pixels, labels = stripes
    base = replace(PHOTO, steps=3)
    assert hash_network(train_classifier(pixels, labels, replace(base, **change))) != hash_network(
        train_classifier(pixels, labels, base)
    )


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (32, 32)])
def test_the_residual_network_takes_any_size_from_eight_up(size):
    model = Classifier(PHOTO).eval()
    assert model(normal(9, 2, 3, *size)).shape == (2, 3)


def test_wide_shifts_mirror_the_border_and_meet_every_offset():
    images = normal(10, 900, 2, 8, 9)
    shifted = _shift(images, torch.Generator().manual_seed(0), 2)
    padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect"))
    hits = torch.stack(
        [(shifted == padded[:, :, y : y + 8, x : x + 9]).flatten(1).all(1) for y in range(5) for x in range(5)]
    )
    assert (hits.sum(0) == 1).all()
    assert (hits.sum(1) > 15).all()


def test_flip_mirrors_about_half_left_to_right():
    images = normal(11, 400, 1, 8, 8)
    still = replace(PHOTO, shift=0)
    flipped = _augment(images, still, torch.Generator().manual_seed(0))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250
    plain = replace(still, flip=False)
    assert torch.equal(_augment(images, plain, torch.Generator()), images)


def test_a_shift_that_no_small_image_has_room_for_is_refused():
    for shift in (-1, 8):
        with pytest.raises(ConfigError, match=f"shift .*got {shift}"):
            replace(PHOTO, shift=shift)
