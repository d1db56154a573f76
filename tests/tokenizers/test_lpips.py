"""LPIPS: against a chain of plain convolutions in float64 by the published formula, and the files it must refuse."""

import os

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from unmask.errors import CheckpointError, ConfigError
from unmask.tokenizers.losses import measure_perceptual_distance
from unmask.tokenizers.lpips import Lpips, load_lpips

# (number of the layer, channels in, channels out), and P for a pooling: torchvision's vgg16().features.
CHAIN = [
    (0, 3, 64), (2, 64, 64), "P", (5, 64, 128), (7, 128, 128), "P", (10, 128, 256), (12, 256, 256), (14, 256, 256), "P",
    (17, 256, 512), (19, 512, 512), (21, 512, 512), "P", (24, 512, 512), (26, 512, 512), (28, 512, 512), "P",
]  # fmt: skip
CHANNELS = [64, 128, 256, 512, 512]


@pytest.fixture(scope="module")
def weights():
    rand = torch.Generator().manual_seed(0)
    found = {}
    for number, dim_in, dim in (layer for layer in CHAIN if layer != "P"):
        found[f"features.{number}.weight"] = torch.randn(dim, dim_in, 3, 3, generator=rand) * (2 / (9 * dim_in)) ** 0.5
        found[f"features.{number}.bias"] = torch.randn(dim, generator=rand) * 0.1
    return found


@pytest.fixture(scope="module")
def linear():
    rand = torch.Generator().manual_seed(1)
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=rand) for i, c in enumerate(CHANNELS)}


@pytest.fixture(scope="module")
def files(weights, linear, tmp_path_factory):
    """As published: the whole classifier in the old format of torch, without zip, and the linear weights."""
    folder = tmp_path_factory.mktemp("lpips")
    whole = {**weights, "classifier.0.weight": torch.zeros(7, 5), "classifier.6.bias": torch.zeros(3)}
    torch.save(whole, folder / "vgg16.pth", _use_new_zipfile_serialization=False)
    torch.save(linear, folder / "vgg.pth", _use_new_zipfile_serialization=False)
    return folder / "vgg16.pth", folder / "vgg.pth"


@pytest.fixture(scope="module")
def lpips(files):
    return load_lpips(*files)


def images(seed, shape=(2, 3, 35, 50)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def formula(weights, linear, a, b):
    """The published one: sum over stages of the mean over cells of lin((a / (|a| + eps) - b / (|b| + eps))^2)."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(1, 3, 1, 1)
    a, b = ((x - shift) / scale for x in (a, b))
    total, stage = 0, 0
    for layer in CHAIN:
        if layer != "P":
            w, bias = (weights[f"features.{layer[0]}.{part}"].double() for part in ("weight", "bias"))
            a, b = (F.conv2d(x, w, bias, padding=1).clamp(min=0) for x in (a, b))
            continue
        unit = [x / ((x**2).sum(1, keepdim=True) ** 0.5 + 1e-10) for x in (a, b)]
        lin = linear[f"lin{stage}.model.1.weight"].double()
        total = total + F.conv2d((unit[0] - unit[1]) ** 2, lin).mean((1, 2, 3))
        stage += 1
        a, b = (F.max_pool2d(x, 2, 2) for x in (a, b))
    assert stage == 5
    return total


def test_it_is_the_published_formula(lpips, weights, linear):
    a, b = images(0), images(1)
    found = lpips.measure_distance(a.float(), b.float())
    torch.testing.assert_close(found.double(), formula(weights, linear, a, b), rtol=1e-5, atol=0)
    assert found.shape == (2,)
    torch.testing.assert_close(lpips.measure_distance(b.float(), a.float()), found)
    assert torch.equal(lpips.measure_distance(a.float(), a.float()), torch.zeros(2))
    torch.testing.assert_close(
        measure_perceptual_distance(lpips, a.float(), b.float()), found.sum()
    )  # a tokenizer's loss


def test_its_gradient_is_that_of_the_formula(lpips, weights, linear):
    a, b = images(0).requires_grad_(), images(1)
    (wanted,) = torch.autograd.grad(formula(weights, linear, a, b).sum(), a)
    x = a.detach().float().requires_grad_()
    (found,) = torch.autograd.grad(lpips.measure_distance(x, b.float()).sum(), x)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4
    assert not any(p.requires_grad for p in lpips.parameters())


def test_without_linear_weights_it_is_the_mean_over_stages_of_equal_ones(files, weights):
    a, b = images(2), images(3)
    equal = {f"lin{i}.model.1.weight": torch.full((1, c, 1, 1), 1 / 5) for i, c in enumerate(CHANNELS)}
    plain = load_lpips(files[0])
    found = plain.measure_distance(a.float(), b.float())
    torch.testing.assert_close(found.double(), formula(weights, equal, a, b), rtol=1e-5, atol=0)


def test_maps_are_of_the_published_sizes(lpips):
    maps = lpips(images(0, (2, 3, 64, 48)).float())
    assert [tuple(m.shape) for m in maps] == [(2, c, 64 >> i, 48 >> i) for i, c in enumerate(CHANNELS)]


def test_grey_is_three_equal_channels(lpips):
    grey = images(4, (3, 1, 32, 32)).float()
    for one, three in zip(lpips(grey), lpips(grey.expand(-1, 3, -1, -1)), strict=True):
        assert torch.equal(one, three)
    assert float(lpips.measure_distance(grey, -grey).min()) > 0


def test_a_cell_counts_the_same_however_weak_its_features(weights):
    weak = {k: v * 1e-6 if k.startswith("features.2.") else v for k, v in weights.items()}
    x = images(0).float()
    torch.testing.assert_close(Lpips(weak)(x)[0], Lpips(weights)(x)[0])


def test_cells_without_any_feature_have_finite_gradients(weights, linear):
    dead = {k: torch.full_like(v, -100.0) if k == "features.2.bias" else v for k, v in weights.items()}
    x = images(0, (1, 3, 16, 16)).float().requires_grad_()
    network = Lpips(dead, [v.flatten() for v in linear.values()])
    assert not network(x)[0].any()
    network.measure_distance(x, images(1, (1, 3, 16, 16)).float()).sum().backward()
    assert bool(x.grad.isfinite().all())


def test_half_precision_features_are_compared_in_float32(lpips):
    a, b = images(0).float(), images(1).float()
    with torch.autocast("cpu", torch.bfloat16):
        maps = lpips(a)
        found = lpips.measure_distance(a, b)
    assert {m.dtype for m in maps} == {torch.float32}
    torch.testing.assert_close(found, lpips.measure_distance(a, b), rtol=0.05, atol=0)


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 4, 32, 32), (1, 3, 15, 32), (1, 3, 64, 8)])
def test_images_it_cannot_look_at_are_refused(lpips, shape):
    with pytest.raises(ConfigError, match="1 or 3 channels and 16 pixels"):
        lpips(torch.zeros(shape))


# -- files -------------------------------------------------------------------------------------------------------------


def test_safetensors_and_the_features_alone_are_read_too(lpips, weights, linear, tmp_path):
    save_file(weights, tmp_path / "a.safetensors")
    save_file(linear, tmp_path / "b.safetensors")
    other = load_lpips(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    a, b = images(0).float(), images(1).float()
    assert torch.equal(other.measure_distance(a, b), lpips.measure_distance(a, b))


def changed(table, change):
    """`table` with entries replaced, and those that became None left out."""
    return {k: v for k, v in (table | change).items() if v is not None}


LAST = "features.28.bias"


@pytest.mark.parametrize(("change", "says"), [
    ({LAST: None}, "features.28.bias is missing"),
    ({LAST: torch.zeros(511)}, r"features.28.bias is \(511,\), not \(512,\)"),
    ({LAST: torch.full((512,), torch.nan)}, "features.28.bias is not finite"),
    ({"features.30.weight": torch.zeros(1)}, "features.30.weight is not known"),
    ({f"features.{i}.bias": None for i in (0, 2, 5, 7, 10)}, "and 2 more"),
])  # fmt: skip
def test_another_network_is_refused_by_name(weights, tmp_path, change, says):
    torch.save(changed(weights, change), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=f"other.pth is not .*vgg16-397923af.*{says}") as caught:
        load_lpips(tmp_path / "other.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "says"), [
    ({"lin4.model.1.weight": None}, "lin4.model.1.weight is missing"),
    ({"lin0.model.1.weight": torch.ones(64)}, r"lin0.model.1.weight is \(64,\), not \(1, 64, 1, 1\)"),
    ({"lin5.model.1.weight": torch.ones(1, 512, 1, 1)}, "lin5.model.1.weight is not known"),
    ({"lin2.model.1.weight": torch.full((1, 256, 1, 1), -1e-3)}, "lin2.model.1.weight has weights below 0"),
])  # fmt: skip
def test_other_linear_weights_are_refused_by_name(files, linear, tmp_path, change, says):
    torch.save(changed(linear, change), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=says):
        load_lpips(files[0], tmp_path / "other.pth")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_files_that_are_no_tables_of_tensors_are_refused_and_nothing_in_them_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Evil()}, "evil.pth")
    torch.save([torch.zeros(3)], "list.pth")
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("evil.pth", "list.pth", "text.pth", "text.safetensors", "empty.pth", "missing.pth"):
        with pytest.raises(CheckpointError, match=name) as caught:
            load_lpips(name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
