"""TiTok's generator for 128 tokens: U-ViT (Bao et al. 2022, arXiv 2209.12152) over class and tokens.

Published as `generator_titok_s128` (Yu et al. 2024, arXiv 2406.07550; Apache-2.0). No dropout anywhere, as published:
its configuration names one of 0.1, but its blocks are made without.
"""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.pretrained.class_first import ClassFirst, split_positions, split_vocabulary
from unmask.pretrained.vit import ViTBlock

STAGES = {"in_blocks": "first", "mid_block": "middle", "out_blocks": "last"}
"""Published stages, and ours."""

NAMES = {
    "norm1": "norm1",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "norm2": "norm2",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
}
"""Published parts of a block, and ours."""


@dataclass(frozen=True, kw_only=True)
class TiTokUViT:
    """Sizes of the network: `depth` / 2 blocks, one in the middle, `depth` / 2 more; `mlp_dim` is the MLP's width."""

    dim: int = 1024
    depth: int = 20
    heads: int = 16
    mlp_dim: int = 4096
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads, self.mlp_dim, self.num_classes) < 1 or self.dim % self.heads:
            raise ValueError(f"{self}: all must be at least 1 and dim a multiple of heads")
        if self.depth % 2:
            raise ValueError(f"TiTokUViT(depth={self.depth}): must be even, as half of the blocks skip to the others")

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "TiTokUViTModel":
        return TiTokUViTModel(self, vocab_size, grid)


TITOK_UVIT = TiTokUViT()
"""Of S-128: 295.0 M parameters with 4096 codes on a grid of 128."""


class TiTokUViTModel(ClassFirst):
    """`model(tokens, condition)` gives logits [b, l, K]; with a bool `at` [b, l], only those rows, [n, K].

    Condition is class ids, NULL (-1), or None. What the first blocks give, the last ones read, the last given first,
    through one of the `skips` each.
    """

    def __init__(self, config: TiTokUViT, vocab_size: int, grid: tuple[int, ...]):
        super().__init__(config.dim, config.num_classes, vocab_size, grid)
        self.config = config
        half, sizes = config.depth // 2, (config.dim, config.heads, config.mlp_dim)
        self.first = nn.ModuleList(ViTBlock(*sizes, qkv_bias=False) for _ in range(half))
        self.middle = ViTBlock(*sizes, qkv_bias=False)
        self.skips = nn.ModuleList(nn.Linear(2 * config.dim, config.dim) for _ in range(half))
        self.last = nn.ModuleList(ViTBlock(*sizes, qkv_bias=False) for _ in range(half))
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self,
        tokens: Int[Tensor, "b l"],
        condition: Int[Tensor, "b"] | None = None,
        at: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "..."]:
        x = self.embed(tokens, condition)
        given = []
        for block in self.first:
            x = block(x)
            given.append(x)
        x = self.middle(x)
        for skip, block in zip(self.skips, self.last, strict=True):
            x = block(skip(torch.cat([x, given.pop()], dim=-1)))
        return self.read(self.norm(x), at)


def translate(config: TiTokUViT, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of the published file by our names; an unknown name is returned unchanged."""
    if name == "embeddings.weight":
        return split_vocabulary(name, tensor, config.num_classes)
    if name == "pos_embed":
        return split_positions(name, tensor[0] if tensor.ndim == 3 and len(tensor) == 1 else tensor)
    if name.startswith("lm_head."):
        return {name.removeprefix("lm_"): tensor}
    if skip := re.fullmatch(r"out_blocks\.(\d+)\.skip_linear\.(weight|bias)", name):
        return {f"skips.{skip[1]}.{skip[2]}": tensor}
    block = re.fullmatch(r"((?:in|out)_blocks|mid_block)((?:\.\d+)?)\.(.+)\.(weight|bias)", name)
    if block and block[3] in NAMES:
        return {f"{STAGES[block[1]]}{block[2]}.{NAMES[block[3]]}.{block[4]}": tensor}
    return {name: tensor}
