"""LlamaGen's tokenizer against its published formulas, and its checkpoint's names and shapes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.errors import ConfigError
from unmask.pretrained.llamagen import LLAMAGEN_VQ16, LLAMAGEN_VQ16_384, translate
from unmask.tokenizers.vqgan import VQGAN, Autoencoder

LISTS = Path(__file__).parents[3] / "shared/reference/checkpoint_keys"
VQ8 = replace(LLAMAGEN_VQ16, multipliers=(1, 2, 2, 4), attention=(32,))
"""Of the same family, with another number of levels."""
GROUPS = 2
SMALL = replace(
    LLAMAGEN_VQ16,
    size=(8, 12),
    width=4,
    multipliers=(1, 1, 3),
    attention=(2,),
    z_channels=6,
    groups=GROUPS,
    quantizer=replace(LLAMAGEN_VQ16.quantizer, vocab_size=40, dim=3),
)


def layout(config: VQGAN) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the published file."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def residual(name: str, before: int, after: int) -> None:
        layer(f"{name}.norm1", before)
        layer(f"{name}.conv1", after, before, 3, 3)
        layer(f"{name}.norm2", after)
        layer(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            layer(f"{name}.nin_shortcut", after, before, 1, 1)

    def attention(name: str, dim: int) -> None:
        layer(f"{name}.norm", dim)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", dim, dim, 1, 1)

    def half(name: str, dims: list[int], first: int, blocks: int, coarsest: int, change: str) -> None:
        for i, (before, after) in enumerate(zip([first, *dims[:-1]], dims, strict=True)):
            for j in range(blocks):
                residual(f"{name}.conv_blocks.{i}.res.{j}", after if j else before, after)
                if i == coarsest:
                    attention(f"{name}.conv_blocks.{i}.attn.{j}", after)
            if i + 1 < len(dims):
                layer(f"{name}.conv_blocks.{i}.{change}.conv", after, after, 3, 3)
        top = max(dims)
        residual(f"{name}.mid.0", top, top)
        attention(f"{name}.mid.1", top)
        residual(f"{name}.mid.2", top, top)
        layer(f"{name}.norm_out", dims[-1])

    dims, z, code = [config.width * m for m in config.multipliers], config.z_channels, config.quantizer.dim
    layer("encoder.conv_in", dims[0], 3, 3, 3)
    half("encoder", dims, dims[0], 2, len(dims) - 1, "downsample")
    layer("encoder.conv_out", z, dims[-1], 3, 3)
    layer("decoder.conv_in", dims[-1], z, 3, 3)
    half("decoder", dims[::-1], dims[-1], 3, 0, "upsample")
    layer("decoder.conv_out", 3, dims[0], 3, 3)
    layer("quant_conv", code, z, 1, 1)
    layer("post_quant_conv", z, code, 1, 1)
    return shapes | {"quantize.embedding.weight": (config.vocab_size, code), "quantize.codebook_used": (65536,)}


def published(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Draw a small file in the published layout, without neutral values, with codes of any length."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in layout(SMALL).items():
        fan = 0.5 if len(shape) < 4 else (shape[1] * shape[2] * shape[3]) ** -0.5
        weights[name] = torch.randn(shape, generator=generator, dtype=torch.float64) * fan
    weights["quant_conv.bias"] -= latents(weights, pictures(8)).mean((0, 2, 3))  # so that they hit many codes
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def converted(weights: dict[str, Tensor], config: VQGAN = SMALL) -> Autoencoder:
    with torch.random.fork_rng(devices=[]):
        model = config.build().to(weights["quant_conv.weight"].dtype)
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        found |= translate(config, name, tensor)
    model.load_state_dict(found, strict=True)
    return model.eval()


def pictures(num: int, size: tuple[int, int] = SMALL.size) -> Tensor:
    return torch.rand(num, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


# -- the published formulas --------------------------------------------------------------------------------------------


def norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    parts = x.reshape(len(x), GROUPS, -1)
    parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, keepdim=True, unbiased=False) + 1e-6).sqrt()
    return parts.reshape(x.shape) * w[name + ".weight"][:, None, None] + w[name + ".bias"][:, None, None]


def conv(w: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = w[name + ".weight"]
    if stride == 2:
        x = torch.cat([x, torch.zeros_like(x[..., :1])], dim=-1)  # right, then below
        x = torch.cat([x, torch.zeros_like(x[..., :1, :])], dim=-2)
    return F.conv2d(x, weight, w[name + ".bias"], stride, padding=weight.shape[-1] // 2 if stride == 1 else 0)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def residual(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    h = conv(w, name + ".conv1", swish(norm(w, name + ".norm1", x)))
    h = conv(w, name + ".conv2", swish(norm(w, name + ".norm2", h)))
    return (conv(w, name + ".nin_shortcut", x) if name + ".nin_shortcut.weight" in w else x) + h


def attend(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    h = norm(w, name + ".norm", x)
    q, k, v = (conv(w, f"{name}.{part}", h).flatten(2) for part in "qkv")
    weights = (torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5).softmax(-1)
    return x + conv(w, name + ".proj_out", torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))


def levels(w: dict[str, Tensor], half: str, x: Tensor, blocks: int) -> Tensor:
    for i in range(3):
        at = f"{half}.conv_blocks.{i}"
        for j in range(blocks):
            x = residual(w, f"{at}.res.{j}", x)
            x = attend(w, f"{at}.attn.{j}", x) if f"{at}.attn.{j}.q.weight" in w else x
        if half == "encoder" and i < 2:
            x = conv(w, at + ".downsample.conv", x, stride=2)
        if half == "decoder" and i < 2:
            x = conv(w, at + ".upsample.conv", x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    return x


def middle(w: dict[str, Tensor], half: str, x: Tensor) -> Tensor:
    return residual(w, f"{half}.mid.2", attend(w, f"{half}.mid.1", residual(w, f"{half}.mid.0", x)))


def latents(w: dict[str, Tensor], images: Tensor) -> Tensor:
    x = middle(w, "encoder", levels(w, "encoder", conv(w, "encoder.conv_in", images), 2))
    return conv(w, "quant_conv", conv(w, "encoder.conv_out", swish(norm(w, "encoder.norm_out", x))))


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def tokens_of(w: dict[str, Tensor], z: Tensor, *, normalized: bool = True) -> Tensor:
    x, codes = z.flatten(2).transpose(1, 2), w["quantize.embedding.weight"]
    x, codes = (unit(x), unit(codes)) if normalized else (x, codes)
    return (x[:, :, None] - codes).square().sum(-1).argmin(-1)


def images_of(w: dict[str, Tensor], tokens: Tensor, *, normalized: bool = True) -> Tensor:
    codes = w["quantize.embedding.weight"]
    z = (unit(codes) if normalized else codes)[tokens].transpose(1, 2).reshape(len(tokens), -1, 2, 3)
    x = middle(w, "decoder", conv(w, "decoder.conv_in", conv(w, "post_quant_conv", z)))
    return conv(w, "decoder.conv_out", swish(norm(w, "decoder.norm_out", levels(w, "decoder", x, 3))))


# -- names and shapes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "values", "grid"),
    [
        (LLAMAGEN_VQ16, 71_883_403, (16, 16)),
        (LLAMAGEN_VQ16_384, 71_883_403, (24, 24)),
        (VQ8, 70_109_835, (32, 32)),
    ],
    ids=["256", "384", "VQ-8"],
)
def test_published_files_fit(config, values, grid):
    """The published names and shapes translate to exactly ours."""
    with torch.device("meta"):
        model = config.build()
    assert model.grid == grid
    assert sum(p.numel() for p in model.parameters()) == values
    shapes = layout(config)
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        new = translate(config, name, torch.empty(shape, device="meta"))
        assert not new.keys() & found.keys()
        found |= new
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in model.state_dict().items()}


@pytest.mark.parametrize(("config", "file"), [(LLAMAGEN_VQ16, "llamagen_VQ-16.txt"), (VQ8, "llamagen_VQ-8.txt")])
def test_the_layout_is_that_of_the_published_network(config, file):
    if not (LISTS / file).is_file():
        pytest.skip(f"no {file}")
    rows = re.findall(r"^(\S+) \(([\d, ]*)\) torch", (LISTS / file).read_text(), re.MULTILINE)
    assert {k: tuple(int(n) for n in s.replace(",", " ").split()) for k, s in rows} == layout(config)


def test_the_log_of_used_codes_is_dropped_and_the_rest_is_not_copied():
    weights = published()
    assert translate(SMALL, "quantize.codebook_used", weights["quantize.codebook_used"]) == {}
    for name in ("encoder.conv_blocks.1.res.0.conv1.weight", "decoder.mid.1.proj_out.bias", "quant_conv.weight"):
        (tensor,) = translate(SMALL, name, weights[name]).values()
        assert tensor is weights[name]


@pytest.mark.parametrize(
    "name",
    ["encoder.conv_blocks.0.attn.0.q.weight", "loss.weight", "encoder.mid.3.q.bias", "encoder.mid.block_1.norm1.weight",
     "decoder.up.0.block.0.norm1.weight", "encoder.conv_blocks.0.block.0.norm1.weight",
     "decoder.conv_blocks.00.res.0.norm1.weight", "decoder.conv_blocks.7.res.0.norm1.weight"],
)  # fmt: skip
def test_unknown_names_stay(name):
    tensor = torch.ones(2)
    assert translate(SMALL, name, tensor) == {name: tensor}


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_wrong_shapes_reach_the_strict_comparison(shape):
    new = translate(SMALL, "quantize.embedding.weight", torch.ones(shape))
    assert new["quantizer.table"].shape == shape != (40, 3)


def test_training_goes_on_from_the_published_codes():
    codebook = converted(published(dtype=torch.float32)).quantizer
    assert codebook.started
    before = codebook.table.detach().clone()
    codebook.count.zero_()
    codebook.update(torch.zeros(40, 4), torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(codebook.table, before)  # only gradients move it, and no code is revived
    assert codebook.table.requires_grad


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_published_formulas(dtype, tolerance):
    weights = published(dtype=dtype)
    model, images = converted(weights), pictures(3).to(dtype)
    want = latents(weights, images)
    assert want.std() > 0.1
    assert (model.encode_latents(images) - want).abs().max() < tolerance
    tokens = model.encode(images)
    assert torch.equal(tokens, tokens_of(weights, want))
    assert len(tokens.unique()) > 5
    codes = unit(weights["quantize.embedding.weight"])[tokens].transpose(1, 2).unflatten(2, (2, 3))
    want = images_of(weights, tokens)
    assert (model.decoder(model.after(codes)) - want).abs().max() < tolerance
    got = model.decode(tokens)
    assert got.dtype == torch.float32
    assert (got - want.clamp(-1, 1)).abs().max() < 1e-5


def test_codes_are_normalized_on_both_sides():
    weights = published()
    model, z = converted(weights), latents(weights, pictures(8))
    tokens = model.encode(pictures(8))
    assert torch.equal(tokens, tokens_of(weights, z))
    assert not torch.equal(tokens, tokens_of(weights, z, normalized=False))
    plain = images_of(weights, tokens, normalized=False).clamp(-1, 1)
    assert (model.decode(tokens) - plain).abs().max() > 1e-3


def test_attention_stays_in_the_coarsest_level():
    """This also holds for a larger image with the same weights, at any height of that level."""
    weights = published()
    larger = replace(SMALL, size=(16, 24), attention=(4,))
    model, images = converted(weights, larger), pictures(2, larger.size)
    assert (model.encode_latents(images) - latents(weights, images)).abs().max() < 1e-10


def test_bfloat16_weights():
    weights = published(dtype=torch.float32)
    model, tokens = converted(weights).to(torch.bfloat16), torch.arange(24).reshape(4, 6)
    want, got = converted(weights).decode(tokens), model.decode(tokens)
    assert got.dtype == torch.float32
    assert 0 < (got - want).abs().max() < 0.1
    assert model.encode(pictures(2)).shape == (2, 6)


def test_images_stay_in_range_and_errors_are_one_clear_line():
    weights = published()
    weights["decoder.conv_out.weight"] = weights["decoder.conv_out.weight"] * 10
    model = converted(weights)
    tokens = torch.arange(24).reshape(4, 6)
    assert model.decode(tokens).abs().max() == 1
    with pytest.raises(ConfigError, match=r"tokens span 0\.\.40, not 0\.\.39 \(40 is the mask\)"):
        model.decode(torch.tensor([[0, 1, 2, 3, 4, 40]]))
    with pytest.raises(ConfigError, match=r"rows hold 5 tokens, not 2\*3"):
        model.decode(tokens[:, :5])
    with pytest.raises(ConfigError, match=r"images are \(3, 8, 8\) \(c, h, w\), not \(3, 8, 12\)"):
        model.encode(pictures(1)[..., :8])
