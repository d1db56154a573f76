"""Packed linear layers: the same function, the same weights, the same files, and no second copy in memory."""

import copy
import ctypes
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import unmask.runtime.packed
from unmask.method.models.transformer import TransformerConfig
from unmask.runtime.packed import LinearGELU, PackedLinear, arrange_weight, pack, to_dense, unpack
from unmask.storage.weights import hash_weights, load_weights, skip_initial_weights, write_weights

HERE = torch.backends.mkldnn.is_available()
packs = pytest.mark.skipif(not HERE, reason="packed weights: this build of torch has no oneDNN")


@pytest.fixture(autouse=True)
def _packs_float32(monkeypatch):
    """Pack float32 on every CPU, also where it is slower: the results must be right everywhere."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


TYPES = [torch.float32] + ([torch.bfloat16] if HERE and torch.ops.mkldnn._is_mkldnn_bf16_supported() else [])
KINDS = ("plain", "without bias", "none", "tanh")


def layer(kind, inner, outer, dtype=torch.float32, seed=0):
    """Return a linear layer, plain, without bias, or with a GELU after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind in ("none", "tanh"):
            return LinearGELU(inner, outer, kind).to(dtype)
        return nn.Linear(inner, outer, bias=kind == "plain").to(dtype)


def exact(plain, kind, x):
    """Compute the layer in float64, by the formulas."""
    y = x.double() @ plain.weight.double().T + (0 if plain.bias is None else plain.bias.double())
    if kind == "none":
        return y * (1 + torch.special.erf(y / 2**0.5)) / 2
    return y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3))) / 2 if kind == "tanh" else y


@packs
@given(
    kind=st.sampled_from(KINDS),
    inner=st.integers(1, 150),
    outer=st.integers(1, 150),
    rows=st.lists(st.integers(0, 9), min_size=0, max_size=3),
    dtype=st.sampled_from(TYPES),
    turned=st.booleans(),
)
def test_a_packed_layer_is_the_same_function(kind, inner, outer, rows, dtype, turned):
    plain = layer(kind, inner, outer, dtype)
    (packed,) = pack(nn.Sequential(plain)).children()
    x = torch.randn(*rows, inner, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = x.transpose(0, -2) if turned and len(rows) > 1 else x
    want = exact(plain, kind, x)
    with torch.no_grad():
        got = packed(x)
    assert isinstance(packed, PackedLinear)
    assert (got.shape, got.dtype) == (want.shape, dtype)
    near = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got.double(), want, rtol=near, atol=near)
    assert torch.equal(to_dense(packed.weight), plain.weight)


@packs
@pytest.mark.parametrize("kind", KINDS)
def test_with_gradients_they_are_right_and_the_weight_has_none(kind):
    plain = layer(kind, 6, 5)
    (packed,) = pack(nn.Sequential(copy.deepcopy(plain))).children()
    found = []
    for one in (plain, packed):
        x = torch.linspace(-1, 1, 12).reshape(2, 6).requires_grad_()
        one(x).square().sum().backward()
        found.append([x.grad] if kind == "without bias" else [x.grad, one.bias.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert packed.weight.grad is None


@packs
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("build", [TransformerConfig(dim=40, depth=2, heads=2, num_classes=3)], ids=["own"])
def test_a_network_is_packed_before_or_after_it_is_loaded_and_unpacked_whole(build, dtype, tmp_path):
    path, again = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    plain = build.build(7, (2, 3)).to(dtype).eval()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    write_weights(dict(plain.named_parameters()), path)
    with skip_initial_weights(dtype):
        first = pack(build.build(7, (2, 3)).to(dtype).eval())
    load_weights(first, path)
    second = pack(copy.deepcopy(plain))
    tokens, labels = torch.randint(8, (4, 6)), torch.tensor([0, 2, -1, 1])
    with torch.no_grad():
        want = plain(tokens, labels)
        for model in (first, second):
            assert sum(isinstance(part, PackedLinear) for part in model.modules()) >= 8
            assert torch.equal(model(tokens, labels), first(tokens, labels))
            torch.testing.assert_close(model(tokens, labels), want, rtol=0.1, atol=1e-5 if dtype.itemsize == 4 else 0.1)
    assert [*dict(first.named_parameters())] == [*dict(plain.named_parameters())]
    assert hash_weights(first, build) == hash_weights(plain, build)
    write_weights(dict(first.named_parameters()), again)
    assert again.read_bytes() == path.read_bytes()
    unpacked = unpack(copy.deepcopy(first))
    assert torch.equal(unpacked(tokens, labels), plain(tokens, labels))
    assert [type(part) for part in unpacked.modules()] == [type(part) for part in plain.modules()]
    assert not any(part.training for part in unpacked.modules())


class Own(nn.Linear):
    pass


@pytest.mark.parametrize(
    "plain",
    [nn.Linear(3, 4).double(), nn.Linear(3, 4).half(), nn.Linear(3, 4, device="meta"), Own(3, 4), nn.Conv2d(3, 4, 1)],
    ids=["float64", "float16", "another device", "another class of layer", "no linear layer"],
)
def test_what_has_no_layout_of_its_own_stays(plain):
    assert [*pack(nn.Sequential(plain)).children()] == [plain]


@pytest.mark.parametrize("packed", [set(), {torch.float32}, {torch.bfloat16}, {torch.float32, torch.bfloat16}])
def test_layers_of_the_types_that_are_faster_so_are_packed(packed, monkeypatch):
    monkeypatch.setattr(unmask.runtime.packed, "packs_linear", lambda dtype: dtype in packed)
    monkeypatch.setattr(unmask.runtime.packed, "arrange_weight", lambda weight: weight.detach().clone())
    layers = {dtype: pack(nn.Sequential(nn.Linear(3, 4, dtype=dtype)))[0] for dtype in (torch.float32, torch.bfloat16)}
    assert {dtype for dtype, layer in layers.items() if isinstance(layer, PackedLinear)} == packed


def test_without_onednn_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = nn.Linear(3, 4)
    assert [*pack(nn.Sequential(plain)).children()] == [plain]


@packs
def test_a_packed_network_is_neither_moved_nor_converted():
    packed = pack(nn.Sequential(nn.Linear(3, 4)))
    for change in (lambda: packed.to(torch.float64), packed.bfloat16, lambda: packed.to("meta")):
        with pytest.raises(TypeError, match=r"packed for inference on a CPU and .* load it with the device and dtype"):
            change()


@packs
def test_a_packed_network_is_not_trained_in_silence():
    packed = pack(nn.Sequential(nn.Linear(3, 4)).eval())
    with pytest.raises(TypeError, match="neither trained"):
        packed.train()
    packed.requires_grad_(True)
    with pytest.raises(TypeError, match="neither trained"):
        packed(torch.ones(1, 3))
    with torch.no_grad():
        assert packed(torch.ones(1, 3)).shape == (1, 4)
    assert not any(part.training for part in packed.eval().modules())


@packs
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_pickles_are_those_of_the_plain_layer(kind):
    plain, other = layer(kind, 70, 65), layer(kind, 70, 65, seed=1)
    (packed,) = pack(nn.Sequential(copy.deepcopy(plain))).children()
    state = packed.state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    x = torch.ones(2, 70)
    with torch.no_grad():
        again = pickle.loads(pickle.dumps(packed))  # noqa: S301
        assert isinstance(again, PackedLinear)
        assert torch.equal(again(x), packed(x))
        packed.load_state_dict(other.state_dict())
        torch.testing.assert_close(packed(x), other(x))
        assert not torch.equal(again(x), packed(x))
    short = {name: value for name, value in state.items() if name != "weight"}
    with pytest.raises(RuntimeError, match="weight"):
        packed.load_state_dict(short)


@packs
def test_copying_into_a_packed_weight_keeps_every_number():
    """These sizes are large enough for oneDNN to use its blocked layout."""
    for shape in ((257, 129), (64, 768), (1, 50)):
        value, into = torch.randn(shape), arrange_weight(torch.zeros(shape))
        into.copy_(arrange_weight(value))
        assert torch.equal(to_dense(into), value)


CHILD = """
import re, sys
from pathlib import Path
import torch
from torch import nn
from unmask.runtime.packed import pack
from unmask.storage.weights import load_weights, skip_initial_weights

def memory(what):
    return int(re.search(rf"{what}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

torch.set_num_threads(1)
pack(nn.Sequential(nn.Linear(64, 64)))(torch.zeros(1, 64))
before, dtype = memory("VmRSS"), getattr(torch, sys.argv[2])
with skip_initial_weights(dtype):
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(128)))
pack(model)
load_weights(model, Path(sys.argv[1]))
size = sum(p.numel() * p.element_size() for p in model.parameters())
peak = (memory("VmHWM") - before) / size
with torch.no_grad():
    print(peak, float(model(torch.ones(1, 1024, dtype=dtype))[0, 0]))
"""


@packs
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of packing: only Linux tells it in /proc")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_loading_into_packed_layers_takes_little_more_memory_than_the_weights(dtype, tmp_path):
    path = tmp_path / "x.safetensors"
    one = {"weight": torch.full((1024, 1024), 2.0**-10), "bias": torch.zeros(1024)}
    write_weights({f"{i}.{name}": value.clone() for i in range(128) for name, value in one.items()}, path)
    code = [sys.executable, "-W", "error", "-c", CHILD, str(path), str(dtype).removeprefix("torch.")]
    told = subprocess.run(code, check=True, capture_output=True, text=True, timeout=200).stdout
    peak, last = map(float, re.findall(r"\S+", told))
    assert 0.9 <= peak <= 1.2
    assert last == 1


FREED = """
import ctypes, resource, sys
import torch
from torch import nn
from unmask.runtime.packed import pack

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
Mallinfo2 = type("Mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names.split()]})
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(3 << 20) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "packed":
    pack(nn.Sequential(nn.Linear(3, 4)))
before = mallinfo2().hblkhd
block = torch.empty(28 << 20, dtype=torch.uint8)
mapped = mallinfo2().hblkhd - before
del block
print(mapped, min([faults() for _ in range(5)][2:]))
"""


@packs
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="memory of activations: only glibc keeps it")
def test_memory_of_activations_is_not_new_in_every_layer():
    """After packing, 28 MiB come from memory that stays, and not from a mapping that goes when they are freed."""
    told = {}
    for how in ("plain", "packed"):
        code = [sys.executable, "-c", FREED, how]
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))
        }
        told[how] = subprocess.run(code, check=True, capture_output=True, text=True, timeout=100, env=ours).stdout
    mapped, faults = map(int, told["packed"].split())
    assert (mapped, faults <= 2) == (0, True), told
    mapped, _ = map(int, told["plain"].split())  # how soon glibc learns by itself depends on how its heap lies
    assert mapped >= 28 << 20
