"""The bidirectional transformer of MaskGIT (arXiv 2202.04200) in its modern form, over 1-D, 2-D and 3-D token grids.

K + 1 input rows (the last is the mask) and K outputs: the mask cannot be predicted and no logit is ever cropped.
Rotary positions alone would make all positions of an all-masked canvas identical, so learned absolute ones are added.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.method.masking import ABSENT
from unmask.method.models.conditioning import ClassEmbedding
from unmask.method.models.layers import Block, RMSNorm, compute_rotary_angles


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """`num_classes` 0: unconditional. `prefix`: the class is a token, not adaLN-zero. `gated`: SwiGLU, else GELU.

    `padded`: rows may end early; places whose token is ABSENT (-1) are seen by no other. `self_condition`: reads what
    it predicted before. `critic`: judges whether tokens are right, with a "head" beside that of the vocabulary, with a
    "separate" network of the same sizes, or with such a network "only", which predicts nothing.
    """

    dim: int = 128
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    gated: bool = True
    qk_norm: bool = True
    rotary: bool = True
    absolute: bool = True
    registers: int = 0
    num_classes: int = 0
    prefix: bool = False
    padded: bool = False
    self_condition: bool = False
    critic: Literal["none", "head", "separate", "only"] = "none"

    def __post_init__(self) -> None:
        if self.self_condition and self.critic == "only":
            raise ValueError(
                'TransformerConfig(critic="only", self_condition=True): what predicts nothing has nothing to remember'
            )
        if min(self.dim, self.depth, self.heads) < 1 or self.mlp_ratio <= 0 or self.dim % (2 * self.heads):
            raise ValueError(
                f"TransformerConfig(dim={self.dim}, depth={self.depth}, heads={self.heads}, "
                f"mlp_ratio={self.mlp_ratio}): all must be positive and dim a multiple of 2 * heads"
            )
        if self.dim * self.mlp_ratio < 12:
            raise ValueError(
                f"TransformerConfig(mlp_ratio={self.mlp_ratio}): the MLP would be empty; 4 is the usual ratio"
            )
        if min(self.registers, self.num_classes) < 0 or (self.prefix and not self.num_classes):
            raise ValueError(
                f"TransformerConfig(registers={self.registers}, num_classes={self.num_classes}, prefix={self.prefix}): "
                "counts are at least 0, and a class prefix needs num_classes"
            )
        if not self.absolute and not (self.rotary and (self.registers or self.prefix)):
            raise ValueError(
                "TransformerConfig(absolute=False): an all-masked canvas then looks the same everywhere; "
                "keep absolute=True, or rotary=True with registers=1"
            )

    def build(self, vocab_size: int, grid: tuple[int, ...]) -> "MaskedTransformer":
        return MaskedTransformer(self, vocab_size, grid)


class MaskedTransformer(nn.Module):
    """`model(tokens, condition)` gives logits [b, l, K]; with a bool `at` [b, l], only those rows, [n, K].

    `vocab_size` is K and `grid` the shape of the canvas, l = prod(grid). Condition is class ids, NULL (-1), or None.
    `memory`: the probabilities it gave before, or zeros in a row without; its first effect is none, by a zero start.
    `judge`: not logits of tokens but, [b, l] or [n], the logit that each token of a filled canvas is the original.
    """

    def __init__(self, config: TransformerConfig, vocab_size: int, grid: tuple[int, ...]):
        super().__init__()
        if vocab_size < 1 or not 1 <= len(grid) <= 3 or min(grid) < 1:
            raise ValueError(f"vocab_size {vocab_size} and grid {grid}: need a token or more, and 1 to 3 axes of cells")
        if config.rotary and config.dim // config.heads < 2 * len(grid):
            raise ValueError(
                f"dim {config.dim} over {config.heads} heads leaves no rotary pair for each axis of the grid {grid}: "
                f"take fewer heads, or rotary=False"
            )
        self.config, self.vocab_size, self.grid = config, vocab_size, grid
        self.length = torch.Size(grid).numel()
        dim, self.extra = config.dim, config.registers + config.prefix
        self.embedding = nn.Embedding(vocab_size + 1, dim)
        self.classes = ClassEmbedding(config.num_classes, dim) if config.num_classes else None
        self.registers = nn.Parameter(torch.randn(config.registers, dim) * 0.02) if config.registers else None
        self.position = nn.Parameter(torch.randn(self.length, dim) * 0.02) if config.absolute else None
        modulated = self.classes is not None and not config.prefix
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.mlp_ratio, gated=config.gated, qk_norm=config.qk_norm, modulated=modulated)
            for _ in range(config.depth)
        )
        self.norm = RMSNorm(dim)
        self.head = None if config.critic == "only" else nn.Linear(dim, vocab_size)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.verdict = nn.Linear(dim, 1) if config.critic in ("head", "only") else None
        self.recall = nn.Linear(dim, dim, bias=False) if config.self_condition else None
        for start in (self.head, self.verdict, self.recall):
            for parameter in () if start is None else start.parameters():
                nn.init.zeros_(parameter)
        self.critic = None
        if config.critic == "separate":
            self.critic = MaskedTransformer(replace(config, critic="only", self_condition=False), vocab_size, grid)
        angles = compute_rotary_angles(grid, dim // config.heads, self.extra)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @property
    def mask_id(self) -> int:
        """The input row of a masked token: K, one past the last value."""
        return self.vocab_size

    def set_unigram(self, counts: Float[Tensor, "k"]) -> None:
        """Start from the tokens' own frequencies: with the zero head, the first loss is the unigram entropy.

        Every count is raised by one, so a token absent from the sample stays possible.
        """
        if self.head is None:
            raise ValueError("a critic predicts no tokens: it cannot start from their frequencies")
        with torch.no_grad():
            self.head.bias.copy_(((counts + 1) / (counts + 1).sum()).log())

    def forward(
        self,
        tokens: Int[Tensor, "b l"],
        condition: Int[Tensor, "b"] | None = None,
        at: Bool[Tensor, "b l"] | None = None,
        memory: Float[Tensor, "b l k"] | None = None,
        *,
        judge: bool = False,
    ) -> Float[Tensor, "..."]:
        if judge and self.critic is not None:
            return self.critic(tokens, condition, at, judge=True)
        self._check(tokens, condition, memory, judge)
        present = None
        if self.config.padded:
            present = F.pad(tokens != ABSENT, (self.extra, 0), value=True)[:, None, None]
            tokens = tokens.clamp(min=0)
        x = self.embedding(tokens)
        if self.recall is not None:
            table = self.embedding.weight[:-1]
            # Without a memory the layer still takes part: processes that train together need every gradient.
            x = x + self.recall(x.new_zeros(1, 1, x.shape[-1]) if memory is None else memory.to(table.dtype) @ table)
        if self.position is not None:
            x = x + self.position
        front = []
        if self.registers is not None:
            front.append(self.registers.expand(len(x), -1, -1))
        c = None if self.classes is None else self.classes(condition, tokens)
        if c is not None and self.config.prefix:
            front.append(c[:, None])
        x = torch.cat([*front, x], dim=1) if front else x
        rotation = (self.cos, self.sin) if self.config.rotary else None
        for block in self.blocks:
            x = block(x, c, rotation, present)
        x = x[:, self.extra :]
        x = self.norm(x if at is None else x[at])
        if self.verdict is not None and judge:
            return self.verdict(x).float().sum(-1)  # of one number; no view, which FSDP warns of
        return self.head(x).float()  # type: ignore[misc]

    def _check(self, tokens: Tensor, condition: Tensor | None, memory: Tensor | None, judge: bool) -> None:
        if tokens.shape[1] != self.length:
            raise ValueError(f"got {tokens.shape[1]} tokens per row; this model's grid {self.grid} has {self.length}")
        if condition is not None and self.classes is None:
            raise ValueError("got a condition, but this model has no classes: num_classes is 0")
        if memory is not None and self.recall is None:
            raise ValueError("got a memory, but this model was made with self_condition=False")
        if (self.verdict if judge else self.head) is None:
            wanted = 'a judge: make it with critic="head" or "separate"' if judge else "a generator, but a critic only"
            raise ValueError(f"this model is not {wanted}")
