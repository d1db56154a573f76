"""MaskGIT's VQGAN: the published list of tensors, and the published formulas on plain tensors."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.errors import ConfigError
from unmask.pretrained.maskgit_vqgan import (
    MASKGIT_VQGAN_256,
    MASKGIT_VQGAN_512,
    MaskGITAutoencoder,
    MaskGITDecoder,
    MaskGITVQGAN,
    rename_layer,
    translate,
)
from unmask.tokenizers.base import Tokenizer

LIST = Path(__file__).parents[3] / "shared/reference/checkpoint_keys/maskgit_vqgan_pt.txt"
SMALL = MaskGITVQGAN(size=(16, 24), width=32, multipliers=(1, 2, 2), blocks=2, codes=20, dim=6)
Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Tensor]


def _block(name: str, dim_in: int, dim_out: int) -> Shapes:
    shapes: Shapes = {f"{name}.norm1.{kind}": (dim_in,) for kind in ("weight", "bias")}
    shapes |= {f"{name}.norm2.{kind}": (dim_out,) for kind in ("weight", "bias")}
    shapes |= {f"{name}.conv1.weight": (dim_out, dim_in, 3, 3), f"{name}.conv2.weight": (dim_out, dim_out, 3, 3)}
    return shapes | ({f"{name}.nin_shortcut.weight": (dim_out, dim_out, 1, 1)} if dim_in != dim_out else {})


def published(config: MaskGITVQGAN) -> Shapes:
    """Return names and shapes of the published file."""
    dims = [config.width * m for m in config.multipliers]
    last, top = len(dims) - 1, dims[-1]
    shapes: Shapes = {"encoder.conv_in.weight": (config.width, 3, 3, 3)}
    for i, dim in enumerate(dims):
        below, above = dims[max(i - 1, 0)] if i else config.width, dims[min(i + 1, last)]
        for j in range(config.blocks):
            shapes |= _block(f"encoder.down.{i}.block.{j}", dim if j else below, dim)
            shapes |= _block(f"decoder.up.{i}.block.{j}", dim if j else above, dim)
        if i:
            shapes |= {f"decoder.up.{i}.upsample_conv.weight": (dim, dim, 3, 3)}
            shapes |= {f"decoder.up.{i}.upsample_conv.bias": (dim,)}
    for half, dim in (("encoder", top), ("decoder", dims[0])):
        for j in range(config.blocks):
            shapes |= _block(f"{half}.mid.{j}", top, top)
        shapes |= {f"{half}.norm_out.{kind}": (dim,) for kind in ("weight", "bias")}
    shapes |= {"encoder.conv_out.weight": (config.dim, top, 1, 1), "encoder.conv_out.bias": (config.dim,)}
    shapes |= {"decoder.conv_in.weight": (top, config.dim, 3, 3), "decoder.conv_in.bias": (top,)}
    shapes |= {"decoder.conv_out.weight": (3, dims[0], 3, 3), "decoder.conv_out.bias": (3,)}
    return shapes | {"quantize.embedding.weight": (config.codes, config.dim)}


def random_weights(shapes: Shapes, seed: int = 0) -> Tensors:
    """Draw weights without trivial values: norms around 1, biases not 0, convolutions that keep the scale."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        norm = "norm" in name and name.endswith("weight")
        found[name] = 1 + 0.3 * noise if norm else noise * (1.5 / math.sqrt(max(1, math.prod(shape[1:]))))
    return found


def loaded(config: MaskGITVQGAN, weights: Tensors) -> MaskGITAutoencoder:
    with torch.device("meta"):
        model = config.build()
    found: Tensors = {}
    for name, tensor in weights.items():
        found |= translate(config, name, tensor)
    model.load_state_dict(found, strict=True, assign=True)
    return model


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the published formulas -------------------------------------------------------------------------------------------


def group_norm(p: Tensors, name: str, x: Tensor, eps: float, groups: int) -> Tensor:
    b, c, h, w = x.shape
    y = x.reshape(b, groups, -1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return y.reshape(b, c, h, w) * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]


def conv(p: Tensors, name: str, x: Tensor) -> Tensor:
    """Convolve with "SAME" padding, as a sum over the offsets of the window."""
    weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
    n, (h, w) = weight.shape[-1], x.shape[-2:]
    padded = F.pad(x, (n // 2,) * 4)
    parts = [
        torch.einsum("oi,bihw->bohw", weight[:, :, i, j], padded[:, :, i : i + h, j : j + w])
        for i in range(n)
        for j in range(n)
    ]
    return sum(parts[1:], parts[0]) + (0 if bias is None else bias[:, None, None])


def swish(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def block(p: Tensors, name: str, x: Tensor, eps: float, groups: int, ordinary: bool) -> Tensor:
    h = conv(p, f"{name}.conv1", swish(group_norm(p, f"{name}.norm1", x, eps, groups)))
    h = conv(p, f"{name}.conv2", swish(group_norm(p, f"{name}.norm2", h, eps, groups)))
    if f"{name}.nin_shortcut.weight" not in p:
        return x + h
    missing = h.shape[1] - x.shape[1]
    own = F.pad(x, (0, 0, 0, 0, 0, missing)) if ordinary else h  # F.pad cuts where it is negative
    return conv(p, f"{name}.nin_shortcut", own) + h


def encoder(p: Tensors, c: MaskGITVQGAN, x: Tensor, eps=1e-6, groups=32, ordinary=False) -> Tensor:
    x = conv(p, "encoder.conv_in", x)
    for i in range(len(c.multipliers)):
        for j in range(c.blocks):
            x = block(p, f"encoder.down.{i}.block.{j}", x, eps, groups, ordinary)
        if i < len(c.multipliers) - 1:
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    for j in range(c.blocks):
        x = block(p, f"encoder.mid.{j}", x, eps, groups, ordinary)
    return conv(p, "encoder.conv_out", swish(group_norm(p, "encoder.norm_out", x, eps, groups)))


def decoder(p: Tensors, c: MaskGITVQGAN, z: Tensor, eps=1e-6, groups=32, ordinary=False) -> Tensor:
    x = conv(p, "decoder.conv_in", z)
    for j in range(c.blocks):
        x = block(p, f"decoder.mid.{j}", x, eps, groups, ordinary)
    for i in reversed(range(len(c.multipliers))):
        for j in range(c.blocks):
            x = block(p, f"decoder.up.{i}.block.{j}", x, eps, groups, ordinary)
        if i:
            x = conv(p, f"decoder.up.{i}.upsample_conv", x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    return conv(p, "decoder.conv_out", swish(group_norm(p, "decoder.norm_out", x, eps, groups)))


def codes(p: Tensors, z: Tensor) -> Tensor:
    rows = z.flatten(2).transpose(1, 2)
    return torch.cdist(rows, p["quantize.embedding.weight"][None], compute_mode="donot_use_mm_for_euclid_dist").argmin(
        -1
    )


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [MASKGIT_VQGAN_256, MASKGIT_VQGAN_512, SMALL, replace(SMALL, multipliers=(2, 1), blocks=3)]
)
def test_every_published_tensor_has_its_place(config):
    with torch.device("meta"):
        own = {name: tuple(t.shape) for name, t in config.build().state_dict().items()}
        found = {}
        for name, shape in published(config).items():
            found |= {k: tuple(v.shape) for k, v in translate(config, name, torch.empty(shape)).items()}
    assert found == own


def test_the_published_size():
    shapes = published(MASKGIT_VQGAN_256)
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (168, 54_515_587)


def test_the_list_of_the_published_file():
    if not LIST.is_file():
        pytest.skip(f"{LIST.name} is not there")
    rows = re.findall(r"^([a-z]\S+) \(([\d, ]*)\)", LIST.read_text(), re.MULTILINE)
    assert {n: tuple(int(i) for i in s.split(",") if i.strip()) for n, s in rows} == published(MASKGIT_VQGAN_256)


def test_an_unknown_name_stays():
    assert list(translate(SMALL, "loss.discriminator.main.0.weight", torch.zeros(1))) == [
        "loss.discriminator.main.0.weight"
    ]


# -- numbers ----------------------------------------------------------------------------------------------------------

WEIGHTS = random_weights(published(SMALL))
SINGLE = {name: tensor.float() for name, tensor in WEIGHTS.items()}


def test_latents_and_images_are_those_of_the_formulas():
    model, x, z = loaded(SMALL, WEIGHTS), uniform(2, 3, 16, 24), uniform(2, 6, 4, 6) - 0.5
    with torch.no_grad():
        for own, wanted in (
            (model.encoder(x), encoder(WEIGHTS, SMALL, x)),
            (model.decoder(z), decoder(WEIGHTS, SMALL, z)),
        ):
            assert wanted.std() > 0.1
            assert torch.allclose(own, wanted, rtol=0, atol=1e-10)
        single = loaded(SMALL, SINGLE)
        assert torch.allclose(single.encoder(x.float()).double(), encoder(WEIGHTS, SMALL, x), rtol=0, atol=1e-5)
        assert torch.allclose(single.decoder(z.float()).double(), decoder(WEIGHTS, SMALL, z), rtol=0, atol=1e-5)


@pytest.mark.parametrize("other", [{"ordinary": True}, {"groups": 16}, {"eps": 1e-5}])
def test_what_is_peculiar_matters(other):
    """The shortcut reads the block's own output; a small input shows the eps of the norms."""
    p = dict(WEIGHTS)
    if "eps" in other:
        p["encoder.conv_in.weight"] = p["encoder.conv_in.weight"] * 1e-3
        p["decoder.conv_in.weight"], p["decoder.conv_in.bias"] = (
            p[f"decoder.conv_in.{k}"] * 1e-3 for k in ("weight", "bias")
        )
    x, z = uniform(1, 3, 16, 24), uniform(1, 6, 4, 6)
    model = loaded(SMALL, p)
    with torch.no_grad():
        assert (model.encoder(x) - encoder(p, SMALL, x, **other)).abs().max() > 1e-3
        assert (model.decoder(z) - decoder(p, SMALL, z, **other)).abs().max() > 1e-3


def test_the_decoder_alone_takes_any_grid():
    alone = MaskGITDecoder(SMALL).double()
    own = {name.removeprefix("decoder."): t for name, t in WEIGHTS.items() if name.startswith("decoder.")}
    alone.load_state_dict({rename_layer(name): t for name, t in own.items()}, strict=True)
    z = uniform(1, 6, 3, 5)
    assert torch.allclose(alone(z), decoder(WEIGHTS, SMALL, z), rtol=0, atol=1e-10)


# -- the tokenizer ----------------------------------------------------------------------------------------------------


def sensible() -> Tensors:
    """Return weights whose codebook holds latents, so that each latent has its code."""
    x = uniform(4, 3, 16, 24, seed=5)
    rows = encoder(WEIGHTS, SMALL, x).transpose(0, 1).flatten(1).T
    return WEIGHTS | {"quantize.embedding.weight": rows[:: len(rows) // 20][:20].clone()}


def test_encode_finds_the_nearest_code_of_images_from_0_to_1():
    p, x = sensible(), uniform(3, 3, 16, 24)
    wanted = codes(p, encoder(p, SMALL, x))
    assert len(wanted.unique()) > 8
    assert torch.equal(loaded(SMALL, p).encode(x * 2 - 1), wanted)
    assert not torch.equal(loaded(SMALL, p).encode(x), wanted)


def test_decode_clamps_from_0_to_1_and_gives_images_from_minus_1_to_1():
    tokens = torch.randint(20, (2, 24), generator=torch.Generator().manual_seed(0))
    p = sensible()
    images = loaded(SMALL, p).decode(tokens)
    z = p["quantize.embedding.weight"][tokens].unflatten(1, (4, 6)).permute(0, 3, 1, 2)
    wanted = decoder(p, SMALL, z)
    assert ((wanted < 0) | (wanted > 1)).any()
    assert images.dtype == torch.float32
    assert torch.allclose(images.double(), wanted.clamp(0, 1) * 2 - 1, rtol=0, atol=1e-6)
    p["decoder.conv_out.weight"] = p["decoder.conv_out.weight"] * 0
    p["decoder.conv_out.bias"] = torch.tensor([1.0, 0.5, -3.0]).double()
    white = loaded(SMALL, p).decode(tokens)
    assert torch.equal(white[0, :, 0, 0], torch.tensor([1.0, 0.0, -1.0]))  # white, grey, and darker than black


def test_it_is_a_tokenizer_in_bfloat16_and_in_parts(monkeypatch):
    model = loaded(SMALL, {name: t.float() for name, t in sensible().items()})
    images = uniform(3, 3, 16, 24).float() * 2 - 1
    assert isinstance(model, Tokenizer)
    assert (model.vocab_size, model.grid, SMALL.channels) == (20, (4, 6), 3)
    tokens = model.encode(images)
    decoded = model.decode(tokens)
    with monkeypatch.context() as patch:
        patch.setattr(MaskGITAutoencoder, "at_once", 2)
        assert torch.equal(model.encode(images), tokens)
        assert torch.allclose(model.decode(tokens), decoded, rtol=0, atol=1e-4)
    half = model.to(torch.bfloat16)
    assert (half.encode(images) == tokens).float().mean() > 0.5
    assert half.decode(tokens).dtype == torch.float32
    assert (half.decode(tokens) - decoded).abs().mean() < 0.1
    assert not half.decode(tokens).requires_grad


def test_errors_are_one_line():
    model = loaded(SMALL, SINGLE)
    with pytest.raises(ConfigError, match=r"images are \(3, 16, 16\) .*resize"):
        model.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ConfigError, match=r"rows hold 5 tokens, not 4\*6"):
        model.decode(torch.zeros(1, 5, dtype=torch.int64))
    for bad in (-1, 20):
        with pytest.raises(ConfigError, match=rf"{bad}.*not 0\.\.19 \(20 is the mask\)"):
            model.decode(torch.full((1, 24), bad))


@pytest.mark.parametrize(
    ("field", "says"),
    [({"size": (16, 18)}, "multiple of 4"), ({"width": 40}, "32 groups"), ({"multipliers": ()}, "at least 1"),
     ({"blocks": 0}, "at least 1"), ({"codes": 0}, "at least 1"), ({"size": (0, 16)}, "at least 1")],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(field, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **field)
