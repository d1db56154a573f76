"""aMUSEd's network: its published layout, its formulas on plain tensors, and its use by samplers."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_amused import published, reference
from torch import Tensor

from unmask.method.guidance import NULL, guided
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.method.schedules import Cosine, ratios
from unmask.pretrained.amused import AMUSED_256, AMUSED_512, Amused, Prompt, UVit2D, translate
from unmask.pretrained.amused_vqvae import AmusedVQ
from unmask.pretrained.prompts import Prompted
from unmask.tokenizers.quantizers import VQ

LISTS = Path(__file__).parents[3] / "shared/reference/checkpoint_keys"
K, GRID, ROWS, WORDS = 19, (4, 6), 3, 5
SMALL = Amused(
    dim=24, depth=2, heads=2, mlp_dim=20, block_dim=18, blocks=2, block_heads=3, text_dim=10, pooled_dim=8, micro_dim=6,
    spare=12,
)  # fmt: skip
HALVED = replace(SMALL, halved=True)
both = pytest.mark.parametrize("config", [SMALL, HALVED], ids=["whole", "halved"])


def weights(config: Amused, seed: int = 0) -> dict[str, Tensor]:
    """Draw a random float64 checkpoint without trivial values. The embeddings are so small that eps matters."""
    g, found = torch.Generator().manual_seed(seed), {}
    for name, shape in published(config, K).items():
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        if len(shape) == 1:
            found[name] = 1 + 0.3 * x
        else:
            found[name] = x * 0.5 if "channelwise_norm" in name else x / x[0].numel() ** 0.5
    found["embed.embeddings.weight"] *= 0.01
    for name in found:
        found[name] *= 3 if name.endswith(("ff.net.2.weight", "channelwise_linear_2.weight")) else 1
    return found


def network(config: Amused, table: dict[str, Tensor]) -> UVit2D:
    with torch.device("meta"):
        model = config.build(K, GRID)
    translated: dict[str, Tensor] = {}
    for name, tensor in table.items():
        parts = translate(config, name, tensor)
        assert not parts.keys() & translated.keys()
        translated |= parts
    model.load_state_dict(translated, assign=True)
    return model


def inputs(kind: torch.dtype, seed: int = 1) -> tuple[Tensor, Prompt]:
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, K + 1, (ROWS, GRID[0] * GRID[1]), generator=g)
    tokens[0] = K
    hidden = torch.randn(ROWS, WORDS, SMALL.text_dim, generator=g, dtype=torch.float64)
    pooled = torch.randn(ROWS, SMALL.pooled_dim, generator=g, dtype=torch.float64)
    micro = torch.tensor([[256.0, 256, 0, 0, 6], [512, 384, 5, 9, 4.5], [640, 480, 1, 2, 7]])
    return tokens, Prompt(hidden.to(kind), pooled.to(kind), micro)


# -- layout ------------------------------------------------------------------------------------------------------------


def check_layout(config: Amused, codes: int, grid: tuple[int, int], shapes: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        model = config.build(codes, grid)
        translated = [translate(config, name, torch.empty(shape)).items() for name, shape in shapes.items()]
    found = [(name, tensor.shape) for parts in translated for name, tensor in parts]
    assert sorted(found) == sorted((name, tensor.shape) for name, tensor in model.state_dict().items())


@both
def test_the_published_layout_fits(config):
    check_layout(config, K, GRID, published(config, K))


SIZES = {"256": (AMUSED_256, 603_537_664), "512": (AMUSED_512, 608_257_792)}


@pytest.mark.parametrize("size", SIZES)
def test_the_published_sizes_fit(size):
    config, count = SIZES[size]
    shapes = published(config, 8192)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == count
    check_layout(config, 8192, (int(size) // 16, int(size) // 16), shapes)
    path = LISTS / f"amused_{size}_transformer.txt"
    if not path.is_file():
        pytest.skip(f"no {path.name} to compare the names with")
    lines = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    assert {name: ast.literal_eval(shape) for name, shape, _ in lines} == shapes


@pytest.mark.parametrize(
    "name",
    ["nonsense", "transformer_layers.0.attn1.to_q.bias", "up_block.res_blocks.0.channelwise_norm.weight",
     "transformer_layers.0.kv_mapper.weight", "mlm_layer.conv2.bias", "down_block.res_blocks.x.norm.weight"],
)  # fmt: skip
def test_an_unknown_name_stays_for_the_strict_comparison(name):
    tensor = torch.zeros(3)
    assert list(translate(SMALL, name, tensor).items()) == [(name, tensor)]


@pytest.mark.parametrize("shape", [(), (2,), (7, 3, 2)])
def test_a_wrong_shape_arrives_at_the_strict_comparison(shape):
    for name in published(SMALL, K):
        ((_, tensor),) = translate(SMALL, name, torch.zeros(shape)).items()
        assert tensor.shape == shape


# -- numbers -----------------------------------------------------------------------------------------------------------


@both
def test_the_network_is_the_published_formula(config):
    table = weights(config)
    tokens, prompt = inputs(torch.float64)
    exact = reference(table, config, GRID, tokens, prompt)
    assert exact.std() > 0.3
    ours = network(config, table)(tokens, prompt)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-6)  # in float32, the type of the logits
    single = network(config, {name: tensor.float() for name, tensor in table.items()})
    with torch.no_grad():
        logits = single(tokens, prompt)
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=1e-5)


@both
def test_before_rounding_the_formula_is_the_same_to_ten_digits(config):
    table = weights(config)
    tokens, prompt = inputs(torch.float64)
    model, seen = network(config, table), []
    model.head.register_forward_hook(lambda module, given, result: seen.append(result))
    model(tokens, prompt)
    torch.testing.assert_close(seen[0], reference(table, config, GRID, tokens, prompt), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "but",
    ["eps", "shift first", "tanh", "norm per cell", "no skip", "branch", "no silu", "self", "rms", "gate first",
     "sines first", "mask row K"],
)  # fmt: skip
def test_every_peculiarity_shows(but):
    """The usual choice gives other logits, so agreement in the test above proves the published choice."""
    table = weights(SMALL)
    tokens, prompt = inputs(torch.float64)
    with_it, without = (reference(table, SMALL, GRID, tokens, prompt, but=b) for b in ("", but))
    assert (with_it - without).abs().max() > 1e-3


def test_only_the_rows_asked_for_are_computed():
    tokens, prompt = inputs(torch.float64)
    model, sizes = network(SMALL, weights(SMALL)), []
    at = tokens == K
    whole = model(tokens, prompt)
    model.head.register_forward_pre_hook(lambda module, given: sizes.append(given[0].shape[:-1]))
    torch.testing.assert_close(model(tokens, prompt, at), whole[at])
    assert sizes == [(int(at.sum()),)]


@both
def test_bfloat16_weights_give_float32_logits(config):
    tokens, prompt = inputs(torch.float32)
    exact = reference(
        weights(config), config, GRID, tokens, Prompt(prompt.hidden.double(), prompt.pooled.double(), prompt.micro)
    )
    model = network(config, weights(config)).to(torch.bfloat16)
    with torch.no_grad():
        logits = model(tokens, prompt)
    assert logits.dtype == torch.float32
    assert 1e-4 < (logits - exact).abs().mean() < 0.05
    # bfloat16 cannot distinguish these widths.
    facts = [replace(prompt, micro=prompt.micro + torch.tensor([more, 0, 0, 0, 0])) for more in (0, 1)]
    assert not torch.equal(*(model.describe(fact)[1] for fact in facts))


# -- as samplers see it ------------------------------------------------------------------------------------------------


def prompted(config: Amused = SMALL) -> Prompted:
    _, p = inputs(torch.float32)
    single = network(config, {name: tensor.float() for name, tensor in weights(config).items()}).requires_grad_(False)
    first = Prompt(p.hidden[:1], p.pooled[:1], p.micro[:1])
    return Prompted(single, Prompt(p.hidden[1:], p.pooled[1:], p.micro[1:]), first)


def test_ids_stand_for_texts_and_null_for_the_empty_one():
    tokens, prompt = inputs(torch.float32)
    model = prompted()
    torch.testing.assert_close(model(tokens, torch.tensor([NULL, 0, 1])), model.network(tokens, prompt))
    alone = Prompt(*(x[[0, 0, 0]] for x in (prompt.hidden, prompt.pooled, prompt.micro)))
    torch.testing.assert_close(model(tokens), model.network(tokens, alone))
    at = tokens == K
    torch.testing.assert_close(
        model(tokens, torch.tensor([1, 1, NULL]), at), model(tokens, torch.tensor([1, 1, NULL]))[at]
    )


@both
def test_pictures_are_drawn_and_repaired(config):
    model, tokenizer = prompted(config), AmusedVQ(
        size=(64, 96), width=4, z_channels=3, groups=2, quantizer=VQ(vocab_size=K, dim=3, normalize=False, decay=0.0)
    ).build()  # fmt: skip
    tokens = torch.full((2, 24), K)
    tokens[1, :9] = torch.arange(9)
    *_, last = decode(
        guided(model, torch.tensor([0, 1]), scale=10.0), tokens, ratios(Cosine(), 4), mask_id=K, rand=seeded(0, 2)
    )
    assert last.tokens.min() >= 0
    assert last.tokens.max() < K
    assert last.tokens[1, :9].tolist() == list(range(9))
    assert tokenizer.decode(last.tokens).shape == (2, 3, 64, 96)


def test_what_cannot_be_is_refused_in_one_line():
    tokens, prompt = inputs(torch.float32)
    model = prompted()
    ids = torch.zeros(ROWS, dtype=torch.int64)
    refused = [
        (lambda: model(tokens[:, :5], ids), "5 tokens per row"),
        (lambda: model(tokens + 1, ids), "tokens span 1..20, not 0..19"),
        (lambda: model(tokens, ids + 2), "texts span 2..2, not -1..1 (-1 is no text)"),
        (lambda: model(tokens, ids - 2), "texts span -2..-2"),
        (lambda: model.network(tokens[:2], prompt), "got 3 prompts"),
        (lambda: model.network(tokens, replace(prompt, pooled=prompt.pooled[:, 1:])), "widths (10, 7)"),
        (lambda: Prompted(model.network, prompt, prompt), "it must be one text"),
        (lambda: SMALL.build(K, (24,)), "two axes"),
        (lambda: HALVED.build(K, (4, 5)), "even number of cells"),
        (lambda: replace(SMALL, heads=5), "multiple of its heads"),
        (lambda: replace(SMALL, blocks=0), "at least 1"),
        (lambda: replace(SMALL, micro_dim=7), "must be even"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)
