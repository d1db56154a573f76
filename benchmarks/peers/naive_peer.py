"""A first attempt with torch alone: `nn.TransformerEncoder`, full logits, and a plain confidence loop."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from peer import Peer, mask_cosine
from sizes import Size
from torch import Tensor, nn

NOISE = 4.5


class Encoder(nn.Module):
    """Embeddings, `nn.TransformerEncoder` without dropout, and a head."""

    def __init__(self, size: Size):
        super().__init__()
        self.embedding = nn.Embedding(size.codes + 1, size.dim)
        self.position = nn.Parameter(torch.randn(size.cells, size.dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            size.dim, size.heads, size.hidden, 0.0, "gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(size.dim)
        self.encoder = nn.TransformerEncoder(layer, size.depth, norm, enable_nested_tensor=False)
        self.head = nn.Linear(size.dim, size.codes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens) + self.position))


def sample_plainly(predict: Callable[[Tensor], Tensor], size: Size) -> Tensor:
    """Sample with MaskGIT's cosine schedule and its noisy confidence, in float32 and at all positions."""
    tokens = torch.full((size.batch, size.cells), size.codes)
    for step in range(1, size.steps + 1):
        p = predict(tokens).float().softmax(-1)
        drawn = torch.multinomial(p.flatten(0, 1), 1).view(tokens.shape)
        noise = -torch.log(-torch.log(torch.rand(tokens.shape)))
        score = p.gather(-1, drawn[..., None])[..., 0].log() + NOISE * (1 - step / size.steps) * noise
        masked = tokens == size.codes
        left = int(size.cells * math.cos(math.pi / 2 * step / size.steps))
        rank = score.masked_fill(~masked, math.inf).argsort(-1, descending=True).argsort(-1)
        tokens = torch.where(masked & (rank < size.cells - left), drawn, tokens)
    return tokens


class NaivePeer(Peer):
    """The student's version; its loss counts all tokens."""

    name, package = "naive", ""

    def build(self, size: Size) -> nn.Module:
        return Encoder(size)

    def sample(self) -> Tensor:
        return sample_plainly(self.network, self.size)

    def compute_loss(self, tokens: Tensor) -> Tensor:
        visible, _ = mask_cosine(tokens, self.size.codes)
        return F.cross_entropy(self.network(visible).flatten(0, 1), tokens.flatten())
