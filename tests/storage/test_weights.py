"""Weights read into a network: nothing else is touched, all or nothing is written, and memory stays bounded."""

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from unmask.errors import CheckpointError
from unmask.method.models.transformer import TransformerConfig
from unmask.pretrained.maskgit_vqgan import MaskGITVQGAN
from unmask.pretrained.titok import TiTok
from unmask.pretrained.titok_bert import TiTokBert
from unmask.pretrained.valeoai import ValeoaiMaskGIT
from unmask.storage.weights import (
    PORTION,
    have_same_bytes,
    have_same_weights,
    load_weights,
    skip_initial_weights,
    write_weights,
)
from unmask.tokenizers.quantizers import FSQ, LFQ, VQ
from unmask.tokenizers.vqgan import VQGAN

PIXELS = MaskGITVQGAN(size=(8, 4), width=32, multipliers=(1, 2), blocks=1, codes=11, dim=5)
SMALL = {"size": (8, 8), "width": 4, "multipliers": (1, 1), "attention": (), "groups": 2, "z_channels": 6}
BUILDS = {
    "own": lambda: TransformerConfig(dim=16, depth=2, heads=2, num_classes=3).build(7, (2, 3)),
    "own, with a critic": lambda: TransformerConfig(dim=16, depth=1, heads=2, critic="head").build(7, (6,)),
    "valeoai": lambda: ValeoaiMaskGIT(dim=12, depth=2, heads=3, mlp_dim=20, num_classes=3).build(7, (2, 3)),
    "bert": lambda: TiTokBert(dim=12, depth=1, heads=3, mlp_dim=20, num_classes=3).build(7, (5,)),
    "titok": lambda: TiTok(num_latents=4, width=12, depth=1, heads=3, vocab_size=9, token_dim=3, pixels=PIXELS).build(),
    "vq": lambda: VQGAN(**SMALL, quantizer=VQ(vocab_size=9, dim=3)).build(),
    "fsq": lambda: VQGAN(**SMALL, quantizer=FSQ(levels=(3, 3))).build(),
    "lfq": lambda: VQGAN(**SMALL, quantizer=LFQ(bits=3)).build(),
}
EACH = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)


def seeded(build, seed=0):
    """Build a model with initial weights, and leave the global generator unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def state(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- modules whose weights come from a file ----------------------------------------------------------------------------


@EACH
def test_an_unfilled_module_with_loaded_weights_is_the_plain_one(build, tmp_path):
    plain = seeded(build)
    path = tmp_path / "x.safetensors"
    write_weights(dict(plain.named_parameters()), path)
    before = torch.get_rng_state()
    with skip_initial_weights():
        loaded = build()
    assert torch.equal(torch.get_rng_state(), before)
    assert [(n, p.shape, p.dtype) for n, p in loaded.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in plain.named_parameters()
    ]
    for parameter in loaded.parameters():
        parameter.data.fill_(torch.nan)  # whatever the memory held
    load_weights(loaded, path)
    random = {"quantizer.sum"}  # a drawn buffer, which training alone reads
    found, wanted = ({n: x for n, x in state(one).items() if n not in random} for one in (loaded, plain))
    assert same(found, wanted)  # buffers too, which the file has not


def test_unfilled_skips_the_drawing_of_parameters_alone():
    with skip_initial_weights():
        layer = nn.Linear(64, 64)
        layer.weight.data.copy_(torch.eye(64))
        for draw in (nn.init.normal_, nn.init.xavier_uniform_, nn.init.ones_):
            marked = layer.weight.detach().clone()
            assert draw(layer.weight) is layer.weight
            assert torch.equal(layer.weight.detach(), marked)
        buffer = torch.empty(1000)
        nn.init.normal_(buffer)
        assert 0.9 < float(buffer.std()) < 1.1
        assert torch.equal(torch.empty(3).fill_(2.0), torch.full((3,), 2.0))
        assert torch.equal(torch.ones(3).zero_(), torch.zeros(3))
    drawn = nn.Linear(64, 64)
    assert 0 < float(drawn.weight.detach().abs().max()) <= 1 / 8  # outside, layers are drawn again


def broken():
    torch.randn(3)
    raise ValueError("0 heads")


def test_unfilled_ends_with_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="0 heads"), skip_initial_weights():
        broken()
    assert torch.equal(torch.get_rng_state(), before)
    assert float(nn.init.ones_(nn.Linear(2, 2).weight).detach().sum()) == 4


# -- all or nothing ----------------------------------------------------------------------------------------------------


def pair(bias=True, width=3):
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 2, bias=bias))


@pytest.mark.parametrize(("other", "says"), [
    (lambda: pair(bias=False), r"1 tensors differ, first 1\.bias"),
    (lambda: pair(width=4), r"3 tensors differ, first 0\.bias"),
    (lambda: nn.Sequential(*pair(), nn.Linear(2, 1)), r"2 tensors differ, first 2\.bias"),
    (lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2)), r"2 tensors differ, first 0\.bias"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(other, says, tmp_path):
    path = tmp_path / "x.safetensors"
    write_weights(dict(seeded(other, 1).named_parameters()), path)
    model = seeded(pair)
    before = state(model)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)
    assert same(state(model), before)


@pytest.mark.parametrize("cut", [0, 5, 40, -4])
def test_a_damaged_file_is_one_line(cut, tmp_path):
    path = tmp_path / "x.safetensors"
    write_weights(dict(seeded(pair, 1).named_parameters()), path)
    path.write_bytes(path.read_bytes()[:cut])
    model = seeded(pair)
    before = state(model)
    with pytest.raises(CheckpointError, match=r"damaged|no such file") as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)
    assert same(state(model), before)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.safetensors: no such file"):
        load_weights(pair(), tmp_path / "x.safetensors")


@pytest.mark.parametrize(("there", "here"), [
    (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float64),
])  # fmt: skip
def test_a_model_of_another_type_gets_the_rounded_numbers(there, here, tmp_path):
    path = tmp_path / "x.safetensors"
    source = seeded(pair, 1).to(there)
    write_weights(dict(source.named_parameters()), path)
    model = seeded(pair).to(here)
    load_weights(model, path)
    assert same(state(model), {name: value.to(here) for name, value in state(source).items()})


def test_many_portions_are_one_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    source = seeded(BUILDS["own"], 1)
    write_weights(dict(source.named_parameters()), path)
    for portion in (1, 2000, PORTION):
        monkeypatch.setattr("unmask.storage.weights.PORTION", portion)
        model = seeded(BUILDS["own"])
        load_weights(model, path)
        assert same(state(model), state(source))


CHILD = """
import re, sys
from pathlib import Path
from torch import nn
from unmask.storage.weights import load_weights, skip_initial_weights

def memory(what):
    return int(re.search(rf"{what}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

before = memory("VmRSS")
assert memory("VmHWM") - before < 8 << 20
with skip_initial_weights():
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(12)))
built = memory("VmRSS")
load_weights(model, Path(sys.argv[1]))
size = sum(p.nbytes for p in model.parameters())
print((built - before) / size, (memory("VmHWM") - before) / size, float(model[11].bias.detach().sum()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of loading: only Linux tells it in /proc")
def test_loading_takes_little_more_memory_than_the_model(tmp_path):
    """Load 201 MB: without `skip_initial_weights` the build would take as much, and the file, mapped at once, again."""
    path = tmp_path / "x.safetensors"
    tensors = {f"{i}.{n}": torch.ones(shape) for i in range(12) for n, shape in (("weight", (2048, 2048)),
                                                                               ("bias", (2048,)))}  # fmt: skip
    write_weights(tensors, path)
    assert path.stat().st_size > 200e6
    code = [sys.executable, "-W", "error", "-c", CHILD, str(path)]
    told = subprocess.run(code, check=True, capture_output=True, text=True, timeout=200).stdout
    built, peak, last = map(float, re.findall(r"\S+", told))
    assert built < 0.1
    assert 1 <= peak <= 1.2
    assert last == 2048


# -- comparison --------------------------------------------------------------------------------------------------------


def test_the_same_weights_may_be_written_in_two_ways(tmp_path):
    tensors = {"a": torch.arange(4.0), "b": torch.zeros(2, 2)}
    for name, facts in (("x", None), ("y", {"source": "elsewhere"})):
        write_weights(tensors, tmp_path / f"{name}.safetensors", facts)
    x, y = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    assert x.read_bytes() != y.read_bytes()
    assert have_same_weights(x, y)
    for other in ({**tensors, "a": torch.arange(4.0) + 1e-6}, {"a": tensors["a"]}, {**tensors, "c": torch.ones(1)}):
        write_weights(other, y)
        assert not have_same_weights(x, y)


def test_files_of_another_kind_are_the_same_by_their_bytes_alone(tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text("{}")
    b.write_text("{}")
    assert have_same_weights(a, b)
    b.write_text("{ }")
    assert not have_same_weights(a, b)


def test_the_type_that_values_are_written_in_is_no_difference(tmp_path):
    x, y = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    rough = {"a": torch.arange(5.0).bfloat16() / 3}
    write_weights(rough, x)
    write_weights({"a": rough["a"].float()}, y)
    assert have_same_weights(x, y)
    write_weights({"a": torch.arange(5.0) / 3}, y)
    assert not have_same_weights(x, y)
    write_weights({"a": rough["a"].float()[:, None]}, y)
    assert not have_same_weights(x, y)


def test_a_difference_in_any_portion_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.storage.weights.PORTION", 64)
    x, y = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    tensors = {f"{i}": torch.full((7,), float(i)) for i in range(9)}
    write_weights(tensors, x)
    write_weights(tensors, y)
    assert have_same_bytes(x, y)
    for name in tensors:
        write_weights({**tensors, name: tensors[name] + torch.eye(7)[6]}, y)
        assert not have_same_bytes(x, y)
        assert not have_same_weights(x, y)
    y.write_bytes(x.read_bytes() + b"x")
    assert not have_same_bytes(x, y)
    with pytest.raises(CheckpointError, match=r"y\.safetensors: damaged") as caught:
        have_same_weights(x, y)
    assert "\n" not in str(caught.value)


COMPARES = """
import re, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from unmask.experiments.base import _keep_tokenizer
from unmask.storage.weights import have_same_weights

def memory(what):
    return int(re.search(rf"{what}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

folder = Path(sys.argv[1])
a, b = folder / "a.safetensors", folder / "b.safetensors"
torch.equal(torch.zeros(3), torch.zeros(3))
before = memory("VmRSS")
assert memory("VmHWM") - before < 8 << 20
assert have_same_weights(a, b)
for _ in range(2):
    _keep_tokenizer(SimpleNamespace(weights=a, kept="kept.safetensors"), folder)
assert have_same_weights(a, folder / "kept.safetensors")
print((memory("VmHWM") - before) / a.stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of comparing: only Linux tells it in /proc")
def test_comparing_and_keeping_a_file_takes_a_part_of_its_size(tmp_path):
    """Compare 201 MB, as bytes and by names; reading both files whole would take twice as much."""
    tensors = {f"{i}": torch.ones(2048, 2048) for i in range(12)}
    for name, facts in (("a", None), ("b", {"source": "elsewhere"})):
        write_weights(tensors, tmp_path / f"{name}.safetensors", facts)
    code = [sys.executable, "-W", "error", "-c", COMPARES, str(tmp_path)]
    told = subprocess.run(code, check=True, capture_output=True, text=True, timeout=200).stdout
    assert float(told) < 0.5
