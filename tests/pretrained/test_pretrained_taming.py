"""The published f16 VQGAN: its layout at full size, its formulas on plain tensors, and a tokenizer's contract."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unmask.errors import ConfigError
from unmask.pretrained.taming import TAMING_F16_1024, TAMING_F16_1024_512, translate
from unmask.tokenizers.base import Tokenizer
from unmask.tokenizers.quantizers import VQ
from unmask.tokenizers.vqgan import VQGAN, Autoencoder

LIST = Path(__file__).parents[3] / "shared/reference/checkpoint_keys/taming_vqgan_f16_1024.txt"
# The two finer levels have equal shapes, so no shape would reveal an exchange; the coarsest level is wider.
SMALL = VQGAN(size=(16, 16), width=4, multipliers=(1, 1, 2), blocks=2, decoder_blocks=3, attention=(4,), z_channels=6,
              groups=2, quantizer=VQ(vocab_size=17, dim=5, normalize=False, decay=0.0))  # fmt: skip
LARGER = replace(SMALL, size=(32, 32), attention=(8,))
BOTH = pytest.mark.parametrize("config", [SMALL, LARGER], ids=["published-size", "twice-the-size"])
Shapes = dict[str, tuple[int, ...]]


def block(place: str, dim_in: int, dim_out: int) -> Shapes:
    layers: Shapes = {"norm1": (dim_in,), "conv1": (dim_out, dim_in, 3, 3)}
    layers |= {"norm2": (dim_out,), "conv2": (dim_out, dim_out, 3, 3)}
    if dim_in != dim_out:
        layers["nin_shortcut"] = (dim_out, dim_in, 1, 1)
    return {f"{place}.{name}": shape for name, shape in layers.items()}


def attn(place: str, dim: int) -> Shapes:
    return {f"{place}.norm": (dim,)} | {f"{place}.{name}": (dim, dim, 1, 1) for name in ("q", "k", "v", "proj_out")}


def middle(part: str, dim: int) -> Shapes:
    blocks = block(f"{part}.mid.block_1", dim, dim) | block(f"{part}.mid.block_2", dim, dim)
    return blocks | attn(f"{part}.mid.attn_1", dim)


def published(c: VQGAN) -> Shapes:
    """Return names and shapes of the published file, from its documentation: attention is in the last level."""
    dims, top, z, code = [c.width * m for m in c.multipliers], len(c.multipliers) - 1, c.z_channels, c.quantizer.dim
    layers: Shapes = {"encoder.conv_in": (c.width, c.channels, 3, 3), "encoder.norm_out": (dims[-1],)}
    layers |= {"encoder.conv_out": (z, dims[-1], 3, 3), "decoder.conv_in": (dims[-1], z, 3, 3)}
    layers |= {"decoder.norm_out": (c.width,), "decoder.conv_out": (c.channels, c.width, 3, 3)}
    layers |= {"quant_conv": (code, z, 1, 1), "post_quant_conv": (z, code, 1, 1)}
    layers |= middle("encoder", dims[-1]) | middle("decoder", dims[-1])
    for i, dim in enumerate(dims):
        finer, coarser = dims[max(i - 1, 0)], dims[min(i + 1, top)]
        for j in range(c.blocks):
            layers |= block(f"encoder.down.{i}.block.{j}", finer if j == 0 else dim, dim)
            layers |= attn(f"encoder.down.{i}.attn.{j}", dim) if i == top else {}
        for j in range(c.decoder_blocks):
            layers |= block(f"decoder.up.{i}.block.{j}", coarser if j == 0 else dim, dim)
            layers |= attn(f"decoder.up.{i}.attn.{j}", dim) if i == top else {}
        layers |= {f"encoder.down.{i}.downsample.conv": (dim, dim, 3, 3)} if i < top else {}
        layers |= {f"decoder.up.{i}.upsample.conv": (dim, dim, 3, 3)} if i > 0 else {}
    shapes = {f"{n}.weight": s for n, s in layers.items()} | {f"{n}.bias": s[:1] for n, s in layers.items()}
    return shapes | {"quantize.embedding.weight": (c.vocab_size, code)}


def weights(c: VQGAN, seed: int = 0) -> dict[str, Tensor]:
    """Draw a random file without trivial values; the weights of a layer's inputs add up to about 1."""
    generator, file = torch.Generator().manual_seed(seed), {}
    for name, shape in sorted(published(c).items()):
        inputs = torch.Size(shape[1:]).numel()
        file[name] = torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5 / inputs**0.5
    return file


def translated(c: VQGAN, file: dict[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, tensor in file.items():
        new = translate(c, name, tensor)
        assert not out.keys() & new.keys()
        out |= new
    return out


def loaded(c: VQGAN, file: dict[str, Tensor], dtype: torch.dtype) -> Autoencoder:
    model = c.build().to(torch.float64)
    model.load_state_dict(translated(c, file), strict=True)
    return model.to(dtype)


# -- the published formulas, on the published tensors ------------------------------------------------------------------


def conv(x: Tensor, p: dict[str, Tensor], name: str, stride: int = 1, pad: tuple[int, int] = (1, 1)) -> Tensor:
    """Convolve as an explicit sum over windows; `pad` is the padding before and behind, on both axes."""
    weight = p[f"{name}.weight"]
    if weight.shape[-1] > 1:
        x = torch.nn.functional.pad(x, (*pad, *pad))
    windows = x.unfold(2, weight.shape[2], stride).unfold(3, weight.shape[3], stride)
    return torch.einsum("bchwij,dcij->bdhw", windows, weight) + p[f"{name}.bias"][:, None, None]


def norm(x: Tensor, p: dict[str, Tensor], name: str, groups: int = 2, eps: float = 1e-6) -> Tensor:
    parts = x.reshape(len(x), groups, -1)
    parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
    return parts.reshape(x.shape) * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]


def swish(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def residual(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    h = conv(swish(norm(x, p, f"{name}.norm1")), p, f"{name}.conv1")
    h = conv(swish(norm(h, p, f"{name}.norm2")), p, f"{name}.conv2")
    return h + (conv(x, p, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in p else x)


def attend(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    y = norm(x, p, f"{name}.norm")
    q, k, v = (conv(y, p, f"{name}.{part}").flatten(2) for part in "qkv")
    share = (torch.einsum("bcn,bcm->bnm", q, k) / x.shape[1] ** 0.5).softmax(-1)
    return x + conv(torch.einsum("bnm,bcm->bcn", share, v).reshape(x.shape), p, f"{name}.proj_out")


def level(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    """Run the blocks of the file, each with attention if the file has it, at any size."""
    i = 0
    while f"{name}.block.{i}.conv1.weight" in p:
        x = residual(x, p, f"{name}.block.{i}")
        x = attend(x, p, f"{name}.attn.{i}") if f"{name}.attn.{i}.q.weight" in p else x
        i += 1
    return x


def centre(x: Tensor, p: dict[str, Tensor], part: str) -> Tensor:
    x = attend(residual(x, p, f"{part}.mid.block_1"), p, f"{part}.mid.attn_1")
    return residual(x, p, f"{part}.mid.block_2")


def end(x: Tensor, p: dict[str, Tensor], part: str) -> Tensor:
    return conv(swish(norm(x, p, f"{part}.norm_out")), p, f"{part}.conv_out")


def encoded(p: dict[str, Tensor], images: Tensor, pad: tuple[int, int] = (0, 1)) -> Tensor:
    x = conv(images, p, "encoder.conv_in")
    for i in range(3):
        x = level(x, p, f"encoder.down.{i}")
        x = conv(x, p, f"encoder.down.{i}.downsample.conv", 2, pad) if i < 2 else x
    return conv(end(centre(x, p, "encoder"), p, "encoder"), p, "quant_conv")


def codes(p: dict[str, Tensor], z: Tensor) -> Tensor:
    distance = (z.flatten(2).transpose(1, 2)[:, :, None] - p["quantize.embedding.weight"]).square().sum(-1)
    return distance.argmin(-1)


def decoded(p: dict[str, Tensor], tokens: Tensor, side: int) -> Tensor:
    z = p["quantize.embedding.weight"][tokens].transpose(1, 2).unflatten(2, (side, side))
    x = centre(conv(conv(z, p, "post_quant_conv"), p, "decoder.conv_in"), p, "decoder")
    for i in (2, 1, 0):  # the coarsest level has the highest number
        x = level(x, p, f"decoder.up.{i}")
        if i > 0:
            x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), p, f"decoder.up.{i}.upsample.conv")
    return end(x, p, "decoder")


def images(c: VQGAN) -> Tensor:
    draw = torch.rand(3, 3, *c.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return draw * 2 - 1


def tokens(c: VQGAN) -> Tensor:
    return torch.randint(c.vocab_size, (3, c.grid[0] * c.grid[1]), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("config", [TAMING_F16_1024, TAMING_F16_1024_512], ids=["256", "512"])
def test_every_published_tensor_has_its_place(config):
    """All names and shapes at full size, on the meta device; the weights are the same for both sizes of images."""
    shapes = published(config)
    assert (len(shapes), sum(torch.Size(s).numel() for s in shapes.values())) == (343, 72_141_699)
    with torch.device("meta"):
        ours = config.build().state_dict()
        file = translated(config, {n: torch.empty(s) for n, s in shapes.items()})
    assert {n: t.shape for n, t in file.items()} == {n: t.shape for n, t in ours.items()}
    assert config.grid == (config.size[0] // 16, config.size[1] // 16)


def test_the_pattern_is_the_published_list():
    if not LIST.is_file():
        pytest.skip(f"no {LIST.name}")
    listed = re.findall(r"^(\S+) \(([\d, ]*)\) torch", LIST.read_text(), re.MULTILINE)
    rows = {n: tuple(int(x) for x in shape.replace(",", " ").split()) for n, shape in listed}
    assert published(TAMING_F16_1024) == rows


@BOTH
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_both_ways_are_the_published_formulas(config, dtype, close):
    file = weights(config)
    model = loaded(config, file, dtype)
    z = encoded(file, images(config))
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_latents(images(config).to(dtype)).double(), z, rtol=close, atol=close * 10
        )
        looked = model.quantizer.table[tokens(config)].transpose(1, 2).unflatten(2, config.grid)
        want = decoded(file, tokens(config), config.grid[0])
        torch.testing.assert_close(model.decoder(model.after(looked)).double(), want, rtol=close, atol=close * 10)
    assert torch.equal(model.encode(images(config)), codes(file, z))
    assert len(codes(file, z).unique()) > 3
    pictures = model.decode(tokens(config))
    assert pictures.dtype == torch.float32
    assert want.abs().max() > 1  # the network's output is raw: decode clips values beyond black and white
    torch.testing.assert_close(pictures.double(), want.clamp(-1, 1), rtol=0, atol=2e-5)


def exchanged(file: dict[str, Tensor], one: str, other: str) -> dict[str, Tensor]:
    return {n: file[n.replace(one, "*").replace(other, one).replace("*", other)] for n in file}


def test_each_published_peculiarity_counts():
    """Padding comes behind, not before; queries are not keys; levels of equal shapes keep their order."""
    file = weights(SMALL)
    z, want = encoded(file, images(SMALL)), decoded(file, tokens(SMALL), 4)
    assert (encoded(file, images(SMALL), pad=(1, 0)) - z).abs().max() > 1e-3
    assert (encoded(exchanged(file, "down.0.block", "down.1.block"), images(SMALL)) - z).abs().max() > 1e-3
    for pair in (("attn.1.q", "attn.1.k"), ("up.0.block.1", "up.1.block.1")):
        assert (decoded(exchanged(file, *pair), tokens(SMALL), 4) - want).abs().max() > 1e-3


def test_what_is_not_needed_or_not_known():
    assert translate(SMALL, "loss.discriminator.main.0.weight", torch.zeros(2)) == {}
    own = SMALL.build().state_dict()
    for name in ("encoder.down.0.attn.0.q.weight", "decoder.up.0.upsample.conv.weight", "colorize", "encoder.swish"):
        assert not translate(SMALL, name, torch.zeros(2)).keys() & own.keys()
    for name in published(SMALL):
        for shape in ((), (0,), (1, 2, 3, 4, 5)):
            new = translate(SMALL, name, torch.zeros(shape))
            assert any(own[n].shape != t.shape for n, t in new.items())


def test_the_codebook_counts_as_started():
    """Training continues from the published codes; the centres of the first batch do not replace them."""
    codebook = loaded(SMALL, weights(SMALL), torch.float32).quantizer
    assert codebook.started == 1
    assert torch.equal(codebook.count, torch.ones(17))
    torch.testing.assert_close(codebook.sum, codebook.table.detach())
    assert codebook.sum.data_ptr() != codebook.table.data_ptr()


def test_a_tokenizer_in_bfloat16_and_its_errors():
    model = loaded(SMALL, weights(SMALL), torch.float32)
    assert isinstance(model, Tokenizer)
    exact = model.decode(tokens(SMALL))
    model = model.to(torch.bfloat16)
    rough = model.decode(tokens(SMALL))
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.1 * exact.norm()
    assert model.encode(images(SMALL).float()).shape == (3, 16)
    with pytest.raises(ConfigError, match=r"images are \(3, 16, 8\) .*resize"):
        model.encode(torch.zeros(1, 3, 16, 8))
    with pytest.raises(ConfigError, match=r"tokens span 17..17, not 0..16"):
        model.decode(torch.full((1, 16), 17))
    with pytest.raises(ConfigError, match="rows hold 9 tokens"):
        model.decode(torch.zeros(1, 9, dtype=torch.int64))


def test_attention_cannot_be_left_at_the_smaller_size():
    with pytest.raises(ValueError, match=r"attention=\(16,\)\): the levels are \[512, 256, 128, 64, 32\] cells high"):
        replace(TAMING_F16_1024, size=(512, 512))
