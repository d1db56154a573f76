"""Latent vectors to tokens: finite scalar quantisation (FSQ, arXiv 2309.15505), a learned codebook (VQ, arXiv
1711.00937, with the remedies of 2110.04627) and lookup-free bits (LFQ, arXiv 2310.05737).

Each is a config whose `build()` returns a module `z [b d h w] -> Quantized`. Without gradients, a codebook learns in
`update`, from sums over the whole global batch. No module here knows ranks, so all ranks agree.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.tokenizers.configs import FSQ, LFQ, VQ


@dataclass(frozen=True)
class Quantized:
    """Latents moved to their codebook vectors (with straight-through gradients), the tokens, and the auxiliary loss.

    `loss` is summed over the batch's images, each the mean over its positions.
    """

    latents: Float[Tensor, "b d h w"]
    tokens: Int[Tensor, "b l"]
    loss: Float[Tensor, ""]


def flatten_latents(z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b l d"]:
    """Return one latent vector per position, in float32, since bfloat16 would round to other tokens."""
    return z.flatten(2).transpose(1, 2).float()


def unflatten_latents(x: Float[Tensor, "b l d"], like: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
    """Undo `flatten_latents`."""
    return x.transpose(1, 2).reshape(like.shape).to(like.dtype)


def pass_gradient_through(codes: Float[Tensor, "*n d"], x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Return `codes`, to the last bit, and pass the gradient to `x` (straight-through estimator, arXiv 1308.3432)."""
    return codes.detach() + (x - x.detach())


def disable_autocast(x: Tensor) -> torch.autocast:
    """Disable autocast inside: its bfloat16 matrix products choose other tokens than float32."""
    return torch.autocast(x.device.type, enabled=False)


class FiniteScalar(nn.Module):
    """Bound by tanh, round, scale to [-1, 1]: eq. 2 and appendix A.1 of arXiv 2309.15505."""

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQ):
        super().__init__()
        basis = [math.prod(config.levels[:i]) for i in range(config.dim)]
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def bound_latents(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Squash by tanh to a range of exactly `levels` whole numbers; even counts are shifted by one half."""
        half = (self.levels - 1) * 1.001 / 2
        offset = (self.levels + 1) % 2 * 0.5
        return (x + (offset / half).atanh()).tanh() * half - offset

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        half = self.levels // 2
        bounded = self.bound_latents(flatten_latents(z))
        whole = bounded.round()
        # A NaN becomes a token too, so that it shows in the loss and not as an index out of range.
        tokens = ((whole.nan_to_num() + half).long() * self.basis).sum(-1)
        return Quantized(
            unflatten_latents(pass_gradient_through(whole, bounded) / half, z), tokens, z.new_zeros(()).float()
        )

    def look_up(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Return the latent vectors of tokens."""
        half = self.levels // 2
        return (tokens[..., None] // self.basis % self.levels - half).float() / half


class Codebook(nn.Module):
    """Nearest neighbours in a learned table. Call `update` once per step with sums over the global batch."""

    count: Tensor
    sum: Tensor
    started: Tensor

    def __init__(self, config: VQ):
        super().__init__()
        self.config = config
        table = torch.empty(config.vocab_size, config.dim).uniform_(-1 / config.vocab_size, 1 / config.vocab_size)
        # A parameter even without a gradient, so that it is averaged, saved and counted like all weights.
        self.table = nn.Parameter(table, requires_grad=config.decay == 0)
        self.register_buffer("count", torch.ones(config.vocab_size))
        self.register_buffer("sum", table.clone())
        self.register_buffer("started", torch.zeros(()))

    def normalize(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Project onto the unit sphere, if the config says so."""
        return F.normalize(x, dim=-1) if self.config.normalize else x

    def find_nearest(self, x: Float[Tensor, "n d"]) -> Int[Tensor, "n"]:
        """Return argmin |x - c|^2, in parts whose distances fill at most 64 MiB."""
        table = self.normalize(self.table.detach().float())
        offset = table.square().sum(1) / 2
        with disable_autocast(x):
            parts = x.split(max(1, (1 << 24) // len(table)))
            return torch.cat([(part @ table.T - offset).argmax(1) for part in parts])

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        x = self.normalize(flatten_latents(z))
        tokens = self.find_nearest(x.detach().flatten(0, 1)).reshape(x.shape[:2])
        codes = self.look_up(tokens)
        loss = self.config.commitment * (x - codes.detach()).square().mean((1, 2)).sum()
        if self.table.requires_grad:
            loss = loss + (codes - x.detach()).square().mean((1, 2)).sum()
        return Quantized(unflatten_latents(pass_gradient_through(codes, x), z), tokens, loss)

    def look_up(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Return the latent vectors of tokens."""
        return self.normalize(F.embedding(tokens, self.table.float()))

    def sum_latents(self, z: Float[Tensor, "b d h w"], tokens: Int[Tensor, "b l"]) -> Float[Tensor, "k d+1"]:
        """Return each token's number of latents and their sum; add these over micro-batches and ranks for `update`."""
        x = self.normalize(flatten_latents(z.detach())).flatten(0, 1)
        with_one = torch.cat([torch.ones_like(x[:, :1]), x], dim=1)
        return x.new_zeros(len(self.table), x.shape[1] + 1).index_add_(0, tokens.flatten(), with_one)

    @torch.no_grad()
    def start(self, latents: Float[Tensor, "n d"], iterations: int = 10) -> None:
        """Initialize by k-means on the first latents, from centres spread over them (repeated if there are too few)."""
        x = self.normalize(latents.float())
        self.table.copy_(x[torch.arange(len(self.table), device=x.device) * len(x) // len(self.table)])
        for _ in range(iterations):
            tokens = self.find_nearest(x)
            sums = x.new_zeros(self.table.shape).index_add_(0, tokens, x)
            counts = tokens.bincount(minlength=len(self.table))[:, None]
            self.table.copy_(self.normalize(torch.where(counts > 0, sums / counts.clamp(min=1), self.table)))
        self.sum.copy_(self.table)
        self.count.fill_(1.0)
        self.started.fill_(1.0)

    @torch.no_grad()
    def update(self, sums: Float[Tensor, "k _"], candidates: Float[Tensor, "n d"]) -> None:
        """Move the vectors to the running means of their latents, and each dead one onto one of `candidates`.

        A vector learned by gradient keeps its optimizer's moments: they have faded to zero by the time it is revived.
        """
        config, seen = self.config, sums[:, :1]
        decay = config.decay or 0.99  # a codebook learned by gradient still counts its uses
        self.count.mul_(decay).add_(seen[:, 0], alpha=1 - decay)
        if config.decay:
            self.sum.mul_(decay).add_(sums[:, 1:], alpha=1 - decay)
            # An unseen vector keeps its mean; dividing again would let it drift, and end in 0 / 0.
            moved = self.normalize(self.sum / self.count[:, None])
            self.table.copy_(torch.where(seen > 0, moved, self.table))
        dead = self.count < config.revive
        turn = dead.cumsum(0) - 1
        revived = (dead & (turn < len(candidates)))[:, None]
        fresh = self.normalize(candidates.float())[turn.clamp(0, len(candidates) - 1)]
        self.table.copy_(torch.where(revived, fresh, self.table))
        self.sum.copy_(torch.where(revived, fresh, self.sum))
        self.count.masked_fill_(revived[:, 0], 1.0)


class LookupFree(nn.Module):
    """Signs as tokens; bit i is worth 2^i."""

    weights: Tensor

    def __init__(self, config: LFQ):
        super().__init__()
        self.config = config
        self.register_buffer("weights", 1 << torch.arange(config.bits), persistent=False)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        x = flatten_latents(z)
        codes = torch.where(x > 0, 1.0, -1.0)
        tokens = ((x > 0) * self.weights).sum(-1)
        loss = self.config.commitment * (x - codes).square().mean((1, 2)).sum()
        if self.config.entropy:
            loss = loss + self.config.entropy * len(x) * self.compute_entropy_loss(x.flatten(0, 1))
        return Quantized(unflatten_latents(pass_gradient_through(codes, x), z), tokens, loss)

    def compute_entropy_loss(self, x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """Return the mean entropy of the latents' token distributions, minus `diversity` times that of the mean.

        With logits -sharpness |x - c|^2 the bits are independent given x, so the first term is a sum over bits. The
        mean over n of products of two half-words is one matrix product, exact for all 2^bits tokens. The second term
        is computed per micro-batch: it is not a sum over images, and ranks do not share it.
        """
        logits = 4 * self.config.sharpness * x
        # Use |logits|, because p log p has no gradient where p has become 0 or 1.
        sure = logits.abs()
        each = (F.softplus(-sure) + sure * torch.sigmoid(-sure)).sum(1).mean()
        p, half = torch.sigmoid(logits), x.shape[1] // 2
        with disable_autocast(x):
            mean = _expand_words(p[:, :half]).T @ _expand_words(p[:, half:]) / len(x)
        mean = mean.clamp(min=torch.finfo(mean.dtype).tiny)
        return each + self.config.diversity * torch.xlogy(mean, mean).sum()

    def look_up(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Return the latent vectors of tokens."""
        return (tokens[..., None] // self.weights % 2 * 2 - 1).float()


def _expand_words(p: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
    """Return the probabilities of all 2^d words of independent bits."""
    words = p.new_ones(len(p), 1)
    for bit in p.unbind(1):
        words = torch.cat([words * (1 - bit)[:, None], words * bit[:, None]], dim=1)
    return words
