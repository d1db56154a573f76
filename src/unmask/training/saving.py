"""Save checkpoints in the background, so that training waits for a copy of its tensors and not for the disk.

The guarantees are those of `save_checkpoint`: a checkpoint is complete or absent. One save runs at a time, and a run
waits for it before the next save and before it ends, also when it ends by a signal or an error. Shards are saved in the
foreground, because all ranks take part.
"""

import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.errors import NonFiniteError
from unmask.runtime.distributed import World, barrier, broadcast_text, check_equal_weights, find_first_rank, get_local
from unmask.runtime.memory import measure_address_space, measure_free_memory
from unmask.training.checkpoint import is_finite, save_checkpoint
from unmask.training.runfolder import KnownCheckpoints, VerifiedCheckpoint, read_stamp

LARGEST_COPY = 0.5
"""Share of the free memory that a copy may take. A larger state is saved in the foreground, without a copy."""


class Saver:
    """Save the checkpoints of one run, one at a time."""

    def __init__(self) -> None:
        self._known: KnownCheckpoints = {}
        self._pending: Future[Path] | None = None

    def trust(self, found: VerifiedCheckpoint) -> None:
        """Remember a checkpoint that was just verified, so that it is not hashed again."""
        self._known[found.path] = read_stamp(found.path)

    def save(
        self,
        root: Path,
        step: int,
        tensors: Mapping[str, Tensor],
        meta: dict[str, Any],
        *,
        sharded: bool,
        world: World,
        keep: int,
    ) -> None:
        """Copy the tensors and save them in the background; every rank calls this. See `save_checkpoint`.

        Raises:
            NonFiniteError: On every rank, if a tensor of any rank holds NaN or infinity. Nothing is written.
            RankError: If ranks hold different weights. Nothing is written.
            DiskError, CheckpointError: If this save, in the foreground, or the one before could not be written.
        """
        self.finish(world)  # at a barrier: other collective operations do not wait as long as a save may take
        damaged = find_non_finite(tensors, world)
        if damaged:
            raise NonFiniteError(f"step {step}: {damaged}; no checkpoint was written, and the last one is kept")
        trained = {name: tensor for name, tensor in tensors.items() if not name.startswith("log.")}
        check_equal_weights(trained, step, world)
        token = broadcast_text(uuid.uuid4().hex, world)
        if sharded:
            save_checkpoint(
                root,
                step,
                tensors,
                meta,
                sharded=True,
                is_main=world.is_main,
                barrier=lambda: barrier(world),
                token=token,
                keep=keep,
                known=self._known,
                group=world.patient,
            )
            return
        try:
            if world.is_main:
                copies = _copy_if_room(tensors)
                state = tensors if copies is None else copies
                pool = ThreadPoolExecutor(1, "save")
                self._pending = pool.submit(
                    save_checkpoint, root, step, state, meta, token=token, keep=keep, known=self._known
                )
                pool.shutdown(wait=False)
                if copies is None:
                    self.wait()
        finally:
            barrier(world)

    def check(self) -> None:
        """Raise the error of a background save that has failed; do not wait for one that still runs."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until no save runs.

        Raises:
            DiskError, CheckpointError: If the save could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def finish(self, world: World) -> None:
        """Wait until the last save of the main rank is on the disk; every rank calls this."""
        try:
            self.wait()
        finally:
            barrier(world)


def find_non_finite(tensors: Mapping[str, Tensor], world: World) -> str | None:
    """Return which tensor holds NaN or infinity on which rank, or None; every rank calls this and gets the same."""
    names = list(tensors)
    bad = next((i for i, tensor in enumerate(tensors.values()) if not is_finite(get_local(tensor.detach()))), -1)
    rank, index = find_first_rank(bad, world)
    if index < 0:
        return None
    return f"{names[index]} holds NaN or infinity" + (f" on rank {rank}" if world.size > 1 else "")


def _copy_if_room(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return copies of the tensors, or None if there is too little memory for them."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > LARGEST_COPY * min(measure_free_memory(), measure_address_space()):
        return None
    try:
        return {name: _copy_to_memory(tensor) for name, tensor in tensors.items()}
    except (MemoryError, RuntimeError):  # torch raises both
        return None


@torch.no_grad()
def _copy_to_memory(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
