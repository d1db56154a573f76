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
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError, NonFiniteError, Preempted
from unmask.runtime.distributed import (
    World,
    autocast,
    barrier,
    broadcast_text,
    compute_norm,
    get_gradient_factor,
    resolve_strategy,
    sum_over_ranks,
    unwrap,
)
from unmask.runtime.signals import stop_on_signal
from unmask.storage.layout import CHECKPOINTS
from unmask.tokenizers import quantizers
from unmask.tokenizers.losses import TokenizerLoss
from unmask.training import checkpoint
from unmask.training.ema import Ema
from unmask.training.log import Log
from unmask.training.loop import Evaluator, TrainConfig, run_evaluators
from unmask.training.optim import Optimizers, prime, set_learning_rate, state_tensors
from unmask.training.tokenizer_step import NAMES, ImageBatches, Networks, backward, blame, rows_of_rank, share

COLLAPSED = 0.1  # below this share of codes in use, the log warns


def train_tokenizer(
    networks: Networks,
    loss: TokenizerLoss,
    batches: ImageBatches,
    config: TrainConfig,
    run: Path,
    *,
    world: World,
    evaluators: Sequence[Evaluator] = (),
    meta: dict | None = None,
) -> Ema:
    """Train in the folder `run`, from its newest checkpoint on, and return the averaged weights.

    Raises what `train` raises, and ConfigError where the discriminator does not fit the images.
    """
    _refuse(networks, loss, config, world)
    core, codebook = networks.core, networks.codebook
    ema = Ema(core, config.ema)
    optimizers, critics = config.optimizer.build(core), config.optimizer.build(networks.critic)
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
        **{f"discriminator.{n}": p.detach() for n, p in networks.critic.named_parameters()},
        **{f"ema.{n}": a for n, a in ema.average.items()},
        **state_tensors(optimizers, core),
        **{f"discriminator.{n}": x for n, x in state_tensors(critics, networks.critic).items()},
    }
    folder = run / CHECKPOINTS
    notes: list[str] = []
    found = checkpoint.latest(folder, report=notes.append)
    if found is not None:
        checkpoint.load(found, tensors, sharded=False)
    start = found.step if found else 0
    if int(broadcast_text(str(start), world)) != start:
        raise CheckpointError(
            f"rank {world.rank} found step {start} in {run}, rank 0 another: share one folder among ranks"
        )
    if found:
        notes.append(
            f"continuing after step {start}" if start < config.steps else f"all {start} steps are done already"
        )
    seen, warned, clock = 0, False, time.perf_counter()
    place = run if world.is_main else None
    log = Log(place, steps=config.steps, start=start, tracker=config.tracker, unit="images/s")
    with log, stop_on_signal() as stop:
        for note in notes:
            log.say(note)
        if start < config.steps:
            start_codebook(networks, batches, config, world)
        for step in range(start, config.steps):
            factor = config.learning_rate(step, config.steps)
            set_learning_rate(optimizers + critics, factor)
            fooling = loss.adversarial > 0 and step >= loss.start * config.steps
            weight = min(float(ratio), loss.ceiling) * loss.adversarial if fooling else None
            sums = backward(step, networks, loss, weight, batches, config, world)
            sums.terms[-1] += stop.asked
            share(sums, world)
            *terms, count, stops = sums.terms.tolist()
            gradient_norm = scale_gradients(networks.model, count, config, world)
            critic_norm = scale_gradients(networks.discriminator, count, config, world) if fooling else 0.0
            if not math.isfinite(sum(terms) + gradient_norm + critic_norm):
                where = blame(step, networks, loss, weight, batches, config, world)
                text = ", ".join(f"{name} {term / count:.4g}" for name, term in zip(NAMES, terms, strict=True))
                raise NonFiniteError(f"step {step}: {text}, gradient norm {gradient_norm}, from {where}")
            apply_steps([*optimizers, *(critics if fooling else [])])
            if codebook is not None and sums.table is not None and sums.candidates is not None:
                codebook.update(sums.table, sums.candidates)
            if fooling:
                pull, push = sums.pulls.norm(dim=1).tolist()
                ratio.fill_(pull / (push + 1e-4 * count))
            ema.update(step)

            done, seen = step + 1, seen + int(count)
            window += torch.tensor([*terms, count], dtype=torch.float64)
            used += sums.codes
            if done % config.log_every == 0 or done == config.steps:
                rate = seen / (time.perf_counter() - clock)
                means = dict(zip(NAMES, (window[:-1] / window[-1]).tolist(), strict=True))
                log.progress(done, means["pixel"], rate)
                values = {
                    **means,
                    **code_use(used),
                    "adversarial_weight": weight or 0.0,
                    "images_per_second": rate,
                    "gradient_norm": gradient_norm,
                }
                log.record(done, {**values, "learning_rate": optimizers[0].param_groups[0]["lr"]})
                warned = warned or warn_of_collapse(used, done, log)
                window.zero_()
                used.zero_()
                seen, clock = 0, time.perf_counter()
            if done % config.evaluate_every == 0 or done == config.steps:
                run_evaluators(evaluators, ema, networks.model, done, log)
                seen, clock = 0, time.perf_counter()
            if stops or done % config.save_every == 0 or done == config.steps:
                checkpoint.save(
                    folder,
                    done,
                    tensors,
                    meta or {},
                    is_main=world.is_main,
                    barrier=lambda: barrier(world),
                    token=broadcast_text(uuid.uuid4().hex, world),
                    keep=config.keep,
                )
            if stops and done < config.steps:
                raise Preempted(f"stopped by a signal after step {done}; saved. The same command continues from there")
    return ema


def _refuse(networks: Networks, loss: TokenizerLoss, config: TrainConfig, world: World) -> None:
    """ConfigError for what cannot work."""
    if resolve_strategy(config.strategy, world) == "fsdp":
        raise ConfigError("training.strategy fsdp: tokenizers are small enough for ddp; leave it out")
    if config.batch_size < world.size * config.accumulate:
        raise ConfigError(
            f"training.batch_size {config.batch_size} leaves some of {world.size} processes x {config.accumulate} "
            "micro-batches without a row: raise it, or lower training.accumulate"
        )
    (height, width), patches = networks.core.config.size, loss.discriminator
    if loss.adversarial > 0 and min(height, width) < patches.smallest:
        raise ConfigError(
            f"loss.discriminator.layers {patches.layers} needs images of {patches.smallest} pixels or more per side, "
            f"not {height}x{width}: use fewer layers, or set loss.adversarial 0"
        )


@torch.no_grad()
def start_codebook(networks: Networks, batches: ImageBatches, config: TrainConfig, world: World) -> None:
    """k-means over the latents of the first global batch, the same on all ranks; nothing if it was done."""
    core, codebook = networks.core, networks.codebook
    if codebook is None or bool(codebook.started):
        return
    height, width = core.grid
    latents = torch.zeros(config.batch_size, height * width, codebook.config.dim, device=world.device)
    for rows in rows_of_rank(config, world):
        with autocast(config.precision, world):
            z = core.latents(batches(0, rows)[0])
        latents[rows.to(world.device)] = quantizers.rows(z)
    codebook.start(sum_over_ranks(latents, world).flatten(0, 1))
    # GPUs add up in any order, which may move a mean and then whose nearest it is: all ranks take rank 0's centres.
    for centres in (codebook.table, codebook.sum):
        centres.copy_(sum_over_ranks(centres * float(world.is_main), world))


def scale_gradients(model: nn.Module, count: float, config: TrainConfig, world: World) -> float:
    """Divide the summed gradients by `count` and clip them; their norm before clipping."""
    gradients = [p.grad for p in unwrap(model).parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, get_gradient_factor(model, world) / count)
    total = float(compute_norm(gradients))
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


def warn_of_collapse(used: Float[Tensor, "k"], step: int, log: Log) -> bool:
    """Say so, and return True, if few codes are in use although many more tokens than codes were looked at."""
    use = code_use(used)["usage"]
    if use >= COLLAPSED or used.sum() < 10 * len(used):
        return False
    log.say(
        f"step {step}: only {use:.1%} of {len(used)} codes are in use: the codebook collapses. "
        "Use fsq, or raise the revive threshold, or lower the learning rate"
    )
    return True
