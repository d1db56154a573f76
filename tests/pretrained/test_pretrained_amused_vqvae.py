"""aMUSEd's tokenizer: its published layout, its formulas on plain tensors, and the contract of a tokenizer."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.errors import ConfigError
from unmask.pretrained.amused_vqvae import AMUSED_VQ_256, AMUSED_VQ_512, AmusedAutoencoder, AmusedVQ, translate
from unmask.tokenizers.base import Tokenizer
from unmask.tokenizers.quantizers import VQ

LISTS = Path(__file__).parents[3] / "shared/reference/checkpoint_keys"
SMALL = AmusedVQ(
    size=(32, 48), width=4, groups=2, z_channels=5, quantizer=VQ(vocab_size=23, dim=5, normalize=False, decay=0.0)
)
DIMS = [4, 8, 8, 16, 24]


def published(dims: list[int], latent: int, codes: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the published file, from their pattern. Decoding starts at the last width."""
    shapes: dict[str, tuple[int, ...]] = {}

    def block(name: str, there: int, here: int) -> None:
        shapes.update({f"{name}.norm1": (there,), f"{name}.norm2": (here,)})
        shapes.update({f"{name}.conv1": (here, there, 3, 3), f"{name}.conv2": (here, here, 3, 3)})
        shapes.update({f"{name}.conv_shortcut": (here, there, 1, 1)} if there != here else {})

    for side, part, again, widths in (("en", "down", 2, dims), ("de", "up", 3, dims[::-1])):
        before = widths[0]
        for i, width in enumerate(widths):
            for j in range(again):
                block(f"{side}coder.{part}_blocks.{i}.resnets.{j}", before if j == 0 else width, width)
            if i + 1 < len(widths):
                shapes[f"{side}coder.{part}_blocks.{i}.{part}samplers.0.conv"] = (width, width, 3, 3)
            before = width
        for j in (0, 1):
            block(f"{side}coder.mid_block.resnets.{j}", dims[-1], dims[-1])
    shapes |= {"encoder.conv_in": (dims[0], 3, 3, 3), "encoder.conv_out": (latent, dims[-1], 3, 3)}
    shapes |= {"decoder.conv_in": (dims[-1], latent, 3, 3), "decoder.conv_out": (3, dims[0], 3, 3)}
    shapes |= {"encoder.conv_norm_out": (dims[-1],), "decoder.conv_norm_out": (dims[0],)}
    shapes |= {"quant_conv": (latent, latent, 1, 1), "post_quant_conv": (latent, latent, 1, 1)}
    both = {f"{n}.weight": s for n, s in shapes.items()} | {f"{n}.bias": s[:1] for n, s in shapes.items()}
    return both | {"quantize.embedding.weight": (codes, latent)}


def weights() -> dict[str, Tensor]:
    """Draw a random float64 checkpoint without trivial values, whose images mostly lie in [0, 1]."""
    g, found = torch.Generator().manual_seed(0), {}
    for name, shape in published(DIMS, 5, 23).items():
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        norm = "norm" in name and name.endswith("weight")
        found[name] = x / x[0].numel() ** 0.5 if len(shape) > 1 else norm + 0.3 * x
    found["decoder.conv_out.weight"] *= 0.3
    found["decoder.conv_out.bias"] = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    return found


def network(table: dict[str, Tensor], config: AmusedVQ = SMALL) -> AmusedAutoencoder:
    with torch.device("meta"):
        model = config.build()
    translated: dict[str, Tensor] = {}
    for name, tensor in table.items():
        parts = translate(config, name, tensor)
        assert not parts.keys() & translated.keys()
        translated |= parts
    model.load_state_dict(translated, assign=True)
    return model


def pictures(count: int = 3) -> Tensor:
    """Return images in [0, 1], as published."""
    g = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 8, 12, generator=g, dtype=torch.float64)
    return F.interpolate(coarse, SMALL.size, mode="bilinear")


# -- the published formulas, over the published names ------------------------------------------------------------------


def conv(w: dict[str, Tensor], name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
    return F.conv2d(x, w[name + ".weight"], w[name + ".bias"], stride=stride, padding=padding)


def activated(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Apply group norm with scale and shift, then x sigmoid(x)."""
    parts = x.unflatten(1, (SMALL.groups, -1))
    centred = parts - parts.mean((2, 3, 4), keepdim=True)
    y = (centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-6).sqrt()).flatten(1, 2)
    y = y * w[name + ".weight"][:, None, None] + w[name + ".bias"][:, None, None]
    return y / (1 + (-y).exp())


def block(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = conv(w, name + ".conv1", activated(w, name + ".norm1", x))
    y = conv(w, name + ".conv2", activated(w, name + ".norm2", y))
    short = name + ".conv_shortcut"
    return y + (conv(w, short, x, padding=0) if short + ".weight" in w else x)


def latents(w: dict[str, Tensor], images: Tensor) -> Tensor:
    x = conv(w, "encoder.conv_in", images)
    for i in range(5):
        for j in range(2):
            x = block(w, f"encoder.down_blocks.{i}.resnets.{j}", x)
        if i < 4:
            x = conv(w, f"encoder.down_blocks.{i}.downsamplers.0.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
    for j in range(2):
        x = block(w, f"encoder.mid_block.resnets.{j}", x)
    x = conv(w, "encoder.conv_out", activated(w, "encoder.conv_norm_out", x))
    return conv(w, "quant_conv", x, padding=0)


def nearest(w: dict[str, Tensor], z: Tensor) -> Tensor:
    vectors = z.flatten(2).transpose(1, 2)
    return (vectors[:, :, None] - w["quantize.embedding.weight"]).square().sum(-1).argmin(-1)


def decoded(w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    z = w["quantize.embedding.weight"][tokens].transpose(1, 2).unflatten(2, SMALL.grid)
    x = conv(w, "decoder.conv_in", conv(w, "post_quant_conv", z, padding=0))
    for j in range(2):
        x = block(w, f"decoder.mid_block.resnets.{j}", x)
    for i in range(5):
        for j in range(3):
            x = block(w, f"decoder.up_blocks.{i}.resnets.{j}", x)
        if i < 4:
            twice = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            x = conv(w, f"decoder.up_blocks.{i}.upsamplers.0.conv", twice)
    return conv(w, "decoder.conv_out", activated(w, "decoder.conv_norm_out", x))


# -- layout ------------------------------------------------------------------------------------------------------------


def check_layout(config: AmusedVQ, shapes: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        model = config.build()
        translated = [translate(config, name, torch.empty(shape)).items() for name, shape in shapes.items()]
    found = [(name, tensor.shape) for parts in translated for name, tensor in parts]
    assert sorted(found) == sorted((name, tensor.shape) for name, tensor in model.state_dict().items())


def test_the_published_layout_fits():
    check_layout(SMALL, published(DIMS, 5, 23))
    shapes = published([128, 256, 256, 512, 768], 64, 8192)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 146_244_675
    for config, side in ((AMUSED_VQ_256, 16), (AMUSED_VQ_512, 32)):
        assert (config.vocab_size, config.grid) == (8192, (side, side))
        check_layout(config, shapes)
    path = LISTS / "amused_vqvae.txt"
    if not path.is_file():
        pytest.skip(f"no {path.name} to compare the names with")
    lines = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    assert {name: ast.literal_eval(shape) for name, shape, _ in lines} == shapes


@pytest.mark.parametrize(
    "name",
    ["nonsense", "loss.weight", "encoder.down.0.block.0.norm1.weight", "encoder.mid_block.attentions.0.to_q.weight",
     "decoder.up_blocks.7.resnets.0.conv1.weight", "decoder.up_blocks.00.resnets.0.conv1.weight",
     "encoder.down_blocks.1.resnets.0.nin_shortcut.weight"],
)  # fmt: skip
def test_an_unknown_name_stays_for_the_strict_comparison(name):
    tensor = torch.zeros(3)
    assert list(translate(SMALL, name, tensor).items()) == [(name, tensor)]


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "atol"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_the_network_is_the_published_formula(kind, atol):
    table, images = weights(), pictures()
    model = network({name: tensor.to(kind) for name, tensor in table.items()})
    exact = latents(table, images)
    torch.testing.assert_close(model.encode_latents((images * 2 - 1).to(kind)).double(), exact, rtol=0, atol=atol)
    near = exact.transpose(0, 1).flatten(1).T.repeat(2, 1)[:23] + 0.01 * torch.arange(23)[:, None] * exact.std()
    table["quantize.embedding.weight"] = near.float().double()  # codes are compared in float32
    model = network({name: tensor.to(kind) for name, tensor in table.items()})
    tokens = model.encode((images * 2 - 1).to(kind))
    assert torch.equal(tokens, nearest(table, exact))
    assert len(tokens.unique()) > 8
    raw = decoded(table, tokens)
    assert 0.1 < ((raw > 0) & (raw < 1)).double().mean() < 1  # some values are clipped, some are not
    ours = model.decode(tokens)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), raw.clamp(0, 1) * 2 - 1, rtol=0, atol=max(atol, 1e-6))
    rebuilt, *_ = model((images * 2 - 1).to(kind))
    torch.testing.assert_close(rebuilt.double(), raw * 2 - 1, rtol=0, atol=10 * atol)


def test_the_range_is_part_of_the_network():
    """The padding is black in [0, 1], not grey, so the same images in [-1, 1] have other latents."""
    table, images = weights(), pictures()
    assert (latents(table, images) - latents(table, images * 2 - 1)).abs().max() > 1e-2
    flat = {name: tensor * (name != "decoder.conv_out.weight") for name, tensor in table.items()}
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    for value, shown in ((1.0, 1.0), (0.0, -1.0), (0.5, 0.0), (7.0, 1.0), (-7.0, -1.0)):
        flat["decoder.conv_out.bias"] = torch.full((3,), value, dtype=torch.float64)
        assert (network(flat).decode(tokens) == shown).all()


# -- promises ----------------------------------------------------------------------------------------------------------


def small(kind: torch.dtype) -> AmusedAutoencoder:
    return network({name: tensor.to(kind) for name, tensor in weights().items()})


def test_it_is_a_tokenizer_in_bfloat16_but_not_in_float16():
    images, single, half = (pictures() * 2 - 1).float(), small(torch.float32), small(torch.bfloat16)
    assert isinstance(half, Tokenizer)
    tokens = half.encode(images)
    assert tokens.shape == (3, 6)
    drawn = half.decode(tokens)
    assert drawn.dtype == torch.float32
    assert drawn.shape == images.shape
    assert 0 < (drawn - single.decode(tokens)).abs().mean() < 0.05
    poor = small(torch.float16)
    for call in (lambda: poor.encode(images), lambda: poor.decode(tokens), lambda: poor(images.half())):
        with pytest.raises(ConfigError, match="overflows in float16: use bfloat16 or float32"):
            call()


def test_what_cannot_be_is_refused_in_one_line():
    model = small(torch.float32)
    refused = [
        (lambda: model.encode(torch.zeros(1, 3, 32, 32)), "images are (3, 32, 32)"),
        (lambda: model.decode(torch.zeros(1, 5, dtype=torch.int64)), "rows hold 5 tokens"),
        (lambda: model.decode(torch.full((1, 6), 23)), "tokens span 23..23, not 0..22"),
    ]
    for call, message in refused:
        with pytest.raises(ConfigError, match=re.escape(message)):
            call()
    with pytest.raises(ValueError, match="multiple of 16"):
        replace(SMALL, size=(40, 48))
