"""valeoai's reproduction of MaskGIT (arXiv 2310.14400), and the translation of its published weights.

A pre-norm transformer over codes. The class is one more token, in the last place. The head is the token embedding with
one bias per cell and code. Weights: `MaskGIT_ImageNet_{256,512}.pth` of llvictorll/Maskgit-pytorch (MIT).
"""

import re

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.pretrained.configs import ValeoaiMaskGIT
from unmask.pretrained.generators import ClassGenerator, widen
from unmask.pretrained.vit import ViTBlock

VALEOAI_BASE_256 = ValeoaiMaskGIT()
"""MaskGIT_ImageNet_256.pth: 174,160,874 values with K = 1024 and a grid of 16x16; FID 6.80 in the report."""
VALEOAI_BASE_512 = VALEOAI_BASE_256
"""MaskGIT_ImageNet_512.pth: 176,306,666 values; the same sizes on a grid of 32x32; FID 7.26 in the report."""
VALEOAI_BIG_256 = ValeoaiMaskGIT(dim=1024, depth=32)
"""341,953,002 values; the published code has this size, but no weights are public."""
VALEOAI_HUGE_256 = ValeoaiMaskGIT(dim=1024, depth=48)
"""509,921,770 values; the published code has this size, but no weights are public."""


class ValeoaiTransformer(ClassGenerator):
    """The network; see `ClassGenerator` for how to call it."""

    def __init__(self, config: ValeoaiMaskGIT, vocab_size: int, grid: tuple[int, ...]):
        dim = config.dim
        super().__init__(dim, config.num_classes, vocab_size, grid)
        self.config = config
        self.position = nn.Parameter(torch.randn(self.length, dim) * 0.02)
        self.class_position = nn.Parameter(torch.randn(dim) * 0.02)
        self.first = nn.Sequential(
            _make_norm(dim), nn.Linear(dim, dim), nn.GELU(), _make_norm(dim), nn.Linear(dim, dim)
        )
        self.blocks = nn.ModuleList(
            ViTBlock(dim, config.heads, config.mlp_dim, qkv_bias=True) for _ in range(config.depth)
        )
        self.last = nn.Sequential(_make_norm(dim), nn.Linear(dim, dim), nn.GELU(), _make_norm(dim))
        self.cell_bias = nn.Parameter(torch.zeros(self.length, vocab_size))

    def predict(
        self, tokens: Int[Tensor, "b l"], label: Float[Tensor, "b dim"], at: Bool[Tensor, "b l"] | None
    ) -> Float[Tensor, "..."]:
        cells, last = self.embedding(tokens) + self.position, label + self.class_position
        x = self.first(torch.cat([cells, last[:, None]], dim=1))
        for block in self.blocks:
            x = block(x)
        x = x[:, :-1]
        bias: Tensor = self.cell_bias
        if at is not None:
            x, bias = x[at], bias[at.nonzero()[:, 1]]
        return widen(F.linear(self.last(x), self.embedding.weight[:-1])) + bias


def _make_norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-12)


# -- the published file ------------------------------------------------------------------------------------------------

VALEOAI_LAYERS = {
    **{f"first_layer.{i}": f"first.{j}" for i, j in ((0, 0), (2, 1), (4, 3), (6, 4))},
    **{f"last_layer.{i}": f"last.{j}" for i, j in ((0, 0), (2, 1), (4, 3))},
}
"""Published layers and ours. Ours are counted without dropout."""

VALEOAI_BLOCK_LAYERS = {
    "0.norm": "norm1",
    "0.fn.mha.in_proj": "attention.qkv",
    "0.fn.mha.out_proj": "attention.out",
    "1.norm": "norm2",
    "1.fn.net.0": "up",
    "1.fn.net.3": "down",
}
"""Published layers of one block, and ours."""


def translate(config: ValeoaiMaskGIT, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate one tensor of the published file to our names; return an unknown name or shape unchanged.

    A single published table holds the codes, the mask, the classes and "no class". The published head also has biases
    for tokens that are no codes and for the place of the class. Nobody reads those logits, so the biases are dropped.
    """
    foreign = config.num_classes + 1
    if name == "tok_emb.weight" and tensor.ndim == 2:
        return {"embedding.weight": tensor[:-foreign], "classes.table.weight": tensor[-foreign:].roll(1, 0)}
    if name == "pos_emb" and tensor.ndim == 3 and tensor.shape[0] == 1 and tensor.shape[1]:
        return {"position": tensor[0, :-1], "class_position": tensor[0, -1]}
    if name == "bias" and tensor.ndim == 2:
        return {"cell_bias": tensor[:-1, : -foreign - 1]}
    # nn.MultiheadAttention holds its stacked projections as its own parameters, not in a layer.
    layer = re.fullmatch(r"(?:transformer\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name.replace("in_proj_", "in_proj."))
    table = VALEOAI_BLOCK_LAYERS if layer and layer[1] else VALEOAI_LAYERS
    if not layer or layer[2] not in table:
        return {name: tensor}
    place = f"blocks.{layer[1]}." if layer[1] else ""
    return {f"{place}{table[layer[2]]}.{layer[3]}": tensor}
