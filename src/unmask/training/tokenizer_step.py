"""One step of a tokenizer's training, up to its gradients: what VQGAN (arXiv 2012.09841, section 3.1) adds up.

The generator's gradient is taken at its output first, term by term, and then sent back through it once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.method.rand import Rand
from unmask.runtime.distributed import World, accumulate_gradients, autocast, sum_over_ranks, unwrap
from unmask.tokenizers import quantizers
from unmask.tokenizers.losses import Stages, TokenizerLoss, hinge, per_image, perceptual_distance
from unmask.tokenizers.quantizers import Codebook
from unmask.tokenizers.vqgan import Autoencoder
from unmask.training.loop import TrainConfig

ImageBatches = Callable[[int, Int[Tensor, "b"]], tuple[Float[Tensor, "b c h w"], Tensor | None]]
"""`batches(step, rows)`: those rows of the global batch of that step, in [-1, 1]; labels are ignored."""
NAMES = ("pixel", "perceptual", "quantizer", "adversarial", "discriminator")


@dataclass(frozen=True)
class Networks:
    """The model under training (maybe wrapped), its discriminator (wrapped alike), and the frozen features, if any."""

    model: nn.Module
    discriminator: nn.Module
    stages: Stages | None

    @property
    def core(self) -> Autoencoder:
        """The model itself."""
        core = unwrap(self.model)
        assert isinstance(core, Autoencoder)
        return core

    @property
    def critic(self) -> nn.Module:
        """The discriminator itself."""
        return unwrap(self.discriminator)

    @property
    def codebook(self) -> Codebook | None:
        """The model's table of codes, if it has one."""
        quantizer = self.core.quantizer
        return quantizer if isinstance(quantizer, Codebook) else None


@dataclass(frozen=True)
class Sums:
    """What one step adds up over micro-batches, then over ranks."""

    terms: Float[Tensor, "n"]
    """NAMES, then the number of images, then how many ranks are asked to stop."""
    pulls: Float[Tensor, "2 w"]
    """Gradients at the last layer's weights: of reconstruction, and of the adversarial term."""
    codes: Float[Tensor, "k"]
    """How often each code occurred."""
    table: Float[Tensor, "k _"] | None
    candidates: Float[Tensor, "b d"] | None
    """What `Codebook.update` takes."""


def backward(
    step: int,
    networks: Networks,
    loss: TokenizerLoss,
    weight: float | None,
    batches: ImageBatches,
    config: TrainConfig,
    world: World,
) -> Sums:
    """Gradients of one step, of the model and, with an adversarial `weight`, of the discriminator; this rank's sums."""
    sums = _nothing_yet(networks, config, world)
    codebook, last = networks.codebook, networks.core.last_layer
    for micro, rows in enumerate(rows_of_rank(config, world)):
        final = micro == config.accumulate - 1
        images = batches(step, rows)[0]
        with accumulate_gradients(networks.model, final):
            with autocast(config.precision, world):
                made, quantized, z = networks.model(images)
            fake = made.detach().float().requires_grad_()
            pixel, perceptual, pull = _likeness(fake, images, networks.stages, loss, config, world)
            adversarial, critic = fake.new_zeros(()), fake.new_zeros(())
            if weight is not None:
                adversarial, push = _fooling(fake, networks.critic, config, world)
                sums.pulls.add_(torch.stack([_at(last, made, g) for g in (pull, push)]))
                pull = pull + weight * push
            ((made.float() * pull).sum() + quantized.loss).backward()  # whose gradient at `made` is `pull`
        if weight is not None:
            with accumulate_gradients(networks.discriminator, final):
                critic = _judging(fake, images, networks.discriminator, config, world)
                critic.backward()
        row = [pixel, perceptual, quantized.loss.detach(), adversarial, critic.detach()]
        sums.terms[:-1] += torch.stack([*row, pixel.new_tensor(len(images))]).double()
        tokens = quantized.tokens.flatten()
        sums.codes.index_add_(0, tokens, torch.ones_like(tokens, dtype=sums.codes.dtype))
        if codebook is not None and sums.table is not None and sums.candidates is not None:
            here = rows.to(world.device)
            sums.table.add_(codebook.sums(z, quantized.tokens))
            sums.candidates[here] = _one_latent_each(z, Rand(config.seed, here, config.batch_size, step))
    return sums


def rows_of_rank(config: TrainConfig, world: World) -> list[Int[Tensor, "b"]]:
    """The rows of the global batch that each of this rank's micro-batches holds."""
    stride = world.size * config.accumulate
    firsts = (world.rank + world.size * micro for micro in range(config.accumulate))
    return [torch.arange(first, config.batch_size, stride) for first in firsts]


def share(sums: Sums, world: World) -> None:
    """Add up over ranks, in place."""
    for part in (sums.terms, sums.pulls, sums.codes, sums.table, sums.candidates):
        if part is not None:
            sum_over_ranks(part, world)


def blame(
    step: int,
    networks: Networks,
    loss: TokenizerLoss,
    weight: float | None,
    batches: ImageBatches,
    config: TrainConfig,
    world: World,
) -> str:
    """The rows of the global batch whose own terms are not finite. Every rank looks at every row, so all agree."""
    bad = []
    for row in range(config.batch_size):
        images = batches(step, torch.tensor([row]))[0]
        with torch.no_grad(), autocast(config.precision, world):
            made, quantized, _ = networks.core(images)
        fake = made.float().requires_grad_()
        terms = [quantized.loss, *_likeness(fake, images, networks.stages, loss, config, world)]
        if weight is not None:
            terms += _fooling(fake, networks.critic, config, world)
        if not all(bool(x.isfinite().all()) for x in terms):
            bad.append(row)
    if len(bad) == config.batch_size:
        return "every row of the batch: look at the weights, or lower the learning rate"
    return f"rows {bad[:8]} of the batch" if bad else "no single row: the gradient overflowed; lower the learning rate"


def _nothing_yet(networks: Networks, config: TrainConfig, world: World) -> Sums:
    core, codebook, device = networks.core, networks.codebook, world.device
    dim = core.config.quantizer.dim
    return Sums(
        terms=torch.zeros(len(NAMES) + 2, dtype=torch.float64, device=device),
        pulls=torch.zeros(2, core.last_layer.numel(), dtype=torch.float64, device=device),
        codes=torch.zeros(core.vocab_size, dtype=torch.float64, device=device),
        table=None if codebook is None else torch.zeros(core.vocab_size, dim + 1, device=device),
        candidates=None if codebook is None else torch.zeros(config.batch_size, dim, device=device),
    )


def _likeness(
    fake: Float[Tensor, "b c h w"],
    images: Float[Tensor, "b c h w"],
    stages: Stages | None,
    loss: TokenizerLoss,
    config: TrainConfig,
    world: World,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "b c h w"]]:
    """The pixel and the perceptual term, and the gradient of their weighted sum at the reconstruction."""
    pixel = per_image((fake - images).abs())
    perceptual = fake.new_zeros(())
    if stages is not None and loss.perceptual:
        with autocast(config.precision, world):
            perceptual = perceptual_distance(stages, fake, images)
    (pull,) = torch.autograd.grad(loss.pixel * pixel + loss.perceptual * perceptual, fake)
    return pixel.detach(), perceptual.detach(), pull


def _fooling(
    fake: Float[Tensor, "b c h w"], critic: nn.Module, config: TrainConfig, world: World
) -> tuple[Float[Tensor, ""], Float[Tensor, "b c h w"]]:
    """-D(fake), and its gradient at the reconstruction."""
    with autocast(config.precision, world):
        verdict = critic(fake)
    adversarial = -per_image(verdict.float())
    return adversarial.detach(), torch.autograd.grad(adversarial, fake)[0]


def _judging(
    fake: Float[Tensor, "b c h w"],
    images: Float[Tensor, "b c h w"],
    discriminator: nn.Module,
    config: TrainConfig,
    world: World,
) -> Float[Tensor, ""]:
    """The discriminator's own loss, with gradients to its weights."""
    with autocast(config.precision, world):
        verdicts = discriminator(torch.cat([images, fake.detach()]))
    return hinge(*verdicts.chunk(2))


def _at(parameter: nn.Parameter, made: Tensor, gradient: Tensor) -> Float[Tensor, "w"]:
    """What a gradient at the output is at the last layer's weights."""
    return torch.autograd.grad(made, parameter, gradient.to(made.dtype), retain_graph=True)[0].flatten()


def _one_latent_each(z: Float[Tensor, "b d h w"], rand: Rand) -> Float[Tensor, "b d"]:
    """A latent of each image, where a dead code may move to."""
    x = quantizers.rows(z.detach())
    place = (rand("revive") * x.shape[1]).long()
    return x[torch.arange(len(x), device=x.device), place]
