"""TiTok's generator for 32 and 64 tokens: BERT (Devlin et al. 2019, arXiv 1810.04805) over class and tokens.

Published as `generator_titok_l32` and `generator_titok_b64` (Yu et al. 2024, arXiv 2406.07550; Apache-2.0). The authors
trained with dropout 0.1 on embeddings, attention and outputs; this version has no dropout.
"""

import re

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.errors import CheckpointError
from unmask.pretrained.bert import BERT_EPS, PostNormBlock
from unmask.pretrained.class_first import ClassFirst, split_positions, split_vocabulary
from unmask.pretrained.configs import TiTokBert

TITOK_BERT_LAYERS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
}
"""Published layers of one block, and ours."""


TITOK_BERT_SIZE = TiTokBert()
"""The generator of B-64 (177.2 M parameters with 4096 codes on a grid of 64) and of L-32 (177.2 M, on 32)."""


class TiTokBertModel(ClassFirst):
    """The network; see `ClassGenerator` for how to call it. Every token is of BERT's first token type, `kind`."""

    def __init__(self, config: TiTokBert, vocab_size: int, grid: tuple[int, ...]):
        super().__init__(config, vocab_size, grid)
        self.kind = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.norm = nn.LayerNorm(config.dim, eps=BERT_EPS)
        self.blocks = nn.ModuleList(
            PostNormBlock(config.dim, config.heads, config.mlp_dim) for _ in range(config.depth)
        )

    def predict(
        self, tokens: Int[Tensor, "b l"], label: Float[Tensor, "b dim"], at: Bool[Tensor, "b l"] | None
    ) -> Float[Tensor, "..."]:
        x = self.norm(self.embed(tokens, label) + self.kind)
        for block in self.blocks:
            x = block(x)
        return self.read(x, at)


def translate(config: TiTokBert, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate one tensor of the published file to our names; return an unknown name unchanged."""
    embeddings, head = "model.embeddings.", "model.lm_head."
    if name == f"{embeddings}word_embeddings.weight":
        return split_vocabulary(name, tensor, config.num_classes)
    if name == f"{embeddings}position_embeddings.weight":
        return split_positions(name, tensor)
    if name == f"{embeddings}token_type_embeddings.weight":
        if tensor.shape[:1] != (2,):
            raise CheckpointError(f"{name} is {tuple(tensor.shape)}: BERT has two token types")
        return {"kind": tensor[0]}  # every token is of the first type
    if name.startswith(f"{embeddings}LayerNorm."):
        return {name.replace(f"{embeddings}LayerNorm", "norm"): tensor}
    if name.startswith(head):
        return {name.replace(head, "head."): tensor}
    layer = re.fullmatch(r"model\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer and layer[2] in TITOK_BERT_LAYERS:
        return {f"blocks.{layer[1]}.{TITOK_BERT_LAYERS[layer[2]]}.{layer[3]}": tensor}
    return {name: tensor}
