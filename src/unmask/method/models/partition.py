"""A transformer without mask tokens: known tokens are encoded, and a decoder answers only the places asked for.

Partition generative modelling (Deschenaux et al., arXiv 2505.18883). In training each row is split into two groups. The
encoder attends within each group, and the decoder predicts each place from the encoded tokens of the *other* group: one
pass, and every token is a target once. In sampling the encoder reads the known tokens alone, so early steps, when most
of the canvas is masked, cost little.

A start token is seen by all and sees itself only, so that an empty group has something to read, and leaks nothing.
Differs from the paper: each decoder block attends to the encoder; there is no extra layer that swaps the groups.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.method.masking import ABSENT, gather_places
from unmask.method.models.conditioning import ClassEmbedding
from unmask.method.models.layers import Attention, Block, RMSNorm, attend, compute_rotary_angles, rotate
from unmask.method.models.partition_config import PartitionConfig

PADDING = 1.1
"""Rows with different numbers of known tokens share a batch while padding costs no more than this factor,"""
PADDED_TOKENS = 4
"""plus this many tokens a row, below which a second batch would cost more than the padding."""


class CrossAttention(nn.Module):
    """Multi-head attention from some places to a source, with QK-norm and rotary positions of both."""

    def __init__(self, dim: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.q_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b m dim"],
        source: Float[Tensor, "b n dim"],
        of_places: tuple[Float[Tensor, "*r m half"], Float[Tensor, "*r m half"]] | None,
        of_source: tuple[Float[Tensor, "*r n half"], Float[Tensor, "*r n half"]] | None,
        present: Bool[Tensor, "_ 1 _ n"] | None = None,
    ) -> Float[Tensor, "b m dim"]:
        q = self.q_norm(self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        k, v = self.kv(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k = self.k_norm(k)
        if of_places is not None and of_source is not None:
            q = rotate(q, *(r.to(q.dtype) for r in of_places))
            k = rotate(k, *(r.to(k.dtype) for r in of_source))
        return self.out(attend(q, k, v.to(q.dtype), present).transpose(1, 2).flatten(2))


class PartitionTransformer(nn.Module):
    """`model(tokens, condition)` returns logits [b, l, K] of the masked places, and 0 at the known ones.

    With a bool `at` [b, l] it computes these places only, and returns [n, K] row by row. With `groups` [b, l] no token
    is masked: each place is predicted from the tokens of the other group.
    """

    takes_places = "masked"
    """`at` saves work, and known places have no answer."""

    def __init__(self, config: PartitionConfig, vocab_size: int, grid: tuple[int, ...]):
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
        dim, self.num_prefix = config.dim, 1 + config.registers + config.prefix
        self.embedding = nn.Embedding(vocab_size, dim)
        self.classes = ClassEmbedding(config.num_classes, dim) if config.num_classes else None
        self.start = nn.Parameter(torch.randn(1 + config.registers, dim) * 0.02)
        self.position = nn.Parameter(torch.randn(self.length, dim) * 0.02)
        self.query = nn.Parameter(torch.randn(self.length, dim) * 0.02)
        self.encoder = nn.ModuleList(self._make_block(Attention) for _ in range(config.encoder_depth))
        self.decoder = nn.ModuleList(self._make_block(CrossAttention) for _ in range(config.decoder_depth))
        self.encoder_norm, self.norm = RMSNorm(dim), RMSNorm(dim)
        self.head = nn.Linear(dim, vocab_size)
        nn.init.normal_(self.embedding.weight, std=0.02)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        angles = compute_rotary_angles(grid, dim // config.heads, self.num_prefix)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def _make_block(self, attention: type[Attention] | type[CrossAttention]) -> Block:
        c = self.config
        modulated = c.num_classes > 0 and not c.prefix
        return Block(
            c.dim, c.mlp_ratio, attention=attention(c.dim, c.heads, c.qk_norm), gated=c.gated, modulated=modulated
        )

    @property
    def mask_id(self) -> int:
        """The id of a masked token: K, one past the last value."""
        return self.vocab_size

    def set_unigram(self, counts: Float[Tensor, "k"]) -> None:
        """Set the head's bias to the token frequencies; see `MaskedTransformer.set_unigram`."""
        with torch.no_grad():
            self.head.bias.copy_(((counts + 1) / (counts + 1).sum()).log())

    def forward(
        self,
        tokens: Int[Tensor, "b l"],
        condition: Int[Tensor, "b"] | None = None,
        at: Bool[Tensor, "b l"] | None = None,
        *,
        groups: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "..."]:
        self._check_inputs(tokens, condition)
        c = None if self.classes is None else self.classes(condition, tokens)
        if groups is not None:
            x = self._answer_groups(tokens, c, groups)
            return self.head(self.norm(x if at is None else x[at])).float()
        known = (tokens != self.mask_id) & (tokens != ABSENT)
        asked = tokens == self.mask_id if at is None else at
        answers = self.head(self.norm(self._answer_places(tokens, c, known, asked))).float()
        if at is not None:
            return answers
        logits = answers.new_zeros(*tokens.shape, self.vocab_size)
        logits[asked] = answers
        return logits

    # -- training: two groups in one pass ------------------------------------------------------------------------------

    def _answer_groups(
        self, tokens: Int[Tensor, "b l"], c: Float[Tensor, "b dim"] | None, groups: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b l dim"]:
        """Return the decoder's output at every place, which saw the tokens of the other group alone."""
        present = tokens != ABSENT
        equal = groups[:, :, None] == groups[:, None]
        among = F.pad(equal & present[:, None], (self.num_prefix, 0, 0, 0), value=True)
        first = torch.arange(among.shape[-1], device=tokens.device) < self.num_prefix
        within = torch.cat([first.expand(len(tokens), self.num_prefix, -1), among], 1)[:, None]
        across = F.pad(~equal & present[:, None], (self.num_prefix, 0), value=True)[:, None]
        place = torch.arange(self.length, device=tokens.device).expand(len(tokens), -1)
        source = self._encode(tokens.clamp(min=0), place, c, within)
        return self._decode(place, place, source, c, across)

    # -- sampling: known tokens in, asked places out -------------------------------------------------------------------

    def _answer_places(
        self,
        tokens: Int[Tensor, "b l"],
        c: Float[Tensor, "b dim"] | None,
        known: Bool[Tensor, "b l"],
        asked: Bool[Tensor, "b l"],
    ) -> Float[Tensor, "n dim"]:
        """Return the decoder's output at the asked places, row by row."""
        number = asked.flatten().cumsum(0).view(asked.shape) - 1
        out = self.query.new_empty(int(asked.sum()), self.config.dim)
        for rows in group_rows(known.sum(1), asked.sum(1)):
            given, has = gather_places(known[rows])
            place, wants = gather_places(asked[rows])
            if not wants.any():
                continue
            condition = None if c is None else c[rows]
            sees = None if has.all() else F.pad(has, (self.num_prefix, 0), value=True)[:, None, None]
            source = self._encode(tokens[rows].gather(1, given) * has, given, condition, self._fence(sees, has))
            x = self._decode(place, given, source, condition, sees)
            out = out.index_copy(0, number[rows].gather(1, place)[wants], x[wants].to(out.dtype))
        return out

    def _fence(self, sees: Tensor | None, has: Bool[Tensor, "r m"]) -> Bool[Tensor, "_ 1 _ _"] | None:
        """Return which tokens each one reads: the prefix itself only, the others all that are there."""
        size = self.num_prefix + has.shape[1]
        if not has.shape[1]:
            return None
        first = torch.arange(size, device=has.device) < self.num_prefix
        fence = ~first[:, None] | first
        return fence[None, None] if sees is None else fence & sees

    # -- both ----------------------------------------------------------------------------------------------------------

    def _encode(
        self,
        tokens: Int[Tensor, "r m"],
        place: Int[Tensor, "r m"],
        c: Float[Tensor, "r dim"] | None,
        visible: Bool[Tensor, "_ 1 _ _"] | None,
    ) -> Float[Tensor, "r n dim"]:
        x = self.embedding(tokens) + self.position[place]
        front = [self.start.expand(len(x), -1, -1)]
        if c is not None and self.config.prefix:
            front.append(c[:, None])
        x = torch.cat([*front, x], dim=1)
        rotation = self._rotate(place, prefixed=True)
        for block in self.encoder:
            x = block(x, c, rotation, visible)
        return self.encoder_norm(x)

    def _decode(
        self,
        place: Int[Tensor, "r q"],
        given: Int[Tensor, "r m"],
        source: Float[Tensor, "r n dim"],
        c: Float[Tensor, "r dim"] | None,
        visible: Bool[Tensor, "_ 1 _ n"] | None,
    ) -> Float[Tensor, "r q dim"]:
        x = self.query[place].to(source.dtype)
        rotations = self._rotate(place, prefixed=False), self._rotate(given, prefixed=True)
        for block in self.decoder:
            x = block(x, c, source, *rotations, visible)
        return x

    def _rotate(self, place: Int[Tensor, "r m"], *, prefixed: bool) -> tuple[Tensor, Tensor] | None:
        """Return the rotations of places, [r, 1, n, half] each, after those of the prefix."""
        if not self.config.rotary:
            return None
        index = place + self.num_prefix
        if prefixed:
            index = torch.cat([torch.arange(self.num_prefix, device=place.device).expand(len(place), -1), index], 1)
        cos, sin = (x[index][:, None] for x in (self.cos, self.sin) if isinstance(x, Tensor))
        return cos, sin

    def _check_inputs(self, tokens: Tensor, condition: Tensor | None) -> None:
        if tokens.shape[1] != self.length:
            raise ValueError(f"got {tokens.shape[1]} tokens per row; this model's grid {self.grid} has {self.length}")
        if condition is not None and self.classes is None:
            raise ValueError("got a condition, but this model has no classes (num_classes=0): pass None")


def group_rows(known: Int[Tensor, "b"], asked: Int[Tensor, "b"]) -> Iterator[Int[Tensor, "r"]]:
    """Yield the rows of a batch in parts that differ little in known and asked tokens, so that padding is cheap.

    Rows with nothing asked for are left out. Rows of equal numbers stay together.
    """
    rows = asked.nonzero()[:, 0]
    rows = rows[(known[rows] * (int(asked.max()) + 1 if len(asked) else 1) + asked[rows]).argsort(stable=True)]
    numbers = torch.stack([known[rows], asked[rows]], 1).tolist()
    first = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or _costs_padding(numbers[first : stop + 1]):
            yield rows[first:stop]
            first = stop


def _costs_padding(numbers: list[list[int]]) -> bool:
    """Return whether padding rows to the largest numbers costs too much."""
    return any(
        max(each) * len(each) > PADDING * sum(each) + PADDED_TOKENS * len(each) for each in zip(*numbers, strict=True)
    )
