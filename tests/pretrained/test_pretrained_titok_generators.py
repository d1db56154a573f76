"""TiTok's generators: published layouts, transformers' BERT and a plain-tensor U-ViT as oracles, and typical use."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.errors import CheckpointError
from unmask.experiments.finetune import CELLS, CLASS_TABLE
from unmask.method.guidance import NULL, guided
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.pretrained import titok_bert, titok_uvit
from unmask.pretrained.maskgit_vqgan import MaskGITVQGAN
from unmask.pretrained.titok import TiTok
from unmask.pretrained.titok_bert import TITOK_BERT_SIZE, TiTokBert
from unmask.pretrained.titok_uvit import TITOK_UVIT_SIZE, TiTokUViT

LISTS = Path(__file__).parents[3] / "shared/reference/checkpoint_keys"
K, LENGTH, CLASSES = 13, 5, 4
BERT = TiTokBert(dim=12, depth=2, heads=3, mlp_dim=20, num_classes=CLASSES)
UVIT = TiTokUViT(dim=12, depth=4, heads=3, mlp_dim=20, num_classes=CLASSES)
# BERT's second token type is never used, so 768 numbers of its files are superfluous.
SIZES = {
    "l32": (TITOK_BERT_SIZE, 32, 177_202_432, 768),
    "b64": (TITOK_BERT_SIZE, 64, 177_227_008, 768),
    "s128": (TITOK_UVIT_SIZE, 128, 294_990_848, 0),
}
Shapes = dict[str, tuple[int, ...]]


def both(weights: Shapes) -> Shapes:
    return {f"{n}.weight": s for n, s in weights.items()} | {f"{n}.bias": s[:1] for n, s in weights.items()}


def published_bert(c: TiTokBert, k: int, length: int) -> Shapes:
    d, m, tables = c.dim, c.mlp_dim, "model.embeddings"
    shapes: Shapes = {f"{tables}.word_embeddings.weight": (k + c.num_classes + 2, d)}
    shapes |= {
        f"{tables}.position_embeddings.weight": (length + 1, d),
        f"{tables}.token_type_embeddings.weight": (2, d),
    }
    shapes |= both({f"{tables}.LayerNorm": (d,), "model.lm_head": (k, d)})
    for i in range(c.depth):
        layers: Shapes = {f"attention.self.{part}": (d, d) for part in ("query", "key", "value")}
        layers |= {"attention.output.dense": (d, d), "intermediate.dense": (m, d), "output.dense": (d, m)}
        layers |= {"attention.output.LayerNorm": (d,), "output.LayerNorm": (d,)}
        shapes |= both({f"model.encoder.layer.{i}.{name}": shape for name, shape in layers.items()})
    return shapes


def published_uvit(c: TiTokUViT, k: int, length: int) -> Shapes:
    d, m, half = c.dim, c.mlp_dim, range(c.depth // 2)
    shapes: Shapes = {"pos_embed": (1, length + 1, d), "embeddings.weight": (k + c.num_classes + 2, d)}
    shapes |= both({"norm": (d,), "lm_head": (k, d)} | {f"out_blocks.{i}.skip_linear": (d, 2 * d) for i in half})
    for block in ["mid_block", *(f"{side}_blocks.{i}" for side in ("in", "out") for i in half)]:
        shapes |= {f"{block}.attn.qkv.weight": (3 * d, d)}
        layers = {"norm1": (d,), "norm2": (d,), "attn.proj": (d, d), "mlp.fc1": (m, d), "mlp.fc2": (d, m)}
        shapes |= both({f"{block}.{name}": shape for name, shape in layers.items()})
    return shapes


def published(config: TiTokBert | TiTokUViT, k: int = K, length: int = LENGTH) -> Shapes:
    return (published_bert if isinstance(config, TiTokBert) else published_uvit)(config, k, length)


def weights_of(config: TiTokBert | TiTokUViT, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, shape in published(config).items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        norm, bert_table = len(shape) == 1 and name.endswith("weight"), "_embeddings" in name
        scale = 0.3 if len(shape) == 1 else 0.002 if bert_table else 1.5 * shape[-1] ** -0.5
        weights[name] = (1 + scale * values if norm else scale * values).to(dtype)
    return weights


def translate(config: TiTokBert | TiTokUViT, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    module, ours = titok_bert if isinstance(config, TiTokBert) else titok_uvit, {}
    for name, tensor in weights.items():
        ours |= module.translate(config, name, tensor)
    return ours


def converted(config: TiTokBert | TiTokUViT, dtype: torch.dtype = torch.float64) -> nn.Module:
    model = config.build(K, (LENGTH,)).to(dtype)
    model.load_state_dict(translate(config, weights_of(config, dtype)))
    return model


def sequence(tokens: Tensor, condition: Tensor) -> Tensor:
    """Return the published sequence: the class comes first; class y is K + 1 + y, no class is K + 1 + CLASSES."""
    condition = torch.where(condition == NULL, CLASSES, condition)
    return torch.cat([K + 1 + condition[:, None], tokens], 1)


def bert(tokens: Tensor, condition: Tensor, *, eps: float = 1e-12, act: str = "gelu") -> Tensor:
    """Return the logits of transformers' BERT with the published head."""
    transformers = pytest.importorskip("transformers", reason="BERT: no transformers")
    w = weights_of(BERT)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    sizes |= {"vocab_size": K + CLASSES + 2, "max_position_embeddings": LENGTH + 1, "pad_token_id": None}
    config = transformers.BertConfig(**sizes, layer_norm_eps=eps, hidden_act=act, attn_implementation="eager")
    model = transformers.BertModel(config, add_pooling_layer=False).double().eval()
    inside = {n.removeprefix("model."): t for n, t in w.items() if "lm_head" not in n}
    missing, unexpected = model.load_state_dict(inside, strict=False)
    assert not unexpected
    assert not [name for name in missing if "_ids" not in name]
    with torch.no_grad():
        x = model(input_ids=sequence(tokens, condition)).last_hidden_state[:, 1:]
    return x @ w["model.lm_head.weight"].T + w["model.lm_head.bias"]


def uvit(tokens: Tensor, condition: Tensor, *, act: str = "gelu", last_in_first_out: bool = True) -> Tensor:
    w = weights_of(UVIT)

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.einsum("bnd,ed->bne", x, w[f"{name}.weight"]) + w.get(f"{name}.bias", torch.zeros(1).double())

    def norm(name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh") if act == "gelu_new" else x * (1 + torch.erf(x / math.sqrt(2))) / 2

    def block(name: str, x: Tensor) -> Tensor:
        b, n, dim = x.shape
        qkv = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", x))
        q, k, v = qkv.reshape(b, n, 3, UVIT.heads, -1).unbind(2)
        share = (torch.einsum("bnhd,bmhd->bhnm", q, k) / (dim // UVIT.heads) ** 0.5).softmax(-1)
        x = x + linear(f"{name}.attn.proj", torch.einsum("bhnm,bmhd->bnhd", share, v).reshape(b, n, dim))
        return x + linear(f"{name}.mlp.fc2", gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x))))

    x = w["embeddings.weight"][sequence(tokens, condition)] + w["pos_embed"]
    first = block("in_blocks.0", x)
    second = block("in_blocks.1", first)
    x = block("mid_block", second)
    for i, skip in enumerate([second, first] if last_in_first_out else [first, second]):
        x = block(f"out_blocks.{i}", linear(f"out_blocks.{i}.skip_linear", torch.cat([x, skip], -1)))
    return linear("lm_head", norm("norm", x)[:, 1:])


REFERENCE = {BERT: bert, UVIT: uvit}
each = pytest.mark.parametrize("config", REFERENCE, ids=["bert", "uvit"])
TOKENS = torch.randint(K + 1, (6, LENGTH), generator=torch.Generator().manual_seed(1))
CONDITION = torch.tensor([0, 1, 2, 3, NULL, 2])


@pytest.mark.parametrize("size", SIZES)
def test_a_published_file_fits_name_by_name(size):
    config, length, parameters, unused = SIZES[size]
    with torch.device("meta"):
        ours = translate(config, {n: torch.empty(s) for n, s in published(config, 4096, length).items()})
        model = config.build(4096, (length,))
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert sum(torch.Size(s).numel() for s in published(config, 4096, length).values()) == parameters
    assert sum(p.numel() for p in model.parameters()) == parameters - unused


@pytest.mark.parametrize("size", SIZES)
def test_the_pattern_of_the_names_is_that_of_the_reference_lists(size):
    config, length, *_ = SIZES[size]
    file = LISTS / f"titok_{size}_generator.txt"
    if not file.is_file():
        pytest.skip(f"{file.name}: the reference lists are not here")
    lines = re.findall(r"^(\S+)\t\(([\d, ]+)\)", file.read_text(), re.MULTILINE)
    listed = {name: tuple(map(int, re.findall(r"\d+", dims))) for name, dims in lines}
    assert published(config, 4096, length) == listed


@each
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_logits_are_the_published_ones(config, dtype, within):
    model, expected = converted(config, dtype), REFERENCE[config](TOKENS, CONDITION)
    logits = model(TOKENS, CONDITION)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.double(), expected, rtol=within, atol=within)
    null = REFERENCE[config](TOKENS, torch.full((6,), NULL))
    torch.testing.assert_close(model(TOKENS).double(), null, rtol=within, atol=within)
    assert (null - expected)[:4].abs().amax((1, 2)).min() > 0.01
    at = TOKENS == K
    torch.testing.assert_close(model(TOKENS, CONDITION, at).double(), expected[at], rtol=within, atol=within)


def test_the_published_peculiarities_are_visible():
    for reference, ordinary in (
        (bert, {"eps": 1e-5}),
        (bert, {"act": "gelu_new"}),
        (uvit, {"act": "gelu_new"}),
        (uvit, {"last_in_first_out": False}),
    ):
        difference = reference(TOKENS, CONDITION, **ordinary) - reference(TOKENS, CONDITION)
        assert difference.abs().max() > 1e-3, (reference, ordinary)


@each
def test_bfloat16_weights_give_float32_logits(config):
    logits, exact = converted(config, torch.bfloat16)(TOKENS, CONDITION), converted(config)(TOKENS, CONDITION)
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().mean() < 0.05 * exact.std()


@each
def test_what_it_cannot_take_is_one_line(config):
    model = converted(config)
    for tokens, condition, message in (
        (TOKENS[:, 1:], CONDITION, r"got 4 tokens per row; this model's grid \(5,\) has 5"),
        (TOKENS + 1, CONDITION, r"tokens span \d+\.\.14, not 0\.\.13"),
        (TOKENS, CONDITION + 1, r"classes span 0\.\.4, not -1\.\.3"),
        (TOKENS, CONDITION - 1, r"classes span -2\.\.2, not -1\.\.3"),
    ):
        with pytest.raises(ValueError, match=message):
            model(tokens, condition)
    with pytest.raises(ValueError, match="multiple of heads"):
        type(config)(dim=10, heads=3)
    with pytest.raises(ValueError, match="give at least 1 token"):
        config.build(0, (4,))


def test_u_vit_pairs_its_blocks():
    with pytest.raises(ValueError, match="even"):
        TiTokUViT(depth=5)


def test_foreign_tensors_are_named_or_passed_on_for_the_comparison_to_refuse():
    odd = torch.zeros(7)
    for config, vocabulary, positions in (
        (BERT, "model.embeddings.word_embeddings.weight", "model.embeddings.position_embeddings.weight"),
        (UVIT, "embeddings.weight", "pos_embed"),
    ):
        assert translate(config, {"some.weight": odd, "norm1": odd}) == {"some.weight": odd, "norm1": odd}
        for name in (vocabulary, positions):
            with pytest.raises(CheckpointError, match=re.escape(name)):
                translate(config, {name: odd})
    assert translate(UVIT, {"out_blocks.0.attn.rope.weight": odd}) == {"out_blocks.0.attn.rope.weight": odd}
    with pytest.raises(CheckpointError, match="two token types"):
        translate(BERT, {"model.embeddings.token_type_embeddings.weight": odd})


@each
def test_it_generates_and_in_paints_what_the_tokenizer_decodes(config):
    model = converted(config, torch.float32)
    known = torch.tensor([[K] * LENGTH, [K, 3, K, 7, K]])
    predict = guided(model, torch.tensor([1, 3]), scale=3.0)
    *_, last = decode(predict, known, [0.6, 0.3, 0.0], mask_id=model.mask_id, rand=seeded(0, 2))
    assert 0 <= last.tokens.min() <= last.tokens.max() < K
    assert last.tokens[1, [1, 3]].tolist() == [3, 7]
    small = MaskGITVQGAN(size=(4, 4), width=32, multipliers=(1, 2), blocks=1, codes=6, dim=4)
    tokenizer = TiTok(num_latents=LENGTH, width=8, depth=1, heads=2, vocab_size=K, token_dim=3, pixels=small).build()
    assert tokenizer.decode(last.tokens).shape == (2, 3, 4, 4)


@each
def test_positions_and_classes_have_the_names_by_which_fine_tuning_resizes_them(config):
    parameters = dict(converted(config).named_parameters())
    assert parameters[next(iter(CELLS))].shape == (LENGTH, 12)
    assert parameters[CLASS_TABLE].shape == (1 + CLASSES, 12)
