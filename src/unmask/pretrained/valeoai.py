"""The network of valeoai's reproduction of MaskGIT, and its published weights by our names (arXiv 2310.14400).

A pre-norm transformer over codes with the class as one more token, in the last place, and a head that is the embedding
with a bias of its own for every cell. Weights: `MaskGIT_ImageNet_{256,512}.pth` of llvictorll/Maskgit-pytorch (MIT).
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.method.models.conditioning import ClassEmbedding
from unmask.pretrained.ids import check_classes, check_rows
from unmask.pretrained.vit import ViTBlock


@dataclass(frozen=True, kw_only=True)
class ValeoaiMaskGIT:
    """Sizes of the network; `mlp_dim` is the width of its MLPs. It was trained with dropout 0.1; here there is none."""

    dim: int = 768
    depth: int = 24
    heads: int = 16
    mlp_dim: int = 3072
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads, self.mlp_dim, self.num_classes) < 1 or self.dim % self.heads:
            raise ValueError(f"{self}: all must be at least 1 and dim a multiple of heads")

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "ValeoaiTransformer":
        return ValeoaiTransformer(self, vocab_size, grid)


BASE_256 = ValeoaiMaskGIT()
"""MaskGIT_ImageNet_256.pth: 174,160,874 values with K = 1024 and a grid of 16x16; FID 6.80 in the report."""
BASE_512 = BASE_256
"""MaskGIT_ImageNet_512.pth: 176,306,666 values; the same sizes on a grid of 32x32; FID 7.26 in the report."""
BIG_256 = ValeoaiMaskGIT(dim=1024, depth=32)
"""341,953,002 values; a size of the published code of which no weights are public."""
HUGE_256 = ValeoaiMaskGIT(dim=1024, depth=48)
"""509,921,770 values; no weights are public."""


class ValeoaiTransformer(nn.Module):
    """`model(tokens, condition)` gives logits [b, l, K]; with a bool `at` [b, l], only those rows, [n, K].

    `vocab_size` is K and `grid` the shape of the canvas, l = prod(grid). Condition is class ids, NULL (-1), or None.
    """

    def __init__(self, config: ValeoaiMaskGIT, vocab_size: int, grid: tuple[int, ...]):
        super().__init__()
        if vocab_size < 1 or not grid or min(grid) < 1:
            raise ValueError(f"vocab_size {vocab_size} and grid {grid}: need a token or more, and one axis or more")
        self.config, self.vocab_size, self.grid = config, vocab_size, grid
        self.length, dim = torch.Size(grid).numel(), config.dim
        self.embedding = nn.Embedding(vocab_size + 1, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.classes = ClassEmbedding(config.num_classes, dim)
        self.position = nn.Parameter(torch.randn(self.length, dim) * 0.02)
        self.class_position = nn.Parameter(torch.randn(dim) * 0.02)
        self.first = nn.Sequential(_norm(dim), nn.Linear(dim, dim), nn.GELU(), _norm(dim), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(
            ViTBlock(dim, config.heads, config.mlp_dim, qkv_bias=True) for _ in range(config.depth)
        )
        self.last = nn.Sequential(_norm(dim), nn.Linear(dim, dim), nn.GELU(), _norm(dim))
        self.cell_bias = nn.Parameter(torch.zeros(self.length, vocab_size))

    @property
    def mask_id(self) -> int:
        """The input row of a masked token: K, one past the last value."""
        return self.vocab_size

    def forward(
        self,
        tokens: Int[Tensor, "b l"],
        condition: Int[Tensor, "b"] | None = None,
        at: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "..."]:
        check_rows(tokens, self.grid, self.mask_id)
        check_classes(condition, self.config.num_classes)
        cells = self.embedding(tokens) + self.position
        label = self.classes(condition, tokens) + self.class_position
        x = self.first(torch.cat([cells, label[:, None]], dim=1))
        for block in self.blocks:
            x = block(x)
        x = x[:, :-1]
        bias: Tensor = self.cell_bias
        if at is not None:
            x, bias = x[at], bias[at.nonzero()[:, 1]]
        logits = F.linear(self.last(x), self.embedding.weight[:-1])
        return logits.to(torch.promote_types(logits.dtype, torch.float32)) + bias


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-12)


# -- the published file ------------------------------------------------------------------------------------------------

ENDS = {
    **{f"first_layer.{i}": f"first.{j}" for i, j in ((0, 0), (2, 1), (4, 3), (6, 4))},
    **{f"last_layer.{i}": f"last.{j}" for i, j in ((0, 0), (2, 1), (4, 3))},
}
"""Published layers and ours, which are counted without dropout."""

BLOCK = {
    "0.norm": "norm1",
    "0.fn.mha.in_proj": "attention.qkv",
    "0.fn.mha.out_proj": "attention.out",
    "1.norm": "norm2",
    "1.fn.net.0": "up",
    "1.fn.net.3": "down",
}
"""The same of one block."""


def translate(config: ValeoaiMaskGIT, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of the published file by our names; a name or a number of axes that it has not is passed on as it is.

    Its one table of embeddings holds the codes, the mask, the classes and "no class"; the head's biases of all but the
    codes, and of the class's place, are for logits that nobody reads.
    """
    foreign = config.num_classes + 1
    if name == "tok_emb.weight" and tensor.ndim == 2:
        return {"embedding.weight": tensor[:-foreign], "classes.table.weight": tensor[-foreign:].roll(1, 0)}
    if name == "pos_emb" and tensor.ndim == 3 and tensor.shape[0] == 1 and tensor.shape[1]:
        return {"position": tensor[0, :-1], "class_position": tensor[0, -1]}
    if name == "bias" and tensor.ndim == 2:
        return {"cell_bias": tensor[:-1, : -foreign - 1]}
    # The stacked projections of nn.MultiheadAttention are parameters of its own, without a layer of their own.
    layer = re.fullmatch(r"(?:transformer\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name.replace("in_proj_", "in_proj."))
    table = BLOCK if layer and layer[1] else ENDS
    if not layer or layer[2] not in table:
        return {name: tensor}
    place = f"blocks.{layer[1]}." if layer[1] else ""
    return {f"{place}{table[layer[2]]}.{layer[3]}": tensor}
