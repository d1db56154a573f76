"""Google's own MaskGIT (Chang et al. 2022, arXiv 2202.04200), and its published weights by our names.

A BERT (arXiv 1810.04805): post-norm, the token of the class first, codes, classes and mask in one table, which is also
the head. Weights: `{maskgit,tokenizer}_imagenet{256,512}_checkpoint` of storage.googleapis.com/maskgit-public
(Apache-2.0), read by `unmask.storage.foreign.flax`. They were trained with a dropout of 0.1, which is left
out here.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError
from unmask.method.guidance import NULL
from unmask.method.models.conditioning import ClassEmbedding
from unmask.pretrained.bert import EPS, PostNormBlock
from unmask.pretrained.ids import check_classes, check_rows, readable
from unmask.pretrained.maskgit_vqgan import MaskGITVQGAN


@dataclass(frozen=True, kw_only=True)
class GoogleMaskGIT:
    """Sizes of the network; `mlp_dim` is the hidden width of its MLPs.

    The published weights know no "no class": they are conditional, and were sampled without guidance. `null_class`:
    NULL is allowed all the same; it starts as the mean of all classes, and training with dropped labels teaches it.
    """

    dim: int = 768
    depth: int = 24
    heads: int = 16
    mlp_dim: int = 3072
    num_classes: int = 1000
    null_class: bool = False

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads, self.mlp_dim, self.num_classes) < 1 or self.dim % self.heads:
            raise ValueError(f"{self}: all must be at least 1 and dim a multiple of heads")

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "GoogleTransformer":
        return GoogleTransformer(self, vocab_size, grid)


BASE_256 = GoogleMaskGIT()
"""maskgit_imagenet256_checkpoint: 172,457,193 values with K = 1024 and a grid of 16x16; FID 6.06 in its README."""
BASE_512 = BASE_256
"""maskgit_imagenet512_checkpoint: 173,047,017 values; the same sizes on a grid of 32x32; FID 7.32 in its README."""


def check_null(config: object, *, labelled: bool, guided: bool) -> None:
    """ConfigError where "no class" is needed, for pictures without labels or for guidance, and the network has none.

    The network itself looks at ids on a CPU alone.
    """
    if not isinstance(config, GoogleMaskGIT) or config.null_class:
        return
    if not labelled:
        raise ConfigError('this model was trained without "no class": give each picture a label')
    if guided:
        raise ConfigError('this model was trained without "no class" to guide away from: give --scale 1')


class GoogleTransformer(nn.Module):
    """`model(tokens, condition)` gives logits [b, l, K]; with a bool `at` [b, l], only those rows, [n, K].

    `vocab_size` is K and `grid` the shape of the canvas, l = prod(grid). Condition is class ids.
    """

    def __init__(self, config: GoogleMaskGIT, vocab_size: int, grid: tuple[int, ...]):
        super().__init__()
        if vocab_size < 1 or not 1 <= len(grid) <= 3 or min(grid) < 1:
            raise ValueError(f"vocab_size {vocab_size} and grid {grid}: need a token or more, and 1 to 3 axes of cells")
        self.config, self.vocab_size, self.grid = config, vocab_size, grid
        self.length, dim = torch.Size(grid).numel(), config.dim
        self.embedding = nn.Embedding(vocab_size + 1, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.classes = ClassEmbedding(config.num_classes, dim)
        self.position = nn.Parameter(torch.randn(self.length, dim) * 0.02)
        self.class_position = nn.Parameter(torch.randn(dim) * 0.02)
        self.first = nn.LayerNorm(dim, eps=EPS)
        self.blocks = nn.ModuleList(
            PostNormBlock(dim, config.heads, config.mlp_dim, "tanh") for _ in range(config.depth)
        )
        self.last = nn.Sequential(nn.Linear(dim, dim), nn.GELU(approximate="tanh"), nn.LayerNorm(dim, eps=EPS))
        self.head_bias = nn.Parameter(torch.zeros(vocab_size))

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
        if not self.config.null_class and (condition is None or (readable(condition) and (condition == NULL).any())):
            raise ValueError(
                "this model was trained without a null class: give every row a class, and leave the guidance scale at 1"
            )
        check_classes(condition, self.config.num_classes)
        label = self.classes(condition, tokens) + self.class_position
        x = self.first(torch.cat([label[:, None], self.embedding(tokens) + self.position], dim=1))
        for block in self.blocks:
            x = block(x)
        x = self.last(x[:, 1:] if at is None else x[:, 1:][at])
        logits = F.linear(x, self.embedding.weight[:-1], self.head_bias)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


# -- the published files: names as flax nests them, joined by "/" ------------------------------------------------------

LAYER = {
    "Attention_0/self_attention/query": "query",
    "Attention_0/self_attention/key": "key",
    "Attention_0/self_attention/value": "value",
    "Attention_0/self_attention/out": "out",
    "Attention_0/attention_output_ln": "norm1",
    "Mlp_0/intermediate_output": "up",
    "Mlp_0/layer_output": "down",
    "Mlp_0/layer_output_ln": "norm2",
}
ENDS = {"Embed_0/embeddings_ln": "first", "MlmLayer_0/mlm_dense": "last.0", "MlmLayer_0/mlm_ln": "last.2"}
RENAMED = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def translate(config: GoogleMaskGIT, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of the published file by our names; an unknown name is returned unchanged."""
    if name == "Embed_0/word_embeddings/embedding":
        codes, classes, mask = _vocabulary(config, name, tensor)
        # The published table has no row for "no class".
        null = classes.to(torch.promote_types(classes.dtype, torch.float32)).mean(0, keepdim=True).to(classes.dtype)
        return {"embedding.weight": torch.cat([codes, mask]), "classes.table.weight": torch.cat([null, classes])}
    if name == "MlmLayer_0/mlm_bias/bias":
        return {"head_bias": _vocabulary(config, name, tensor)[0]}
    if name == "Embed_0/position_embeddings/embedding":
        if tensor.ndim != 2 or len(tensor) < 2:
            raise CheckpointError(f"{name} is {tuple(tensor.shape)}: it must be positions of the class and of cells")
        return {"class_position": tensor[0], "position": tensor[1:]}
    part, _, kind = name.rpartition("/")
    layer = re.fullmatch(r"TransformerLayer_(\d+)/(.+)", part)
    if layer and layer[2] in LAYER and kind in RENAMED:
        ours = LAYER[layer[2]]
        if ours in ("query", "key", "value", "out"):
            tensor = _merge_heads(config, name, tensor, ours)
        return {f"blocks.{layer[1]}.{ours}.{RENAMED[kind]}": _transposed(kind, tensor)}
    if part in ENDS and kind in RENAMED:
        return {f"{ENDS[part]}.{RENAMED[kind]}": _transposed(kind, tensor)}
    return {name: tensor}


def _vocabulary(config: GoogleMaskGIT, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
    """The rows of the codes, of the classes and of the mask, in the published order."""
    codes = len(tensor) - config.num_classes - 1 if tensor.ndim else 0
    if codes < 1:
        raise CheckpointError(
            f"{name} is {tuple(tensor.shape)}: it must have rows for codes, {config.num_classes} classes and a mask"
        )
    return tensor.split([codes, config.num_classes, 1])


def _merge_heads(config: GoogleMaskGIT, name: str, tensor: Tensor, part: str) -> Tensor:
    """Heads and their widths become one axis; other heads of the same total width would be another network."""
    heads: tuple[int, ...] = (config.heads, config.dim // config.heads)
    if name.endswith("/kernel"):
        shape = (*heads, config.dim) if part == "out" else (config.dim, *heads)
    else:
        shape = (config.dim,) if part == "out" else heads
    if tensor.shape != shape:
        raise CheckpointError(f"{name} is {tuple(tensor.shape)}, not {shape}: set dim and heads to those of the file")
    return tensor if tensor.ndim == 1 else tensor.flatten(0, 1) if part == "out" else tensor.flatten(-2)


def _transposed(kind: str, tensor: Tensor) -> Tensor:
    """Kernels are (..., in, out) in flax, and (out, in, ...) in torch; another tensor is as it was."""
    if kind == "kernel" and tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    return tensor.T if kind == "kernel" and tensor.ndim == 2 else tensor


BLOCK = {"GroupNorm_0": "norm1", "GroupNorm_1": "norm2", "Conv_0": "conv1", "Conv_1": "conv2", "Conv_2": "shortcut"}


def translate_tokenizer(config: MaskGITVQGAN, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of the published tokenizer by the names of `MaskGITVQGAN`; an unknown name is returned unchanged.

    flax counts blocks and convolutions in the order in which they run, and the decoder starts at the coarsest level.
    """
    if name == "quantizer/codebook":
        return {"codebook.weight": tensor}
    found = re.fullmatch(r"(encoder|decoder)/(?:ResBlock_(\d+)/)?(\w+)/(kernel|scale|bias)", name)
    if not found:
        return {name: tensor}
    half, block, layer, kind = found.groups()
    if block is None:
        place = _ends(config, half).get(layer)
    else:
        place = f"{_place(config, half, int(block))}.{BLOCK[layer]}" if layer in BLOCK else None
    if place is None:
        return {name: tensor}
    return {f"{half}.{place}.{RENAMED[kind]}": _transposed(kind, tensor)}


def _ends(config: MaskGITVQGAN, half: str) -> dict[str, str]:
    """What is outside of the residual blocks."""
    levels = len(config.multipliers)
    if half == "encoder":
        return {"Conv_0": "conv_in", "GroupNorm_0": "norm_out", "Conv_1": "conv_out"}
    ups = {f"Conv_{i}": f"up.{levels - i}.upsample_conv" for i in range(1, levels)}
    return {"Conv_0": "conv_in", **ups, "GroupNorm_0": "norm_out", f"Conv_{levels}": "conv_out"}


def _place(config: MaskGITVQGAN, half: str, block: int) -> str:
    """Where a residual block is; one too many gets a place that no network has."""
    levels, each = len(config.multipliers), config.blocks
    if half == "encoder":
        level, i = divmod(block, each)
        return f"down.{level}.block.{i}" if level < levels else f"mid.{block - levels * each}"
    level, i = divmod(block - each, each)
    return f"mid.{block}" if block < each else f"up.{levels - 1 - level}.block.{i}"
