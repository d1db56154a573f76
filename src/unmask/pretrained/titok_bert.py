"""TiTok's generator for 32 and 64 tokens: BERT (Devlin et al. 2019, arXiv 1810.04805) over class and tokens.

Published as `generator_titok_l32` and `generator_titok_b64` (Yu et al. 2024, arXiv 2406.07550; Apache-2.0), trained
with a dropout of 0.1 on embeddings, attention and outputs, of which there is none here.
"""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.errors import CheckpointError
from unmask.pretrained.bert import EPS, PostNormBlock
from unmask.pretrained.class_first import ClassFirst, split_positions, split_vocabulary

NAMES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
}
"""Published parts of a layer, and ours."""


@dataclass(frozen=True, kw_only=True)
class TiTokBert:
    """Sizes of the network; `mlp_dim` is the width of the MLP."""

    dim: int = 768
    depth: int = 24
    heads: int = 16
    mlp_dim: int = 3072
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads, self.mlp_dim, self.num_classes) < 1 or self.dim % self.heads:
            raise ValueError(f"{self}: all must be at least 1 and dim a multiple of heads")

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "TiTokBertModel":
        return TiTokBertModel(self, vocab_size, grid)


TITOK_BERT = TiTokBert()
"""Of B-64 (177.2 M parameters with 4096 codes on a grid of 64) and of L-32 (177.2 M, on 32)."""


class TiTokBertModel(ClassFirst):
    """`model(tokens, condition)` gives logits [b, l, K]; with a bool `at` [b, l], only those rows, [n, K].

    Condition is class ids, NULL (-1), or None. `kind` is BERT's first token type, the same for every token.
    """

    def __init__(self, config: TiTokBert, vocab_size: int, grid: tuple[int, ...]):
        super().__init__(config.dim, config.num_classes, vocab_size, grid)
        self.config = config
        self.kind = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.norm = nn.LayerNorm(config.dim, eps=EPS)
        self.blocks = nn.ModuleList(
            PostNormBlock(config.dim, config.heads, config.mlp_dim) for _ in range(config.depth)
        )

    def forward(
        self,
        tokens: Int[Tensor, "b l"],
        condition: Int[Tensor, "b"] | None = None,
        at: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "..."]:
        x = self.norm(self.embed(tokens, condition) + self.kind)
        for block in self.blocks:
            x = block(x)
        return self.read(x, at)


def translate(config: TiTokBert, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of the published file by our names; an unknown name is returned unchanged."""
    embeddings, head = "model.embeddings.", "model.lm_head."
    if name == f"{embeddings}word_embeddings.weight":
        return split_vocabulary(name, tensor, config.num_classes)
    if name == f"{embeddings}position_embeddings.weight":
        return split_positions(name, tensor)
    if name == f"{embeddings}token_type_embeddings.weight":
        if tensor.shape[:1] != (2,):
            raise CheckpointError(f"{name} is {tuple(tensor.shape)}: BERT has two token types")
        return {"kind": tensor[0]}  # every token is of the first
    if name.startswith(f"{embeddings}LayerNorm."):
        return {name.replace(f"{embeddings}LayerNorm", "norm"): tensor}
    if name.startswith(head):
        return {name.replace(head, "head."): tensor}
    layer = re.fullmatch(r"model\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer and layer[2] in NAMES:
        return {f"blocks.{layer[1]}.{NAMES[layer[2]]}.{layer[3]}": tensor}
    return {name: tensor}
