"""The parts of aMUSEd's U-ViT (arXiv 2401.01808): convolutional block, transformer layer and change of size.

No part has a bias, and every norm has the same eps.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unmask.method.models.layers import RMSNorm

AMUSED_EPS = 1e-6


def make_linear(dim_in: int, dim_out: int) -> nn.Linear:
    """Build a linear layer without bias."""
    return nn.Linear(dim_in, dim_out, bias=False)


def make_norm(dim: int) -> RMSNorm:
    """Build an RMS norm with aMUSEd's eps."""
    return RMSNorm(dim, eps=AMUSED_EPS)


class AmusedAttention(nn.Module):
    """Multi-head attention from x to a context of the same width."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (make_linear(dim, dim) for _ in range(4))

    def forward(self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.q, x), (self.k, context), (self.v, context))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ModulatedNorm(nn.Module):
    """norm(x) (1 + scale) + shift, with scale and shift from the condition. The norm has a learned scale too."""

    def __init__(self, norm: nn.Module, dim: int):
        super().__init__()
        self.norm = norm
        self.modulation = make_linear(dim, 2 * dim)

    def forward(self, x: Float[Tensor, "b n d"], c: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        scale, shift = self.modulation(c)[:, None].chunk(2, dim=-1)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class AmusedLayer(nn.Module):
    """Attention to the image, attention to the text, then a gated GELU MLP, each after a modulated norm.

    Only the last norm subtracts the mean.
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int):
        super().__init__()
        self.norm1, self.norm2 = (ModulatedNorm(make_norm(dim), dim) for _ in range(2))
        self.norm3 = ModulatedNorm(nn.LayerNorm(dim, eps=AMUSED_EPS, bias=False), dim)
        self.attention, self.reading = AmusedAttention(dim, heads), AmusedAttention(dim, heads)
        self.up, self.down = make_linear(dim, 2 * mlp_dim), make_linear(mlp_dim, dim)

    def forward(
        self, x: Float[Tensor, "b n d"], text: Float[Tensor, "b m d"], c: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b n d"]:
        y = self.norm1(x, c)
        x = x + self.attention(y, y)
        x = x + self.reading(self.norm2(x, c), text)
        value, gate = self.up(self.norm3(x, c)).chunk(2, dim=-1)
        return x + self.down(value * F.gelu(gate))


class ConvBlock(nn.Module):
    """ConvNeXt V2's block (arXiv 2301.00808), then two attentions to the text; there is none to the image.

    The condition modulates the sum, not the branch.
    """

    def __init__(self, dim: int, heads: int, text_dim: int):
        super().__init__()
        wide = 4 * dim
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = make_norm(dim)
        self.up, self.down = make_linear(dim, wide), make_linear(wide, dim)
        self.gamma, self.beta = nn.Parameter(torch.zeros(wide)), nn.Parameter(torch.zeros(wide))
        self.modulation = make_linear(text_dim, 2 * dim)
        self.text_in = make_linear(text_dim, dim)
        self.norm1, self.norm2 = (make_norm(dim) for _ in range(2))
        self.reading1, self.reading2 = (AmusedAttention(dim, heads) for _ in range(2))

    def normalize_response(self, y: Float[Tensor, "b h w k"]) -> Float[Tensor, "b h w k"]:
        """Apply global response normalization: scale each channel by its norm over the image, over the mean norm."""
        length = torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True)
        relative = length / (length.mean(-1, keepdim=True) + AMUSED_EPS)
        return torch.addcmul(self.beta, y, 1 + self.gamma * relative)

    def forward(
        self, x: Float[Tensor, "b h w k"], text: Float[Tensor, "b m d"], c: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b h w k"]:
        y = self.norm(self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        y = x + self.down(self.normalize_response(F.gelu(self.up(y))))
        scale, shift = self.modulation(c)[:, None, None].chunk(2, dim=-1)
        cells = torch.addcmul(shift, y, 1 + scale).flatten(1, 2)
        context = self.text_in(F.silu(text))
        cells = cells + self.reading1(self.norm1(cells), context)
        cells = cells + self.reading2(self.norm2(cells), context)
        return cells.unflatten(1, x.shape[1:3])


class Resize(nn.Module):
    """A norm, then a 2x2 convolution of stride 2 that halves height and width, or its transpose, which doubles them."""

    def __init__(self, dim: int, kind: type[nn.Conv2d] | type[nn.ConvTranspose2d]):
        super().__init__()
        self.norm = make_norm(dim)
        self.conv = kind(dim, dim, 2, stride=2, bias=False)

    def forward(self, x: Float[Tensor, "b h w k"]) -> Float[Tensor, "b _ _ k"]:
        return self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
