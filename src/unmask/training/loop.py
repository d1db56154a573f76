"""The training loop: one straight function, short enough to copy into a recipe and change.

Data, masks and noise are pure functions of (seed, step, row of the global batch), and gradients of the summed loss are
divided once, by the count over all ranks and micro-batches. Hence one process, several, or several micro-batches give
the same curve, and a resumed run is the uninterrupted one, bit for bit, at the same thread count.
"""

import math
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Float64, Int
from PIL import Image
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError, NonFiniteError, Preempted
from unmask.method.guidance import Condition
from unmask.method.objectives import Loss
from unmask.method.rand import Rand
from unmask.runtime.distributed import (
    Precision,
    Strategy,
    World,
    accumulate_gradients,
    autocast,
    barrier,
    broadcast_text,
    compute_norm,
    get_gradient_factor,
    get_local,
    resolve_strategy,
    sum_over_ranks,
    unwrap,
)
from unmask.runtime.signals import stop_on_signal
from unmask.storage.layout import CHECKPOINTS
from unmask.training import checkpoint
from unmask.training.ema import Ema
from unmask.training.log import Log, Tracker
from unmask.training.optim import (
    AdamW,
    Constant,
    CosineDecay,
    Muon,
    WarmupStableDecay,
    prime,
    set_learning_rate,
    state_tensors,
)

Objective = Callable[..., Loss]
Batch = tuple[Int[Tensor, "b l"], Condition]
Evaluator = Callable[[], Iterable[tuple[str, float | Image.Image | str]]]
"""Yields (name, number, picture or text). It runs with the averaged weights in place and cannot reach into the loop."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`batch_size` counts rows of the global batch, over all ranks and `accumulate` micro-batches."""

    steps: int = 1500
    batch_size: int = 64
    accumulate: int = 1
    optimizer: AdamW | Muon = field(default_factory=Muon)
    learning_rate: Constant | CosineDecay | WarmupStableDecay = CosineDecay(warmup=100)
    clip: float = 1.0
    ema: float = 0.999
    precision: Precision = "auto"
    strategy: Strategy = "auto"
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 500
    save_every: int = 500
    keep: int = 2
    tracker: Tracker = "none"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} = {getattr(self, name)}: must be at least 1")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"training.batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}"
            )
        if self.keep < 2 or not self.clip > 0 or not 0 <= self.ema < 1:
            raise ValueError(
                f"training: keep {self.keep} >= 2, clip {self.clip} > 0 and ema {self.ema} in [0, 1) needed"
            )


def train(
    model: nn.Module,
    objective: Objective,
    batches: Callable[[int, Int[Tensor, "b"]], Batch],
    config: TrainConfig,
    run: Path,
    *,
    world: World,
    evaluators: Sequence[Evaluator] = (),
    expected_loss: float = math.nan,
    notes: Sequence[str] = (),
    meta: dict | None = None,
) -> Ema:
    """Train `model` (already distributed) in the folder `run`, from its newest checkpoint on, and return the average.

    `notes` are said first.
    Raises NonFiniteError before a bad step is taken, Preempted after a signal, ConfigError, CheckpointError, DiskError.
    """
    sharded = resolve_strategy(config.strategy, world) == "fsdp"
    if config.batch_size < world.size * config.accumulate:
        raise ConfigError(
            f"training.batch_size {config.batch_size} leaves some of {world.size} processes x {config.accumulate} "
            "micro-batches without a row: raise it, or lower training.accumulate"
        )
    core = unwrap(model)
    ema = Ema(core, config.ema)
    optimizers = config.optimizer.build(core)
    prime(optimizers)
    parameters = list(core.parameters())
    window = torch.zeros(2, dtype=torch.float64)  # loss and count since the last line of metrics.jsonl
    tensors = {
        "log.window": window,
        **{f"model.{n}": p.detach() for n, p in core.named_parameters()},
        **{f"ema.{n}": a for n, a in ema.average.items()},
        **state_tensors(optimizers, core),
    }
    folder = run / CHECKPOINTS

    def save(step: int) -> None:
        checkpoint.save(
            folder,
            step,
            tensors,
            meta or {},
            sharded=sharded,
            is_main=world.is_main,
            barrier=lambda: barrier(world),
            token=broadcast_text(uuid.uuid4().hex, world),
            keep=config.keep,
        )

    notes = list(notes)
    found = checkpoint.latest(folder, report=notes.append)
    if found is not None:
        checkpoint.load(found, tensors, sharded=sharded)
    start = found.step if found else 0
    if int(broadcast_text(str(start), world)) != start:
        raise CheckpointError(
            f"rank {world.rank} found step {start} in {run}, rank 0 another: share one folder among ranks"
        )
    tokens_seen, clock = 0, time.perf_counter()
    with (
        Log(run if world.is_main else None, steps=config.steps, start=start, tracker=config.tracker) as log,
        stop_on_signal() as stop,
    ):
        if found:
            notes.append(
                f"continuing after step {start}" if start < config.steps else f"all {start} steps are done already"
            )
        for note in notes:
            log.say(note)
        for step in range(start, config.steps):
            set_learning_rate(optimizers, config.learning_rate(step, config.steps))
            sums = accumulate(step, model, objective, batches, config, world)
            sums = sum_over_ranks(torch.cat([sums, sums.new_tensor([stop.asked])]), world)
            total, count, num_tokens, stops = sums.tolist()
            tokens_seen += num_tokens
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_mul_([get_local(g) for g in gradients], get_gradient_factor(model, world) / count)
            gradient_norm = float(compute_norm(gradients))
            if not (math.isfinite(total) and math.isfinite(gradient_norm)):
                where = _blame(step, model, objective, batches, config, world)
                raise NonFiniteError(f"step {step}: loss {total / count}, gradient norm {gradient_norm}, from {where}")
            torch._foreach_mul_([get_local(g) for g in gradients], min(1.0, config.clip / (gradient_norm + 1e-12)))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            ema.update(step)

            done = step + 1
            window += torch.tensor([total, count], dtype=torch.float64)
            if step == start:
                log.say(
                    f"loss of the first step {total / count:.4f}"
                    + (f", expected {expected_loss:.4f}" if step == 0 and not math.isnan(expected_loss) else "")
                )
            if done % config.log_every == 0 or done == config.steps:
                rate = tokens_seen / (time.perf_counter() - clock)
                mean = float(window[0] / window[1])
                log.progress(done, mean, rate)
                values = {
                    "loss": mean,
                    "gradient_norm": gradient_norm,
                    "tokens_per_second": rate,
                }
                log.record(done, {**values, "learning_rate": optimizers[0].param_groups[0]["lr"]})
                window.zero_()
                tokens_seen, clock = 0, time.perf_counter()
            if done % config.evaluate_every == 0 or done == config.steps:
                run_evaluators(evaluators, ema, model, done, log)
                tokens_seen, clock = 0, time.perf_counter()
            if stops or done % config.save_every == 0 or done == config.steps:
                save(done)
            if stops and done < config.steps:
                raise Preempted(f"stopped by a signal after step {done}; saved. The same command continues from there")
    return ema


def accumulate(
    step: int,
    model: nn.Module,
    objective: Objective,
    batches: Callable[[int, Int[Tensor, "b"]], Batch],
    config: TrainConfig,
    world: World,
) -> Float64[Tensor, "3"]:
    """Backward through this rank's micro-batches of a step; their summed loss, count, and number of tokens.

    Rank r takes rows r + world * micro, and so on in strides, so that each holds all strata of the mask ratio.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    for micro in range(config.accumulate):
        rows = torch.arange(world.rank + world.size * micro, config.batch_size, world.size * config.accumulate)
        tokens, condition = batches(step, rows)
        rand = Rand(config.seed, rows.to(world.device), config.batch_size, step)
        with accumulate_gradients(model, micro == config.accumulate - 1):
            with autocast(config.precision, world):
                loss = objective(model, tokens, condition, mask_id=unwrap(model).mask_id, rand=rand)
            loss.total.backward()
        sums += torch.stack([loss.total.detach(), loss.count, sums.new_tensor(tokens.numel())]).double()
    return sums


def run_evaluators(evaluators: Sequence[Evaluator], ema: Ema, model: nn.Module, step: int, log: Log) -> None:
    """Log what each evaluator yields, with the averaged weights in place."""
    numbers: dict[str, float] = {}
    model.eval()
    with ema.swapped(), torch.no_grad():
        for name, value in chain.from_iterable(evaluator() for evaluator in evaluators):
            if isinstance(value, Image.Image):
                log.picture(step, name, value)
            elif isinstance(value, str):
                log.text(step, name, value)
            else:
                numbers[name] = value
    model.train()
    if numbers:
        log.record(step, numbers)
        log.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()))


def _blame(
    step: int,
    model: nn.Module,
    objective: Objective,
    batches: Callable[[int, Int[Tensor, "b"]], Batch],
    config: TrainConfig,
    world: World,
) -> str:
    """The rows of the global batch whose own loss is not finite. Every rank looks at every row, so all agree."""
    bad = []
    for row in range(config.batch_size):
        rows = torch.tensor([row])
        rand = Rand(config.seed, rows.to(world.device), config.batch_size, step)
        with torch.no_grad(), autocast(config.precision, world):
            tokens, condition = batches(step, rows)
            loss = objective(model, tokens, condition, mask_id=unwrap(model).mask_id, rand=rand)
        if not bool(loss.total.isfinite()):
            bad.append(row)
    if len(bad) == config.batch_size:
        return "every row of the batch: look at the weights, or lower the learning rate"
    return f"rows {bad[:8]} of the batch" if bad else "no single row: the gradient overflowed; lower the learning rate"
