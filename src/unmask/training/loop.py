"""The training loop: one straight function, short enough to copy into a recipe and change.

Data, masks and noise are pure functions of (seed, step, row of the global batch). Gradients of the summed loss are
divided once, by the count over all ranks and micro-batches. So one process, several processes, or several micro-batches
give the same curve. A resumed run equals an uninterrupted one, bit for bit, at the same thread count.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from unmask.errors import NonFiniteError
from unmask.method.guidance import Condition
from unmask.method.objectives import Loss
from unmask.method.rand import Rand, choose_wide_dtype
from unmask.runtime.distributed import (
    World,
    accumulate_gradients,
    autocast,
    get_gradient_factor,
    resolve_strategy,
    sum_over_ranks,
    unwrap,
)
from unmask.runtime.kernels import skip_compiled
from unmask.runtime.signals import stop_on_signal
from unmask.training.configs import TrainConfig
from unmask.training.ema import Ema
from unmask.training.log import TrainLog
from unmask.training.optim import (
    collect_optimizer_state,
    create_optimizer_state,
    set_learning_rate,
)
from unmask.training.saving import find_non_finite
from unmask.training.steps import (
    RunState,
    apply_gradients,
    check_batch_size,
    describe_cause,
    describe_first_loss,
    scale_gradients,
    split_rows,
)

LossFunction = Callable[..., Loss]
"""`loss(model, tokens, condition, *, mask_id, rand)`, such as any objective of `method/objectives.py`."""
Batch = tuple[Int[Tensor, "b l"], Condition]
Evaluator = Callable[[], Iterable[tuple[str, float | Image.Image | str]]]
"""Yields (name, number, image or text). It runs with the averaged weights in place and cannot reach into the loop."""


def train_model(
    model: nn.Module,
    objective: LossFunction,
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
    """Train a model in the run directory `run`, from its newest checkpoint on, and return the averaged weights.

    Args:
        model: The model, already distributed.
        objective: The loss, a sum and its count.
        batches: `batches(step, rows)` returns those rows of the global batch of that step.
        config: Training settings.
        run: The run directory. It receives metrics.jsonl, samples and checkpoints.
        world: This process among all.
        evaluators: Called every `evaluate_every` steps and after the last step.
        expected_loss: Loss of an untrained model in nats, shown beside the first loss.
        notes: Lines that the log shows first.
        meta: JSON data for the manifest of each checkpoint.

    Raises:
        NonFiniteError: Before a step with a loss or gradient that is not finite is taken.
        Preempted: After a signal, once the step is done and saved.
        ConfigError: If the settings do not fit the number of processes.
        CheckpointError: If no checkpoint is complete or it is of another model.
        DiskError: If a checkpoint cannot be written.
    """
    sharded = resolve_strategy(config.strategy, world) == "fsdp"
    check_batch_size(config.batch_size, config.accumulate, world)
    core = unwrap(model)
    ema = Ema(core, config.ema)
    optimizers = config.optimizer.build(core)
    create_optimizer_state(optimizers)
    parameters = list(core.parameters())
    window = torch.zeros(2, dtype=torch.float64)  # loss and count since the last line of metrics.jsonl

    # -- resume
    tensors = {
        "log.window": window,
        **{f"model.{n}": p.detach() for n, p in core.named_parameters()},
        **{f"ema.{n}": a for n, a in ema.average.items()},
        **collect_optimizer_state(optimizers, core),
    }
    state = RunState(
        run=run,
        tensors=tensors,
        meta=meta or {},
        steps=config.steps,
        save_every=config.save_every,
        keep=config.keep,
        sharded=sharded,
        world=world,
    )
    start, resume_notes = state.resume()
    tokens_seen, clock = 0, time.perf_counter()
    log = TrainLog(run if world.is_main else None, steps=config.steps, start=start, tracker=config.tracker)
    with log, stop_on_signal() as stop, state:
        for note in (*notes, *resume_notes):
            log.say(note)
        for step in range(start, config.steps):
            # -- one step
            set_learning_rate(optimizers, config.learning_rate(step, config.steps))
            sums = accumulate(step, model, objective, batches, config, world)
            sums = sum_over_ranks(torch.cat([sums, sums.new_tensor([stop.asked])]), world)
            total, count, num_tokens, stops = sums.tolist()
            gradient_norm = scale_gradients(parameters, get_gradient_factor(model, world) / count, config.clip)
            if not (math.isfinite(total) and math.isfinite(gradient_norm)):
                where = _find_cause(step, total, model, objective, batches, config, world)
                raise NonFiniteError(f"step {step}: loss {total / count}, gradient norm {gradient_norm}, from {where}")
            apply_gradients(optimizers)
            ema.update(step)
            done, tokens_seen = step + 1, tokens_seen + num_tokens
            window += torch.tensor([total, count], dtype=torch.float64)

            # -- log, evaluate, save
            log.show_step(done)
            if step == start:
                log.say(describe_first_loss(step, total / count, expected_loss))
            if done % config.log_every == 0 or done == config.steps:
                rate = tokens_seen / (time.perf_counter() - clock)
                mean = float(window[0] / window[1])
                log.show_progress(done, mean, rate)
                values = {"loss": mean, "gradient_norm": gradient_norm, "tokens_per_second": rate}
                log.record(done, {**values, "learning_rate": optimizers[0].param_groups[0]["lr"]})
                window.zero_()
                tokens_seen, clock = 0, time.perf_counter()
            if done % config.evaluate_every == 0 or done == config.steps:
                run_evaluators(evaluators, ema, model, done, log, world)
                tokens_seen, clock = 0, time.perf_counter()
            state.save_if_due(done, stopped=bool(stops))
    return ema


def accumulate(
    step: int,
    model: nn.Module,
    objective: LossFunction,
    batches: Callable[[int, Int[Tensor, "b"]], Batch],
    config: TrainConfig,
    world: World,
) -> Float[Tensor, "3"]:
    """Run the backward passes of this rank's micro-batches; return the summed loss, count, and number of tokens."""
    sums = torch.zeros(3, dtype=choose_wide_dtype(world.device), device=world.device)
    for micro, rows in enumerate(split_rows(config.batch_size, config.accumulate, world)):
        tokens, condition = batches(step, rows)
        rand = Rand(config.seed, rows.to(world.device), config.batch_size, step)
        with accumulate_gradients(model, micro == config.accumulate - 1):
            with autocast(config.precision, world):
                loss = objective(model, tokens, condition, mask_id=unwrap(model).mask_id, rand=rand)
            loss.total.backward()
        sums += torch.stack([loss.total.detach(), loss.count, sums.new_tensor(tokens.numel())]).to(sums.dtype)
    return sums


def run_evaluators(
    evaluators: Sequence[Evaluator], ema: Ema, model: nn.Module, step: int, log: TrainLog, world: World
) -> None:
    """Run each evaluator with the averaged weights in place, and log what it yields.

    Raises:
        NonFiniteError: If an averaged weight of any rank is not finite.
    """
    if evaluators and (damaged := find_non_finite(ema.average, world)):
        raise NonFiniteError(f"step {step}: averaged weights: {damaged}; the same command continues before that")
    numbers: dict[str, float] = {}
    model.eval()
    with ema.swap_weights(), torch.no_grad(), skip_compiled(model):
        for name, value in chain.from_iterable(evaluator() for evaluator in evaluators):
            if isinstance(value, Image.Image):
                log.save_picture(step, name, value)
            elif isinstance(value, str):
                log.save_text(step, name, value)
            else:
                numbers[name] = value
    model.train()
    if numbers:
        log.record(step, numbers)
        log.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()))


def _find_cause(
    step: int,
    total: float,
    model: nn.Module,
    objective: LossFunction,
    batches: Callable[[int, Int[Tensor, "b"]], Batch],
    config: TrainConfig,
    world: World,
) -> str:
    """Name the weights, or the rows of the global batch, with NaN or infinity. Every rank checks every row."""

    def find_rows() -> list[int]:
        bad = []
        for row in range(config.batch_size):
            rows = torch.tensor([row])
            rand = Rand(config.seed, rows.to(world.device), config.batch_size, step)
            with torch.no_grad(), autocast(config.precision, world):
                tokens, condition = batches(step, rows)
                loss = objective(model, tokens, condition, mask_id=unwrap(model).mask_id, rand=rand)
            if not bool(loss.total.isfinite()):
                bad.append(row)
        return bad

    weights = {name: parameter.detach() for name, parameter in unwrap(model).named_parameters()}
    return describe_cause(weights, find_rows, total, config.batch_size, world)
