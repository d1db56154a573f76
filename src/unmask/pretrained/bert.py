"""The post-norm transformer block of BERT (arXiv 1810.04805), for Google's MaskGIT and TiTok's generator."""

from jaxtyping import Float
from torch import Tensor, nn

from unmask.method.models.layers import attend
from unmask.runtime.packed import GELU, LinearGELU

BERT_EPS = 1e-12


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), with the exact GELU or its tanh approximation."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, gelu: GELU = "none"):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.up, self.down = LinearGELU(dim, mlp_dim, gelu), nn.Linear(mlp_dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=BERT_EPS), nn.LayerNorm(dim, eps=BERT_EPS)

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = self.norm1(x + self.out(attend(q, k, v).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(self.up(x)))
