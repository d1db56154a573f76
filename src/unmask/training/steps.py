"""What both training loops do around a step: resume, split rows, scale and apply gradients, save, and stop."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError, Preempted, UnmaskError
from unmask.method.rand import choose_wide_dtype
from unmask.runtime.distributed import (
    World,
    broadcast_text,
    compute_norm,
    get_local,
    sum_over_ranks,
)
from unmask.runtime.kernels import multiply_all
from unmask.storage.layout import CHECKPOINTS, METRICS
from unmask.training.checkpoint import load_checkpoint
from unmask.training.curve import describe_curve, has_curve_changed
from unmask.training.optim import Optimizers
from unmask.training.runfolder import find_latest_checkpoint
from unmask.training.saving import Saver, find_non_finite


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Everything that a run needs to resume, and where this rank saves it."""

    run: Path
    """The run directory, shared by all ranks."""
    tensors: Mapping[str, Tensor]
    """Every tensor that changes during training. Loading writes into these tensors."""
    meta: dict[str, Any]
    """JSON data for the manifest of each checkpoint."""
    steps: int
    """Optimizer steps of the whole run."""
    save_every: int
    """Steps between two checkpoints."""
    keep: int
    """Number of complete checkpoints that stay on disk."""
    sharded: bool
    """True if the tensors are DTensors and each rank writes its own shards."""
    world: World
    saver: Saver = field(default_factory=Saver)

    @property
    def folder(self) -> Path:
        """The folder that holds the checkpoints."""
        return self.run / CHECKPOINTS

    def __enter__(self) -> "RunState":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait for the last save. If it fails after another error, both are in one line."""
        if error is None:
            return self.saver.finish(self.world)
        try:
            self.saver.wait()
        except UnmaskError as second:
            if not isinstance(error, UnmaskError):
                raise
            error.args = (f"{error}; also, {second}",)

    def resume(self) -> tuple[int, list[str]]:
        """Load the newest complete checkpoint, if there is one.

        Returns:
            The number of steps that are done already, and lines for the log: damaged checkpoints, where it resumes, and
            what differs from the process that saved.

        Raises:
            CheckpointError: If no checkpoint is complete, it does not fit the tensors, or ranks found different ones.
        """
        notes: list[str] = []
        found = find_latest_checkpoint(self.folder, report=notes.append)
        if found is not None:
            load_checkpoint(found, self.tensors, sharded=self.sharded)
            self.saver.trust(found)
        start = found.step if found else 0
        if int(broadcast_text(str(start), self.world)) != start:
            raise CheckpointError(
                f"rank {self.world.rank} found step {start} in {self.run}, rank 0 another: share one folder among ranks"
            )
        if found:
            notes += describe_resume(start, self.steps, found.meta, self.meta)
            if has_curve_changed(self.run / METRICS, found.meta.get("curve", {})):
                path = self.run / METRICS
                notes.append(f"{path} is not as step {start} left it: a part of the curve is missing or was changed")
        return start, notes

    def save_if_due(self, done: int, *, stopped: bool) -> None:
        """Save after step number `done` (counted from 1) if a checkpoint is due or any rank was asked to stop.

        The save runs in the background, except the one before `Preempted`.

        Raises:
            Preempted: After the save, if any rank was asked to stop and steps are left.
            NonFiniteError: If a tensor holds NaN or infinity. Nothing is written.
            RankError: If ranks hold different weights; nothing is written.
            DiskError: If this or an earlier checkpoint cannot be written. Older ones are kept.
        """
        self.saver.check()
        if stopped or done % self.save_every == 0 or done == self.steps:
            meta = {**self.meta, "steps": self.steps, "curve": describe_curve(self.run / METRICS)}
            self.saver.save(
                self.folder, done, self.tensors, meta, sharded=self.sharded, world=self.world, keep=self.keep
            )
        if stopped and done < self.steps:
            self.saver.finish(self.world)
            raise Preempted(f"stopped by a signal after step {done}; saved. The same command continues from there")


def describe_resume(start: int, steps: int, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the lines of a resumed run: from where to where, and what differs from the process that saved.

    Args:
        start: Number of steps that are done.
        steps: Number of steps of the whole run.
        then: The JSON data of the checkpoint.
        now: The JSON data that this process saves.
    """
    if start >= steps:
        return [f"all {start:,} steps are done already"]
    before = then.get("steps") or then.get("recipe", {}).get("training", {}).get("steps")
    line = f"continuing after step {start:,}"
    if before is not None and before != steps:
        line += f" (of {before:,} before) to {steps:,}; the learning rate follows the schedule of {steps:,} steps"
    old, new = _collect_facts(then), _collect_facts(now)
    changes = [f"{name} {new[name]} now, {old[name]} before" for name in new if name in old and old[name] != new[name]]
    if not changes:
        return [line]
    same = "data, masks and noise stay the same; sums may be rounded otherwise, so the last bits of results may differ"
    told = "type" if "type" in old else "precision"  # early versions kept no type
    if old.get(told) != new.get(told):
        same = "data, masks and noise stay the same, but the number type is another: results are not equal bit for bit"
    return [line, f"{'; '.join(changes)}: {same}"]


def describe_first_loss(step: int, loss: float, expected: float) -> str:
    """Return the line on the first loss of this process: beside the expected one, or of the step after a resume.

    Args:
        step: Number of steps done before.
        loss: The loss of the step.
        expected: The loss of an untrained model; NaN if unknown.
    """
    if step:
        return f"loss of step {step + 1:,}, the first after the resume: {loss:.4f}"
    return f"loss of the first step {loss:.4f}" + ("" if math.isnan(expected) else f", expected {expected:.4f}")


def _collect_facts(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may change the rounding of a run, and nothing else: where and how it computes."""
    environment, training = meta.get("environment", {}), meta.get("recipe", {}).get("training", {})
    facts = {name: environment.get(name) for name in ("processes", "threads", "hardware", "torch", "commit")}
    facts |= {name: training.get(name) for name in ("accumulate", "precision", "strategy")}
    facts |= {"type": meta.get("type")}
    return {name: fact for name, fact in facts.items() if fact is not None}


def check_batch_size(batch_size: int, accumulate: int, world: World) -> None:
    """Raise ConfigError if a micro-batch of some rank would hold no row."""
    if batch_size < world.size * accumulate:
        raise ConfigError(
            f"training.batch_size {batch_size} leaves some of {world.size} processes x {accumulate} "
            "micro-batches without a row: raise it, or lower training.accumulate"
        )


def split_rows(batch_size: int, accumulate: int, world: World) -> list[Int[Tensor, "b"]]:
    """Return the rows of the global batch for each of this rank's micro-batches.

    Rows are dealt out in strides, so that each micro-batch holds all strata of the mask ratio.
    """
    stride = world.size * accumulate
    firsts = (world.rank + world.size * micro for micro in range(accumulate))
    return [torch.arange(first, batch_size, stride) for first in firsts]


def scale_gradients(parameters: Sequence[nn.Parameter], factor: float, clip: float) -> float:
    """Multiply all gradients by `factor`, clip their global norm to `clip`, and return the norm before clipping."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    multiply_all([get_local(g) for g in gradients], factor)
    gradient_norm = float(compute_norm(gradients))
    multiply_all([get_local(g) for g in gradients], min(1.0, clip / (gradient_norm + 1e-12)))
    return gradient_norm


def apply_gradients(optimizers: Optimizers) -> None:
    """Take one step with each optimizer and drop the gradients."""
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def describe_cause(
    weights: Mapping[str, Tensor], find_rows: Callable[[], list[int]], total: float, size: int, world: World
) -> str:
    """Return the end of a NonFiniteError: where the NaN or infinity came from, and what to do; alike on all ranks.

    Args:
        weights: The weights before the step.
        find_rows: Returns the rows of the global batch whose own loss is not finite, as this rank sees them.
        total: The loss of the whole batch.
        size: Rows of the global batch.
        world: This process among all.
    """
    damaged = find_non_finite(weights, world)
    if damaged:
        return f"the weights: {damaged}; the same command continues from the last checkpoint"
    hits = torch.zeros(size, dtype=choose_wide_dtype(world.device), device=world.device)
    hits[find_rows()] = 1
    rows = sum_over_ranks(hits, world).nonzero().flatten().tolist()
    if len(rows) == size:
        return "every row of the batch: look at the data and the loss, or lower the learning rate"
    if rows:
        return f"rows {rows[:8]} of the batch"
    if not math.isfinite(total):
        return "the loss of the whole batch, while each row alone has a finite loss: look at the loss function"
    return "no single row: the gradient overflowed; lower the learning rate"
