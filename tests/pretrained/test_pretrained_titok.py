"""TiTok's tokenizer: its published layout, its formulas on plain tensors, and the contract of a tokenizer."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.errors import ConfigError
from unmask.pretrained.maskgit_vqgan import MaskGITVQGAN
from unmask.pretrained.titok import (
    TITOK_B64_TOKENIZER,
    TITOK_L32_TOKENIZER,
    TITOK_S128_TOKENIZER,
    TiTok,
    TiTokModel,
    translate,
)
from unmask.tokenizers.base import Tokenizer

LISTS = Path(__file__).parents[3] / "shared/reference/checkpoint_keys"
SMALL = TiTok(
    num_latents=4,
    width=12,
    depth=2,
    heads=3,
    vocab_size=29,
    token_dim=3,
    pixels=MaskGITVQGAN(size=(8, 4), width=32, multipliers=(1, 2), blocks=1, codes=11, dim=5),
)
SIZES = {
    "l32": (TITOK_L32_TOKENIZER, 641_054_735),
    "b64": (TITOK_B64_TOKENIZER, 204_814_095),
    "s128": (TITOK_S128_TOKENIZER, 83_674_639),
}


def published(config: TiTok) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the published file, from their pattern."""
    k, w, p = config.num_latents, config.width, config.pixels
    cells, patch = p.grid[0] * p.grid[1], p.factor
    shapes: dict[str, tuple[int, ...]] = {"latent_tokens": (k, w)}
    for side in ("encoder", "decoder"):
        shapes |= {f"{side}.class_embedding": (1, w), f"{side}.positional_embedding": (cells + 1, w)}
        shapes |= {f"{side}.latent_token_positional_embedding": (k, w)}
        shapes |= {f"{side}.ln_{end}.{kind}": (w,) for end in ("pre", "post") for kind in ("weight", "bias")}
        for i in range(config.depth):
            block = f"{side}.transformer.{i}"
            shapes |= {f"{block}.attn.in_proj_weight": (3 * w, w), f"{block}.attn.in_proj_bias": (3 * w,)}
            shapes |= {f"{block}.ln_{n}.{kind}": (w,) for n in (1, 2) for kind in ("weight", "bias")}
            layers = {"attn.out_proj": (w, w), "mlp.c_fc": (4 * w, w), "mlp.c_proj": (w, 4 * w)}
            shapes |= with_bias({f"{block}.{name}": shape for name, shape in layers.items()})
    shapes |= with_bias({"encoder.patch_embed": (w, 3, patch, patch), "encoder.conv_out": (config.token_dim, w, 1, 1)})
    shapes |= with_bias({"decoder.decoder_embed": (w, config.token_dim)}) | {"decoder.mask_token": (1, 1, w)}
    shapes |= with_bias({"decoder.ffn.0": (2 * w, w, 1, 1), "decoder.ffn.2": (p.codes, 2 * w, 1, 1)})
    shapes |= {"quantize.embedding.weight": (config.vocab_size, config.token_dim)}
    shapes |= {"pixel_quantize.embedding.weight": (p.codes, p.dim)}
    return shapes | {f"pixel_decoder.{name}": shape for name, shape in published_decoder(p).items()}


def with_bias(weights: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{n}.weight": s for n, s in weights.items()} | {f"{n}.bias": s[:1] for n, s in weights.items()}


def published_decoder(p: MaskGITVQGAN) -> dict[str, tuple[int, ...]]:
    dims = [p.width * m for m in p.multipliers]
    shapes = with_bias({"conv_in": (dims[-1], p.dim, 3, 3), "conv_out": (3, dims[0], 3, 3), "norm_out": (dims[0],)})
    places = [(f"mid.{i}", dims[-1], dims[-1]) for i in range(p.blocks)]
    for level, dim in enumerate(dims):
        before = dims[min(level + 1, len(dims) - 1)]
        places += [(f"up.{level}.block.{i}", dim if i else before, dim) for i in range(p.blocks)]
        if level:
            shapes |= with_bias({f"up.{level}.upsample_conv": (dim, dim, 3, 3)})
    for name, a, b in places:
        shapes |= with_bias({f"{name}.norm1": (a,), f"{name}.norm2": (b,)})
        shapes |= {f"{name}.conv1.weight": (b, a, 3, 3), f"{name}.conv2.weight": (b, b, 3, 3)}
        if a != b:
            shapes |= {f"{name}.nin_shortcut.weight": (b, b, 1, 1)}
    return shapes


def weights_of(config: TiTok) -> dict[str, Tensor]:
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, shape in published(config).items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        norm = len(shape) == 1 and name.endswith("weight")
        weights[name] = (
            1 + 0.3 * values if norm else values * (0.3 if len(shape) == 1 else 1.2 * values[0].numel() ** -0.5)
        )
    weights["quantize.embedding.weight"] *= torch.linspace(0.05, 5, config.vocab_size).double()[:, None]  # any length
    return weights


def converted(config: TiTok, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> TiTokModel:
    model, ours = config.build().to(dtype), {}
    for name, tensor in weights.items():
        ours |= translate(config, name, tensor)
    model.load_state_dict(ours)
    return model


# -- the published formulas, on tensors by their published names -------------------------------------------------------


def vit(w: dict[str, Tensor], side: str, x: Tensor, *, tanh: bool = False) -> Tensor:
    b, n, dim = x.shape
    x = F.layer_norm(x, (dim,), w[f"{side}.ln_pre.weight"], w[f"{side}.ln_pre.bias"], 1e-5)
    for i in range(SMALL.depth):
        v = {k.split(f"{side}.transformer.{i}.")[1]: t for k, t in w.items() if f"{side}.transformer.{i}." in k}
        h = F.layer_norm(x, (dim,), v["ln_1.weight"], v["ln_1.bias"], 1e-5)
        qkv = torch.einsum("bnd,ed->bne", h, v["attn.in_proj_weight"]) + v["attn.in_proj_bias"]
        q, k, value = (part.reshape(b, n, SMALL.heads, -1) for part in qkv.chunk(3, -1))
        share = (torch.einsum("bnhd,bmhd->bhnm", q, k) / (dim // SMALL.heads) ** 0.5).softmax(-1)
        h = torch.einsum("bhnm,bmhd->bnhd", share, value).reshape(b, n, dim)
        x = x + h @ v["attn.out_proj.weight"].T + v["attn.out_proj.bias"]
        h = (
            F.layer_norm(x, (dim,), v["ln_2.weight"], v["ln_2.bias"], 1e-5) @ v["mlp.c_fc.weight"].T
            + v["mlp.c_fc.bias"]
        )
        h = F.gelu(h, approximate="tanh" if tanh else "none")
        x = x + h @ v["mlp.c_proj.weight"].T + v["mlp.c_proj.bias"]
    return x


def latents(w: dict[str, Tensor], images: Tensor, *, legacy: bool = True, tanh: bool = False) -> Tensor:
    b, width, k = len(images), SMALL.width, SMALL.num_latents
    x = F.conv2d(images, w["encoder.patch_embed.weight"], w["encoder.patch_embed.bias"], stride=2)
    x = x.reshape(b, width, -1).permute(0, 2, 1)
    x = torch.cat([w["encoder.class_embedding"].expand(b, 1, -1), x], 1) + w["encoder.positional_embedding"]
    tail = (w["latent_tokens"] + w["encoder.latent_token_positional_embedding"]).expand(b, -1, -1)
    x = vit(w, "encoder", torch.cat([x, tail], 1), tanh=tanh)[:, -k:]
    x = F.layer_norm(x, (width,), w["encoder.ln_post.weight"], w["encoder.ln_post.bias"], 1e-5).contiguous()
    x = x.view(b, width, k, 1) if legacy else x.permute(0, 2, 1)[..., None]
    return F.conv2d(x, w["encoder.conv_out.weight"], w["encoder.conv_out.bias"])[..., 0].permute(0, 2, 1)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def tokens_of(w: dict[str, Tensor], z: Tensor, *, normal: bool = True) -> Tensor:
    table = w["quantize.embedding.weight"]
    return torch.cdist(unit(z), unit(table)).argmin(-1) if normal else torch.cdist(z, table).argmin(-1)


def picture(w: dict[str, Tensor], tokens: Tensor, *, normal: bool = True, soft: bool = True) -> Tensor:
    b, width, (rows, columns) = len(tokens), SMALL.width, SMALL.pixels.grid
    z = w["quantize.embedding.weight"][tokens]
    z = (unit(z) if normal else z) @ w["decoder.decoder_embed.weight"].T + w["decoder.decoder_embed.bias"]
    canvas = torch.cat([w["decoder.class_embedding"], w["decoder.mask_token"][0].expand(rows * columns, -1)])
    canvas = (canvas + w["decoder.positional_embedding"]).expand(b, -1, -1)
    x = vit(w, "decoder", torch.cat([canvas, z + w["decoder.latent_token_positional_embedding"]], 1))
    x = x[:, 1 : 1 + rows * columns]
    x = F.layer_norm(x, (width,), w["decoder.ln_post.weight"], w["decoder.ln_post.bias"], 1e-5)
    x = x.permute(0, 2, 1).reshape(b, width, rows, columns)
    x = F.conv2d(x, w["decoder.ffn.0.weight"], w["decoder.ffn.0.bias"]).tanh()
    x = F.conv2d(x, w["decoder.ffn.2.weight"], w["decoder.ffn.2.bias"])
    share = x.softmax(1) if soft else F.one_hot(x.argmax(1), SMALL.pixels.codes).permute(0, 3, 1, 2).to(x.dtype)
    x = torch.einsum("nchw,cd->ndhw", share, w["pixel_quantize.embedding.weight"])
    return pixels({name.removeprefix("pixel_decoder."): t for name, t in w.items() if "pixel_decoder." in name}, x)


def pixels(w: dict[str, Tensor], x: Tensor) -> Tensor:
    def block(name: str, x: Tensor) -> Tensor:
        h = F.silu(F.group_norm(x, 32, w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"], 1e-6))
        h = F.conv2d(h, w[f"{name}.conv1.weight"], padding=1)
        h = F.silu(F.group_norm(h, 32, w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"], 1e-6))
        h = F.conv2d(h, w[f"{name}.conv2.weight"], padding=1)
        changed = f"{name}.nin_shortcut.weight" in w
        return h + (F.conv2d(h, w[f"{name}.nin_shortcut.weight"]) if changed else x)

    x = block("mid.0", F.conv2d(x, w["conv_in.weight"], w["conv_in.bias"], padding=1))
    x = block("up.1.block.0", x).repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = F.conv2d(x, w["up.1.upsample_conv.weight"], w["up.1.upsample_conv.bias"], padding=1)
    x = F.silu(F.group_norm(block("up.0.block.0", x), 32, w["norm_out.weight"], w["norm_out.bias"], 1e-6))
    return F.conv2d(x, w["conv_out.weight"], w["conv_out.bias"], padding=1)


# -- tests -------------------------------------------------------------------------------------------------------------

WEIGHTS = weights_of(SMALL)
IMAGES = torch.rand(6, 3, 8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TOKENS = torch.randint(29, (6, 4), generator=torch.Generator().manual_seed(2))
AT = {torch.float32: 1e-5, torch.float64: 1e-10}


def assert_fits(config: TiTok, shapes: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        ours: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            ours |= translate(config, name, torch.empty(shape))
        expected = config.build().state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.parametrize("size", SIZES)
def test_a_published_file_fits_name_by_name(size):
    config, parameters = SIZES[size]
    assert_fits(config, published(config))
    assert sum(torch.Size(shape).numel() for shape in published(config).values()) == parameters


@pytest.mark.parametrize("size", SIZES)
def test_the_pattern_of_the_names_is_that_of_the_reference_lists(size):
    file = LISTS / f"titok_{size}_tokenizer.txt"
    if not file.is_file():
        pytest.skip(f"{file.name}: the reference lists are not here")
    lines = re.findall(r"^(\S+)\t\(([\d, ]+)\)", file.read_text(), re.MULTILINE)
    assert published(SIZES[size][0]) == {name: tuple(map(int, re.findall(r"\d+", dims))) for name, dims in lines}


@pytest.mark.parametrize("dtype", AT)
def test_it_reads_images_as_published(dtype):
    model, z = converted(SMALL, WEIGHTS, dtype), latents(WEIGHTS, IMAGES)
    torch.testing.assert_close(model.read(IMAGES.to(dtype)), z.to(dtype), rtol=AT[dtype], atol=AT[dtype])
    tokens = model.encode(IMAGES.to(dtype) * 2 - 1)
    assert torch.equal(tokens, tokens_of(WEIGHTS, z))
    assert len(tokens.unique()) >= 4


@pytest.mark.parametrize("dtype", AT)
def test_it_paints_tokens_as_published(dtype):
    model, raw = converted(SMALL, WEIGHTS, dtype), picture(WEIGHTS, TOKENS)
    torch.testing.assert_close(model.paint(TOKENS), raw.to(dtype), rtol=AT[dtype], atol=AT[dtype])
    images = model.decode(TOKENS)
    assert images.dtype == torch.float32
    assert (raw < 0).any()
    assert (raw > 1).any()
    torch.testing.assert_close(images, (raw.clamp(0, 1) * 2 - 1).float(), rtol=1e-5, atol=1e-5)


def test_the_published_peculiarities_are_visible():
    z, raw = latents(WEIGHTS, IMAGES), picture(WEIGHTS, TOKENS)
    assert (latents(WEIGHTS, IMAGES, legacy=False) - z).abs().max() > 0.1
    assert (latents(WEIGHTS, IMAGES * 2 - 1) - z).abs().max() > 0.1
    assert (latents(WEIGHTS, IMAGES, tanh=True) - z).abs().max() > 1e-3
    assert (tokens_of(WEIGHTS, z, normal=False) != tokens_of(WEIGHTS, z)).any()
    assert (picture(WEIGHTS, TOKENS, normal=False) - raw).abs().max() > 0.1
    assert (picture(WEIGHTS, TOKENS, soft=False) - raw).abs().max() > 0.1


def test_it_is_a_tokenizer_that_works_in_parts_of_any_size(monkeypatch):
    model = converted(SMALL, WEIGHTS)
    assert isinstance(model, Tokenizer)
    assert (model.vocab_size, model.grid) == (29, (4,)) == (SMALL.vocab_size, SMALL.grid)
    assert (SMALL.size, SMALL.channels, model.at_once) == ((8, 4), 3, 256)
    tokens, images = model.encode(IMAGES.float() * 2 - 1), model.decode(TOKENS)
    monkeypatch.setattr(TiTokModel, "at_once", 4)
    assert torch.equal(model.encode(IMAGES.float() * 2 - 1), tokens)
    torch.testing.assert_close(model.decode(TOKENS), images)
    assert model.encode(IMAGES[:0].float()).shape == (0, 4)
    assert model.decode(TOKENS[:0]).shape == (0, 3, 8, 4)


def test_published_sizes_take_images_of_256_in_bounded_parts():
    with torch.device("meta"):
        model = TITOK_S128_TOKENIZER.build()
    assert (TITOK_S128_TOKENIZER.size, model.grid, model.at_once) == ((256, 256), (128,), 8)


def test_bfloat16_weights_give_nearly_the_same():
    model, half = converted(SMALL, WEIGHTS), converted(SMALL, WEIGHTS, torch.bfloat16)
    images = half.decode(TOKENS)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, model.decode(TOKENS), atol=0.2, rtol=0)
    agree = half.encode(IMAGES.float() * 2 - 1) == model.encode(IMAGES.float() * 2 - 1)
    assert agree.float().mean() > 0.7


def test_what_it_cannot_take_is_one_line():
    model = converted(SMALL, WEIGHTS)
    for call in (
        lambda: model.encode(torch.zeros(1, 3, 4, 8)),
        lambda: model.decode(torch.zeros(1, 5, dtype=torch.int64)),
        lambda: model.decode(torch.full((1, 4), 29)),
    ):
        with pytest.raises(ConfigError, match=r"resize|not 4|not 0\.\.28 \(29 is the mask\)") as error:
            call()
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="multiple of heads"):
        TiTok(width=10, heads=3)


def test_foreign_names_and_shapes_are_passed_on_for_the_comparison_to_refuse():
    odd = torch.zeros(2, 3)
    assert translate(SMALL, "encoder.transformer.0.attn.rope", odd) == {"encoder.transformer.0.attn.rope": odd}
    assert translate(SMALL, "encoder.conv_out.weight", odd) == {"to_code.weight": odd}
    assert translate(SMALL, "decoder.mask_token", torch.zeros(()))["mask"].shape == ()
