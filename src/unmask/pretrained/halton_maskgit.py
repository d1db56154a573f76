"""Halton-MaskGIT (Besnier et al., ICLR 2025, arXiv 2503.17076), and the translation of its published weights.

A DiT-like transformer over LlamaGen's codes (`llamagen`). The class modulates every block, one register token stands at
the end of the row, and the head is the token embedding with a bias. Weights: llvictorll/Halton-MaskGIT (MIT). The
authors trained with dropout 0.1; this version has no dropout.
"""

import re

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.method.models.layers import attend
from unmask.pretrained.configs import HaltonMaskGIT
from unmask.pretrained.generators import ClassGenerator

HALTON_EPS = 1e-5


# Number of values with K = 16,384 on the grids 16x16 | 24x24 (256 and 384 pixels), and FID from the repository's table.
HALTON_TINY = HaltonMaskGIT(dim=384, depth=6, heads=6, hidden=1024)
"""23,031,424 | 23,154,304; FID 10.2 at 256."""
HALTON_SMALL = HaltonMaskGIT(dim=512, depth=12, heads=6, hidden=1536)
"""69,344,768 | 69,508,608; FID 6.40 at 256, 6.11 at 384. Its heads are 85 wide, so attention covers 510 of 512."""
HALTON_BASE = HaltonMaskGIT()
"""142,224,640 | 142,470,400; FID 4.17 at 256, 4.15 at 384."""
HALTON_LARGE = HaltonMaskGIT(dim=1024, depth=24, heads=16, hidden=2816)
"""479,656,960 | 479,984,640; FID 2.59 at 384."""
HALTON_XLARGE = HaltonMaskGIT(dim=1152, depth=28, heads=16, hidden=3072)
"""692,118,400 | 692,487,040; the published code has this size, but no weights are public."""


class HaltonAttention(nn.Module):
    """Bidirectional self-attention. An RMS norm without scale normalizes q and k over all heads together."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, inner = heads, dim // heads * heads
        self.q, self.k, self.v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        v = self.v(x)
        # Autocast takes norms in float32.
        q, k = (F.rms_norm(y, y.shape[-1:], eps=HALTON_EPS).to(v.dtype) for y in (self.q(x), self.k(x)))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """A gated MLP with SwiGLU (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate, self.value = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        return self.down(F.silu(self.gate(x)) * self.value(x))


class HaltonBlock(nn.Module):
    """x + gate_1 attention(modulated norm(x)), then x + gate_2 mlp(modulated norm(x)). It starts as the identity."""

    def __init__(self, config: HaltonMaskGIT):
        super().__init__()
        self.modulation = nn.Linear(config.dim, 6 * config.dim)
        self.norm1, self.norm2 = nn.RMSNorm(config.dim, eps=HALTON_EPS), nn.RMSNorm(config.dim, eps=HALTON_EPS)
        self.attention = HaltonAttention(config.dim, config.heads)
        self.mlp = GatedMLP(config.dim, config.hidden)

    def forward(self, x: Float[Tensor, "b n dim"], condition: Float[Tensor, "b dim"]) -> Float[Tensor, "b n dim"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class LastNorm(nn.RMSNorm):
    """A modulated RMS norm with a bias."""

    def __init__(self, dim: int):
        super().__init__(dim, eps=HALTON_EPS)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.modulation = nn.Linear(dim, 2 * dim)

    def forward(self, x: Float[Tensor, "b n dim"], condition: Float[Tensor, "b dim"]) -> Float[Tensor, "b n dim"]:  # type: ignore[override]
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return (super().forward(x) + self.bias) * (1 + scale) + shift


class HaltonTransformer(ClassGenerator):
    """The network; see `ClassGenerator` for how to call it."""

    def __init__(self, config: HaltonMaskGIT, vocab_size: int, grid: tuple[int, ...]):
        super().__init__(config.dim, config.num_classes, vocab_size, grid)
        self.config = config
        self.position = nn.Parameter(torch.empty(self.length, config.dim))
        self.registers = nn.Parameter(torch.empty(1, config.dim))
        self.blocks = nn.ModuleList(HaltonBlock(config) for _ in range(config.depth))
        self.norm = LastNorm(config.dim)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self._start_weights()

    def start_embedding(self) -> None:
        """Do nothing: this network draws all its initial weights at the end of its construction."""

    def _start_weights(self) -> None:
        for table in (self.embedding.weight, self.position, self.registers):
            nn.init.normal_(table, std=0.02)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                is_identity = name.startswith("blocks") and name.endswith("modulation")
                (nn.init.zeros_ if is_identity else nn.init.xavier_uniform_)(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def predict(
        self, tokens: Int[Tensor, "b l"], label: Float[Tensor, "b dim"], at: Bool[Tensor, "b l"] | None
    ) -> Float[Tensor, "..."]:
        c = F.silu(label)
        x = self.embedding(tokens) + self.position
        x = torch.cat([x, self.registers.expand(len(x), -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x, c)
        x = self.norm(x[:, : self.length], c)
        return F.linear(x if at is None else x[at], self.embedding.weight[:-1], self.bias)


HALTON_LAYERS = {
    "cls_emb.weight": "classes.table.weight",
    "tok_emb.weight": "embedding.weight",
    "pos_emb.weight": "position",
    "reg_tokens.weight": "registers",
    "last_norm.norm_final.weight": "norm.weight",
    "last_norm.norm_final.bias": "norm.bias",
    "last_norm.mlp.1.weight": "norm.modulation.weight",
    "last_norm.mlp.1.bias": "norm.modulation.bias",
    "head.weight": "embedding.weight",  # tied: the file holds it twice, and both must be equal
    "head.bias": "bias",
}
"""Published parameters outside of the blocks, and ours."""

HALTON_BLOCK_LAYERS = {
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
"""Published layers of one block, and ours."""


def translate(config: HaltonMaskGIT, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate one tensor of the published `model_state_dict` to our names; return an unknown name unchanged.

    "No class" is the last published row and our first. The bias of the mask is dropped: nothing predicts the mask.
    """
    if match := re.fullmatch(r"transformer\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        layer = HALTON_BLOCK_LAYERS.get(match[2])
        return {name if layer is None else f"blocks.{match[1]}.{layer}.{match[3]}": tensor}
    if name == "cls_emb.weight" and len(tensor.shape) == 2:
        rows = [tensor[config.num_classes :], tensor[: config.num_classes]]
        return {HALTON_LAYERS[name]: torch.cat(rows)}
    if name == "head.bias" and len(tensor.shape) == 1:
        tensor = tensor[:-1]
    return {HALTON_LAYERS.get(name, name): tensor}
