"""Halton-MaskGIT's network against its published formulas, and its checkpoints' names and shapes."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.errors import CheckpointError
from unmask.method.guidance import NULL, guided
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.method.schedules import Arccos, ratios
from unmask.pretrained import halton_maskgit as halton
from unmask.pretrained.conversion import convert_tensors
from unmask.pretrained.halton_maskgit import HaltonMaskGIT, HaltonTransformer, translate
from unmask.pretrained.llamagen import LLAMAGEN_VQ16
from unmask.tokenizers.quantizers import VQ

LISTS = Path(__file__).parents[3] / "shared/reference/checkpoint_keys"
VALUES = {  # published, in millions, for 256 and 384 pixels
    "tiny": (halton.HALTON_TINY, 23.031, 23.154),
    "small": (halton.HALTON_SMALL, 69.345, 69.509),
    "base": (halton.HALTON_BASE, 142.225, 142.470),
    "large": (halton.HALTON_LARGE, 479.657, 479.985),
    "xlarge": (halton.HALTON_XLARGE, 692.118, 692.487),
}
NETWORK = HaltonMaskGIT(
    dim=14, depth=2, heads=4, hidden=10, num_classes=5
)  # heads 3 wide cover 12 of 14, like 510 of 512
GRID, K = (3, 4), 11
TOKENS = torch.tensor([[11] * 12, [0, 10, 3, 11, 5, 11, 11, 7, 8, 9, 1, 2], [4] * 12])
CLASSES = torch.tensor([3, NULL, 0])


def layout(config: HaltonMaskGIT, length: int, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the published file."""
    d, inner, hidden = config.dim, config.heads * (config.dim // config.heads), config.hidden
    shapes: dict[str, tuple[int, ...]] = {"cls_emb.weight": (config.num_classes + 1, d), "pos_emb.weight": (length, d)}
    shapes |= {"tok_emb.weight": (vocab_size + 1, d), "reg_tokens.weight": (1, d)}
    shapes |= {"last_norm.norm_final.weight": (d,), "last_norm.norm_final.bias": (d,)}
    shapes |= {"last_norm.mlp.1.weight": (2 * d, d), "last_norm.mlp.1.bias": (2 * d,)}
    shapes |= {"head.weight": (vocab_size + 1, d), "head.bias": (vocab_size + 1,)}
    for i in range(config.depth):
        at = f"transformer.layers.{i}"
        shapes |= {f"{at}.mlp.1.weight": (6 * d, d), f"{at}.mlp.1.bias": (6 * d,)}
        shapes |= {f"{at}.ln1.weight": (d,), f"{at}.ln2.weight": (d,), f"{at}.attn.wo.weight": (d, inner)}
        shapes |= {f"{at}.attn.w{name}.weight": (inner, d) for name in "qkv"}
        shapes |= {f"{at}.ff.w1.weight": (hidden, d), f"{at}.ff.w2.weight": (d, hidden)}
        shapes |= {f"{at}.ff.w3.weight": (hidden, d)}
    return shapes


def published(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Draw a small file in the published layout, without neutral values."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in layout(NETWORK, 12, K).items():
        scale = shape[1] ** -0.5 if len(shape) == 2 and "emb" not in name else 0.5
        weights[name] = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
    return weights | {"head.weight": weights["tok_emb.weight"]}


def converted(weights: dict[str, Tensor], grid: tuple[int, ...] = GRID) -> HaltonTransformer:
    with torch.random.fork_rng(devices=[]):
        model = NETWORK.build(K, grid).to(weights["pos_emb.weight"].dtype)
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        found |= translate(NETWORK, name, tensor)
    model.load_state_dict(found, strict=True)
    return model


def rms(x: Tensor, weight: Tensor | float, eps: float = 1e-5) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def reference(w: dict[str, Tensor], tokens: Tensor, classes: Tensor, **ordinary) -> Tensor:
    """Return the published logits, with the mask's. Each option makes it another, more usual network."""
    eps, heads = ordinary.get("eps", 1e-5), ordinary.get("heads", NETWORK.heads)
    d, length = w["pos_emb.weight"].shape[1], tokens.shape[1]
    y = w["cls_emb.weight"][classes.where(classes >= 0, ordinary.get("null", 5))]
    y = y if "no_silu" in ordinary else y * torch.sigmoid(y)
    x = w["tok_emb.weight"][tokens] + w["pos_emb.weight"]
    if "no_register" not in ordinary:
        x = torch.cat([x, w["reg_tokens.weight"].expand(len(x), 1, d)], dim=1)
    for i in range(NETWORK.depth):
        at = f"transformer.layers.{i}."
        m = (torch.einsum("bi,oi->bo", y, w[at + "mlp.1.weight"]) + w[at + "mlp.1.bias"])[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            m[..., j * d : (j + 1) * d] for j in ordinary.get("order", range(6))
        )
        h = rms(x, w[at + "ln1.weight"], eps) * (1 + scale1) + shift1
        q, k, v = (torch.einsum("bni,oi->bno", h, w[f"{at}attn.w{name}.weight"]) for name in "qkv")
        parts = (len(x), x.shape[1], heads, -1)
        if "norm_heads" in ordinary:
            q, k = (rms(z.reshape(parts), 1.0, eps).flatten(2) for z in (q, k))
        else:
            q, k = rms(q, 1.0, eps), rms(k, 1.0, eps)
        q, k, v = (z.reshape(parts) for z in (q, k, v))
        scores = torch.einsum("bnhc,bmhc->bhnm", q, k) / ordinary.get("width", q.shape[-1]) ** 0.5
        h = torch.einsum("bhnm,bmhc->bnhc", scores.softmax(-1), v).flatten(2)
        x = x + gate1 * torch.einsum("bni,oi->bno", h, w[at + "attn.wo.weight"])
        h = rms(x, w[at + "ln2.weight"], eps) * (1 + scale2) + shift2
        one, three = (torch.einsum("bni,oi->bno", h, w[f"{at}ff.w{name}.weight"]) for name in "13")
        h = torch.einsum("bni,oi->bno", one * torch.sigmoid(one) * three, w[at + "ff.w2.weight"])
        x = x + gate2 * h
    m = (torch.einsum("bi,oi->bo", y, w["last_norm.mlp.1.weight"]) + w["last_norm.mlp.1.bias"])[:, None]
    weight, bias = w["last_norm.norm_final.weight"], w["last_norm.norm_final.bias"]
    x = rms(x - x.mean(-1, keepdim=True) if "centred" in ordinary else x, weight, eps) + bias
    x = x[:, :length] * (1 + m[..., d:]) + m[..., :d]
    return torch.einsum("bnd,kd->bnk", x, w["tok_emb.weight"]) + w["head.bias"]


# -- names and shapes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", VALUES)
@pytest.mark.parametrize("pixels", [256, 384])
def test_published_files_fit(size, pixels):
    """The published names and shapes translate to exactly ours."""
    config, cells = VALUES[size][0], pixels // 16
    with torch.device("meta"):
        model = config.build(16384, (cells, cells))
    shapes = layout(config, cells**2, 16384)
    assert size != "small" or shapes["transformer.layers.0.attn.wq.weight"] == (510, 512)  # 6 heads, 85 wide
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        new = translate(config, name, torch.empty(shape, device="meta"))
        assert name == "head.weight" or not new.keys() & found.keys()
        found |= new
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in model.state_dict().items()}
    values = sum(p.numel() for p in model.parameters())
    assert values / 1e6 == pytest.approx(VALUES[size][1 + (pixels == 384)], abs=6e-4)


@pytest.mark.parametrize("path", sorted(LISTS.glob("halton_*.txt")) or [LISTS / "halton_*.txt"], ids=lambda p: p.stem)
def test_the_layout_is_that_of_the_published_network(path):
    if not path.is_file():
        pytest.skip(f"no {path.name}")
    _, size, pixels = path.stem.split("_")
    rows = re.findall(r"^(\S+) \(([\d, ]*)\) torch", path.read_text(), re.MULTILINE)
    shapes = layout(VALUES[size][0], (int(pixels) // 16) ** 2, 16384)
    assert {k: tuple(int(n) for n in s.replace(",", " ").split()) for k, s in rows} == shapes


def test_null_goes_first_and_nothing_large_is_copied():
    weights = published()
    table = translate(NETWORK, "cls_emb.weight", weights["cls_emb.weight"])["classes.table.weight"]
    assert torch.equal(table[0], weights["cls_emb.weight"][5])
    assert torch.equal(table[1:], weights["cls_emb.weight"][:5])
    (embedding,) = translate(NETWORK, "tok_emb.weight", weights["tok_emb.weight"]).values()
    assert embedding is weights["tok_emb.weight"]


@pytest.mark.parametrize(
    "name", ["in_proj.weight", "transformer.layers.0.attn.wq.bias2", "transformer.layers.0.xx.bias"]
)
def test_unknown_names_stay(name):
    tensor = torch.ones(2)
    assert translate(NETWORK, name, tensor) == {name: tensor}


@pytest.mark.parametrize("name", layout(NETWORK, 12, K))
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1)])
def test_wrong_shapes_reach_the_strict_comparison(name, shape):
    new = translate(NETWORK, name, torch.ones(shape))
    own = converted(published()).state_dict()
    assert not new or all(tensor.shape != own[ours].shape for ours, tensor in new.items())


def test_a_head_of_its_own_is_refused():
    weights, model = published(dtype=torch.float32), NETWORK.build(K, GRID)
    done = convert_tensors(weights, partial(translate, NETWORK), model, source="a.pth")
    assert done.report.same == ("embedding.weight (from tok_emb.weight and head.weight)",)
    weights["head.weight"] = weights["head.weight"] + 1e-3
    with pytest.raises(CheckpointError, match="there twice and not equal"):
        convert_tensors(weights, partial(translate, NETWORK), model, source="a.pth")


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_published_formulas(dtype, tolerance):
    weights = published(dtype=dtype)
    model, want = converted(weights), reference(weights, TOKENS, CLASSES)[..., :K]
    got = model(TOKENS, CLASSES)
    assert got.dtype == dtype
    assert want.std() > 0.5
    assert (got - want).abs().max() < tolerance
    null = reference(weights, TOKENS, torch.full((3,), NULL))[..., :K]
    assert (model(TOKENS) - null).abs().max() < tolerance
    assert (want[[0, 2]] - null[[0, 2]]).abs().max() > 0.1
    some = model(TOKENS, CLASSES, TOKENS == K)
    assert some.shape == (int((TOKENS == K).sum()), K)
    assert (some - want[TOKENS == K]).abs().max() < tolerance


ORDINARY = [{"norm_heads": True}, {"centred": True}, {"no_register": True}, {"no_silu": True}, {"width": 14 / 4}]
ORDINARY += [{"order": (1, 0, 2, 4, 3, 5)}, {"order": (3, 4, 5, 0, 1, 2)}, {"heads": 2}, {"null": 0}]


@pytest.mark.parametrize("ordinary", ORDINARY, ids=str)
def test_the_ordinary_choice_is_another_network(ordinary):
    weights = published()
    difference = converted(weights)(TOKENS, CLASSES) - reference(weights, TOKENS, CLASSES, **ordinary)[..., :K]
    assert difference.abs().max() > 1e-3


def test_the_published_eps():
    weights = published()
    for name in ("tok_emb.weight", "head.weight", "pos_emb.weight", "reg_tokens.weight"):
        weights[name] = weights[name] * 0.003
    got = converted(weights)(TOKENS, CLASSES)
    assert (got - reference(weights, TOKENS, CLASSES)[..., :K]).abs().max() < 1e-10
    assert (got - reference(weights, TOKENS, CLASSES, eps=1e-6)[..., :K]).abs().max() > 1e-3


def test_the_mask_has_no_logit(monkeypatch):
    rows = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, weight, bias=None: rows.append(len(weight)) or linear(x, weight, bias))
    model = converted(published())
    assert model(TOKENS, CLASSES).shape == (3, 12, K)
    assert rows[-1] == K
    assert model.mask_id == model.vocab_size == K


def test_bfloat16_weights():
    weights = published(dtype=torch.float32)
    want, model = reference(weights, TOKENS, CLASSES)[..., :K], converted(weights).to(torch.bfloat16)
    with torch.no_grad():
        got = model(TOKENS, CLASSES)
    assert got.dtype == torch.float32
    assert 0 < (got - want).abs().max() < 0.05 * want.abs().max()


def test_fine_tuning_starts_as_published_and_reaches_every_weight():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETWORK.build(K, GRID)
    assert not any(block.modulation.weight.any() for block in model.blocks)
    model = converted(published(dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        F.cross_entropy(model(TOKENS, CLASSES).flatten(0, 1), TOKENS.clamp(max=K - 1).flatten()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


# -- errors ------------------------------------------------------------------------------------------------------------


def test_errors_are_one_clear_line():
    cases = [
        (TOKENS[:, :5], None, "got 5 tokens per row; this model's grid (3, 4) has 12"),
        (TOKENS + 1, None, "tokens span 1..12, not 0..11"),
        (TOKENS - 1, None, "tokens span -1..10, not 0..11"),
        (TOKENS, CLASSES + 2, "classes span 1..5, not -1..4"),
        (TOKENS, CLASSES - 1, "classes span -2..2, not -1..4"),
    ]
    for tokens, classes, text in cases:
        with pytest.raises(ValueError, match=re.escape(text)) as caught:
            converted(published())(tokens, classes)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"depth": 0}, {"heads": 15}, {"hidden": 0}, {"num_classes": 0}], ids=str)
def test_impossible_sizes(wrong):
    with pytest.raises(ValueError, match="all must be at least 1"):
        replace(NETWORK, **wrong)


def test_impossible_canvases():
    for vocab_size, grid in ((0, (2, 2)), (4, ()), (4, (2, 0))):
        with pytest.raises(ValueError, match="give at least 1 token"):
            NETWORK.build(vocab_size, grid)


# -- end to end --------------------------------------------------------------------------------------------------------


def test_generates_and_in_paints():
    model = converted(published(dtype=torch.float32)).eval()
    tokens = torch.cat([TOKENS, torch.full_like(TOKENS, K)])
    condition = torch.tensor([0, 1, 2, 3, 4, NULL])
    predict = guided(model, condition, scale=2.0)
    with torch.no_grad():
        *_, last = decode(predict, tokens, ratios(Arccos(), 4), mask_id=K, rand=seeded(0, 6))
    assert ((last.tokens >= 0) & (last.tokens < K)).all()
    assert torch.equal(last.tokens[tokens < K], tokens[tokens < K])
    assert len(last.tokens[4:].unique(dim=0)) == 2
    small = {"width": 8, "multipliers": (1, 2), "attention": (3,), "z_channels": 8, "groups": 2}
    with torch.random.fork_rng(devices=[]):
        tokenizer = replace(LLAMAGEN_VQ16, size=(6, 8), quantizer=VQ(vocab_size=K, dim=4), **small).build()
    images = tokenizer.decode(last.tokens)
    assert tokenizer.grid == model.grid
    assert images.shape == (6, 3, 6, 8)
    assert images.abs().max() <= 1
