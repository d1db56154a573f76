"""Latent vectors to code numbers: finite scalar quantisation (FSQ, arXiv 2309.15505), a learned codebook (VQ, arXiv
1711.00937, with the remedies of 2110.04627) and lookup-free bits (LFQ, arXiv 2310.05737).

Each is a config whose `build()` gives a module `z [b d h w] -> Quantized`. What a codebook learns outside of gradients
it learns in `update`, from sums over the whole global batch: no module here knows of ranks, so all ranks agree.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

MAX_VOCAB = 1 << 18
MAX_LEVELS = 1000  # from 1001 on, the published margin of FSQ's bound (0.1%) lets the outermost level spill over


@dataclass(frozen=True)
class Quantized:
    """Latents moved to their codes (gradients pass straight through), the code numbers, and the auxiliary loss.

    `loss` is summed over the batch's images, each the mean over its positions.
    """

    latents: Float[Tensor, "b d h w"]
    tokens: Int[Tensor, "b l"]
    loss: Float[Tensor, ""]


def flatten_latents(z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b l d"]:
    """One latent vector per position, in float32: rounding to codes is no place for bfloat16."""
    return z.flatten(2).transpose(1, 2).float()


def unflatten_latents(x: Float[Tensor, "b l d"], like: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
    """The inverse of `rows`."""
    return x.transpose(1, 2).reshape(like.shape).to(like.dtype)


def pass_gradient_through(codes: Float[Tensor, "*n d"], x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """`codes`, to the last bit, with the gradient going to `x` (arXiv 1308.3432)."""
    return codes.detach() + (x - x.detach())


def disable_autocast(x: Tensor) -> torch.autocast:
    """No autocast inside: its bfloat16 matrix products choose other codes than float32 does."""
    return torch.autocast(x.device.type, enabled=False)


@dataclass(frozen=True, kw_only=True)
class FSQ:
    """Each of len(levels) latent channels is rounded to one of its levels: nothing to learn, nothing to collapse."""

    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2 or max(self.levels) > MAX_LEVELS:
            raise ValueError(f"FSQ(levels={self.levels}): 2 to {MAX_LEVELS} levels per channel needed")
        if self.vocab_size > MAX_VOCAB:
            raise ValueError(
                f"FSQ(levels={self.levels}): {self.vocab_size} codes, and at most {MAX_VOCAB} are possible"
            )

    @property
    def dim(self) -> int:
        return len(self.levels)

    @property
    def vocab_size(self) -> int:
        return math.prod(self.levels)

    def build(self) -> "FiniteScalar":
        return FiniteScalar(self)


class FiniteScalar(nn.Module):
    """Bound by tanh, round, scale to [-1, 1]: eq. 2 and appendix A.1 of arXiv 2309.15505."""

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQ):
        super().__init__()
        basis = [math.prod(config.levels[:i]) for i in range(config.dim)]
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def bound(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """tanh to a range that holds exactly `levels` whole numbers; even counts are moved by one half."""
        half = (self.levels - 1) * 1.001 / 2
        offset = (self.levels + 1) % 2 * 0.5
        return (x + (offset / half).atanh()).tanh() * half - offset

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        half = self.levels // 2
        bounded = self.bound(flatten_latents(z))
        whole = bounded.round()
        # A NaN becomes a token as well, so that who trains finds it in the loss, and not as an index out of range.
        tokens = ((whole.nan_to_num() + half).long() * self.basis).sum(-1)
        return Quantized(
            unflatten_latents(pass_gradient_through(whole, bounded) / half, z), tokens, z.new_zeros(()).float()
        )

    def look_up(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """The codes' latent vectors."""
        half = self.levels // 2
        return (tokens[..., None] // self.basis % self.levels - half).float() / half


@dataclass(frozen=True, kw_only=True)
class VQ:
    """`vocab_size` learned vectors; a latent becomes its nearest one.

    `normalize`: both on the unit sphere, nearest by angle (arXiv 2110.04627). `decay`: the codebook follows the mean of
    its latents; 0: it is learned by gradient. `commitment`: weight that draws latents to their codes. `revive`: a code
    used less than that often per step, on average, is moved onto a latent of the batch. The codebook starts at the
    k-means centres of the first batch.
    """

    vocab_size: int = 1024
    dim: int = 8
    normalize: bool = True
    decay: float = 0.99
    commitment: float = 0.25
    revive: float = 0.03

    def __post_init__(self) -> None:
        if not 2 <= self.vocab_size <= MAX_VOCAB or self.dim < 1:
            raise ValueError(f"VQ(vocab_size={self.vocab_size}, dim={self.dim}): 2 to {MAX_VOCAB} codes of 1 or more")
        if not 0 <= self.decay < 1 or self.commitment < 0 or self.revive < 0:
            raise ValueError(f"{self}: decay in [0, 1), commitment and revive at least 0 needed")

    def build(self) -> "Codebook":
        return Codebook(self)


class Codebook(nn.Module):
    """Nearest neighbours in a learned table. `update` is called once per step with sums over the global batch."""

    count: Tensor
    sum: Tensor
    started: Tensor

    def __init__(self, config: VQ):
        super().__init__()
        self.config = config
        table = torch.empty(config.vocab_size, config.dim).uniform_(-1 / config.vocab_size, 1 / config.vocab_size)
        # A parameter even where no gradient moves it, so that it is averaged, saved and counted like all weights.
        self.table = nn.Parameter(table, requires_grad=config.decay == 0)
        self.register_buffer("count", torch.ones(config.vocab_size))
        self.register_buffer("sum", table.clone())
        self.register_buffer("started", torch.zeros(()))

    def normalize(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """On the unit sphere, if the config says so."""
        return F.normalize(x, dim=-1) if self.config.normalize else x

    def find_nearest(self, x: Float[Tensor, "n d"]) -> Int[Tensor, "n"]:
        """argmin |x - c|^2, so many latents at a time that their distances fill 64 MiB."""
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
        """The codes' latent vectors."""
        return self.normalize(F.embedding(tokens, self.table.float()))

    def sum_latents(self, z: Float[Tensor, "b d h w"], tokens: Int[Tensor, "b l"]) -> Float[Tensor, "k d+1"]:
        """How many latents each code has, and their sum: added up over micro-batches and ranks, then `update`d."""
        x = self.normalize(flatten_latents(z.detach())).flatten(0, 1)
        with_one = torch.cat([torch.ones_like(x[:, :1]), x], dim=1)
        return x.new_zeros(len(self.table), x.shape[1] + 1).index_add_(0, tokens.flatten(), with_one)

    @torch.no_grad()
    def start(self, latents: Float[Tensor, "n d"], iterations: int = 10) -> None:
        """k-means on the first latents, from centres spread over them; with fewer latents than codes, with repeats."""
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
        """Move the codes to the running means of their latents, and those that died onto `candidates`, one each.

        A code learned by gradient keeps its optimizer's moments: unused, they have faded to nothing when it is revived.
        """
        config, seen = self.config, sums[:, :1]
        decay = config.decay or 0.99  # a codebook learned by gradient still counts its uses
        self.count.mul_(decay).add_(seen[:, 0], alpha=1 - decay)
        if config.decay:
            self.sum.mul_(decay).add_(sums[:, 1:], alpha=1 - decay)
            # A code that was not seen keeps its mean; divided anew it would drift, and at last be 0 / 0.
            moved = self.normalize(self.sum / self.count[:, None])
            self.table.copy_(torch.where(seen > 0, moved, self.table))
        dead = self.count < config.revive
        turn = dead.cumsum(0) - 1
        revived = (dead & (turn < len(candidates)))[:, None]
        fresh = self.normalize(candidates.float())[turn.clamp(0, len(candidates) - 1)]
        self.table.copy_(torch.where(revived, fresh, self.table))
        self.sum.copy_(torch.where(revived, fresh, self.sum))
        self.count.masked_fill_(revived[:, 0], 1.0)


@dataclass(frozen=True, kw_only=True)
class LFQ:
    """`bits` latent channels, of which only the signs are kept: 2^bits codes without a table.

    `entropy` weighs the loss that makes each latent sure of its code and the batch use all codes (eq. 4 of arXiv
    2310.05737), `diversity` the second of the two; `sharpness` is the inverse temperature of that loss.
    """

    bits: int = 10
    entropy: float = 0.1
    diversity: float = 1.0
    sharpness: float = 1.0
    commitment: float = 0.25

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 18:
            raise ValueError(f"LFQ(bits={self.bits}): 1 to 18 bits, that is at most {MAX_VOCAB} codes")
        if min(self.entropy, self.diversity, self.commitment) < 0 or not self.sharpness > 0:
            raise ValueError(f"{self}: weights must be at least 0, and the sharpness positive")

    @property
    def dim(self) -> int:
        return self.bits

    @property
    def vocab_size(self) -> int:
        return 1 << self.bits

    def build(self) -> "LookupFree":
        return LookupFree(self)


class LookupFree(nn.Module):
    """Signs as codes, bit i worth 2^i."""

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
        """Mean entropy of each latent's distribution over codes, minus `diversity` times the entropy of their mean.

        With logits -sharpness |x - c|^2 the bits are independent given x, so the first is a sum over bits; and the mean
        over n of products of two half-words is one matrix product, exact for all 2^bits codes.
        The second is that of this micro-batch: it is no sum over images, and ranks do not share it.
        """
        logits = 4 * self.config.sharpness * x
        # Of |logits|, because p log p has no gradient where p has come to be 0 or 1.
        sure = logits.abs()
        each = (F.softplus(-sure) + sure * torch.sigmoid(-sure)).sum(1).mean()
        p, half = torch.sigmoid(logits), x.shape[1] // 2
        with disable_autocast(x):
            mean = _expand_words(p[:, :half]).T @ _expand_words(p[:, half:]) / len(x)
        mean = mean.clamp(min=torch.finfo(mean.dtype).tiny)
        return each + self.config.diversity * torch.xlogy(mean, mean).sum()

    def look_up(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """The codes' latent vectors."""
        return (tokens[..., None] // self.weights % 2 * 2 - 1).float()


def _expand_words(p: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
    """Probabilities of all 2^d words of independent bits."""
    words = p.new_ones(len(p), 1)
    for bit in p.unbind(1):
        words = torch.cat([words * (1 - bit)[:, None], words * bit[:, None]], dim=1)
    return words
