"""Google's MaskGIT (Chang et al. 2022, arXiv 2202.04200), and the translation of its published weights.

A BERT (arXiv 1810.04805): post-norm, with the class as first token. One published table holds codes, classes and mask,
and it is also the head. Weights: `{maskgit,tokenizer}_imagenet{256,512}_checkpoint` of
storage.googleapis.com/maskgit-public (Apache-2.0), read by `unmask.storage.foreign.flax`. The authors trained with
dropout 0.1; this version has no dropout.
"""

import re

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.errors import CheckpointError
from unmask.method.guidance import NULL
from unmask.pretrained.bert import BERT_EPS, PostNormBlock
from unmask.pretrained.configs import GoogleMaskGIT, MaskGITVQGAN
from unmask.pretrained.generators import ClassGenerator
from unmask.pretrained.ids import can_read

GOOGLE_BASE_256 = GoogleMaskGIT()
"""maskgit_imagenet256_checkpoint: 172,457,193 values with K = 1024 and a grid of 16x16; FID 6.06 in its README."""
GOOGLE_BASE_512 = GOOGLE_BASE_256
"""maskgit_imagenet512_checkpoint: 173,047,017 values; the same sizes on a grid of 32x32; FID 7.32 in its README."""


class GoogleTransformer(ClassGenerator):
    """The network; see `ClassGenerator` for how to call it. Without `null_class` every row needs a class."""

    config: GoogleMaskGIT

    def __init__(self, config: GoogleMaskGIT, vocab_size: int, grid: tuple[int, ...]):
        dim = config.dim
        super().__init__(dim, config.num_classes, vocab_size, grid)
        self.config = config
        self.position = nn.Parameter(torch.randn(self.length, dim) * 0.02)
        self.class_position = nn.Parameter(torch.randn(dim) * 0.02)
        self.first = nn.LayerNorm(dim, eps=BERT_EPS)
        self.blocks = nn.ModuleList(
            PostNormBlock(dim, config.heads, config.mlp_dim, "tanh") for _ in range(config.depth)
        )
        self.last = nn.Sequential(nn.Linear(dim, dim), nn.GELU(approximate="tanh"), nn.LayerNorm(dim, eps=BERT_EPS))
        self.head_bias = nn.Parameter(torch.zeros(vocab_size))

    def check_condition(self, condition: Int[Tensor, "b"] | None) -> None:
        """Raise ValueError for an unknown class, and for NULL if the network does not have it."""
        if not self.config.null_class and (condition is None or (can_read(condition) and (condition == NULL).any())):
            raise ValueError(
                "this model was trained without a null class: give every row a class, and leave the guidance scale at 1"
            )
        super().check_condition(condition)

    def predict(
        self, tokens: Int[Tensor, "b l"], label: Float[Tensor, "b dim"], at: Bool[Tensor, "b l"] | None
    ) -> Float[Tensor, "..."]:
        first = label + self.class_position
        x = self.first(torch.cat([first[:, None], self.embedding(tokens) + self.position], dim=1))
        for block in self.blocks:
            x = block(x)
        x = self.last(x[:, 1:] if at is None else x[:, 1:][at])
        return F.linear(x, self.embedding.weight[:-1], self.head_bias)


# -- the published files: names as flax nests them, joined by "/" ------------------------------------------------------

GOOGLE_BLOCK_LAYERS = {
    "Attention_0/self_attention/query": "query",
    "Attention_0/self_attention/key": "key",
    "Attention_0/self_attention/value": "value",
    "Attention_0/self_attention/out": "out",
    "Attention_0/attention_output_ln": "norm1",
    "Mlp_0/intermediate_output": "up",
    "Mlp_0/layer_output": "down",
    "Mlp_0/layer_output_ln": "norm2",
}
"""Published layers of one block, and ours."""
GOOGLE_LAYERS = {"Embed_0/embeddings_ln": "first", "MlmLayer_0/mlm_dense": "last.0", "MlmLayer_0/mlm_ln": "last.2"}
GOOGLE_KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
"""Kinds of parameters in flax, and in torch."""


def translate(config: GoogleMaskGIT, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate one tensor of the published file to our names; return an unknown name unchanged."""
    if name == "Embed_0/word_embeddings/embedding":
        codes, classes, mask = _split_rows(config, name, tensor)
        # The published table has no row for "no class".
        null = classes.to(torch.promote_types(classes.dtype, torch.float32)).mean(0, keepdim=True).to(classes.dtype)
        return {"embedding.weight": torch.cat([codes, mask]), "classes.table.weight": torch.cat([null, classes])}
    if name == "MlmLayer_0/mlm_bias/bias":
        return {"head_bias": _split_rows(config, name, tensor)[0]}
    if name == "Embed_0/position_embeddings/embedding":
        if tensor.ndim != 2 or len(tensor) < 2:
            raise CheckpointError(f"{name} is {tuple(tensor.shape)}: it must be positions of the class and of cells")
        return {"class_position": tensor[0], "position": tensor[1:]}
    part, _, kind = name.rpartition("/")
    layer = re.fullmatch(r"TransformerLayer_(\d+)/(.+)", part)
    if layer and layer[2] in GOOGLE_BLOCK_LAYERS and kind in GOOGLE_KINDS:
        ours = GOOGLE_BLOCK_LAYERS[layer[2]]
        if ours in ("query", "key", "value", "out"):
            tensor = _merge_heads(config, name, tensor, ours)
        return {f"blocks.{layer[1]}.{ours}.{GOOGLE_KINDS[kind]}": _transpose_kernel(kind, tensor)}
    if part in GOOGLE_LAYERS and kind in GOOGLE_KINDS:
        return {f"{GOOGLE_LAYERS[part]}.{GOOGLE_KINDS[kind]}": _transpose_kernel(kind, tensor)}
    return {name: tensor}


def _split_rows(config: GoogleMaskGIT, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
    """Split a table into the rows of codes, classes and mask, in the published order."""
    codes = len(tensor) - config.num_classes - 1 if tensor.ndim else 0
    if codes < 1:
        raise CheckpointError(
            f"{name} is {tuple(tensor.shape)}: it must have rows for codes, {config.num_classes} classes and a mask"
        )
    return tensor.split([codes, config.num_classes, 1])


def _merge_heads(config: GoogleMaskGIT, name: str, tensor: Tensor, part: str) -> Tensor:
    """Merge the axes of heads and of their width. Raise CheckpointError for other heads: it is another network."""
    heads: tuple[int, ...] = (config.heads, config.dim // config.heads)
    if name.endswith("/kernel"):
        shape = (*heads, config.dim) if part == "out" else (config.dim, *heads)
    else:
        shape = (config.dim,) if part == "out" else heads
    if tensor.shape != shape:
        raise CheckpointError(f"{name} is {tuple(tensor.shape)}, not {shape}: set dim and heads to those of the file")
    return tensor if tensor.ndim == 1 else tensor.flatten(0, 1) if part == "out" else tensor.flatten(-2)


def _transpose_kernel(kind: str, tensor: Tensor) -> Tensor:
    """Transpose a kernel from (..., in, out), as in flax, to (out, in, ...). Return another tensor unchanged."""
    if kind == "kernel" and tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    return tensor.T if kind == "kernel" and tensor.ndim == 2 else tensor


GOOGLE_CONV_LAYERS = {
    "GroupNorm_0": "norm1",
    "GroupNorm_1": "norm2",
    "Conv_0": "conv1",
    "Conv_1": "conv2",
    "Conv_2": "shortcut",
}


def translate_tokenizer(config: MaskGITVQGAN, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate one tensor of the published tokenizer to `MaskGITVQGAN`; return an unknown name unchanged.

    flax counts blocks and convolutions in the order in which they run. The decoder runs the coarsest level first.
    """
    if name == "quantizer/codebook":
        return {"codebook.weight": tensor}
    found = re.fullmatch(r"(encoder|decoder)/(?:ResBlock_(\d+)/)?(\w+)/(kernel|scale|bias)", name)
    if not found:
        return {name: tensor}
    half, block, layer, kind = found.groups()
    if block is None:
        place = _map_outer_layers(config, half).get(layer)
    else:
        place = (
            f"{_locate_block(config, half, int(block))}.{GOOGLE_CONV_LAYERS[layer]}"
            if layer in GOOGLE_CONV_LAYERS
            else None
        )
    if place is None:
        return {name: tensor}
    return {f"{half}.{place}.{GOOGLE_KINDS[kind]}": _transpose_kernel(kind, tensor)}


def _map_outer_layers(config: MaskGITVQGAN, half: str) -> dict[str, str]:
    """Map the layers outside of the residual blocks to our names."""
    levels = len(config.multipliers)
    if half == "encoder":
        return {"Conv_0": "conv_in", "GroupNorm_0": "norm_out", "Conv_1": "conv_out"}
    ups = {f"Conv_{i}": f"up.{levels - i}.upsample_conv" for i in range(1, levels)}
    return {"Conv_0": "conv_in", **ups, "GroupNorm_0": "norm_out", f"Conv_{levels}": "conv_out"}


def _locate_block(config: MaskGITVQGAN, half: str, block: int) -> str:
    """Return the place of a residual block. A surplus block gets a place that no network has."""
    levels, each = len(config.multipliers), config.blocks
    if half == "encoder":
        level, i = divmod(block, each)
        return f"down.{level}.block.{i}" if level < levels else f"mid.{block - levels * each}"
    level, i = divmod(block - each, each)
    return f"mid.{block}" if block < each else f"up.{levels - 1 - level}.block.{i}"
