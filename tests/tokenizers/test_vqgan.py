"""The autoencoder: two published layouts, plain-tensor references of its parts, and the promises of a tokenizer."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError
from unmask.storage.weights import hash_weights, write_weights
from unmask.tokenizers.base import Tokenizer, open_tokenizer
from unmask.tokenizers.quantizers import FSQ, LFQ, VQ
from unmask.tokenizers.vqgan import VQGAN, Autoencoder, Downsample, ResidualBlock, SpatialAttention, Upsample

LISTS = Path(__file__).parents[3] / "shared/reference/checkpoint_keys"
TAMING = VQGAN(quantizer=VQ(vocab_size=1024, dim=256, normalize=False, decay=0.0))
LLAMAGEN = VQGAN(quantizer=VQ(vocab_size=16384, dim=8, decay=0.0))
SMALL = VQGAN(
    size=(8, 8),
    channels=1,
    width=8,
    multipliers=(1, 2),
    blocks=1,
    decoder_blocks=1,
    attention=(),
    middle_attention=False,
    z_channels=8,
    groups=2,
    quantizer=FSQ(levels=(5, 4, 3)),
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(num: int, config: VQGAN, seed: int = 0) -> Tensor:
    return noise(num, config.channels, *config.size, seed=seed).clamp(-1, 1)


def built(config: VQGAN, seed: int = 0) -> Autoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config.build()
        with torch.no_grad():
            model.before.weight.mul_(4)  # else the latents of untrained weights are all near one code
    return model


def module(build, seed: int = 0) -> nn.Module:
    """With norms that are not the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build()
        for p in made.parameters():
            nn.init.normal_(p, std=0.3)
    return made


# -- published layouts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["taming_vqgan_f16_1024", "llamagen_VQ-16"])
def published(request):
    config = TAMING if request.param.startswith("taming") else LLAMAGEN
    with torch.device("meta"):
        return request.param, config.build()


def test_published_sizes(published):
    name, model = published
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert model.grid == (16, 16)
    if name.startswith("taming"):
        assert (len(shapes), sum(p.numel() for p in model.parameters())) == (343, 72_141_699)
    else:
        assert (len(shapes), sum(p.numel() for p in model.parameters())) == (343, 71_883_403)


def test_published_shapes(published):
    """Every tensor of the file has its like here, and the other way round."""
    name, model = published
    path = LISTS / f"{name}.txt"
    if not path.is_file():
        pytest.skip(f"no list of the tensors of {name}")
    rows = re.findall(r"^(\S+) \(([\d, ]*)\) torch", path.read_text(), re.MULTILINE)
    stored = Counter(tuple(int(n) for n in shape.replace(",", " ").split()) for key, shape in rows)
    if name.startswith("llamagen"):
        stored.subtract([(65536,)])  # quantize.codebook_used, which only their training reads
    assert Counter(tuple(p.shape) for p in model.parameters()) == +stored


# -- parts against plain tensors ---------------------------------------------------------------------------------------


def group_norm(x: Tensor, layer: nn.GroupNorm) -> Tensor:
    b, c, h, w = x.shape
    parts = x.reshape(b, layer.num_groups, -1)
    parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    return parts.reshape(b, c, h, w) * layer.weight[:, None, None] + layer.bias[:, None, None]


def swish(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def residual(block: ResidualBlock, x: Tensor) -> Tensor:
    h = F.conv2d(swish(group_norm(x, block.norm1)), block.conv1.weight, block.conv1.bias, padding=1)
    h = F.conv2d(swish(group_norm(h, block.norm2)), block.conv2.weight, block.conv2.bias, padding=1)
    if isinstance(block.shortcut, nn.Conv2d):
        x = torch.einsum("bchw,dc->bdhw", x, block.shortcut.weight[:, :, 0, 0]) + block.shortcut.bias[:, None, None]
    return x + h


def attention(block: SpatialAttention, x: Tensor) -> Tensor:
    b, c, h, w = x.shape

    def linear(layer: nn.Conv2d, y: Tensor) -> Tensor:
        return torch.einsum("bcn,dc->bdn", y, layer.weight[:, :, 0, 0]) + layer.bias[:, None]

    y = group_norm(x, block.norm).reshape(b, c, h * w)
    weights = (torch.einsum("bcn,bcm->bnm", linear(block.q, y), linear(block.k, y)) / c**0.5).softmax(-1)
    mixed = torch.einsum("bnm,bcm->bcn", weights, linear(block.v, y))
    return x + linear(block.out, mixed).reshape(b, c, h, w)


def down(block: Downsample, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    padded = torch.cat([torch.cat([x, x.new_zeros(b, c, h, 1)], 3), x.new_zeros(b, c, 1, w + 1)], 2)
    windows = padded.unfold(2, 3, 2).unfold(3, 3, 2)
    return torch.einsum("bchwij,dcij->bdhw", windows, block.conv.weight) + block.conv.bias[:, None, None]


def up(block: Upsample, x: Tensor) -> Tensor:
    twice = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return F.conv2d(twice, block.conv.weight, block.conv.bias, padding=1)


PARTS = {
    "residual": (lambda: ResidualBlock(8, 8, 2), residual),
    "wider": (lambda: ResidualBlock(8, 12, 4), residual),
    "attention": (lambda: SpatialAttention(8, 2), attention),
    "down": (lambda: Downsample(8), down),
    "up": (lambda: Upsample(8), up),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_their_formulas_with_gradients(name):
    build, formula = PARTS[name]
    block = module(build)
    results = []
    for function in (block, lambda x: formula(block, x)):
        x = noise(3, 8, 6, 4).requires_grad_()
        y = function(x)
        (y * noise(*y.shape, seed=1)).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in block.parameters())])
        block.zero_grad()
    for ours, reference in zip(*results, strict=True):
        scale = float(reference.abs().max()) + 1
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5 * scale)


# -- a tokenizer -------------------------------------------------------------------------------------------------------

CONFIGS = {
    "small": SMALL,
    "wide": replace(SMALL, size=(4, 12)),
    "tall": replace(SMALL, size=(24, 8), multipliers=(1, 1, 2), channels=3),
    "patch": replace(SMALL, size=(8, 16), patch=2, channels=3),
    "one-level": replace(SMALL, size=(3, 5), multipliers=(2,)),
    "attention": replace(SMALL, size=(8, 4), attention=(4, 8), middle_attention=True, blocks=2, decoder_blocks=3),
    "vq": replace(SMALL, quantizer=VQ(vocab_size=50, dim=4)),
    "vq-gradient": replace(SMALL, quantizer=VQ(vocab_size=50, dim=4, normalize=False, decay=0.0)),
    "lfq": replace(SMALL, quantizer=LFQ(bits=5)),
}
EACH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@EACH
def test_shapes_and_ranges(config):
    model, images = built(config), pictures(3, config)
    assert isinstance(model, Tokenizer)
    tokens = model.encode(images)
    assert tokens.shape == (3, model.grid[0] * model.grid[1])
    assert tokens.dtype == torch.int64
    assert tokens.min() >= 0
    assert tokens.max() < model.vocab_size
    assert len(tokens.unique()) > 1
    made = model.decode(tokens)
    assert made.shape == images.shape
    assert made.dtype == torch.float32
    assert made.abs().max() <= 1
    assert model.encode(images[:0]).shape == (0, tokens.shape[1])
    assert model.decode(tokens[:0]).shape == (0, *images.shape[1:])


@EACH
def test_called_it_does_what_encode_and_decode_do(config):
    model, images = built(config), pictures(3, config)
    made, quantized, z = model(images)
    assert torch.equal(quantized.tokens, model.encode(images))
    torch.testing.assert_close(made.detach().clamp(-1, 1), model.decode(quantized.tokens), rtol=1e-5, atol=1e-5)
    assert z.shape == quantized.latents.shape == (3, config.quantizer.dim, *config.grid)
    made.sum().backward()
    missing = {n for n, p in model.named_parameters() if p.grad is None}
    assert missing <= {"quantizer.table"}


@EACH
def test_an_image_is_worth_the_same_in_any_company(config, monkeypatch):
    model, images, others = built(config), pictures(5, config), pictures(5, config, seed=1)
    tokens = model.encode(images)
    mixed = torch.cat([others[:2], images[2:3], others[3:]])
    assert torch.equal(model.encode(mixed)[2], tokens[2])
    assert torch.equal(model.decode(model.encode(mixed))[2], model.decode(tokens)[2])
    assert torch.equal(model.encode(images), tokens)
    whole = model.decode(tokens)
    monkeypatch.setattr(Autoencoder, "at_once", 2)
    assert torch.equal(model.encode(images), tokens)
    torch.testing.assert_close(model.decode(tokens), whole, rtol=1e-5, atol=1e-5)


def test_a_cell_looks_at_its_own_part_of_the_image():
    """Rows of the grid are rows of the image, also where it is not square."""
    config = replace(SMALL, size=(8, 24), multipliers=(1,), groups=1)
    model, images = built(config), torch.zeros(1, 1, 8, 24)
    changed = images.clone()
    changed[0, 0, 2, 21] = 1.0
    with torch.no_grad():
        difference = (model.encode_latents(changed) - model.encode_latents(images)).abs().sum(1)[0]
    near = torch.zeros(8, 24, dtype=torch.bool)
    near[:5, 19:] = True
    assert difference[near].mean() > 3 * difference[~near].mean()


def test_memory_is_bounded_whatever_the_size():
    with torch.device("meta"):
        assert TAMING.build().at_once == 8
        assert replace(TAMING, size=(1024, 1024), attention=(64,)).build().at_once == 1
        assert replace(TAMING, size=(1024, 1024), patch=4).build().at_once == 8
    assert built(SMALL).at_once == 256


@pytest.mark.parametrize("quantizer", [FSQ(levels=(5, 4, 3)), VQ(vocab_size=50, dim=4), LFQ(bits=5)], ids=type)
def test_bfloat16_weights_work(quantizer):
    config = replace(SMALL, quantizer=quantizer, middle_attention=True)
    model, images = built(config), pictures(4, config)
    reference = model.decode(model.encode(images))
    tokens = model.to(torch.bfloat16).encode(images)
    made = model.decode(tokens)
    assert made.dtype == torch.float32
    assert tokens.max() < model.vocab_size
    assert (made - reference).abs().mean() < 0.1


def test_memory_layout_changes_nothing():
    model, images = built(SMALL), pictures(4, SMALL)
    tokens = model.encode(images)
    whole = model.decode(tokens)
    name = hash_weights(model, SMALL)
    last = model.to(memory_format=torch.channels_last)
    assert torch.equal(last.encode(images.contiguous(memory_format=torch.channels_last)), tokens)
    torch.testing.assert_close(last.decode(tokens), whole, rtol=1e-5, atol=1e-5)
    assert hash_weights(last, SMALL) == name


def test_the_last_layer_makes_the_pixels():
    for config in (SMALL, CONFIGS["patch"]):
        model = built(config)
        assert model.last_layer.shape == (config.channels * config.patch**2, config.width, 3, 3)
        with torch.no_grad():
            model.last_layer.zero_()
        assert model(pictures(2, config))[0].flatten(2).std(0).max() < 1e-6


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": (8, 0)}, "at least 1"),
        ({"blocks": 0}, "at least 1"),
        ({"multipliers": ()}, "one or more"),
        ({"multipliers": (1, 0)}, "each at least 1"),
        ({"groups": 3}, "width=8, groups=3"),
        ({"size": (8, 6), "patch": 2}, "multiple of 4, which is patch 2"),
        ({"attention": (8, 5)}, r"levels are \[8, 4\] cells high"),
    ],
)
def test_configs_that_cannot_work_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.encode(torch.zeros(2, 1, 8, 4)), r"images are \(1, 8, 4\).* not \(1, 8, 8\)"),
        (lambda m: m.encode(torch.zeros(2, 3, 8, 8)), r"images are \(3, 8, 8\)"),
        (lambda m: m.decode(torch.zeros(2, 15, dtype=torch.int64)), r"15 tokens, not 4\*4"),
        (lambda m: m.decode(torch.full((2, 16), 60)), r"span 60\.\.60, not 0\.\.59 \(60 is the mask\)"),
        (lambda m: m.decode(torch.full((2, 16), -1)), r"span -1\.\.-1"),
    ],
)
def test_inputs_that_do_not_fit_are_named(call, words):
    with pytest.raises(ConfigError, match=words):
        call(built(SMALL))


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "vq", "patch"])
def test_weights_come_back_from_a_file(tmp_path, name):
    config = CONFIGS[name]
    model, images = built(config), pictures(3, config)
    path = tmp_path / "model.safetensors"
    write_weights(dict(model.named_parameters()), path)
    again = open_tokenizer(config, path)
    assert isinstance(again, Autoencoder)
    assert not again.training
    assert hash_weights(again, config) == hash_weights(model, config)
    assert torch.equal(again.encode(images), model.encode(images))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(CheckpointError, match=r"does not fit the model in config\.json"):
        open_tokenizer(replace(config, z_channels=4), path)


def test_a_fingerprint_changes_with_any_weight_and_any_setting():
    model = built(CONFIGS["vq"])
    config = model.config
    seen = {
        hash_weights(model, config),
        hash_weights(model, replace(config, quantizer=replace(config.quantizer, decay=0.5))),
    }
    with torch.no_grad():
        for p in model.parameters():
            p.view(-1)[-1] += 1e-3
            seen.add(hash_weights(model, config))
    assert len(seen) == 2 + len(list(model.parameters()))
    assert hash_weights(built(config), config) == hash_weights(built(config), config)
