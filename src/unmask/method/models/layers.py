"""Parts of a modern bidirectional transformer block: rotary positions over any grid, attention, MLP, modulation.

Pre-norm with RMSNorm (arXiv 1910.07467), QK-norm (arXiv 2302.05442), SwiGLU (arXiv 2002.05202), rotary positions
(arXiv 2104.09864) with one share of the head per grid axis, and adaLN-zero conditioning (DiT, arXiv 2212.09748).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

EXPLICIT_ATTENTION_LENGTH = 256
"""Up to this length explicit attention beats SDPA in bf16 training on a CPU (benchmarks/attention.py)."""
SCORES = 1 << 22
"""Most scores at once on a CPU without gradients: larger matrices need fresh memory, with a fault for every page."""


def compute_rotary_angles(grid: tuple[int, ...], head_dim: int, num_prefix: int) -> Float[Tensor, "n half"]:
    """Return the angles of `num_prefix` tokens without position (angle 0), then of the cells in row-major order.

    Each axis rotates head_dim / (2 axes) frequencies by its coordinate. Frequencies fall from 1 to about 1/100, which
    suits grids of tens of cells (the 1/10,000 of language models would leave most pairs unused).
    """
    pairs = head_dim // 2 // len(grid)
    frequency = 100.0 ** -(torch.arange(pairs) / pairs)
    axes = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    angles = torch.cat([a.reshape(-1, 1) * frequency for a in axes], dim=1)
    return F.pad(angles, (0, head_dim // 2 - angles.shape[1], num_prefix, 0))


def rotate(
    x: Float[Tensor, "b h n d"], cos: Float[Tensor, "*r n half"], sin: Float[Tensor, "*r n half"]
) -> Float[Tensor, "b h n d"]:
    """Rotate each pair (x_i, x_{i + d/2}) by its angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attend(
    q: Float[Tensor, "b h m d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    present: Bool[Tensor, "_ 1 _ n"] | None = None,
) -> Float[Tensor, "b h m d"]:
    """Compute attention to the `present` tokens, by the faster of two routes; the explicit one rounds to bf16."""
    learns, (b, heads, length, _) = torch.is_grad_enabled(), q.shape
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if not slow or not q.numel() or (learns and length > EXPLICIT_ATTENTION_LENGTH):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=present)
    absent = None if present is None else ~present.expand(b, heads, -1, -1).flatten(0, 1)
    q, k, v = (x.flatten(0, 1).contiguous() for x in (q, k, v))
    at_once, done = b * heads if learns else max(1, SCORES // (length * k.shape[1])), []
    for part in (slice(i, i + at_once) for i in range(0, b * heads, at_once)):
        scores = q[part] * q.shape[-1] ** -0.5 @ k[part].mT
        scores = scores if absent is None else scores.masked_fill(absent[part], -torch.inf)
        done.append(torch.softmax(scores, -1, out=None if learns else scores) @ v[part])
    return torch.cat(done).unflatten(0, (b, heads))


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm with its scale in the type of its input, which keeps the fused kernel under autocast.

    A CPU has no such kernel. There, without gradients, explicit code is three times as fast in bfloat16.
    """

    def forward(self, x: Float[Tensor, "*n dim"]) -> Float[Tensor, "*n dim"]:
        weight = self.weight.to(x.dtype)
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return F.rms_norm(x, self.normalized_shape, weight, self.eps)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        # The kernel uses float32's eps, against its documentation: bfloat16's would swallow small activations.
        eps = torch.finfo(torch.float32).eps if self.eps is None else self.eps
        return x * (length.square() / x.shape[-1] + eps).rsqrt().to(x.dtype) * weight


class Attention(nn.Module):
    """Bidirectional multi-head self-attention with QK-norm and rotary positions."""

    def __init__(self, dim: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.q_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b n dim"],
        rotation: tuple[Float[Tensor, "*r n half"], Float[Tensor, "*r n half"]] | None,
        present: Bool[Tensor, "_ 1 _ n"] | None = None,
        place: Int[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b _ dim"]:
        """Return the attention of all tokens, or of those at the index `place`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            cos, sin = (r.to(q.dtype) for r in rotation)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if place is not None:
            q = q.gather(2, place[:, None, :, None].expand(-1, self.heads, -1, q.shape[-1]))
        return self.out(attend(q, k, v.to(q.dtype), present).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU, at 2/3 of the hidden width so that it has the size of the plain MLP, or the plain GELU MLP."""

    def __init__(self, dim: int, ratio: float, gated: bool):
        super().__init__()
        self.gated = gated
        hidden = round(dim * ratio * 2 / 3 / 8) * 8 if gated else round(dim * ratio)
        self.up = nn.Linear(dim, hidden * (2 if gated else 1), bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        x = self.up(x)
        if not self.gated:
            return self.down(F.gelu(x))
        gate, value = x.chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class Block(nn.Module):
    """x + gate_1 attention(norm(x)), then x + gate_2 mlp(norm(x)); if `modulated`, the condition sets norms and gates.

    `context` is what the attention takes besides the tokens. With an index `place`, only the tokens there are returned.

    The modulation (adaLN-zero), or else the output projections, start at zero: every block starts as the identity.
    """

    def __init__(self, dim: int, mlp_ratio: float, *, attention: nn.Module, gated: bool, modulated: bool):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.attention = attention
        self.mlp = MLP(dim, mlp_ratio, gated)
        self.modulation = nn.Linear(dim, 6 * dim) if modulated else None
        zeroed: list[Any] = [self.attention.out, self.mlp.down] if self.modulation is None else [self.modulation]
        for layer in zeroed:
            nn.init.zeros_(layer.weight)
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Float[Tensor, "b n dim"],
        condition: Float[Tensor, "b dim"] | None,
        *context: Any,
        place: Int[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b _ dim"]:
        kept = x if place is None else x.gather(1, place[..., None].expand(-1, -1, x.shape[-1]))
        context = context if place is None else (*context, place)
        if self.modulation is None or condition is None:
            x = kept + self.attention(self.norm1(x), *context)
            return x + self.mlp(self.norm2(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = kept + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, *context)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
