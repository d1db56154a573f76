"""The pre-norm transformer block of ViT (arXiv 2010.11929), for valeoai's MaskGIT, TiTok's tokenizer and its U-ViT."""

from jaxtyping import Float
from torch import Tensor, nn

from unmask.method.models.layers import attend
from unmask.runtime.packed import LinearGELU


class ViTAttention(nn.Module):
    """Bidirectional multi-head self-attention. `qkv` returns queries, keys and values, in that order."""

    def __init__(self, dim: int, heads: int, *, bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class ViTBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with layer norms of eps 1e-5 and the exact GELU."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, *, qkv_bias: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = ViTAttention(dim, heads, bias=qkv_bias)
        self.up, self.down = LinearGELU(dim, mlp_dim), nn.Linear(mlp_dim, dim)

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.up(self.norm2(x)))
