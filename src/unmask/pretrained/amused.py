"""aMUSEd (Patil et al. 2024, arXiv 2401.01808): a U-ViT that predicts an image's 16x16 or 32x32 codes from a text.

Convolutional blocks surround a transformer, as in Muse (arXiv 2301.00704) and simple diffusion (arXiv 2301.11093). The
text enters by cross-attention. Its pooled embedding and five numbers about the image enter by modulation. No cell has a
learned position: only the borders of the convolutions tell cells apart, so any grid of two axes works. The published
sampler takes 12 steps with a cosine schedule and guidance 10. It orders by log-confidence plus Gumbel noise, which
falls from 2 in the first step to 0 in the last: `Confidence(noise=2 * steps / (steps - 1))`.
"""

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.pretrained.amused_blocks import AmusedLayer, ConvBlock, Resize, make_linear, make_norm
from unmask.pretrained.configs import Amused
from unmask.pretrained.generators import GridGenerator
from unmask.pretrained.ids import check_rows

NUM_FACTS = 5
"""Numbers about an image: width, height, two crop coordinates, and LAION's aesthetic score (about 6)."""


AMUSED_256 = Amused()
"""amused/amused-256: 603,537,664 parameters, 8192 codes, grid 16x16."""

AMUSED_512 = Amused(halved=True)
"""amused/amused-512: 608,257,792 parameters, 8192 codes, grid 32x32."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """Encoded texts, one per row, as the network reads them."""

    hidden: Float[Tensor, "b n d"]
    """CLIP's states of all tokens, padding included, from the layer before the last."""
    pooled: Float[Tensor, "b p"]
    """CLIP's projected embedding of the whole text."""
    micro: Float[Tensor, "b 5"]
    """Width, height, crop, crop and aesthetic score of the image."""


class UVit2D(GridGenerator):
    """The network: `model(tokens, prompt)` returns logits [b, l, K]; with a bool `at` [b, l] only those rows, [n, K].

    It serves inference and fine-tuning, and has no dropout, as published.
    """

    def __init__(self, config: Amused, vocab_size: int, grid: tuple[int, ...]):
        super().__init__(vocab_size, grid)
        if len(grid) != 2:
            raise ValueError(f"grid {grid}: aMUSEd needs two axes, height and width")
        if config.halved and any(cells % 2 for cells in grid):
            raise ValueError(f"grid {grid}: Amused(halved=True) needs an even number of cells on each axis")
        self.config = config
        dim, block_dim = config.dim, config.block_dim
        facts_dim = config.pooled_dim + NUM_FACTS * config.micro_dim
        self.text_in, self.text_norm = make_linear(config.text_dim, dim), make_norm(dim)
        self.facts_in, self.facts_out = make_linear(facts_dim, dim), make_linear(dim, dim)
        self.embedding, self.embedding_norm = nn.Embedding(vocab_size + 1, block_dim), make_norm(block_dim)
        self.embedding_out = make_linear(block_dim, block_dim)
        self.shrink = Resize(block_dim, nn.Conv2d) if config.halved else nn.Identity()
        self.before = nn.ModuleList(ConvBlock(block_dim, config.block_heads, dim) for _ in range(config.blocks))
        self.widen_norm, self.widen = make_norm(block_dim), make_linear(block_dim, dim)
        self.layers = nn.ModuleList(AmusedLayer(dim, config.heads, config.mlp_dim) for _ in range(config.depth))
        self.narrow_norm, self.narrow = make_norm(dim), make_linear(dim, block_dim)
        self.after = nn.ModuleList(ConvBlock(block_dim, config.block_heads, dim) for _ in range(config.blocks))
        self.grow = Resize(block_dim, nn.ConvTranspose2d) if config.halved else nn.Identity()
        self.head_in, self.head_norm = make_linear(block_dim, block_dim), make_norm(block_dim)
        self.head = make_linear(block_dim, vocab_size)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def describe(self, prompt: Prompt) -> Float[Tensor, "b d"]:
        """Return the modulating vector after its SiLU: from pooled text and cosines, then sines, of each number."""
        at = self.facts_in.weight
        kind = torch.promote_types(at.dtype, torch.float32)  # bfloat16 rounds a width of 511 to 512
        half = self.config.micro_dim // 2
        frequency = torch.exp(-math.log(10_000) * torch.arange(half, dtype=kind, device=at.device) / half)
        angles = prompt.micro.to(at.device, kind)[..., None] * frequency
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)
        facts = torch.cat([prompt.pooled.to(at), waves.to(at.dtype)], dim=1)
        return F.silu(self.facts_out(F.silu(self.facts_in(facts))))

    def forward(
        self, tokens: Int[Tensor, "b l"], prompt: Prompt, at: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "..."]:
        self._check(tokens, prompt)
        text, c = self.text_norm(self.text_in(prompt.hidden.to(self.text_in.weight))), self.describe(prompt)
        x = self.embedding_out(self.embedding_norm(self.embedding(tokens))).unflatten(1, self.grid)
        x = self.shrink(x)
        for block in self.before:
            x = block(x, text, c)
        cells = self.widen(self.widen_norm(x.flatten(1, 2)))
        for layer in self.layers:
            cells = layer(cells, text, c)
        x = self.narrow(self.narrow_norm(cells)).unflatten(1, x.shape[1:3])
        for block in self.after:
            x = block(x, text, c)
        x = self.grow(x).flatten(1, 2)
        x = x if at is None else x[at]
        return self.head(self.head_norm(self.head_in(x))).float()

    def _check(self, tokens: Tensor, prompt: Prompt) -> None:
        check_rows(tokens, self.grid, self.mask_id)
        widths = prompt.hidden.shape[-1], prompt.pooled.shape[-1]
        wanted = self.config.text_dim, self.config.pooled_dim
        if len(tokens) != len(prompt.hidden) or widths != wanted:
            raise ValueError(
                f"got {len(prompt.hidden)} prompts of widths {widths} for {len(tokens)} rows; "
                f"this model takes one prompt per row, of widths {wanted} (text, pooled)"
            )


# -- the published names -----------------------------------------------------------------------------------------------

AMUSED_LAYERS = {
    "encoder_proj": "text_in",
    "encoder_proj_layer_norm": "text_norm",
    "cond_embed.linear_1": "facts_in",
    "cond_embed.linear_2": "facts_out",
    "embed.layer_norm": "embedding_norm",
    "embed.conv": "embedding_out",
    "down_block.downsample.norm": "shrink.norm",
    "down_block.downsample.conv": "shrink.conv",
    "project_to_hidden_norm": "widen_norm",
    "project_to_hidden": "widen",
    "project_from_hidden_norm": "narrow_norm",
    "project_from_hidden": "narrow",
    "up_block.upsample.norm": "grow.norm",
    "up_block.upsample.conv": "grow.conv",
    "mlm_layer.conv1": "head_in",
    "mlm_layer.layer_norm": "head_norm",
    "mlm_layer.conv2": "head",
}
"""Published layers outside of the blocks, and ours. The tables below hold the layers of one block."""

AMUSED_ATTENTION_LAYERS = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
AMUSED_TRANSFORMER_LAYERS = {
    **{f"norm{i}.norm": f"norm{i}.norm" for i in (1, 2, 3)},
    **{f"norm{i}.linear": f"norm{i}.modulation" for i in (1, 2, 3)},
    **{f"attn1.{theirs}": f"attention.{ours}" for theirs, ours in AMUSED_ATTENTION_LAYERS.items()},
    **{f"attn2.{theirs}": f"reading.{ours}" for theirs, ours in AMUSED_ATTENTION_LAYERS.items()},
    "ff.net.0.proj": "up",
    "ff.net.2": "down",
}
AMUSED_CONV_LAYERS = {
    "depthwise": "depthwise",
    "norm": "norm",
    "channelwise_linear_1": "up",
    "channelwise_linear_2": "down",
    "cond_embeds_mapper": "modulation",
}
AMUSED_READING_LAYERS = {
    "kv_mapper": "text_in",
    "norm1": "norm1",
    "norm2": "norm2",
    **{f"attn{i}.{theirs}": f"reading{i}.{ours}" for i in (1, 2) for theirs, ours in AMUSED_ATTENTION_LAYERS.items()},
}
AMUSED_BLOCKS = {
    "transformer_layers": ("layers", AMUSED_TRANSFORMER_LAYERS),
    "down_block.res_blocks": ("before", AMUSED_CONV_LAYERS),
    "up_block.res_blocks": ("after", AMUSED_CONV_LAYERS),
    "down_block.attention_blocks": ("before", AMUSED_READING_LAYERS),
    "up_block.attention_blocks": ("after", AMUSED_READING_LAYERS),
}


def translate(config: Amused, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate one tensor of the published file to our names; return an unknown name unchanged.

    The published token table is rounded up to a multiple of 64 and has the mask last. Its `spare` rows are dropped.
    """
    if name == "embed.embeddings.weight":
        codes = len(tensor) - config.spare - 1 if tensor.ndim else 0
        return {"embedding.weight": torch.cat([tensor[:codes], tensor[-1:]]) if codes > 0 else tensor}
    block = re.fullmatch(r"(.+_(?:layers|blocks))\.(\d+)\.(.+)\.(weight|gamma|beta)", name)
    if block and block[1] in AMUSED_BLOCKS:
        stage, parts = AMUSED_BLOCKS[block[1]]
        if parts is AMUSED_CONV_LAYERS and block[3] == "channelwise_norm" and block[4] != "weight":
            return {f"{stage}.{block[2]}.{block[4]}": tensor[0, 0, 0] if tensor.shape[:-1] == (1, 1, 1) else tensor}
        if block[3] in parts and block[4] == "weight":
            return {f"{stage}.{block[2]}.{parts[block[3]]}.weight": tensor}
    layer, _, kind = name.rpartition(".")
    if layer in AMUSED_LAYERS and kind == "weight":
        pointwise = tensor.ndim == 4 and tensor.shape[2:] == (1, 1)  # a 1x1 convolution is a linear layer
        return {f"{AMUSED_LAYERS[layer]}.weight": tensor[:, :, 0, 0] if pointwise else tensor}
    return {name: tensor}
