"""The training loop of a tokenizer: reconstruct pixels, match features, and fool a discriminator that starts late.

As in `loop.py`, batches and noise are pure functions of (seed, step, row), and sums are divided once. So the number of
ranks and micro-batches changes nothing, and a resumed run equals an uninterrupted one. There are two exceptions: LFQ's
diversity term, which each micro-batch measures for itself, and torch's rounding.

Differs from the paper: the adversarial weight (eq. 7 of arXiv 2012.09841) is the ratio of gradients at the step before.
All ranks know this number before the backward pass, so the generator needs one backward pass instead of three.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.errors import ConfigError, NonFiniteError
from unmask.method.rand import choose_wide_dtype, to_double
from unmask.runtime.distributed import World, autocast, get_gradient_factor, resolve_strategy, sum_over_ranks
from unmask.runtime.signals import stop_on_signal
from unmask.tokenizers import quantizers
from unmask.tokenizers.configs import TokenizerLoss
from unmask.training.configs import TrainConfig
from unmask.training.ema import Ema
from unmask.training.log import TrainLog
from unmask.training.loop import Evaluator, run_evaluators
from unmask.training.optim import collect_optimizer_state, create_optimizer_state, set_learning_rate
from unmask.training.steps import RunState, apply_gradients, check_batch_size, scale_gradients, split_rows
from unmask.training.tokenizer_step import (
    LOSS_TERMS,
    ImageBatches,
    Networks,
    compute_gradients,
    find_cause,
    reduce_sums,
)

COLLAPSED = 0.1  # below this share of tokens in use, the log warns


def train_autoencoder(
    networks: Networks,
    loss: TokenizerLoss,
    batches: ImageBatches,
    config: TrainConfig,
    run: Path,
    *,
    world: World,
    evaluators: Sequence[Evaluator] = (),
    notes: Sequence[str] = (),
    meta: dict | None = None,
) -> Ema:
    """Train a tokenizer in the run directory `run`, from its newest checkpoint on, and return the averaged weights.

    Args:
        networks: The tokenizer, its discriminator and the frozen features, already distributed.
        loss: The weights of the loss terms, and when the discriminator starts.
        batches: `batches(step, rows)` returns those images of the global batch of that step.
        config: Training settings.
        run: The run directory. It receives metrics.jsonl, samples and checkpoints.
        world: This process among all.
        evaluators: Called every `evaluate_every` steps and after the last step.
        notes: Lines that the log shows first.
        meta: JSON data for the manifest of each checkpoint.

    Raises:
        ConfigError: If the discriminator does not fit the images, or the settings the number of processes.
        NonFiniteError, Preempted, CheckpointError, DiskError: As in `train`.
    """
    _check_setup(networks, loss, config, world)
    core, codebook = networks.core, networks.codebook
    ema = Ema(core, config.ema)
    optimizers, critics = config.optimizer.build(core), config.optimizer.build(networks.critic)
    create_optimizer_state(optimizers + critics)
    parameters, critic_parameters = list(core.parameters()), list(networks.critic.parameters())
    ratio = torch.zeros((), dtype=torch.float64)  # of the gradients at the last layer: eq. 7's lambda
    window = torch.zeros(len(LOSS_TERMS) + 1, dtype=torch.float64)  # sums since the last line of metrics.jsonl
    used = torch.zeros(core.vocab_size, dtype=choose_wide_dtype(world.device), device=world.device)

    # -- resume
    tensors = {
        "ratio": ratio,
        "log.window": window,
        "log.used": used,
        **{f"model.{n}": p.detach() for n, p in core.named_parameters()},
        **{f"buffer.{n}": b for n, b in core.named_buffers() if n in core.state_dict()},
        **{f"discriminator.{n}": p.detach() for n, p in networks.critic.named_parameters()},
        **{f"ema.{n}": a for n, a in ema.average.items()},
        **collect_optimizer_state(optimizers, core),
        **{f"discriminator.{n}": x for n, x in collect_optimizer_state(critics, networks.critic).items()},
    }
    state = RunState(
        run=run,
        tensors=tensors,
        meta=meta or {},
        steps=config.steps,
        save_every=config.save_every,
        keep=config.keep,
        sharded=False,
        world=world,
    )
    start, resume_notes = state.resume()
    seen, warned, clock = 0, False, time.perf_counter()
    log = TrainLog(
        run if world.is_main else None, steps=config.steps, start=start, tracker=config.tracker, unit="images/s"
    )
    with log, stop_on_signal() as stop, state:
        for note in (*notes, *resume_notes):
            log.say(note)
        if start < config.steps:
            start_codebook(networks, batches, config, world)
        for step in range(start, config.steps):
            # -- one step
            set_learning_rate(optimizers + critics, config.learning_rate(step, config.steps))
            fooling = loss.adversarial > 0 and step >= loss.start * config.steps
            weight = min(float(ratio), loss.ceiling) * loss.adversarial if fooling else None
            sums = compute_gradients(step, networks, loss, weight, batches, config, world)
            sums.terms[-1] += stop.asked
            reduce_sums(sums, world)
            *terms, count, stops = sums.terms.tolist()
            factor = get_gradient_factor(networks.model, world) / count
            gradient_norm, critic_norm = scale_gradients(parameters, factor, config.clip), 0.0
            if fooling:
                factor = get_gradient_factor(networks.discriminator, world) / count
                critic_norm = scale_gradients(critic_parameters, factor, config.clip)
            if not math.isfinite(sum(terms) + gradient_norm + critic_norm):
                where = find_cause(step, sum(terms), networks, loss, weight, batches, config, world)
                text = ", ".join(f"{name} {term / count:.4g}" for name, term in zip(LOSS_TERMS, terms, strict=True))
                raise NonFiniteError(f"step {step}: {text}, gradient norm {gradient_norm}, from {where}")
            apply_gradients([*optimizers, *(critics if fooling else [])])
            if codebook is not None and sums.table is not None and sums.candidates is not None:
                codebook.update(sums.table, sums.candidates)
            if fooling:
                pull, push = sums.pulls.norm(dim=1).tolist()
                ratio.fill_(pull / (push + 1e-4 * count))
            ema.update(step)
            done, seen = step + 1, seen + int(count)
            window += torch.tensor([*terms, count], dtype=torch.float64)
            used += sums.codes

            # -- log, evaluate, save
            log.show_step(done)
            if done % config.log_every == 0 or done == config.steps:
                rate = seen / (time.perf_counter() - clock)
                means = dict(zip(LOSS_TERMS, (window[:-1] / window[-1]).tolist(), strict=True))
                log.show_progress(done, means["pixel"], rate)
                values = {**means, **measure_code_use(used), "adversarial_weight": weight or 0.0}
                values |= {"images_per_second": rate, "gradient_norm": gradient_norm}
                log.record(done, {**values, "learning_rate": optimizers[0].param_groups[0]["lr"]})
                warned = warned or warn_of_collapse(used, done, log)
                window.zero_()
                used.zero_()
                seen, clock = 0, time.perf_counter()
            if done % config.evaluate_every == 0 or done == config.steps:
                run_evaluators(evaluators, ema, networks.model, done, log, world)
                seen, clock = 0, time.perf_counter()
            state.save_if_due(done, stopped=bool(stops))
    return ema


def _check_setup(networks: Networks, loss: TokenizerLoss, config: TrainConfig, world: World) -> None:
    """Raise ConfigError for settings that cannot work together."""
    if resolve_strategy(config.strategy, world) == "fsdp":
        raise ConfigError("training.strategy fsdp: tokenizers are small enough for ddp; leave it out")
    check_batch_size(config.batch_size, config.accumulate, world)
    (height, width), patches = networks.core.config.size, loss.discriminator
    if loss.adversarial > 0 and min(height, width) < patches.smallest:
        raise ConfigError(
            f"loss.discriminator.layers {patches.layers} needs images of {patches.smallest} pixels or more per side, "
            f"not {height}x{width}: use fewer layers, or set loss.adversarial 0"
        )


@torch.no_grad()
def start_codebook(networks: Networks, batches: ImageBatches, config: TrainConfig, world: World) -> None:
    """Initialize the codebook by k-means over the latents of the first global batch, alike on all ranks.

    Does nothing without a codebook, or if the codebook was initialized before.
    """
    core, codebook = networks.core, networks.codebook
    if codebook is None or bool(codebook.started):
        return
    height, width = core.grid
    latents = torch.zeros(config.batch_size, height * width, codebook.config.dim, device=world.device)
    for rows in split_rows(config.batch_size, config.accumulate, world):
        with autocast(config.precision, world):
            z = core.encode_latents(batches(0, rows)[0])
        latents[rows.to(world.device)] = quantizers.flatten_latents(z)
    codebook.start(sum_over_ranks(latents, world).flatten(0, 1))
    # GPUs sum in any order. That may move a mean, and then change the nearest mean of a latent. So all ranks take the
    # centres of rank 0.
    for centres in (codebook.table, codebook.sum):
        centres.copy_(sum_over_ranks(centres * float(world.is_main), world))


def measure_code_use(used: Float[Tensor, "k"]) -> dict[str, float]:
    """Return `usage`, the share of tokens that occurred, and `perplexity`, exp of the entropy in nats."""
    used = to_double(used)
    p = used / used.sum()
    return {"usage": float((used > 0).double().mean()), "perplexity": float(torch.special.entr(p).sum().exp())}


def warn_of_collapse(used: Float[Tensor, "k"], step: int, log: TrainLog) -> bool:
    """Warn and return True if few tokens of the codebook are in use, counted over at least 10 times its size."""
    use = measure_code_use(used)["usage"]
    if use >= COLLAPSED or used.sum() < 10 * len(used):
        return False
    log.say(
        f"step {step}: only {use:.1%} of {len(used)} codes are in use: the codebook collapses. "
        "Use fsq, or raise the revive threshold, or lower the learning rate"
    )
    return True
