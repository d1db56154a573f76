"""Write and read checkpoints: one folder per step, which is either complete to the last bit or absent.

A save fills `step-N.tmp-<token>/`, syncs it, adds a manifest with the size and sha256 of every file, and only then
renames the folder to `step-N/`. It then reads the tensors back and compares them with those in memory. A load trusts
only files that the manifest lists (`runfolder.py`). `saving.py` saves in the background.
"""

import errno
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.errors import CheckpointError, ConfigError, DiskError, NonFiniteError, describe_os_error
from unmask.runtime.distributed import is_sharded
from unmask.storage.config import dump_json
from unmask.storage.files import sync
from unmask.training.runfolder import (
    PAYLOAD,
    SHARDS,
    KnownCheckpoints,
    VerifiedCheckpoint,
    describe_kept,
    is_complete,
    is_known_complete,
    list_checkpoints,
    parse_step,
    read_stamp,
    verify_file,
    write_manifest,
)

COMPARED_BYTES = 1 << 22
"""Bytes that are compared at a time."""


def save_checkpoint(
    root: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    meta: dict[str, Any],
    *,
    sharded: bool = False,
    is_main: bool = True,
    barrier: Callable[[], None] = lambda: None,
    token: str,
    keep: int = 2,
    known: KnownCheckpoints | None = None,
    group: Any = None,
) -> Path:
    """Write the checkpoint of `step`, verify it, then remove older ones until `keep` complete ones are left.

    Every rank calls this function.

    Args:
        root: The folder of checkpoints.
        step: Number of steps done, from 0.
        tensors: The tensors to save, by name.
        meta: JSON data for the manifest.
        sharded: False: only the main rank writes. True: each rank writes the shards of its DTensors.
        is_main: True on the main rank.
        barrier: Waits until every rank has called it.
        token: Part of the temporary folder's name: 8 or more letters and digits, unguessable, the same on all ranks.
        keep: Number of complete checkpoints to keep, at least 2.
        known: Checkpoints that this process has written or verified: they are not hashed again. Updated in place.
        group: The ranks that write shards: one that waits as long as a slow disk takes. By default the default group.

    Returns:
        The folder of the checkpoint.

    Raises:
        NonFiniteError: If a tensor holds NaN or infinity. Nothing is written.
        DiskError: If the checkpoint cannot be written. Older ones are kept.
        CheckpointError: If a checkpoint of this step exists.
        ConfigError: If an argument is invalid.
    """
    _check_arguments(step, token, keep)
    dump_json(meta)
    _check_tensors(tensors, sharded)
    known = {} if known is None else known
    final = Path(root) / f"step-{step:08d}"
    temporary = final.with_name(f"{final.name}.tmp-{token}")
    try:
        if sharded:
            _run_on_main(is_main, barrier, lambda: _prepare(final, temporary, token), temporary)
            _write_shards(temporary / SHARDS, tensors, group)
            _run_on_main(is_main, barrier, lambda: _commit(final, temporary, step, meta), final)
        elif is_main:
            _prepare(final, temporary, token)
            written = _write_whole(temporary / PAYLOAD, tensors)
            _commit(final, temporary, step, meta)
            _compare_with_memory(final / PAYLOAD, written)
        if is_main:
            known[final] = read_stamp(final)
            _prune(final, token, keep, known)
    except OSError as error:
        reason = describe_os_error(error)
        raise DiskError(f"step {step} could not be saved in {root}: {reason}; {describe_kept(Path(root))}") from error
    finally:
        if is_main:
            # A successful save has renamed it already. If the disk fails here, `remove_leftovers` removes it later.
            shutil.rmtree(temporary, ignore_errors=True)
        if not sharded:
            barrier()
    return final


def load_checkpoint(found: VerifiedCheckpoint, into: Mapping[str, Tensor], *, sharded: bool) -> None:
    """Copy a checkpoint into existing tensors, in place.

    Args:
        found: The verified checkpoint, saved sharded or not.
        into: The tensors to fill, by name.
        sharded: True if `into` holds DTensors; then all ranks call this function.

    Raises:
        CheckpointError: If names, shapes or dtypes do not agree exactly. Nothing is copied then.
    """
    targets = {name: tensor.detach() for name, tensor in into.items()}
    try:
        if (found.path / SHARDS).is_dir():
            _load_shards(found, targets, sharded)
        else:
            _load_whole(found, targets, sharded)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {found.path}: {error}; it was damaged after it had been verified"
        ) from error


# -- writing --


def _check_arguments(step: int, token: str, keep: int) -> None:
    if step < 0:
        raise ConfigError(f"step is {step}; it must be at least 0")
    if keep < 2:
        raise ConfigError(f"keep is {keep}; keep at least 2, so that a damaged newest one has a fallback")
    if not re.fullmatch(r"[A-Za-z0-9]{8,}", token):
        raise ConfigError(f"the token {token!r} must be 8 or more letters and digits; use secrets.token_hex(8)")


def _check_tensors(tensors: Mapping[str, Tensor], sharded: bool) -> None:
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            if not sharded:
                raise ConfigError(f"{name} is sharded over processes; save it with sharded=True")
            # All ranks get the same answer, so that they stop together.
            whole = torch.isfinite(tensor.detach()).all()
            assert is_sharded(whole)
            finite = bool(whole.full_tensor())
        else:
            finite = is_finite(tensor)
        if not finite:
            raise NonFiniteError(f"{name} holds NaN or infinity, so no checkpoint was written; the last one is kept")


@torch.no_grad()
def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity."""
    if not tensor.is_floating_point():
        return True
    # The sum is 40 times as fast as `isfinite` on a CPU, but a sum of finite numbers may overflow.
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())


def _run_on_main(is_main: bool, barrier: Callable[[], None], action: Callable[[], None], result: Path) -> None:
    """Run `action` on the main rank while the others wait. If it fails, `result` is missing and they stop too."""
    try:
        if is_main:
            action()
    finally:
        barrier()
    if not result.exists():
        raise OSError(errno.EIO, "the main process failed, or its disk is not shared with this one")


def _prepare(final: Path, temporary: Path, token: str) -> None:
    if not final.parent.is_dir():
        final.parent.mkdir(parents=True, exist_ok=True)
        sync(final.parent.parent)
    if final.exists():
        if is_complete(final):
            raise CheckpointError(f"{final} exists already; resume from it, or choose another run directory")
        os.rename(final, final.with_name(f"{final.name}.damaged-{token}"))
    os.mkdir(temporary)


def _write_whole(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write all tensors to one file; return them as they were written."""
    seen: set[int] = set()
    plain = {name: _separate_storage(tensor.detach(), seen) for name, tensor in tensors.items()}
    try:
        save_file(plain, path)
        # safetensors makes its file private and ignores the umask. The new folder has the permissions the user wants.
        path.chmod(path.parent.stat().st_mode & 0o666)
    except SafetensorError as error:
        # The Rust side reports a full disk as text only.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    return plain


def _separate_storage(tensor: Tensor, seen: set[int]) -> Tensor:
    """Return the tensor on the CPU. Copy a view, or a tensor that shares memory; safetensors refuses both."""
    tensor = tensor.cpu().contiguous()
    storage = tensor.untyped_storage()
    if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
        tensor = tensor.clone()
    seen.add(tensor.untyped_storage().data_ptr())
    return tensor


def _write_shards(path: Path, tensors: Mapping[str, Tensor], group: Any) -> None:
    import torch.distributed.checkpoint as dcp

    writer = dcp.FileSystemWriter(path)
    try:
        with _silence_group_warning():
            plain = {name: tensor.detach() for name, tensor in tensors.items()}
            dcp.save(plain, storage_writer=writer, process_group=group)
    except dcp.CheckpointException as error:  # a BaseException, so it has to be named
        rank, (cause, _) = min(error.failures.items())
        # torch.save reports a short write as a RuntimeError about positions in the file.
        if not isinstance(cause, OSError) and "unexpected pos" not in str(cause):
            raise CheckpointError(f"rank {rank} could not write its shards: {cause!r}") from error
        reason = getattr(cause, "strerror", None) or "the disk took only part of the file"
        raise OSError(getattr(cause, "errno", None) or errno.ENOSPC, f"rank {rank}: {reason}") from error


def _commit(final: Path, temporary: Path, step: int, meta: dict[str, Any]) -> None:
    """Write the manifest, make the folder durable, and give it its final name."""
    write_manifest(temporary, step, meta)
    os.rename(temporary, final)
    sync(final.parent)


def _compare_with_memory(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read the tensors back from the disk; raise OSError if a bit differs from those in memory."""
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise OSError(errno.EIO, f"the files read back differ from the data written ({error})") from error
    wrong = [name for name in found.keys() | tensors if not _have_same_bits(found.get(name), tensors.get(name))]
    if wrong:
        raise OSError(errno.EIO, f"the files read back differ from the data written ({min(wrong)})")


def _have_same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    portions = (x.reshape(-1).view(torch.uint8).split(COMPARED_BYTES) for x in (a, b))
    # NumPy lets the training go on meanwhile, and starts no threads that would compete with it.
    return all(np.array_equal(x.numpy(), y.numpy()) for x, y in zip(*portions, strict=True))


def _prune(final: Path, token: str, keep: int, known: KnownCheckpoints) -> None:
    complete = 1
    for path in list_checkpoints(final.parent):
        if parse_step(path) >= parse_step(final):
            continue
        if complete < keep:
            complete += is_known_complete(path, known)
        else:
            # Rename first, so that a kill in between leaves a leftover and not a damaged checkpoint.
            doomed = path.with_name(f"{path.name}.tmp-{token}")
            os.rename(path, doomed)
            shutil.rmtree(doomed)
            known.pop(path, None)


# -- reading --


def _load_whole(found: VerifiedCheckpoint, targets: Mapping[str, Tensor], sharded: bool) -> None:
    stored = load_file(found.path / PAYLOAD)
    _check_match(found, {name: (tuple(x.shape), x.dtype) for name, x in stored.items()}, targets)
    for name, target in targets.items():
        target.copy_(_cut_like(stored[name], target) if sharded else stored[name])


def _cut_like(whole: Tensor, target: Tensor) -> Tensor:
    """Return `whole` as a DTensor with the layout of `target`. Each process cuts its own part; nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    if not is_sharded(target):
        return whole
    return distribute_tensor(whole.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def _load_shards(found: VerifiedCheckpoint, targets: dict[str, Tensor], sharded: bool) -> None:
    import torch.distributed.checkpoint as dcp

    _check_metadata(found)
    reader = dcp.FileSystemReader(found.path / SHARDS)
    entries = reader.read_metadata().state_dict_metadata
    facts = {
        name: (tuple(entry.size), entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, dcp.TensorStorageMetadata)
    }
    _check_match(found, facts, targets)
    try:
        with _silence_group_warning():
            dcp.load(targets, storage_reader=reader, no_dist=not sharded)
    except dcp.CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        raise CheckpointError(f"rank {rank} cannot read {found.path}: {cause!r}") from error


def _check_metadata(found: VerifiedCheckpoint) -> None:
    """Check that `.metadata` is our own file, unchanged: DCP unpickles it, and a pickle can run code."""
    name = f"{SHARDS}/.metadata"
    for path in (found.path, found.path / SHARDS, found.path / name):
        if sys.platform != "win32" and os.stat(path, follow_symlinks=False).st_uid != os.geteuid():
            raise CheckpointError(f"{path} belongs to another user; load your own sharded checkpoints only")
    verify_file(found.path, name)


def _check_match(found: VerifiedCheckpoint, stored: Mapping[str, tuple], targets: Mapping[str, Tensor]) -> None:
    wanted = {name: (tuple(x.shape), x.dtype) for name, x in targets.items()}
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [f"{name} is unexpected" for name in stored if name not in wanted]
    for name in wanted.keys() & stored.keys():
        if wanted[name] != stored[name]:
            problems.append(f"{name} is {_describe_fact(stored[name])} there, {_describe_fact(wanted[name])} here")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{found.path} is of another model: {'; '.join(problems[:3])}{more}")


def _describe_fact(fact: tuple) -> str:
    shape, dtype = fact
    return f"{list(shape)} {str(dtype).removeprefix('torch.')}"


@contextmanager
def _silence_group_warning() -> Iterator[None]:
    """Silence DCP's warning about a missing process group: saving from one process without a group is supported."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
