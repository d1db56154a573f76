"""valeoai's network: its published layout at full size, its formulas on plain tensors, and typical use."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unmask.method.guidance import NULL, guided
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.pretrained.valeoai import (
    VALEOAI_BASE_256,
    VALEOAI_BASE_512,
    VALEOAI_BIG_256,
    VALEOAI_HUGE_256,
    ValeoaiMaskGIT,
    translate,
)
from unmask.tokenizers.quantizers import VQ
from unmask.tokenizers.vqgan import VQGAN

LISTS = Path(__file__).parents[3] / "shared/reference/checkpoint_keys"
SIZES = {
    "valeoai_v1_base_256": (VALEOAI_BASE_256, 16, 174_160_874),
    "valeoai_v1_base_512": (VALEOAI_BASE_512, 32, 176_306_666),
    "valeoai_v1_big_256": (VALEOAI_BIG_256, 16, 341_953_002),
    "valeoai_v1_huge_256": (VALEOAI_HUGE_256, 16, 509_921_770),
}
EACH_SIZE = pytest.mark.parametrize("name", SIZES)
SMALL = ValeoaiMaskGIT(dim=24, depth=2, heads=3, mlp_dim=40, num_classes=5)
K, GRID = 11, (2, 3)
Shapes = dict[str, tuple[int, ...]]


def published(c: ValeoaiMaskGIT, k: int, length: int) -> Shapes:
    """Return names and shapes of the published file, from its documentation."""
    d, m, words = c.dim, c.mlp_dim, k + 1 + c.num_classes + 1
    shapes: Shapes = {"pos_emb": (1, length + 1, d), "bias": (length + 1, words), "tok_emb.weight": (words, d)}
    layers: Shapes = {f"first_layer.{i}": (d,) for i in (0, 4)} | {f"first_layer.{i}": (d, d) for i in (2, 6)}
    layers |= {"last_layer.0": (d,), "last_layer.2": (d, d), "last_layer.4": (d,)}
    for i in range(c.depth):
        block: Shapes = {"0.norm": (d,), "0.fn.mha.out_proj": (d, d), "1.norm": (d,)}
        block |= {"1.fn.net.0": (m, d), "1.fn.net.3": (d, m)}
        layers |= {f"transformer.layers.{i}.{part}": shape for part, shape in block.items()}
        mha = f"transformer.layers.{i}.0.fn.mha.in_proj"
        shapes |= {f"{mha}_weight": (3 * d, d), f"{mha}_bias": (3 * d,)}
    return shapes | {f"{n}.weight": s for n, s in layers.items()} | {f"{n}.bias": s[:1] for n, s in layers.items()}


def weights(c: ValeoaiMaskGIT, k: int = K, length: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Draw a random file without trivial values: every scale, bias and position matters."""
    generator = torch.Generator().manual_seed(seed)
    shapes = published(c, k, length)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) * 0.8 for n, s in sorted(shapes.items())}


def translated(c: ValeoaiMaskGIT, file: dict[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, tensor in file.items():
        new = translate(c, name, tensor)
        assert not out.keys() & new.keys()
        out |= new
    return out


def loaded(c: ValeoaiMaskGIT, file: dict[str, Tensor], dtype: torch.dtype, k: int = K, grid=GRID):
    model = c.build(k, grid).to(torch.float64)
    model.load_state_dict(translated(c, file), strict=True)
    return model.eval().to(dtype)


# -- the published formulas, on the published tensors ------------------------------------------------------------------


def norm(x: Tensor, p: dict[str, Tensor], name: str, eps: float) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (var + eps).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return torch.einsum("bni,oi->bno", x, p[f"{name}.weight"]) + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def tanh_gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2


def attention(x: Tensor, p: dict[str, Tensor], name: str, heads: int) -> Tensor:
    rows = torch.einsum("bni,oi->bno", x, p[f"{name}.in_proj_weight"]) + p[f"{name}.in_proj_bias"]
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in rows.split(x.shape[-1], dim=-1))
    share = (torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return linear(torch.einsum("bhnm,bmhd->bnhd", share, v).flatten(2), p, f"{name}.out_proj")


def reference(
    p: dict[str, Tensor], tokens: Tensor, labels: Tensor, c: ValeoaiMaskGIT, *, k=K, act=gelu, first=False,
    outer=1e-12, inner=1e-5,
) -> Tensor:  # fmt: skip
    """Return the published logits of codes and mask at every cell, [b, l, K+1]; NULL is the table's last row."""
    rows = torch.where(labels == NULL, k + 1 + c.num_classes, k + 1 + labels)[:, None]
    x = p["tok_emb.weight"][torch.cat([rows, tokens] if first else [tokens, rows], dim=1)] + p["pos_emb"]
    x = act(linear(norm(x, p, "first_layer.0", outer), p, "first_layer.2"))
    x = linear(norm(x, p, "first_layer.4", outer), p, "first_layer.6")
    for i in range(c.depth):
        layer = f"transformer.layers.{i}"
        x = x + attention(norm(x, p, f"{layer}.0.norm", inner), p, f"{layer}.0.fn.mha", c.heads)
        hidden = act(linear(norm(x, p, f"{layer}.1.norm", inner), p, f"{layer}.1.fn.net.0"))
        x = x + linear(hidden, p, f"{layer}.1.fn.net.3")
    x = norm(act(linear(norm(x, p, "last_layer.0", outer), p, "last_layer.2")), p, "last_layer.4", outer)
    logits = torch.einsum("bnd,kd->bnk", x, p["tok_emb.weight"]) + p["bias"]
    cells = slice(1, None) if first else slice(None, -1)
    return logits[:, cells, : k + 1]


TOKENS = torch.randint(K + 1, (4, 6), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 4, NULL, 2])


@EACH_SIZE
def test_every_published_tensor_has_its_place(name):
    """All names and shapes at full size, on the meta device, and the documented number of values."""
    c, side, total = SIZES[name]
    shapes = published(c, 1024, side * side)
    assert sum(torch.Size(s).numel() for s in shapes.values()) == total
    with torch.device("meta"):
        ours = c.build(1024, (side, side)).state_dict()
        file = translated(c, {n: torch.empty(s) for n, s in shapes.items()})
    assert {n: t.shape for n, t in file.items()} == {n: t.shape for n, t in ours.items()}


@EACH_SIZE
def test_the_pattern_is_the_published_list(name):
    path = LISTS / f"{name}.txt"
    if not path.is_file():
        pytest.skip(f"no list of the tensors of {name}")
    listed = re.findall(r"^(\S+) \(([\d, ]*)\) torch", path.read_text(), re.MULTILINE)
    rows = {n: tuple(int(x) for x in shape.replace(",", " ").split()) for n, shape in listed}
    c, side, _ = SIZES[name]
    assert published(c, 1024, side * side) == rows


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_network_is_the_published_formula(dtype, close):
    file = weights(SMALL)
    model = loaded(SMALL, file, dtype)
    want = reference(file, TOKENS, LABELS, SMALL)[..., :K]
    got = model(TOKENS, LABELS)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=close, atol=close * float(want.abs().max()))
    none = reference(file, TOKENS, torch.full_like(LABELS, NULL), SMALL)[..., :K]
    for unconditional in (model(TOKENS), model(TOKENS, torch.full_like(LABELS, NULL))):
        torch.testing.assert_close(unconditional.double(), none, rtol=close, atol=close * float(none.abs().max()))
    assert not torch.allclose(none[0], want[0], atol=1e-3)
    at = TOKENS == K
    assert 0 < at.sum() < at.numel()
    torch.testing.assert_close(model(TOKENS, LABELS, at), got[at])
    assert model(TOKENS, LABELS, torch.zeros_like(at)).shape == (0, K)


def test_each_published_peculiarity_counts():
    """The usual choice would be another network: class in front, tanh GELU, one eps for all norms."""
    file = weights(SMALL)
    want = reference(file, TOKENS, LABELS, SMALL)

    def differs(other: Tensor) -> bool:
        return float((other - want).abs().max()) > 3e-4  # the two GELUs differ by no more

    assert differs(reference(file, TOKENS, LABELS, SMALL, first=True))
    assert differs(reference(file, TOKENS, LABELS, SMALL, act=tanh_gelu))
    assert differs(reference({**file, "bias": file["bias"][:1].expand(7, -1)}, TOKENS, LABELS, SMALL))
    q, k, v = file["transformer.layers.0.0.fn.mha.in_proj_weight"].chunk(3)
    other = {**file, "transformer.layers.0.0.fn.mha.in_proj_weight": torch.cat([k, v, q])}
    assert differs(reference(other, TOKENS, LABELS, SMALL))


def test_norms_have_two_kinds_of_eps():
    """Activations are so small that eps matters, in the outer layers and then in the blocks."""
    file = weights(SMALL)
    tiny = {n: t * 1e-4 for n, t in file.items() if n in ("tok_emb.weight", "pos_emb")}
    tiny["bias"] = torch.zeros_like(file["bias"])  # otherwise it would hide the logits, which are tiny too
    faint = {n: t * 1e-3 for n, t in file.items() if n.startswith("first_layer.6")}
    for change, wrong in (({**file, **tiny}, {"outer": 1e-5}), ({**file, **faint}, {"inner": 1e-12})):
        want = reference(change, TOKENS, LABELS, SMALL)[..., :K]
        scale = float(want.abs().max())
        torch.testing.assert_close(
            loaded(SMALL, change, torch.float64)(TOKENS, LABELS), want, rtol=0, atol=1e-10 * scale
        )
        other = reference(change, TOKENS, LABELS, SMALL, **wrong)[..., :K]
        assert (other - want).abs().max() > 1e-3 * scale


def test_bfloat16_weights_give_float32_logits():
    model = loaded(SMALL, weights(SMALL), torch.float32)
    want = model(TOKENS, LABELS)
    got = model.to(torch.bfloat16)(TOKENS, LABELS)
    assert got.dtype == torch.float32
    assert (got - want).norm() < 0.05 * want.norm()


def test_the_head_is_the_embedding():
    """It has no rows for the mask: 2 (K + 1) numbers a cell fewer than published. Both of its uses give a gradient."""
    model = loaded(SMALL, weights(SMALL), torch.float32)
    assert not [n for n, _ in model.named_parameters() if n.startswith("head")]
    assert model.cell_bias.shape == (6, K)
    model(torch.zeros(1, 6, dtype=torch.int64))[..., 3].sum().backward()
    assert model.embedding.weight.grad[3].abs().max() > 0  # used only as output; token 0 is used as input too
    assert model.embedding.weight.grad[K].abs().max() == 0


def test_errors_are_one_line():
    model = SMALL.build(K, GRID)
    cases = (
        (TOKENS[:, :5], LABELS, "got 5 tokens per row; this model's grid (2, 3) has 6"),
        (TOKENS, LABELS + 1, "classes span 0..5, not -1..4 (-1 is no class)"),
        (TOKENS, LABELS - 1, "classes span -2..3, not -1..4 (-1 is no class)"),
        (TOKENS + 1, LABELS, f"tokens span {int(TOKENS.min()) + 1}..12, not 0..11 (11 is the mask)"),
        (TOKENS - 9, LABELS, f"tokens span {int(TOKENS.min()) - 9}..2, not 0..11 (11 is the mask)"),
    )
    for tokens, labels, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            model(tokens, labels)
        assert "\n" not in str(error.value)
    for wrong in ({"dim": 0}, {"heads": 5}, {"depth": 0}, {"mlp_dim": -1}, {"num_classes": 0}):
        with pytest.raises(ValueError, match="multiple of heads"):
            ValeoaiMaskGIT(**wrong)
    with pytest.raises(ValueError, match=r"vocab_size 0 and grid \(2,\)"):
        SMALL.build(0, (2,))


def test_what_does_not_fit_is_passed_on_to_be_refused():
    own = {n: t.shape for n, t in SMALL.build(K, GRID).state_dict().items()}
    strange = ("position_ids", "first_layer.1.weight", "transformer.layers.0.1.fn.net.1.bias", "first_layer.0.0.bias")
    for name in strange:
        assert list(translate(SMALL, name, torch.zeros(3))) == [name]
        assert name not in own
    for shape in ((), (0,), (3,), (0, 4), (1, 0, 4), (2, 7, 24), (3, 3), (1, 2, 3, 4)):
        for name in published(SMALL, K, 6):
            if shape != published(SMALL, K, 6)[name]:
                new = translate(SMALL, name, torch.zeros(shape))
                assert any(own.get(n) != t.shape for n, t in new.items())


def test_generates_and_paints_in():
    """A file becomes a network that decodes with guidance, keeps known tokens, and generates images."""
    pixels = VQGAN(size=(4, 6), width=8, multipliers=(1, 1), blocks=1, decoder_blocks=1, attention=(), groups=2,
                   z_channels=8, quantizer=VQ(vocab_size=K, dim=4, normalize=False, decay=0.0))  # fmt: skip
    tokenizer = pixels.build()
    model = loaded(SMALL, weights(SMALL), torch.float32, grid=tokenizer.grid)
    tokens = torch.full((3, 6), model.mask_id)
    tokens[:, :2] = torch.tensor([[4, 9]])
    predict = guided(model, torch.tensor([0, 3, 4]), scale=4.0)
    *_, last = decode(predict, tokens, [0.7, 0.3, 0.0], mask_id=model.mask_id, rand=seeded(0, 3))
    assert torch.equal(last.tokens[:, :2], tokens[:, :2])
    assert 0 <= int(last.tokens.min()) <= int(last.tokens.max()) < K
    assert tokenizer.decode(last.tokens).shape == (3, 3, 4, 6)
