"""The training of a tokenizer: reconstruct, resemble in features, and fool a discriminator that starts late.

As in `loop.py`, batches and noise are pure functions of (seed, step, row) and sums are divided once, so that ranks and
micro-batches change nothing, and a resumed run is the uninterrupted one. Two terms are an exception: LFQ's diversity,
which each micro-batch measures for itself, and torch's own rounding.

Differs from the paper: the adversarial weight (eq. 7) is the ratio of gradients at the step before. It is then a number
that all ranks share, known before the backward pass, and the generator needs one pass instead of three.
"""

import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError, NonFiniteError, Preempted
from unmask.rand import Rand
from unmask.tokenizers.losses import Stages, TokenizerLoss, hinge, per_image, perceptual_distance
from unmask.tokenizers.quantizers import Codebook
from unmask.tokenizers.vqgan import Autoencoder
from unmask.training import checkpoint
from unmask.training.distributed import (
    World,
    accumulating,
    agree,
    autocast,
    barrier,
    gradient_factor,
    norm,
    resolve,
    sum_over_ranks,
    unwrapped,
)
from unmask.training.ema import Ema
from unmask.training.log import Log
from unmask.training.loop import Evaluator, TrainConfig, run_evaluators
from unmask.training.optim import Optimizers, prime, set_learning_rate, state_tensors
from unmask.training.signals import stop_on_signal

Pictures = Callable[[int, Int[Tensor, "b"]], tuple[Float[Tensor, "b c h w"], Tensor | None]]
"""`batches(step, rows)`: those rows of the global batch of that step, in [-1, 1]; labels are ignored."""
COLLAPSED = 0.1  # below this share of codes in use, the log warns
NAMES = ("pixel", "perceptual", "quantizer", "adversarial", "discriminator")


@dataclass
class Sums:
    """What one step adds up over micro-batches, then over ranks, in float64: one flat tensor each."""

    terms: Tensor  # NAMES, then the number of images, and the stop flag
    pulls: Tensor  # gradients at the last layer: of reconstruction and of the adversarial term
    codes: Tensor  # how often each code occurred
    table: Tensor | None  # what a Codebook learns from
    candidates: Tensor | None


@dataclass
class Networks:
    """The model under training (maybe wrapped), its discriminator (wrapped alike), and the frozen features, if any."""

    model: nn.Module
    discriminator: nn.Module
    stages: Stages | None
    core: Autoencoder = field(init=False)

    def __post_init__(self) -> None:
        self.core = unwrapped(self.model)  # type: ignore[assignment]


def train_tokenizer(
    networks: Networks,
    loss: TokenizerLoss,
    batches: Pictures,
    config: TrainConfig,
    run: Path,
    *,
    world: World,
    evaluators: Sequence[Evaluator] = (),
    meta: dict | None = None,
) -> Ema:
    """Train in the folder `run`, from its newest checkpoint on, and return the averaged weights; errors as in `train`."""
    if resolve(config.strategy, world) == "fsdp":
        raise ConfigError("training.strategy fsdp: tokenizers are small enough for ddp; leave it out")
    core, critic = networks.core, unwrapped(networks.discriminator)
    ema = Ema(core, config.ema)
    optimizers, critics = config.optimizer.build(core), config.optimizer.build(critic)
    prime(optimizers + critics)
    ratio = torch.zeros((), dtype=torch.float64)  # of the gradients at the last layer: eq. 7's lambda
    window = torch.zeros(len(NAMES) + 1, dtype=torch.float64)  # sums since the last line of metrics.jsonl
    used = torch.zeros(core.vocab_size, dtype=torch.float64, device=world.device)
    tensors = {
        "ratio": ratio,
        "log.window": window,
        "log.used": used,
        **{f"model.{n}": p.detach() for n, p in core.named_parameters()},
        **{f"buffer.{n}": b for n, b in core.named_buffers() if n in core.state_dict()},
        **{f"discriminator.{n}": p.detach() for n, p in critic.named_parameters()},
        **{f"ema.{n}": a for n, a in ema.average.items()},
        **state_tensors(optimizers, core),
        **{f"discriminator.{n}": x for n, x in state_tensors(critics, critic).items()},
    }
    found = _resume(run / "checkpoints", tensors, world)
    start = found.step if found else 0
    seen, clock = 0, time.perf_counter()
    with Log(run if world.is_main else None, steps=config.steps, start=start, tracker=config.tracker, unit="images/s") as log, \
            stop_on_signal() as stop:  # fmt: skip
        log.say(
            f"continuing after step {start}" if found else f"features: {'none' if networks.stages is None else 'on'}"
        )
        if start < config.steps:
            start_codebook(core, batches, config, world)
        for step in range(start, config.steps):
            factor = config.learning_rate(step, config.steps)
            set_learning_rate(optimizers + critics, factor)
            fooling = loss.adversarial > 0 and step >= loss.start * config.steps
            weight = min(float(ratio), loss.ceiling) * loss.adversarial if fooling else None
            sums = backward(step, networks, loss, weight, batches, config, world)
            sums.terms[-1] += stop.asked
            share(sums, world)
            *terms, count, stops = sums.terms.tolist()
            values = dict(zip(NAMES, terms, strict=True))
            gradient_norm = take_step(networks.model, optimizers, count, config, world)
            total = loss.pixel * terms[0] + loss.perceptual * terms[1] + terms[2]
            critic_norm = take_step(networks.discriminator, critics, count, config, world) if fooling else 0.0
            if not math.isfinite(total + gradient_norm + critic_norm):
                raise NonFiniteError(f"step {step}: {values}, gradient norm {gradient_norm}; lower the learning rate")
            apply_steps([*optimizers, *(critics if fooling else [])])
            if sums.table is not None and sums.candidates is not None:
                core.quantizer.update(sums.table, sums.candidates)  # type: ignore[operator]
            ratio.copy_(sums.pulls[0].norm() / (sums.pulls[1].norm() + 1e-4 * count) if fooling else ratio)
            ema.update(step)

            done, seen = step + 1, seen + int(count)
            window += sums.terms[:-1].cpu()
            used += sums.codes
            if done % config.log_every == 0 or done == config.steps:
                rate = seen / (time.perf_counter() - clock)
                means = dict(zip(NAMES, (window[:-1] / window[-1]).tolist(), strict=True))
                log.progress(done, means["pixel"], rate)
                log.record(done, {**means, **code_use(used), "adversarial_weight": weight or 0.0, "images_per_second": rate,
                                  "gradient_norm": gradient_norm, "learning_rate": optimizers[0].param_groups[0]["lr"]})  # fmt: skip
                warn_of_collapse(used, done, log)
                window.zero_()
                used.zero_()
                seen, clock = 0, time.perf_counter()
            if done % config.evaluate_every == 0 or done == config.steps:
                run_evaluators(evaluators, ema, networks.model, done, log)
                seen, clock = 0, time.perf_counter()
            if stops or done % config.save_every == 0 or done == config.steps:
                checkpoint.save(run / "checkpoints", done, tensors, meta or {}, is_main=world.is_main,
                                barrier=lambda: barrier(world), token=agree(uuid.uuid4().hex, world), keep=config.keep)  # fmt: skip
            if stops and done < config.steps:
                raise Preempted(f"stopped by a signal after step {done}; saved. The same command continues from there")
    return ema


def _resume(folder: Path, tensors: dict[str, Tensor], world: World) -> checkpoint.Found | None:
    notes: list[str] = []
    found = checkpoint.latest(folder, report=notes.append)
    if int(agree(str(found.step if found else 0), world)) != (found.step if found else 0):
        raise CheckpointError(f"rank {world.rank} found another step in {folder} than rank 0: share one folder")
    if found is not None:
        checkpoint.load(found, tensors, sharded=False)
    return found


def start_codebook(core: Autoencoder, batches: Pictures, config: TrainConfig, world: World) -> None:
    """k-means over the latents of the first global batch, the same on all ranks."""
    quantizer = core.quantizer
    if not isinstance(quantizer, Codebook) or bool(quantizer.started):
        return
    length = core.grid[0] * core.grid[1]
    latents = torch.zeros(config.batch_size, length, quantizer.config.dim, device=world.device)
    for rows in _rows(config, world):
        with torch.no_grad(), autocast(config.precision, world):
            z = core.latents(batches(0, rows)[0])
        latents[rows.to(world.device)] = z.flatten(2).transpose(1, 2).float()
    quantizer.start(sum_over_ranks(latents, world).flatten(0, 1))


def _rows(config: TrainConfig, world: World) -> list[Int[Tensor, "b"]]:
    """The rows of the global batch that this rank's micro-batches hold."""
    return [torch.arange(world.rank + world.size * micro, config.batch_size, world.size * config.accumulate)
            for micro in range(config.accumulate)]  # fmt: skip


def backward(
    step: int,
    networks: Networks,
    loss: TokenizerLoss,
    weight: float | None,
    batches: Pictures,
    config: TrainConfig,
    world: World,
) -> Sums:
    """Gradients of one step, of the model and, with an adversarial `weight`, of the discriminator."""
    core, device = networks.core, world.device
    quantizer = core.quantizer if isinstance(core.quantizer, Codebook) else None
    last = core.last_layer
    sums = Sums(
        terms=torch.zeros(len(NAMES) + 2, dtype=torch.float64, device=device),
        pulls=torch.zeros(2, last.numel(), dtype=torch.float64, device=device),
        codes=torch.zeros(core.vocab_size, dtype=torch.float64, device=device),
        table=None if quantizer is None else torch.zeros(core.vocab_size, quantizer.config.dim + 1, device=device),
        candidates=None if quantizer is None else torch.zeros(config.batch_size, quantizer.config.dim, device=device),
    )
    for micro, rows in enumerate(_rows(config, world)):
        final = micro == config.accumulate - 1
        images = batches(step, rows)[0]
        with accumulating(networks.model, final):
            with autocast(config.precision, world):
                made, quantized, z = networks.model(images)
            fake = made.detach().float().requires_grad_()
            pixel, perceptual, pull = _likeness(fake, images, networks.stages, loss, config, world)
            adversarial, critic = fake.new_zeros(()), fake.new_zeros(())
            if weight is not None:
                adversarial, push = _fooling(fake, networks.discriminator, config, world)
                sums.pulls += torch.stack([_at(last, made, g) for g in (pull, push)]).double()
                pull = pull + weight * push
            ((made.float() * pull).sum() + quantized.loss).backward()  # whose gradient at `made` is `pull`
        if weight is not None:
            with accumulating(networks.discriminator, final):
                with autocast(config.precision, world):
                    both = networks.discriminator(torch.cat([images, fake.detach()]))
                critic = hinge(*both.chunk(2))
                critic.backward()
        row = [pixel, perceptual, quantized.loss, adversarial, critic]
        sums.terms[:-1] += torch.stack([x.detach().double() for x in row] + [sums.terms.new_tensor(len(images))])
        sums.codes += quantized.tokens.flatten().bincount(minlength=core.vocab_size)
        if quantizer is not None:
            sums.table += quantizer.sums(z, quantized.tokens)
            sums.candidates[rows.to(device)] = _one_latent_each(
                z, Rand(config.seed, rows.to(device), config.batch_size, step)
            )
    return sums


def _likeness(fake: Tensor, images: Tensor, stages: Stages | None, loss: TokenizerLoss, config: TrainConfig, world: World
              ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The pixel and the perceptual term, and the gradient of their weighted sum at the reconstruction."""
    pixel = per_image((fake - images).abs())
    perceptual = fake.new_zeros(())
    if stages is not None and loss.perceptual:
        with autocast(config.precision, world):
            perceptual = perceptual_distance(stages, fake, images)
    (pull,) = torch.autograd.grad(loss.pixel * pixel + loss.perceptual * perceptual, fake)
    return pixel.detach(), perceptual.detach(), pull


def _fooling(fake: Tensor, discriminator: nn.Module, config: TrainConfig, world: World) -> tuple[Tensor, Tensor]:
    """-D(fake), and its gradient at the reconstruction."""
    with autocast(config.precision, world):
        verdict = unwrapped(discriminator)(fake)
    adversarial = -per_image(verdict.float())
    return adversarial.detach(), torch.autograd.grad(adversarial, fake)[0]


def _at(parameter: nn.Parameter, made: Tensor, gradient: Tensor) -> Float[Tensor, "n"]:
    """What a gradient at the output is at the last layer's weights."""
    return torch.autograd.grad(made, parameter, gradient.to(made.dtype), retain_graph=True)[0].flatten()


def _one_latent_each(z: Float[Tensor, "b d h w"], rand: Rand) -> Float[Tensor, "b d"]:
    """A latent of each image, where a dead code may move to."""
    x = z.detach().flatten(2).float()
    place = (rand("revive") * x.shape[2]).long()
    return x[torch.arange(len(x), device=x.device), :, place]


def share(sums: Sums, world: World) -> None:
    """Add up over ranks, in place."""
    for part in (sums.terms, sums.pulls, sums.codes, sums.table, sums.candidates):
        if part is not None:
            sum_over_ranks(part, world)


def take_step(model: nn.Module, optimizers: Optimizers, count: float, config: TrainConfig, world: World) -> float:
    """Divide the summed gradients by `count` and clip them; their norm before clipping."""
    gradients = [p.grad for p in unwrapped(model).parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, gradient_factor(model, world) / count)
    total = float(norm(gradients))
    torch._foreach_mul_(gradients, min(1.0, config.clip / (total + 1e-12)))
    return total


def apply_steps(optimizers: Optimizers) -> None:
    """Step, and drop the gradients."""
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def code_use(used: Float[Tensor, "k"]) -> dict[str, float]:
    """The share of codes that occurred, and the perplexity, exp of the entropy."""
    p = used / used.sum()
    return {"usage": float((used > 0).double().mean()), "perplexity": float(torch.special.entr(p).sum().exp())}


def warn_of_collapse(used: Float[Tensor, "k"], step: int, log: Log) -> None:
    """Say so if few codes are in use although many more tokens than codes were looked at."""
    use = code_use(used)
    if use["usage"] < COLLAPSED and used.sum() >= 10 * len(used):
        log.say(f"step {step}: only {use['usage']:.1%} of {len(used)} codes are in use: the codebook collapses. "
                "Use fsq, or raise the revive threshold, or lower the learning rate")  # fmt: skip
