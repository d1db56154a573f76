"""Google's MaskGIT: its tree of weights, and the published formulas on plain tensors."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unmask.errors import CheckpointError
from unmask.method.guidance import NULL
from unmask.pretrained.google import GOOGLE_BASE_256, GOOGLE_BASE_512, GoogleMaskGIT, GoogleTransformer, translate

SMALL = GoogleMaskGIT(dim=12, depth=2, heads=3, mlp_dim=20, num_classes=5)
K, GRID = 7, (2, 3)
Tensors = dict[str, Tensor]


def published(config: GoogleMaskGIT, codes: int, cells: int) -> dict[str, tuple[int, ...]]:
    """Return the flattened tree of the published file."""
    dim, heads, width = config.dim, config.heads, config.dim // config.heads
    rows = codes + config.num_classes + 1
    shapes: dict[str, tuple[int, ...]] = {
        "Embed_0/word_embeddings/embedding": (rows, dim),
        "Embed_0/position_embeddings/embedding": (cells + 1, dim),
        "MlmLayer_0/mlm_dense/kernel": (dim, dim),
        "MlmLayer_0/mlm_dense/bias": (dim,),
        "MlmLayer_0/mlm_bias/bias": (rows,),
    }
    norms = ["Embed_0/embeddings_ln", "MlmLayer_0/mlm_ln"]
    for i in range(config.depth):
        layer = f"TransformerLayer_{i}"
        attention = f"{layer}/Attention_0/self_attention"
        for part in ("query", "key", "value"):
            shapes |= {f"{attention}/{part}/kernel": (dim, heads, width), f"{attention}/{part}/bias": (heads, width)}
        shapes |= {f"{attention}/out/kernel": (heads, width, dim), f"{attention}/out/bias": (dim,)}
        shapes |= {f"{layer}/Mlp_0/intermediate_output/kernel": (dim, config.mlp_dim)}
        shapes |= {f"{layer}/Mlp_0/intermediate_output/bias": (config.mlp_dim,)}
        shapes |= {f"{layer}/Mlp_0/layer_output/kernel": (config.mlp_dim, dim)}
        shapes |= {f"{layer}/Mlp_0/layer_output/bias": (dim,)}
        norms += [f"{layer}/Attention_0/attention_output_ln", f"{layer}/Mlp_0/layer_output_ln"]
    return shapes | {f"{norm}/{kind}": (dim,) for norm in norms for kind in ("scale", "bias")}


def weights(seed: int = 0) -> Tensors:
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, shape in published(SMALL, K, 6).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5
        found[name] = 1 + noise if name.endswith("scale") else noise
    return found


def loaded(config: GoogleMaskGIT, tensors: Tensors) -> GoogleTransformer:
    with torch.device("meta"):
        model = config.build(K, GRID)
    found: Tensors = {}
    for name, tensor in tensors.items():
        found |= translate(config, name, tensor)
    model.load_state_dict({name: t.contiguous() for name, t in found.items()}, strict=True, assign=True)
    return model


# -- the published formulas -------------------------------------------------------------------------------------------


def layer_norm(p: Tensors, name: str, x: Tensor, eps: float) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return x * p[f"{name}/scale"] + p[f"{name}/bias"]


def gelu(x: Tensor, exact: bool) -> Tensor:
    if exact:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def dense(p: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def reference(
    p: Tensors, tokens: Tensor, labels: Tensor, *, eps=1e-12, exact=False, last=False, mask=-1, pre=False
) -> Tensor:
    """Return logits [b, l, K] of the published network. Each option replaces one peculiarity."""
    table = p["Embed_0/word_embeddings/embedding"]
    words = table[torch.where(tokens == K, mask % len(table), tokens)]
    label = table[labels + K][:, None]
    x = torch.cat([words, label] if last else [label, words], dim=1) + p["Embed_0/position_embeddings/embedding"]
    x = layer_norm(p, "Embed_0/embeddings_ln", x, eps)
    for i in range(SMALL.depth):
        layer = f"TransformerLayer_{i}"
        norm1, norm2 = f"{layer}/Attention_0/attention_output_ln", f"{layer}/Mlp_0/layer_output_ln"
        name = f"{layer}/Attention_0/self_attention"
        own = layer_norm(p, norm1, x, eps) if pre else x
        q, k, v = (
            torch.einsum("bnd,dhw->bnhw", own, p[f"{name}/{part}/kernel"]) + p[f"{name}/{part}/bias"]
            for part in ("query", "key", "value")
        )
        share = (torch.einsum("bnhw,bmhw->bhnm", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        mixed = torch.einsum("bhnm,bmhw->bnhw", share, v)
        x = x + torch.einsum("bnhw,hwd->bnd", mixed, p[f"{name}/out/kernel"]) + p[f"{name}/out/bias"]
        x = x if pre else layer_norm(p, norm1, x, eps)
        own = layer_norm(p, norm2, x, eps) if pre else x
        hidden = gelu(dense(p, f"{layer}/Mlp_0/intermediate_output", own), exact)
        x = x + dense(p, f"{layer}/Mlp_0/layer_output", hidden)
        x = x if pre else layer_norm(p, norm2, x, eps)
    x = layer_norm(p, "MlmLayer_0/mlm_ln", gelu(dense(p, "MlmLayer_0/mlm_dense", x), exact), eps)
    logits = x @ table.T + p["MlmLayer_0/mlm_bias/bias"]
    return logits[:, :-1, :K] if last else logits[:, 1:, :K]


TOKENS = torch.tensor([[7, 7, 7, 7, 7, 7], [0, 7, 6, 7, 3, 1], [5, 4, 3, 2, 1, 0]])
LABELS = torch.tensor([0, 4, 2])

# -- names and sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "codes", "grid"),
    [(GOOGLE_BASE_256, 1024, (16, 16)), (GOOGLE_BASE_512, 1024, (32, 32)), (SMALL, K, GRID)],
)
def test_every_published_tensor_has_its_place(config, codes, grid):
    with torch.device("meta"):
        own = {name: tuple(t.shape) for name, t in config.build(codes, grid).state_dict().items()}
        found = {}
        for name, shape in published(config, codes, math.prod(grid)).items():
            found |= {k: tuple(v.shape) for k, v in translate(config, name, torch.empty(shape)).items()}
    assert found == own


@pytest.mark.parametrize(("grid", "count"), [((16, 16), 172_457_193), ((32, 32), 173_047_017)])
def test_the_published_sizes(grid, count):
    shapes = published(GOOGLE_BASE_256, 1024, math.prod(grid))
    assert sum(map(math.prod, shapes.values())) == count
    with torch.device("meta"):
        own = sum(p.numel() for p in GOOGLE_BASE_256.build(1024, grid).parameters())
    assert own == count + 768 - 1001  # the row of NULL, and the outputs for classes and mask


def test_unknown_names_stay_and_wrong_shapes_are_named():
    assert list(translate(SMALL, "Embed_1/x", torch.zeros(2))) == ["Embed_1/x"]
    kernel = "TransformerLayer_0/Attention_0/self_attention/query/kernel"
    wrong = {
        kernel: (12, 4, 3),  # the same number of values, with other heads
        "TransformerLayer_1/Attention_0/self_attention/out/kernel": (4, 3, 12),
        "TransformerLayer_1/Attention_0/self_attention/key/bias": (12,),
        "Embed_0/word_embeddings/embedding": (6, 12),
        "Embed_0/position_embeddings/embedding": (7,),
        "MlmLayer_0/mlm_bias/bias": (),
    }
    for name, shape in wrong.items():
        with pytest.raises(CheckpointError, match=name):
            translate(SMALL, name, torch.zeros(shape))
    for name in published(SMALL, K, 6):  # the strict comparison finds all other faults
        for odd in (torch.zeros(()), torch.zeros(2, 2, 2, 2, 2), torch.zeros(30, 12, dtype=torch.int32)):
            try:
                translate(SMALL, name, odd)
            except CheckpointError:
                continue


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_logits_are_those_of_the_formulas():
    p, wanted = weights(), reference(weights(), TOKENS, LABELS)
    model = loaded(SMALL, p)
    with torch.no_grad():
        assert wanted.std() > 0.5
        assert torch.allclose(model(TOKENS, LABELS), wanted, rtol=0, atol=1e-10)
        at = TOKENS == K
        assert torch.allclose(model(TOKENS, LABELS, at), wanted[at], rtol=0, atol=1e-10)
        single = loaded(SMALL, {name: t.float() for name, t in p.items()})
        assert torch.allclose(single(TOKENS, LABELS).double(), wanted, rtol=0, atol=1e-5)
        half = single.to(torch.bfloat16)(TOKENS, LABELS)
        assert half.dtype == torch.float32
        assert (half - wanted).abs().max() < 0.5


@pytest.mark.parametrize(
    "other", [{"eps": 1e-5}, {"exact": True}, {"last": True}, {"mask": K}, {"pre": True}], ids=lambda o: next(iter(o))
)
def test_what_is_peculiar_matters(other):
    p = weights()
    if "eps" in other:  # eps matters for small numbers
        p |= {name: p[name] * 1e-3 for name in p if name.startswith("Embed_0") and name.endswith("embedding")}
    with torch.no_grad():
        assert (loaded(SMALL, p)(TOKENS, LABELS) - reference(p, TOKENS, LABELS, **other)).abs().max() > 1e-3


def test_the_head_is_the_embedding():
    model = loaded(SMALL, {name: t.float() for name, t in weights().items()})
    assert not [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == K]
    with torch.no_grad():
        before = model(TOKENS[2:], LABELS[2:])
        model.embedding.weight[6] += 1  # no input uses this row
        after = model(TOKENS[2:], LABELS[2:])
    assert (before != after).any((0, 1)).tolist() == [False] * 6 + [True]


# -- no class, and errors ---------------------------------------------------------------------------------------------


def test_there_is_no_null_class_unless_asked_for():
    p = weights()
    model = loaded(SMALL, p)
    for condition in (None, torch.tensor([NULL, 1, 2])):
        with pytest.raises(ValueError, match="without a null class: give every row a class"):
            model(TOKENS, condition)
    asked = loaded(replace(SMALL, null_class=True), p)
    with torch.no_grad():
        assert torch.equal(asked(TOKENS, LABELS), model(TOKENS, LABELS))
        assert torch.equal(asked(TOKENS), asked(TOKENS, torch.full((3,), NULL)))
    mean = p["Embed_0/word_embeddings/embedding"][K:-1].mean(0)
    assert torch.allclose(asked.classes.table.weight[0], mean)


def test_errors_are_one_line():
    model = loaded(SMALL, weights())
    with pytest.raises(ValueError, match=r"got 5 tokens per row; this model's grid \(2, 3\) has 6"):
        model(TOKENS[:, 1:], LABELS)
    for bad in (5, -2):
        with pytest.raises(ValueError, match=r"classes span .*, not -1\.\.4"):
            model(TOKENS, torch.tensor([0, 1, bad]))
    with pytest.raises(ValueError, match=r"tokens span 1\.\.8, not 0\.\.7 \(7 is the mask\)"):
        model(TOKENS + 1, LABELS)
    for sizes in ({"dim": 13}, {"depth": 0}, {"num_classes": 0}):
        with pytest.raises(ValueError, match="must be a multiple of heads"):
            replace(SMALL, **sizes)
    with pytest.raises(ValueError, match="1 to 3 axes"):
        SMALL.build(K, ())
