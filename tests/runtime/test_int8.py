"""Layers of 8-bit integers: exact products, rows that never depend on other rows, and weights that are never saved."""

import copy
import io
import os
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unmask.errors import ConfigError
from unmask.method.guidance import guided
from unmask.method.models.partition import PartitionConfig
from unmask.method.models.transformer import TransformerConfig
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.method.sampling.priorities import Confidence
from unmask.method.schedules import Arccos, ratios
from unmask.pretrained.bert import PostNormBlock
from unmask.pretrained.configs import HaltonMaskGIT, TiTokUViT
from unmask.pretrained.vit import ViTBlock
from unmask.runtime import int8, kernels
from unmask.runtime.int8 import (
    Int8Linear,
    find_weight_limit,
    has_rounded_layers,
    multiply_integers,
    round_activations,
    round_layers,
    round_weight,
    split_dtype,
)
from unmask.runtime.kernels import check_int8, choose_dtype
from unmask.runtime.packed import LinearGELU, PackedLinear, pack, to_dense, unpack
from unmask.storage.weights import hash_weights, load_weights, write_weights

CPU = torch.device("cpu")
HAS_KERNELS = torch.backends.mkldnn.is_available() and all(
    kernels.find_private(name, "tests of int8 are skipped") for name in kernels.INT8
)
rounds = pytest.mark.skipif(not HAS_KERNELS, reason="layers of 8-bit integers: this torch has no kernels for them")
KINDS = ("plain", "without bias", "none", "tanh")
TYPES = sorted({torch.float32, choose_dtype(CPU)}, key=str)


def layer(kind, inner=192, outer=256, dtype=torch.float32, seed=0):
    """Return a linear layer, plain, without bias, or with a GELU after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind in ("none", "tanh"):
            return LinearGELU(inner, outer, kind).to(dtype)
        return nn.Linear(inner, outer, bias=kind == "plain").to(dtype)


def normal(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def measure_error(got, want):
    """Return the root of the mean square of the error, relative to what is wanted."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def multiply(x, weight):
    """Multiply by the kernel, with steps of 1."""
    arranged = torch.ops.onednn.qlinear_prepack(weight, None)
    zero = torch.zeros(len(weight), dtype=torch.int32)
    return multiply_integers(x, arranged, torch.ones(len(weight)), zero, torch.float32)


def multiply_exactly(x, weight):
    return ((x.long() - 128) @ weight.long().T).float()


# -- the product --


@rounds
@settings(max_examples=40)
@given(
    rows=st.integers(0, 70),
    inner=st.integers(1, 400),
    outer=st.integers(1, 150),
    extreme=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_product_of_integers_is_exact(rows, inner, outer, extreme, seed):
    generator, limit = torch.Generator().manual_seed(seed), find_weight_limit()
    x = torch.randint(0, 256, (rows, inner), generator=generator).to(torch.uint8)
    weight = torch.randint(-limit, limit + 1, (outer, inner), generator=generator).to(torch.int8)
    if extreme:
        x, weight = torch.full_like(x, 255), weight.sign().masked_fill(weight == 0, 1) * limit
    assert torch.equal(multiply(x, weight), multiply_exactly(x, weight))


LIMITED = """
import torch
from test_int8 import find_weight_limit, measure_error, multiply, multiply_exactly, layer, normal, Int8Linear

torch.set_num_threads(1)
assert find_weight_limit() == 63
generator = torch.Generator().manual_seed(0)
for rows, inner, outer in ((1, 2, 2), (1, 64, 64), (33, 70, 65), (300, 768, 512)):
    x = torch.randint(0, 256, (rows, inner), generator=generator).to(torch.uint8)
    weight = torch.randint(-63, 64, (outer, inner), generator=generator).to(torch.int8)
    assert torch.equal(multiply(x, weight), multiply_exactly(x, weight)), (rows, inner, outer)
    x, weight = torch.full_like(x, 255), torch.full_like(weight, 63)
    assert torch.equal(multiply(x, weight), multiply_exactly(x, weight)), (rows, inner, outer)
    assert not torch.equal(multiply(x, weight * 2), multiply_exactly(x, weight * 2)), "nothing saturates here"
plain, x = layer("plain", 768, 512), normal(300, 768)
with torch.no_grad():
    rounded = Int8Linear(plain)
    print(measure_error(rounded(x), plain(x)))
    assert all(torch.equal(rounded(x[:rows]), rounded(x)[:rows]) for rows in (1, 2, 7, 100))
"""


@rounds
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="a limit to AVX2: no x86")
def test_without_vnni_weights_are_small_enough_not_to_saturate():
    """AVX2 adds two products in 16 bits. A process of its own, because oneDNN reads its limit once."""
    limit = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        capture_output=True, text=True, check=False, timeout=200, env=os.environ | limit | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 0.001 < float(done.stdout) < 0.013


@rounds
def test_the_limit_of_weights_is_what_a_saturated_product_says(monkeypatch):
    find_weight_limit.cache_clear()
    monkeypatch.setattr(int8, "multiply_integers", lambda x, *rest: torch.full((len(x), 64), 32767.0))
    assert find_weight_limit() == 63
    find_weight_limit.cache_clear()
    monkeypatch.undo()
    assert find_weight_limit() in (63, 127)


# -- rounding --


@pytest.mark.parametrize("limit", [63, 127])
def test_a_rounded_weight_is_within_half_a_step_and_rounding_again_changes_nothing(limit):
    weight = normal(40, 300) * torch.logspace(-6, 6, 40)[:, None]
    integers, step = round_weight(weight, limit)
    assert (integers.abs().amax(1) == limit).all()
    restored = integers * step[:, None]
    assert ((restored - weight).abs() <= step[:, None] * 0.7).all()  # the largest is up to 0.25 steps beyond the limit
    again, same = round_weight(restored.T.contiguous().T, limit)
    assert torch.equal(again, integers)
    assert torch.equal(same, step)
    assert again.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_activations_are_within_half_a_step_and_never_wrap(dtype):
    x = (normal(500, 700) * torch.logspace(-4, 4, 500)[:, None]).to(dtype)
    before = x.clone()
    integers, step = round_activations(x)
    assert torch.equal(x, before)
    assert step.dtype == dtype
    assert 1 <= integers.min() < 3
    assert 253 < integers.max() <= 255
    assert ((integers.double() - 128) * step.double() - x.double()).abs().div(step.double()).max() <= 0.5001 + 0.25
    zero, _ = round_activations(torch.zeros(3, 8, dtype=dtype))
    assert (zero == 128).all()


# -- the layer --


@rounds
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_rounded_layer_is_nearly_the_same_function(kind, dtype):
    plain, x = layer(kind, dtype=dtype), normal(5, 60, 192, dtype=dtype)
    before = x.clone()
    with torch.no_grad():
        got, want = Int8Linear(plain)(x), copy.deepcopy(plain).double()(x.double())
    assert (got.dtype, got.shape) == (dtype, want.shape)
    assert 0.001 < measure_error(got, want) < 0.015
    assert torch.equal(x, before)


@rounds
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_never_depends_on_the_others(kind, dtype):
    rounded, x = Int8Linear(layer(kind, dtype=dtype)), normal(1500, 192, dtype=dtype)
    with torch.no_grad():
        whole = rounded(x)
        for rows in (1, 2, 3, 15, 16, 17, 64, 257, 1400):
            assert torch.equal(rounded(x[:rows]), whole[:rows]), rows
        beside = x.clone()
        beside[1::2] *= 1e6  # a step of the whole tensor would show
        assert torch.equal(rounded(beside)[::2], whole[::2])
        assert torch.equal(rounded(x.view(3, 500, 192).transpose(0, 1)), whole.view(3, 500, -1).transpose(0, 1))
        assert rounded(x[:0]).shape == (0, 256)


@rounds
def test_what_is_not_finite_stays_so():
    rounded, x = Int8Linear(layer("plain")), normal(4, 192)
    x[1, 0], x[2, 0], x[3] = torch.nan, torch.inf, 0
    with torch.no_grad():
        y = rounded(x)
    assert y[0].isfinite().all()
    assert not y[1].isfinite().any()
    assert not y[2].isfinite().any()
    assert torch.equal(y[3], rounded.bias)


@rounds
@pytest.mark.parametrize("kind", KINDS)
def test_with_gradients_it_is_a_plain_layer_of_the_rounded_weight(kind):
    plain, x = layer(kind), normal(3, 192).requires_grad_()
    rounded = Int8Linear(plain)
    same = copy.deepcopy(plain)
    same.weight.data = rounded.restore_weight()
    rounded(x).sum().backward()
    slope, x.grad = x.grad, None
    same(x).sum().backward()
    torch.testing.assert_close(slope, x.grad)
    assert rounded.weight.grad is None


@rounds
@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles_give_the_same_bits(kind, monkeypatch):
    rounded, x = Int8Linear(layer(kind, 300, 131)), normal(7, 300)
    with torch.no_grad():
        for again in (copy.deepcopy(rounded), pickle.loads(pickle.dumps(rounded))):  # noqa: S301
            assert isinstance(again, Int8Linear)
            assert torch.equal(again(x), rounded(x))
        monkeypatch.setattr(int8, "find_weight_limit", lambda: 63)  # as on another machine
        other = pickle.loads(pickle.dumps(rounded))  # noqa: S301
        assert int(other.weight.detach().to_dense().abs().max()) == 63
        assert measure_error(other(x), rounded(x)) < 0.015


@rounds
def test_it_is_neither_trained_nor_moved_nor_converted():
    network = round_layers(nn.Sequential(layer("plain"), nn.Linear(256, 3)))
    assert [type(part) for part in network] == [Int8Linear, nn.Linear]
    for change in (network.train, network.bfloat16, lambda: network.to(torch.float64), lambda: network.to("meta")):
        with pytest.raises(TypeError, match="neither trained nor moved nor converted: load it with"):
            change()
    assert not any(part.training for part in network.eval().modules())


@rounds
def test_rounded_weights_are_never_saved_or_loaded_in_silence(tmp_path):
    network, path = round_layers(nn.Sequential(layer("plain"))), tmp_path / "x.safetensors"
    plain = nn.Sequential(layer("plain"))
    write_weights(dict(plain.named_parameters()), path)
    before = path.read_bytes()
    parameters = dict(network.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == sum(p.numel() for p in plain.parameters())
    for attempt in (
        network.state_dict,
        lambda: network.load_state_dict(plain.state_dict()),
        lambda: write_weights(parameters, path),
        lambda: hash_weights(network, None),
        lambda: load_weights(network, path),
        lambda: torch.save(network.state_dict(), io.BytesIO()),
        lambda: to_dense(network[0].weight),
    ):
        with pytest.raises(TypeError, match=r"rounded to 8-bit integers.* load the model without dtype int8"):
            attempt()
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


# -- networks --


def randomize(network):
    """Draw weights of a size that lets each layer matter, those of zero too."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02 if "embedding" in name else parameter.shape[1] ** -0.5)
    return network.eval()


def make_networks():
    """Return networks, arguments for them, and how many of their layers are wide."""
    tokens, labels, x = torch.randint(40, (4, 12)), torch.tensor([0, 2, -1, 1]), normal(4, 12, 128)
    tokens[:, ::3] = 40
    options = {"dim": 128, "heads": 4, "num_classes": 3}
    own = TransformerConfig(depth=2, critic="head", **options).build(40, (3, 4))
    partition = PartitionConfig(encoder_depth=1, decoder_depth=1, **options).build(40, (3, 4))
    halton = HaltonMaskGIT(dim=128, depth=1, heads=4, hidden=160, num_classes=3).build(40, (3, 4))
    uvit = TiTokUViT(dim=128, depth=4, heads=4, mlp_dim=256, num_classes=3).build(40, (8,))
    return {
        "own": (own, (tokens, labels), 8),
        "partition": (partition, (tokens, labels), 11),
        "halton": (halton, (tokens, labels.clamp(min=0)), 9),
        "u-vit": (uvit, (tokens[:, :8], labels), 12),
        "bert": (PostNormBlock(128, 4, 256, "tanh"), (x,), 6),
        "vit": (ViTBlock(128, 4, 256, qkv_bias=True), (x,), 4),
    }


@rounds
@pytest.mark.parametrize("name", ["own", "partition", "halton", "u-vit", "bert", "vit"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_network_is_rounded_whole_and_packed_elsewhere(name, dtype, monkeypatch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, arguments, wide = make_networks()[name]
        randomize(network)
    with torch.no_grad():
        exact = network(*arguments)
        arguments = tuple(a.to(dtype) if a.is_floating_point() else a for a in arguments)
        network = network.to(dtype)
        rounded = pack(round_layers(copy.deepcopy(network)))
        error = measure_error(rounded(*arguments), exact)
        assert measure_error(network(*arguments), exact) + 0.001 < error < 0.04
        kinds = [type(part) for part in rounded.modules()]
        assert kinds.count(Int8Linear) >= wide
        assert has_rounded_layers(rounded)
        assert not has_rounded_layers(network)
        assert all(
            min(part.in_features, part.out_features) < 128 for part in rounded.modules() if type(part) is nn.Linear
        )
        kept = unpack(copy.deepcopy(rounded))
        assert PackedLinear not in {type(part) for part in kept.modules()}
        assert torch.allclose(kept(*arguments), rounded(*arguments), atol=0.05 if dtype == torch.bfloat16 else 1e-4)


@rounds
def test_decoding_takes_nearly_the_same_tokens_and_no_row_depends_on_its_batch():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = randomize(TransformerConfig(dim=128, depth=2, heads=4, num_classes=3).build(16, (6, 6)))
    rounded = round_layers(copy.deepcopy(plain))
    labels, agreed = torch.arange(24) % 3, []

    def sample(model, rows, watch=None):
        predict = guided(model, labels[rows])
        states = decode(
            predict if watch is None else lambda *a: watch(predict(*a), *a),
            torch.full((len(labels[rows]), 36), 16),
            ratios(Arccos(), 6),
            mask_id=16,
            rand=seeded(0, 24, first=0) if rows == slice(None) else seeded(0, rows.stop - rows.start, first=rows.start),
            priority=Confidence(),
        )
        return [state.tokens for state in states][-1]

    def compare(logits, tokens, t):
        agreed.append((logits.argmax(-1) == plain(tokens, labels).argmax(-1)).float().mean())
        return logits

    with torch.no_grad():
        whole = sample(rounded, slice(None), compare)
        assert torch.stack(agreed).mean() > 0.95  # random weights: many logits are nearly equal
        assert torch.equal(torch.cat([sample(rounded, slice(0, 1)), sample(rounded, slice(1, 24))]), whole)


def test_padding_after_a_text_changes_no_bit():
    if not HAS_KERNELS:
        pytest.skip("layers of 8-bit integers: this torch has no kernels for them")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = round_layers(randomize(TransformerConfig(dim=128, depth=2, heads=4, padded=True).build(16, (12,))))
    tokens = torch.randint(16, (3, 12), generator=torch.Generator().manual_seed(0))
    tokens[0, 7:], tokens[2, 3:] = -1, -1
    with torch.no_grad():
        together = model(tokens)
        for row in range(3):
            assert torch.equal(model(tokens[row : row + 1])[0], together[row])


# -- refusals --


@pytest.mark.parametrize("device", ["cuda", "mps", "meta"])
def test_another_device_than_a_cpu_is_refused(device):
    with pytest.raises(ConfigError, match=f"^dtype int8 on {device}: .* give device cpu, or leave the dtype out$"):
        split_dtype(torch.int8, torch.device(device))
    assert split_dtype(torch.bfloat16, torch.device(device)) == (torch.bfloat16, False)
    assert split_dtype(None, torch.device(device)) == (None, False)


@rounds
@pytest.mark.parametrize("missing", [*kernels.INT8, "oneDNN"])
def test_a_torch_without_the_kernels_is_refused(missing, monkeypatch):
    assert split_dtype(torch.int8, CPU) == (None, True)
    real = kernels.find_private
    monkeypatch.setattr(kernels, "find_private", lambda name, otherwise: None if name == missing else real(name, ""))
    if missing == "oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^dtype int8: torch \S+ has no oneDNN kernels for it here; leave the dtype"):
        check_int8(CPU)


@rounds
def test_a_network_too_narrow_to_gain_is_refused():
    for network in (nn.Sequential(nn.Linear(127, 300)), nn.Sequential(nn.Linear(300, 127)), nn.Sequential(nn.ReLU())):
        with pytest.raises(ConfigError, match="no linear layer of this network has 128 inputs and outputs"):
            round_layers(network)


class Own(nn.Linear):
    pass


@rounds
def test_other_classes_of_layers_stay():
    network = round_layers(nn.Sequential(layer("none"), Own(128, 128), nn.Conv2d(128, 128, 1), nn.Embedding(128, 128)))
    assert [type(part) for part in network] == [Int8Linear, Own, nn.Conv2d, nn.Embedding]
