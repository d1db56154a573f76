"""What all image tokenizers promise, and how one is opened."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from unmask.errors import CheckpointError
from unmask.pretrained.amused_vqvae import AmusedVQ
from unmask.pretrained.maskgit_vqgan import MaskGITVQGAN
from unmask.pretrained.networks import LearnedConfig
from unmask.pretrained.titok import TiTok
from unmask.runtime.packed import PackedLinear
from unmask.storage.weights import hash_weights, write_weights
from unmask.tokenizers import base
from unmask.tokenizers.base import Tokenizer, open_tokenizer, verify_tokenizer
from unmask.tokenizers.pixels import Pixels
from unmask.tokenizers.quantizers import VQ
from unmask.tokenizers.vqgan import VQGAN

SIZE = (8, 16)
LEVELS = MaskGITVQGAN(size=SIZE, width=32, multipliers=(1, 1), blocks=1, codes=16, dim=4)
CONFIGS = (
    Pixels(size=SIZE, channels=1),
    VQGAN(size=SIZE, channels=1, width=8, multipliers=(1, 2), attention=(), z_channels=8, groups=2),
    AmusedVQ(size=SIZE, width=32, multipliers=(1, 1), z_channels=32, quantizer=VQ(vocab_size=16, dim=4)),
    LEVELS,
    TiTok(num_latents=3, width=32, depth=1, heads=2, vocab_size=16, token_dim=4, pixels=LEVELS),
)


def make(config) -> Tokenizer:
    torch.manual_seed(0)
    return config if isinstance(config, Pixels) else config.build().eval()


def test_every_kind_of_tokenizer_is_here():
    assert {type(config) for config in CONFIGS} == {Pixels, *get_args(LearnedConfig)}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_size_and_channels_are_those_of_decoded_images(config):
    model = make(config)
    assert isinstance(model, Tokenizer)
    length = torch.Size(model.grid).numel()
    images = model.decode(torch.zeros(2, length, dtype=torch.int64))
    assert images.shape == (2, model.channels, *model.size)
    assert (config.channels, config.size) == (model.channels, model.size)
    assert model.encode(images).shape == (2, length)


@pytest.fixture
def saved(tmp_path):
    config = CONFIGS[-1]
    model = make(config)
    write_weights(dict(model.named_parameters()), tmp_path / "tokenizer.safetensors")
    return config, tmp_path / "tokenizer.safetensors", hash_weights(model, config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("packed", [False, True])
def test_a_verified_tokenizer_equals_an_unverified_one_and_is_read_once(saved, monkeypatch, dtype, packed):
    config, path, sha256 = saved
    plain = open_tokenizer(config, path, dtype=dtype, packed=packed)
    reads, load = [], base.load_weights
    monkeypatch.setattr(base, "load_weights", lambda model, path: (reads.append(path), load(model, path)))
    checked = open_tokenizer(config, path, dtype=dtype, packed=packed, sha256=sha256)
    assert reads == [path]
    assert isinstance(plain, nn.Module)
    assert isinstance(checked, nn.Module)
    assert not checked.training
    ours, theirs = checked.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    kinds = [[type(layer) for layer in model.modules()] for model in (checked, plain)]
    assert kinds[0] == kinds[1]
    assert packed or PackedLinear not in kinds[0]
    strides = [[p.stride() for p in model.parameters() if not p.is_mkldnn] for model in (checked, plain)]
    assert strides[0] == strides[1]


def test_another_tokenizer_is_refused(saved):
    config, path, sha256 = saved
    for wrong in ("0" * 64, sha256[:-1] + ("0" if sha256[-1] != "0" else "1")):
        with pytest.raises(CheckpointError, match=r"tokenizer\.safetensors is another tokenizer than the model was"):
            open_tokenizer(config, path, dtype=torch.bfloat16, packed=True, sha256=wrong)
        with pytest.raises(CheckpointError, match="is another tokenizer than"):
            verify_tokenizer(config, path, wrong)
    verify_tokenizer(config, path, sha256)
    with pytest.raises(CheckpointError, match="is another tokenizer than"):
        open_tokenizer(replace(config, heads=4), path, sha256=sha256)  # the same weights at other work


def test_a_missing_file_is_named(tmp_path):
    config = CONFIGS[-1]
    with pytest.raises(CheckpointError, match=r"no tokenizer\.safetensors there; unmask convert"):
        verify_tokenizer(config, tmp_path / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        open_tokenizer(config, tmp_path / "tokenizer.safetensors", sha256="0" * 64)
    verify_tokenizer(CONFIGS[0], tmp_path / "tokenizer.safetensors")
    assert open_tokenizer(CONFIGS[0], tmp_path / "tokenizer.safetensors", sha256="0" * 64) is CONFIGS[0]
