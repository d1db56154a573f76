"""TiTok's generator for 128 tokens: U-ViT (Bao et al. 2022, arXiv 2209.12152) over class and tokens.

Published as `generator_titok_s128` (Yu et al. 2024, arXiv 2406.07550; Apache-2.0). It has no dropout, as published: its
configuration names a dropout of 0.1, but the published code builds the blocks without it.
"""

import re

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.pretrained.class_first import ClassFirst, split_positions, split_vocabulary
from unmask.pretrained.configs import TiTokUViT
from unmask.pretrained.vit import ViTBlock

TITOK_UVIT_STAGES = {"in_blocks": "first", "mid_block": "middle", "out_blocks": "last"}
"""Published stages, and ours."""

TITOK_UVIT_LAYERS = {
    "norm1": "norm1",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "norm2": "norm2",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
}
"""Published layers of one block, and ours."""


TITOK_UVIT_SIZE = TiTokUViT()
"""The generator of S-128: 295.0 M parameters with 4096 codes on a grid of 128."""


class TiTokUViTModel(ClassFirst):
    """The network; see `ClassGenerator` for how to call it.

    Each of the last blocks also reads the output of one of the first blocks, through one of the `skips`. The first of
    the last blocks reads the last of the first ones.
    """

    def __init__(self, config: TiTokUViT, vocab_size: int, grid: tuple[int, ...]):
        super().__init__(config, vocab_size, grid)
        half, sizes = config.depth // 2, (config.dim, config.heads, config.mlp_dim)
        self.first = nn.ModuleList(ViTBlock(*sizes, qkv_bias=False) for _ in range(half))
        self.middle = ViTBlock(*sizes, qkv_bias=False)
        self.skips = nn.ModuleList(nn.Linear(2 * config.dim, config.dim) for _ in range(half))
        self.last = nn.ModuleList(ViTBlock(*sizes, qkv_bias=False) for _ in range(half))
        self.norm = nn.LayerNorm(config.dim)

    def predict(
        self, tokens: Int[Tensor, "b l"], label: Float[Tensor, "b dim"], at: Bool[Tensor, "b l"] | None
    ) -> Float[Tensor, "..."]:
        x = self.embed(tokens, label)
        outputs = []
        for block in self.first:
            x = block(x)
            outputs.append(x)
        x = self.middle(x)
        for skip, block in zip(self.skips, self.last, strict=True):
            x = block(skip(torch.cat([x, outputs.pop()], dim=-1)))
        return self.read(self.norm(x), at)


def translate(config: TiTokUViT, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate one tensor of the published file to our names; return an unknown name unchanged."""
    if name == "embeddings.weight":
        return split_vocabulary(name, tensor, config.num_classes)
    if name == "pos_embed":
        return split_positions(name, tensor[0] if tensor.ndim == 3 and len(tensor) == 1 else tensor)
    if name.startswith("lm_head."):
        return {name.removeprefix("lm_"): tensor}
    if skip := re.fullmatch(r"out_blocks\.(\d+)\.skip_linear\.(weight|bias)", name):
        return {f"skips.{skip[1]}.{skip[2]}": tensor}
    block = re.fullmatch(r"((?:in|out)_blocks|mid_block)((?:\.\d+)?)\.(.+)\.(weight|bias)", name)
    if block and block[3] in TITOK_UVIT_LAYERS:
        return {f"{TITOK_UVIT_STAGES[block[1]]}{block[2]}.{TITOK_UVIT_LAYERS[block[3]]}.{block[4]}": tensor}
    return {name: tensor}
