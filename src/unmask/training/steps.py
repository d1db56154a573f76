"""What both training loops do around a step: resume, split rows, scale and apply gradients, save, and stop."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError, Preempted
from unmask.runtime.distributed import World, barrier, broadcast_text, check_equal_weights, compute_norm, get_local
from unmask.storage.layout import CHECKPOINTS
from unmask.training.checkpoint import load_checkpoint, save_checkpoint
from unmask.training.optim import Optimizers
from unmask.training.runfolder import find_latest_checkpoint


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

    @property
    def folder(self) -> Path:
        """The folder that holds the checkpoints."""
        return self.run / CHECKPOINTS

    def resume(self) -> tuple[int, list[str]]:
        """Load the newest complete checkpoint, if there is one.

        Returns:
            The number of steps that are done already, and lines for the log: damaged checkpoints, and where it resumes.

        Raises:
            CheckpointError: If no checkpoint is complete, it does not fit the tensors, or ranks found different ones.
        """
        notes: list[str] = []
        found = find_latest_checkpoint(self.folder, report=notes.append)
        if found is not None:
            load_checkpoint(found, self.tensors, sharded=self.sharded)
        start = found.step if found else 0
        if int(broadcast_text(str(start), self.world)) != start:
            raise CheckpointError(
                f"rank {self.world.rank} found step {start} in {self.run}, rank 0 another: share one folder among ranks"
            )
        if found:
            is_done = start >= self.steps
            notes.append(f"all {start} steps are done already" if is_done else f"continuing after step {start}")
        return start, notes

    def save_if_due(self, done: int, *, stopped: bool) -> None:
        """Save after step number `done` (counted from 1) if a checkpoint is due or any rank was asked to stop.

        Raises:
            Preempted: After the save, if any rank was asked to stop and steps are left.
            DiskError: If the checkpoint cannot be written. Older ones are kept.
            RankError: If ranks hold different weights; nothing is written.
        """
        if stopped or done % self.save_every == 0 or done == self.steps:
            trained = {name: x for name, x in self.tensors.items() if not name.startswith("log.")}
            check_equal_weights(trained, done, self.world)
            save_checkpoint(
                self.folder,
                done,
                self.tensors,
                self.meta,
                sharded=self.sharded,
                is_main=self.world.is_main,
                barrier=lambda: barrier(self.world),
                token=broadcast_text(uuid.uuid4().hex, self.world),
                keep=self.keep,
            )
        if stopped and done < self.steps:
            raise Preempted(f"stopped by a signal after step {done}; saved. The same command continues from there")


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
    torch._foreach_mul_([get_local(g) for g in gradients], factor)
    gradient_norm = float(compute_norm(gradients))
    torch._foreach_mul_([get_local(g) for g in gradients], min(1.0, clip / (gradient_norm + 1e-12)))
    return gradient_norm


def apply_gradients(optimizers: Optimizers) -> None:
    """Take one step with each optimizer and drop the gradients."""
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def describe_bad_rows(bad: list[int], batch_size: int) -> str:
    """Return the end of a NonFiniteError: which rows of the global batch are not finite, and what to do."""
    if len(bad) == batch_size:
        return "every row of the batch: look at the weights, or lower the learning rate"
    return f"rows {bad[:8]} of the batch" if bad else "no single row: the gradient overflowed; lower the learning rate"
