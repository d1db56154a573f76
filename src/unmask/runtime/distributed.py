"""Run in one process, with DDP or with FSDP2. Only this module knows ranks, process groups and device numbers.

The model is written for one device; `distribute` applies parallelism from outside. With every strategy, after
`backward`, the gradients times `get_gradient_factor` are those of the *sum* of the losses over all ranks.
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, TypeGuard

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unmask.errors import ConfigError, RankError
from unmask.method.rand import choose_wide_dtype
from unmask.runtime.choices import Precision, Strategy
from unmask.runtime.devices import pick_device
from unmask.runtime.heartbeat import Heartbeat, read_patience
from unmask.runtime.kernels import choose_dtype
from unmask.runtime.torchrun import record_cause

if TYPE_CHECKING:
    import torch.distributed.fsdp
    import torch.distributed.tensor

PREPARATION_TIMEOUT = timedelta(hours=4)
"""Time that ranks wait at a barrier for the main one, which may download files or train a classifier."""
STEP_PATIENCE = 6
"""Time that a collective operation of a training may take, in patiences of the heartbeat (`runtime/heartbeat.py`)."""

_LOST_CONTACT = re.compile(r"(?i)gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out")


@dataclass(frozen=True)
class World:
    """This process among all processes."""

    rank: int
    size: int
    """Number of processes."""
    device: torch.device
    """The device on which this process computes."""
    patient: dist.ProcessGroup | None = None
    """The group that waits for hours, for barriers and small messages between CPUs."""

    @property
    def is_main(self) -> bool:
        """True if this process writes files and talks to the user."""
        return self.rank == 0


@contextmanager
def join_world(device: str | None = None) -> Iterator[World]:
    """Join the processes that torchrun started into a group, and yield this one; without torchrun there is one process.

    Args:
        device: "cpu", "cuda" or "mps"; None takes the first of CUDA, MPS and CPU that is there.

    Raises:
        ConfigError: A device was requested that is not available, or MPS for several processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    kind = pick_device(device or "auto").type
    if kind == "mps" and size > 1:
        if device is not None:
            raise ConfigError(f"device mps: one process can use it, not {size}; leave out torchrun, or give cpu")
        kind = "cpu"
    if size == 1:
        yield World(0, 1, torch.device(kind))
        return
    here = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    backend, device_id = ("nccl", here) if here.type == "cuda" else ("gloo", None)
    patience = read_patience()
    dist.init_process_group(backend, device_id=device_id, timeout=timedelta(seconds=STEP_PATIENCE * patience))
    rank = dist.get_rank()
    # A connection of its own, for another thread.
    store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
    store.set_timeout(timedelta(seconds=patience))
    heartbeat = Heartbeat(store, rank, size, patience, _end_at_once)
    heartbeat.start()
    try:
        yield World(rank, size, here, dist.new_group(backend="gloo", timeout=PREPARATION_TIMEOUT))
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _LOST_CONTACT.search(str(error)):
            raise
        raise RankError(
            f"rank {rank} lost contact with another rank, whose own message says why; without one it was killed (out "
            "of memory?) or its machine is down; run the same command again to continue",
            is_consequence=True,
        ) from error
    finally:
        heartbeat.stop()
        dist.destroy_process_group()


def _end_at_once(line: str) -> NoReturn:
    """End this process from another thread, while the main thread may wait for ever for a rank."""
    record_cause(f"unmask: {line}")
    with suppress(OSError):
        os.write(2, f"unmask: {line}\n".encode())
    os._exit(RankError.exit_code)


def resolve_strategy(strategy: Strategy, here: World) -> Strategy:
    """Return the strategy, with `auto` replaced by none for one process and ddp for several.

    Raises:
        ConfigError: The strategy cannot work with this number of processes.
    """
    if strategy == "auto":
        return "none" if here.size == 1 else "ddp"
    if strategy == "none" and here.size > 1:
        raise ConfigError(f"strategy none with {here.size} processes would train {here.size} models: use ddp or fsdp")
    if strategy != "none" and here.size == 1:
        raise ConfigError(
            f"strategy {strategy} needs several processes: start with torchrun --nproc-per-node 2, or drop it"
        )
    return strategy


def autocast(precision: Precision, here: World) -> torch.autocast:
    """Return an autocast context: matrix products run in bfloat16 or float32.

    `auto` takes `choose_dtype`. The weights, the optimizer and the moving average stay in float32 in both cases.
    """
    return torch.autocast(here.device.type, torch.bfloat16, enabled=resolve_precision(precision, here.device) == "bf16")


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Return the precision, with `auto` replaced by what suits the device."""
    if precision != "auto":
        return precision
    return "bf16" if choose_dtype(device) == torch.bfloat16 else "fp32"


def distribute(model: nn.Module, strategy: Strategy, here: World) -> nn.Module:
    """Move `model` to the device of this rank and apply the strategy; call the result like the model."""
    model = model.to(here.device)
    if strategy == "ddp":
        return DistributedDataParallel(model, broadcast_buffers=False)  # all ranks compute the same buffers
    if strategy == "fsdp":
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh(here.device.type, (here.size,))
        blocks = getattr(model, "blocks", nn.ModuleList())
        for module in [*blocks, model]:
            fully_shard(module, mesh=mesh)
            # Sum, do not average: some torch versions on CPU skip the division, and a sum is right with either.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def is_sharded(x: Tensor) -> 'TypeGuard["torch.distributed.tensor.DTensor"]':
    """Return whether a tensor is a DTensor. Only FSDP makes them, and it takes a second to import."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def _uses_fsdp(module: nn.Module) -> 'TypeGuard["torch.distributed.fsdp.FSDPModule"]':
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model without DDP around it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def accumulate_gradients(model: nn.Module, last: bool) -> Iterator[None]:
    """Let backward passes inside communicate only if this is the `last` micro-batch of the step."""
    if _uses_fsdp(model):
        model.set_requires_gradient_sync(last)
    with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
        yield


def get_gradient_factor(model: nn.Module, here: World) -> float:
    """Return the factor that makes the gradients those of the summed loss, because DDP averages over ranks."""
    return float(here.size) if isinstance(model, DistributedDataParallel) else 1.0


def sum_over_ranks(x: Float[Tensor, "*n"], here: World) -> Float[Tensor, "*n"]:
    """Return the elementwise sum over all ranks, equal on each rank. Overwrites `x` if there are several ranks."""
    if here.size > 1:
        dist.all_reduce(x)
    return x


def find_first_rank(number: int, here: World) -> tuple[int, int]:
    """Return the first rank whose `number` is not negative, and its number; (-1, -1) if all are negative."""
    numbers = torch.zeros(here.size, dtype=choose_wide_dtype(here.device), device=here.device)
    numbers[here.rank] = number
    all_numbers = [int(x) for x in sum_over_ranks(numbers, here).tolist()]
    return next(((rank, x) for rank, x in enumerate(all_numbers) if x >= 0), (-1, -1))


def compute_norm(tensors: list[Tensor]) -> Float[Tensor, ""]:
    """Return the 2-norm of all tensors together, over all ranks if they are sharded."""
    total = nn.utils.get_total_norm(tensors)
    return total.full_tensor() if is_sharded(total) else total


def get_local(x: Tensor) -> Tensor:
    """Return the part of a tensor on this rank; it shares memory with the tensor."""
    return x.to_local() if is_sharded(x) else x


def gather_full(x: Tensor) -> Tensor:
    """Return the whole of a possibly sharded tensor; all ranks must call this together."""
    return x.full_tensor() if is_sharded(x) else x


def shard_like(x: Tensor, sharded: Tensor) -> Tensor:
    """Return `x`, which every rank holds whole, with the sharding of `sharded`; no rank sends data."""
    if not is_sharded(sharded):
        return x
    from torch.distributed.tensor import DTensor, Replicate

    mesh = sharded.device_mesh
    everywhere = DTensor.from_local(x.contiguous(), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(mesh, sharded.placements)


def reshard(model: nn.Module) -> None:
    """Drop gathered copies of sharded weights: `parameters()` are shards again, and may be written."""
    for module in model.modules():
        if _uses_fsdp(module):
            module.reshard()


def barrier(here: World) -> None:
    """Wait until every rank calls this."""
    if here.size > 1:
        dist.barrier(here.patient)


def broadcast_text(text: str, here: World) -> str:
    """Return the `text` of rank 0 on every rank, at most 256 bytes of it (sent as bytes; nothing is unpickled)."""
    if here.size == 1:
        return text
    data = torch.zeros(256, dtype=torch.uint8, device=_choose_message_device(here))
    encoded = torch.tensor(list(text.encode()[:256]), dtype=torch.uint8)
    data[: len(encoded)] = encoded.to(data.device)
    dist.broadcast(data, 0, group=here.patient)
    return bytes(data.cpu().tolist()).rstrip(b"\0").decode()


def check_agreement(facts: Mapping[str, str], here: World) -> None:
    """Compare named facts, such as the recipe and a digest of the data, between all ranks.

    Raises:
        ConfigError: On every rank: the first fact that differs, and the ranks that differ from rank 0.
    """
    if here.size == 1:
        return
    names = ", ".join(facts)
    for name, value in {"the names of the facts, so in the code": names, **facts}.items():
        differing = _find_differing(value.encode(), here)
        if differing:
            shown = f"; rank {here.rank} has {value}" if len(value) <= 80 else ""
            raise ConfigError(
                f"{_name_ranks(differing)} and rank 0 differ in {name}{shown}: start all processes with the same "
                "command, code and data"
            )


def check_equal_weights(tensors: Mapping[str, Tensor], step: int, here: World) -> None:
    """Compare a checksum of the bits of all tensors between all ranks; a sharded one has no copy to compare with.

    Raises:
        RankError: On every rank: the ranks whose tensors differ from those of rank 0.
    """
    if here.size == 1:
        return
    whole = [x.detach() for x in tensors.values() if not is_sharded(x)]
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [x.reshape(-1).view(kinds[x.element_size()]).sum(dtype=torch.int64).to(here.device) for x in whole]
    differing = _find_differing(str(torch.stack(sums).tolist() if sums else []).encode(), here)
    if differing:
        raise RankError(
            f"after step {step} {_name_ranks(differing)} and rank 0 hold different weights, so nothing was saved: give "
            "all the same kind of processor and version of torch, and test the memory of the machines"
        )


def _find_differing(data: bytes, here: World) -> list[int]:
    """Return the ranks with other data than rank 0; only a hash is sent."""
    table = torch.zeros(here.size, 32, dtype=torch.int64, device=_choose_message_device(here))
    table[here.rank] = torch.tensor(list(hashlib.sha256(data).digest()), device=table.device)
    dist.all_reduce(table, group=here.patient)
    return [rank for rank, row in enumerate(table.tolist()) if row != table[0].tolist()]


def _name_ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _choose_message_device(here: World) -> torch.device:
    return here.device if here.patient is None else torch.device("cpu")
