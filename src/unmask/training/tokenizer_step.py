"""One training step of a tokenizer, up to its gradients: the loss terms of VQGAN (arXiv 2012.09841, section 3.1).

The gradient of each term is computed at the generator's output first. Their sum then goes back through the generator
once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.method.rand import Rand, choose_wide_dtype
from unmask.runtime.distributed import World, accumulate_gradients, autocast, sum_over_ranks, unwrap
from unmask.tokenizers import quantizers
from unmask.tokenizers.configs import TokenizerLoss
from unmask.tokenizers.losses import Stages, compute_hinge_loss, measure_perceptual_distance, sum_image_means
from unmask.tokenizers.quantizers import Codebook
from unmask.tokenizers.vqgan import Autoencoder
from unmask.training.configs import TrainConfig
from unmask.training.steps import describe_cause, split_rows

ImageBatches = Callable[[int, Int[Tensor, "b"]], tuple[Float[Tensor, "b c h w"], Tensor | None]]
"""`batches(step, rows)` returns those images of the global batch of that step, in [-1, 1]. Labels are ignored."""
LOSS_TERMS = ("pixel", "perceptual", "quantizer", "adversarial", "discriminator")


@dataclass(frozen=True)
class Networks:
    """The tokenizer in training, its discriminator, and the frozen network of the perceptual loss."""

    model: nn.Module
    """The tokenizer, maybe wrapped by DDP."""
    discriminator: nn.Module
    """The discriminator, wrapped in the same way."""
    stages: Stages | None
    """The frozen features of the perceptual term. None leaves the term out."""

    @property
    def core(self) -> Autoencoder:
        """The tokenizer, unwrapped."""
        core = unwrap(self.model)
        assert isinstance(core, Autoencoder)
        return core

    @property
    def critic(self) -> nn.Module:
        """The discriminator, unwrapped."""
        return unwrap(self.discriminator)

    @property
    def codebook(self) -> Codebook | None:
        """The tokenizer's codebook, or None if its quantizer has none."""
        quantizer = self.core.quantizer
        return quantizer if isinstance(quantizer, Codebook) else None


@dataclass(frozen=True)
class Sums:
    """The sums of one step over micro-batches, then over ranks."""

    terms: Float[Tensor, "n"]
    """LOSS_TERMS, then the number of images, then the number of ranks that were asked to stop."""
    pulls: Float[Tensor, "2 w"]
    """Gradients at the last layer's weights: first of the reconstruction terms, then of the adversarial term."""
    codes: Float[Tensor, "k"]
    """How often each token occurred."""
    table: Float[Tensor, "k _"] | None
    """Sums of latents per token, for `Codebook.update`. None without a codebook."""
    candidates: Float[Tensor, "b d"] | None
    """One latent of each image, for `Codebook.update`. None without a codebook."""


def compute_gradients(
    step: int,
    networks: Networks,
    loss: TokenizerLoss,
    weight: float | None,
    batches: ImageBatches,
    config: TrainConfig,
    world: World,
) -> Sums:
    """Compute this rank's gradients of one step and return its sums.

    With an adversarial `weight`, the discriminator receives gradients too. With None, it takes no part.
    """
    sums = _create_sums(networks, config, world)
    codebook, last = networks.codebook, networks.core.last_layer
    for micro, rows in enumerate(split_rows(config.batch_size, config.accumulate, world)):
        final = micro == config.accumulate - 1
        images = batches(step, rows)[0]
        with accumulate_gradients(networks.model, final):
            with autocast(config.precision, world):
                made, quantized, z = networks.model(images)
            fake = made.detach().float().requires_grad_()
            pixel, perceptual, pull = _compute_likeness(fake, images, networks.stages, loss, config, world)
            adversarial, critic = fake.new_zeros(()), fake.new_zeros(())
            if weight is not None:
                adversarial, push = _compute_adversarial(fake, networks.critic, config, world)
                sums.pulls.add_(torch.stack([_project_to_last_layer(last, made, g) for g in (pull, push)]))
                pull = pull + weight * push
            ((made.float() * pull).sum() + quantized.loss).backward()  # its gradient at `made` is `pull`
        if weight is not None:
            with accumulate_gradients(networks.discriminator, final):
                critic = _compute_hinge(fake, images, networks.discriminator, config, world)
                critic.backward()
        row = [pixel, perceptual, quantized.loss.detach(), adversarial, critic.detach()]
        sums.terms[:-1] += torch.stack([*row, pixel.new_tensor(len(images))]).to(sums.terms.dtype)
        tokens = quantized.tokens.flatten()
        sums.codes.index_add_(0, tokens, torch.ones_like(tokens, dtype=sums.codes.dtype))
        if codebook is not None and sums.table is not None and sums.candidates is not None:
            here = rows.to(world.device)
            sums.table.add_(codebook.sum_latents(z, quantized.tokens))
            sums.candidates[here] = _draw_latents(z, Rand(config.seed, here, config.batch_size, step))
    return sums


def reduce_sums(sums: Sums, world: World) -> None:
    """Sum over all ranks, in place."""
    for part in (sums.terms, sums.pulls, sums.codes, sums.table, sums.candidates):
        if part is not None:
            sum_over_ranks(part, world)


def find_cause(
    step: int,
    total: float,
    networks: Networks,
    loss: TokenizerLoss,
    weight: float | None,
    batches: ImageBatches,
    config: TrainConfig,
    world: World,
) -> str:
    """Name the weights, or the rows of the global batch, with NaN or infinity. Every rank checks every row."""

    def find_rows() -> list[int]:
        bad = []
        for row in range(config.batch_size):
            images = batches(step, torch.tensor([row]))[0]
            with torch.no_grad(), autocast(config.precision, world):
                made, quantized, _ = networks.core(images)
            fake = made.float().requires_grad_()
            terms = [quantized.loss, *_compute_likeness(fake, images, networks.stages, loss, config, world)]
            if weight is not None:
                terms += _compute_adversarial(fake, networks.critic, config, world)
            if not all(bool(x.isfinite().all()) for x in terms):
                bad.append(row)
        return bad

    weights = {name: parameter.detach() for name, parameter in networks.core.named_parameters()}
    if weight is not None:
        weights |= {f"discriminator.{name}": p.detach() for name, p in networks.critic.named_parameters()}
    return describe_cause(weights, find_rows, total, config.batch_size, world)


def _create_sums(networks: Networks, config: TrainConfig, world: World) -> Sums:
    core, codebook, device = networks.core, networks.codebook, world.device
    dim, wide = core.config.quantizer.dim, choose_wide_dtype(device)
    return Sums(
        terms=torch.zeros(len(LOSS_TERMS) + 2, dtype=wide, device=device),
        pulls=torch.zeros(2, core.last_layer.numel(), dtype=wide, device=device),
        codes=torch.zeros(core.vocab_size, dtype=wide, device=device),
        table=None if codebook is None else torch.zeros(core.vocab_size, dim + 1, device=device),
        candidates=None if codebook is None else torch.zeros(config.batch_size, dim, device=device),
    )


def _compute_likeness(
    fake: Float[Tensor, "b c h w"],
    images: Float[Tensor, "b c h w"],
    stages: Stages | None,
    loss: TokenizerLoss,
    config: TrainConfig,
    world: World,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "b c h w"]]:
    """Return the pixel term, the perceptual term, and the gradient of their weighted sum at the reconstruction."""
    pixel = sum_image_means((fake - images).abs())
    perceptual = fake.new_zeros(())
    if stages is not None and loss.perceptual:
        with autocast(config.precision, world):
            perceptual = measure_perceptual_distance(stages, fake, images)
    (pull,) = torch.autograd.grad(loss.pixel * pixel + loss.perceptual * perceptual, fake)
    return pixel.detach(), perceptual.detach(), pull


def _compute_adversarial(
    fake: Float[Tensor, "b c h w"], critic: nn.Module, config: TrainConfig, world: World
) -> tuple[Float[Tensor, ""], Float[Tensor, "b c h w"]]:
    """Return -D(fake) and its gradient at the reconstruction."""
    with autocast(config.precision, world):
        verdict = critic(fake)
    adversarial = -sum_image_means(verdict.float())
    return adversarial.detach(), torch.autograd.grad(adversarial, fake)[0]


def _compute_hinge(
    fake: Float[Tensor, "b c h w"],
    images: Float[Tensor, "b c h w"],
    discriminator: nn.Module,
    config: TrainConfig,
    world: World,
) -> Float[Tensor, ""]:
    """Return the hinge loss of the discriminator, with gradients to its weights."""
    with autocast(config.precision, world):
        verdicts = discriminator(torch.cat([images, fake.detach()]))
    return compute_hinge_loss(*verdicts.chunk(2))


def _project_to_last_layer(parameter: nn.Parameter, made: Tensor, gradient: Tensor) -> Float[Tensor, "w"]:
    """Carry a gradient at the output `made` back to the last layer's weights."""
    return torch.autograd.grad(made, parameter, gradient.to(made.dtype), retain_graph=True)[0].flatten()


def _draw_latents(z: Float[Tensor, "b d h w"], rand: Rand) -> Float[Tensor, "b d"]:
    """Draw one latent of each image; an unused codebook entry may move there."""
    x = quantizers.flatten_latents(z.detach())
    place = (rand("revive") * x.shape[1]).long()
    return x[torch.arange(len(x), device=x.device), place]
