"""The one writer and reader of checkpoints: a folder per step that is either complete to the last bit or not there.

A save fills `step-N.tmp-<token>/`, syncs it, adds a manifest with the size and sha256 of every file, and only then
renames it to `step-N/`. A load trusts nothing that the manifest does not vouch for, and falls back to the step before.
"""

import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.errors import CheckpointError, ConfigError, DiskError, NonFiniteError
from unmask.storage.config import dump_json
from unmask.storage.files import sync
from unmask.storage.lock import lock
from unmask.training.runfolder import (
    PAYLOAD,
    SHARDS,
    Found,
    checkpoints,
    clean,
    inspect,
    is_complete,
    latest,
    step_of,
    verify_file,
    what_is_kept,
    write_manifest,
)

__all__ = ["Found", "clean", "inspect", "latest", "load", "lock", "save"]


def save(
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
) -> Path:
    """Write the checkpoint of `step`, verify it, then drop older ones until `keep` complete ones are left.

    Every rank calls this. Unsharded, only main writes; sharded, each rank writes the shards of its DTensors.
    `token` names the temporary folder: unguessable, and the same on all ranks.
    Raises NonFiniteError before anything is written, DiskError if it could not be written (older ones are kept),
    and CheckpointError if this step is already there.
    """
    _check_arguments(step, token, keep)
    dump_json(meta)
    _check_tensors(tensors, sharded)
    final = Path(root) / f"step-{step:08d}"
    temporary = final.with_name(f"{final.name}.tmp-{token}")
    try:
        if sharded:
            _on_main(is_main, barrier, lambda: _prepare(final, temporary, token), temporary)
            _write_shards(temporary / SHARDS, tensors)
            _on_main(is_main, barrier, lambda: _commit(final, temporary, step, meta), final)
        elif is_main:
            _prepare(final, temporary, token)
            _write_whole(temporary / PAYLOAD, tensors)
            _commit(final, temporary, step, meta)
        if is_main:
            _prune(final, token, keep)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiskError(f"step {step} could not be saved in {root}: {reason}; {what_is_kept(Path(root))}") from error
    finally:
        if is_main:
            # Gone already after a save that went well. What a failing disk will not remove, `clean` does later.
            shutil.rmtree(temporary, ignore_errors=True)
        if not sharded:
            barrier()
    return final


def load(found: Found, into: Mapping[str, Tensor], *, sharded: bool) -> None:
    """Copy a checkpoint into existing tensors, in place.

    `sharded` says that `into` holds DTensors and that all ranks call this; how the checkpoint was saved does not
    matter. Names, shapes and dtypes must agree exactly, else CheckpointError, with nothing copied.
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
        raise ConfigError(f"step is {step}; it counts from 0")
    if keep < 2:
        raise ConfigError(f"keep is {keep}; keep at least 2, so that a damaged newest one has a fallback")
    if not re.fullmatch(r"[A-Za-z0-9]{8,}", token):
        raise ConfigError(f"the token {token!r} must be 8 or more letters and digits; use secrets.token_hex(8)")


def _check_tensors(tensors: Mapping[str, Tensor], sharded: bool) -> None:
    for name, tensor in tensors.items():
        finite = torch.isfinite(tensor.detach()).all()
        if hasattr(finite, "full_tensor"):
            if not sharded:
                raise ConfigError(f"{name} is sharded over processes; save it with sharded=True")
            # One answer for all ranks, so that they stop together.
            finite = finite.full_tensor()
        if not finite:
            raise NonFiniteError(f"{name} holds NaN or infinity, so no checkpoint was written; the last one is kept")


def _on_main(is_main: bool, barrier: Callable[[], None], action: Callable[[], None], result: Path) -> None:
    """Run `action` on main while the others wait; if it failed there, `result` is missing and they stop as well."""
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
            raise CheckpointError(f"{final} exists already; resume from it, or choose another run folder")
        os.rename(final, final.with_name(f"{final.name}.damaged-{token}"))
    os.mkdir(temporary)


def _write_whole(path: Path, tensors: Mapping[str, Tensor]) -> None:
    seen: set[int] = set()
    plain = {name: _own_storage(tensor.detach(), seen) for name, tensor in tensors.items()}
    try:
        save_file(plain, path)
        # safetensors makes its file private whatever the umask; the folder just made knows what the user wants.
        path.chmod(path.parent.stat().st_mode & 0o666)
    except SafetensorError as error:
        # The Rust side reports a full disk as text only.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _own_storage(tensor: Tensor, seen: set[int]) -> Tensor:
    """The tensor on the CPU; copied if it is a view or shares memory with an earlier one, which safetensors refuses."""
    tensor = tensor.cpu().contiguous()
    storage = tensor.untyped_storage()
    if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
        tensor = tensor.clone()
    seen.add(tensor.untyped_storage().data_ptr())
    return tensor


def _write_shards(path: Path, tensors: Mapping[str, Tensor]) -> None:
    import torch.distributed.checkpoint as dcp

    writer = dcp.FileSystemWriter(path)
    try:
        with _quiet_without_group():
            dcp.save({name: tensor.detach() for name, tensor in tensors.items()}, storage_writer=writer)
    except dcp.CheckpointException as error:  # a BaseException, so it has to be named
        rank, (cause, _) = min(error.failures.items())
        # torch.save reports a short write as a RuntimeError about positions in the file.
        if not isinstance(cause, OSError) and "unexpected pos" not in str(cause):
            raise CheckpointError(f"rank {rank} could not write its shards: {cause!r}") from error
        reason = getattr(cause, "strerror", None) or "the disk took only part of the file"
        raise OSError(getattr(cause, "errno", None) or errno.ENOSPC, f"rank {rank}: {reason}") from error


def _commit(final: Path, temporary: Path, step: int, meta: dict[str, Any]) -> None:
    """Make the folder durable, vouch for it in a manifest, give it its name, and read it all back."""
    write_manifest(temporary, step, meta)
    os.rename(temporary, final)
    sync(final.parent)
    try:
        inspect(final)
    except CheckpointError as error:
        raise OSError(errno.EIO, f"what was written does not read back ({error})") from error


def _prune(final: Path, token: str, keep: int) -> None:
    complete = 1
    for path in checkpoints(final.parent):
        if step_of(path) >= step_of(final):
            continue
        if complete < keep:
            complete += is_complete(path)
        else:
            # Renamed first, so that a kill in between leaves a leftover and not a damaged checkpoint.
            doomed = path.with_name(f"{path.name}.tmp-{token}")
            os.rename(path, doomed)
            shutil.rmtree(doomed)


# -- reading --


def _load_whole(found: Found, targets: Mapping[str, Tensor], sharded: bool) -> None:
    stored = load_file(found.path / PAYLOAD)
    _refuse_mismatch(found, {name: (tuple(x.shape), x.dtype) for name, x in stored.items()}, targets)
    for name, target in targets.items():
        target.copy_(_cut_like(stored[name], target) if sharded else stored[name])


def _cut_like(whole: Tensor, target: Tensor) -> Tensor:
    """The DTensor of `whole` that is laid out as `target`; each process cuts its own part, nothing is sent."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(target, DTensor):
        return whole
    return distribute_tensor(whole.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def _load_shards(found: Found, targets: dict[str, Tensor], sharded: bool) -> None:
    import torch.distributed.checkpoint as dcp

    _trust_metadata(found)
    reader = dcp.FileSystemReader(found.path / SHARDS)
    entries = reader.read_metadata().state_dict_metadata
    facts = {
        name: (tuple(entry.size), entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, dcp.TensorStorageMetadata)
    }
    _refuse_mismatch(found, facts, targets)
    try:
        with _quiet_without_group():
            dcp.load(targets, storage_reader=reader, no_dist=not sharded)
    except dcp.CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        raise CheckpointError(f"rank {rank} cannot read {found.path}: {cause!r}") from error


def _trust_metadata(found: Found) -> None:
    """DCP's `.metadata` is a pickle, which can run code: read it only if it is our own file, unchanged."""
    name = f"{SHARDS}/.metadata"
    for path in (found.path, found.path / SHARDS, found.path / name):
        if os.stat(path, follow_symlinks=False).st_uid != os.geteuid():
            raise CheckpointError(f"{path} belongs to another user; sharded checkpoints are only loaded from one's own")
    verify_file(found.path, name)


def _refuse_mismatch(found: Found, stored: Mapping[str, tuple], targets: Mapping[str, Tensor]) -> None:
    wanted = {name: (tuple(x.shape), x.dtype) for name, x in targets.items()}
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [f"{name} is unexpected" for name in stored if name not in wanted]
    for name in wanted.keys() & stored.keys():
        if wanted[name] != stored[name]:
            problems.append(f"{name} is {_show(stored[name])} there, {_show(wanted[name])} here")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{found.path} is of another model: {'; '.join(problems[:3])}{more}")


def _show(fact: tuple) -> str:
    shape, dtype = fact
    return f"{list(shape)} {str(dtype).removeprefix('torch.')}"


@contextmanager
def _quiet_without_group() -> Iterator[None]:
    """One process without a process group is a case we support, so DCP need not warn of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
