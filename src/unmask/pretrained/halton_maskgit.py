"""The network of Halton-MaskGIT, and its published weights by our names (Besnier et al., ICLR 2025, arXiv 2503.17076).

A DiT-like transformer over LlamaGen's codes (`llamagen`): the class modulates every block, a register token rides along
at the end of the row, and the head is the embedding with a bias. Weights: llvictorll/Halton-MaskGIT (MIT). Published
with a dropout of 0.1 in training; here is none.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.method.models.conditioning import ClassEmbedding
from unmask.method.models.layers import attend
from unmask.pretrained.ids import check_classes, check_rows

EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class HaltonMaskGIT:
    """Sizes of the network. Heads are dim // heads wide, and what is left over of `dim` is no head's.

    `hidden`: width of the gated MLPs; published, two thirds of 4 dim, rounded up to a multiple of 256.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 2048
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads, self.hidden, self.num_classes) < 1 or self.heads > self.dim:
            raise ValueError(f"{self}: all must be at least 1, and dim at least the number of heads")

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "HaltonTransformer":
        return HaltonTransformer(self, vocab_size, grid)


# Values with K = 16,384 on the grids of 16x16 | 24x24 (256 and 384 pixels), and the FID in the repository's file table.
TINY = HaltonMaskGIT(dim=384, depth=6, heads=6, hidden=1024)
"""23,031,424 | 23,154,304; FID 10.2 at 256."""
SMALL = HaltonMaskGIT(dim=512, depth=12, heads=6, hidden=1536)
"""69,344,768 | 69,508,608; FID 6.40 at 256, 6.11 at 384. Its heads are 85 wide: attention is 510 of 512 wide."""
BASE = HaltonMaskGIT()
"""142,224,640 | 142,470,400; FID 4.17 at 256, 4.15 at 384."""
LARGE = HaltonMaskGIT(dim=1024, depth=24, heads=16, hidden=2816)
"""479,656,960 | 479,984,640; FID 2.59 at 384."""
XLARGE = HaltonMaskGIT(dim=1152, depth=28, heads=16, hidden=3072)
"""692,118,400 | 692,487,040; a size of the published code of which no weights are public."""


class Attention(nn.Module):
    """Bidirectional self-attention; RMS norm, without a scale, of q and k over all heads together, not of each."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, inner = heads, dim // heads * heads
        self.q, self.k, self.v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        v = self.v(x)
        # Autocast takes norms in float32.
        q, k = (F.rms_norm(y, y.shape[-1:], eps=EPS).to(v.dtype) for y in (self.q(x), self.k(x)))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate, self.value = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        return self.down(F.silu(self.gate(x)) * self.value(x))


class Block(nn.Module):
    """x + gate_1 attention(modulated norm(x)), then x + gate_2 mlp(modulated norm(x)); at first the identity."""

    def __init__(self, config: HaltonMaskGIT):
        super().__init__()
        self.modulation = nn.Linear(config.dim, 6 * config.dim)
        self.norm1, self.norm2 = nn.RMSNorm(config.dim, eps=EPS), nn.RMSNorm(config.dim, eps=EPS)
        self.attention = Attention(config.dim, config.heads)
        self.mlp = GatedMLP(config.dim, config.hidden)

    def forward(self, x: Float[Tensor, "b n dim"], condition: Float[Tensor, "b dim"]) -> Float[Tensor, "b n dim"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class LastNorm(nn.RMSNorm):
    """An RMS norm with a bias, modulated."""

    def __init__(self, dim: int):
        super().__init__(dim, eps=EPS)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.modulation = nn.Linear(dim, 2 * dim)

    def forward(self, x: Float[Tensor, "b n dim"], condition: Float[Tensor, "b dim"]) -> Float[Tensor, "b n dim"]:  # type: ignore[override]
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return (super().forward(x) + self.bias) * (1 + scale) + shift


class HaltonTransformer(nn.Module):
    """`model(tokens, condition)` gives logits [b, l, K]; with a bool `at` [b, l], only those rows, [n, K].

    `vocab_size` is K and `grid` the shape of the canvas, l = prod(grid). Condition is class ids, NULL (-1), or None.
    """

    def __init__(self, config: HaltonMaskGIT, vocab_size: int, grid: tuple[int, ...]):
        super().__init__()
        if vocab_size < 1 or not grid or min(grid) < 1:
            raise ValueError(f"vocab_size {vocab_size} and grid {grid}: need a token or more, and one axis or more")
        self.config, self.vocab_size, self.grid = config, vocab_size, grid
        self.length, dim = torch.Size(grid).numel(), config.dim
        self.embedding = nn.Embedding(vocab_size + 1, dim)
        self.classes = ClassEmbedding(config.num_classes, dim)
        self.position = nn.Parameter(torch.empty(self.length, dim))
        self.registers = nn.Parameter(torch.empty(1, dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = LastNorm(dim)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self._start()

    def _start(self) -> None:
        for table in (self.embedding.weight, self.position, self.registers):
            nn.init.normal_(table, std=0.02)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                still = name.startswith("blocks") and name.endswith("modulation")
                (nn.init.zeros_ if still else nn.init.xavier_uniform_)(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

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
        c = F.silu(self.classes(condition, tokens))
        x = self.embedding(tokens) + self.position
        x = torch.cat([x, self.registers.expand(len(x), -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x, c)
        x = self.norm(x[:, : self.length], c)
        logits = F.linear(x if at is None else x[at], self.embedding.weight[:-1], self.bias)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


OURS = {
    "cls_emb.weight": "classes.table.weight",
    "tok_emb.weight": "embedding.weight",
    "pos_emb.weight": "position",
    "reg_tokens.weight": "registers",
    "last_norm.norm_final.weight": "norm.weight",
    "last_norm.norm_final.bias": "norm.bias",
    "last_norm.mlp.1.weight": "norm.modulation.weight",
    "last_norm.mlp.1.bias": "norm.modulation.bias",
    "head.weight": "embedding.weight",  # tied: the file has it twice, and both have to be equal
    "head.bias": "bias",
}
LAYERS = {
    "mlp.1": "modulation",
    "ln1": "norm1",
    "attn.wq": "attention.q",
    "attn.wk": "attention.k",
    "attn.wv": "attention.v",
    "attn.wo": "attention.out",
    "ln2": "norm2",
    "ff.w1": "mlp.gate",
    "ff.w2": "mlp.down",
    "ff.w3": "mlp.value",
}


def translate(config: HaltonMaskGIT, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of the published `model_state_dict` by our names; an unknown name is returned unchanged.

    "No class", published as the last row, goes first; the mask's bias is dropped, since it is never predicted.
    """
    if match := re.fullmatch(r"transformer\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        layer = LAYERS.get(match[2])
        return {name if layer is None else f"blocks.{match[1]}.{layer}.{match[3]}": tensor}
    if name == "cls_emb.weight" and len(tensor.shape) == 2:
        rows = [tensor[config.num_classes :], tensor[: config.num_classes]]
        return {OURS[name]: torch.cat(rows)}
    if name == "head.bias" and len(tensor.shape) == 1:
        tensor = tensor[:-1]
    return {OURS.get(name, name): tensor}
