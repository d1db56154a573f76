"""The bidirectional transformer of MaskGIT (arXiv 2202.04200) in its modern form, over 1-D, 2-D and 3-D token grids.

It has K + 1 input rows (the last is the mask) and K outputs: the mask cannot be predicted and no logit is ever cropped.
With rotary positions alone all positions of an all-masked canvas are identical, so it adds learned absolute positions.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.method.masking import ABSENT, gather_places
from unmask.method.models.conditioning import ClassEmbedding
from unmask.method.models.configs import TransformerConfig as TransformerConfig
from unmask.method.models.layers import Attention, Block, RMSNorm, compute_rotary_angles


class MaskedTransformer(nn.Module):
    """`model(tokens, condition)` returns logits [b, l, K]; with a bool `at` [b, l], only those rows, [n, K].

    `vocab_size` is K and `grid` the shape of the canvas, l = prod(grid). Conditions are class ids, NULL (-1), or None.
    `memory`: its previous probabilities, zeros in a row without. The layer starts at zero: at first it changes nothing.
    `judge`: return, as [b, l] or [n], the logit that each token of a filled canvas is the original one.
    """

    def __init__(self, config: TransformerConfig, vocab_size: int, grid: tuple[int, ...]):
        super().__init__()
        if vocab_size < 1 or not 1 <= len(grid) <= 3 or min(grid) < 1:
            raise ValueError(f"vocab_size {vocab_size}, grid {grid}: must be >= 1, and 1 to 3 axes of at least 1 cell")
        if config.rotary and config.dim // config.heads < 2 * len(grid):
            raise ValueError(
                f"dim {config.dim} with {config.heads} heads has no rotary pair for each axis of the grid {grid}: "
                f"use fewer heads, or rotary=False"
            )
        self.config, self.vocab_size, self.grid = config, vocab_size, grid
        self.length = torch.Size(grid).numel()
        dim, self.num_prefix = config.dim, config.registers + config.prefix
        self.embedding = nn.Embedding(vocab_size + 1, dim)
        self.classes = ClassEmbedding(config.num_classes, dim) if config.num_classes else None
        self.registers = nn.Parameter(torch.randn(config.registers, dim) * 0.02) if config.registers else None
        self.position = nn.Parameter(torch.randn(self.length, dim) * 0.02) if config.absolute else None
        options = {"gated": config.gated, "modulated": self.classes is not None and not config.prefix}
        self.blocks = nn.ModuleList(
            Block(dim, config.mlp_ratio, attention=Attention(dim, config.heads, config.qk_norm), **options)
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
        angles = compute_rotary_angles(grid, dim // config.heads, self.num_prefix)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @property
    def mask_id(self) -> int:
        """The id of a masked token: K, one past the last value."""
        return self.vocab_size

    @property
    def takes_places(self) -> bool:
        """Whether `at` saves work in sampling: not where a new shape makes a GPU wait, or compiles the code again."""
        return self.embedding.weight.device.type == "cpu" and getattr(self, "_compiled_call_impl", None) is None

    def set_unigram(self, counts: Float[Tensor, "k"]) -> None:
        """Set the head's bias to the token frequencies: as its weight is zero, the first loss is the unigram entropy.

        Every count is raised by one, so that a token missing from the counts stays possible.
        """
        if self.head is None:
            raise ValueError("a critic predicts no tokens, so it has no token frequencies to set")
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
        self._check_inputs(tokens, condition, memory, judge)
        present = None
        if self.config.padded:
            present = F.pad(tokens != ABSENT, (self.num_prefix, 0), value=True)[:, None, None]
            tokens = tokens.clamp(min=0)
        x = self.embedding(tokens)
        if self.recall is not None:
            table = self.embedding.weight[:-1]
            # Without a memory the layer still runs: distributed training needs every gradient.
            x = x + self.recall(x.new_zeros(1, 1, x.shape[-1]) if memory is None else memory.to(table.dtype) @ table)
        if self.position is not None:
            x = x + self.position
        prefix_tokens = []
        if self.registers is not None:
            prefix_tokens.append(self.registers.expand(len(x), -1, -1))
        c = None if self.classes is None else self.classes(condition, tokens)
        if c is not None and self.config.prefix:
            prefix_tokens.append(c[:, None])
        x = torch.cat([*prefix_tokens, x], dim=1) if prefix_tokens else x
        rotation = (self.cos, self.sin) if self.config.rotary else None
        for block in self.blocks[:-1]:
            x = block(x, c, rotation, present)
        if at is None or torch.is_grad_enabled():
            x = self.blocks[-1](x, c, rotation, present)[:, self.num_prefix :]
            x = x if at is None else x[at]
        else:  # what is not asked for needs no last block
            place, wanted = gather_places(at)
            x = self.blocks[-1](x, c, rotation, present, place=place + self.num_prefix)[wanted]
        x = self.norm(x)
        if self.verdict is not None and judge:
            return self.verdict(x).float().sum(-1)  # sums one number: FSDP warns of views
        return self.head(x).float()  # type: ignore[misc]

    def _check_inputs(self, tokens: Tensor, condition: Tensor | None, memory: Tensor | None, judge: bool) -> None:
        if tokens.shape[1] != self.length:
            raise ValueError(f"got {tokens.shape[1]} tokens per row; this model's grid {self.grid} has {self.length}")
        if condition is not None and self.classes is None:
            raise ValueError("got a condition, but this model has no classes (num_classes=0): pass None")
        if memory is not None and self.recall is None:
            raise ValueError("got a memory, but this model has self_condition=False: pass None")
        if (self.verdict if judge else self.head) is None:
            problem = 'has no judge: build it with critic="head" or "separate"' if judge else "is a critic only"
            raise ValueError(f"this model {problem}")
