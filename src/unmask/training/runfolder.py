"""Find and verify the checkpoints of a run directory.

A checkpoint is a folder `step-N/` with a manifest. The manifest holds the size and sha256 of every file, and its own
sha256. It proves integrity, not authorship: it is not signed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.errors import CheckpointError, ConfigError, DiskError, describe_os_error
from unmask.storage.config import dump_json, from_json, load_json
from unmask.storage.files import sync
from unmask.storage.layout import CHECKPOINTS

FORMAT = "unmask-checkpoint-1"
PAYLOAD, SHARDS, MANIFEST = "state.safetensors", "dcp", "manifest.json"
_STEP = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"step-\d+\.tmp-.+")
_FILE = re.compile(rf"{re.escape(PAYLOAD)}|{SHARDS}/[\w.-]*\w")


Stamp = tuple[tuple[str, int, int, int, int], ...]
"""Name, inode, size and times of each file of a checkpoint: they change if anyone writes to it."""
KnownCheckpoints = dict[Path, Stamp]
"""The checkpoints that this process wrote or verified, as they were then."""


@dataclass(frozen=True, kw_only=True)
class VerifiedCheckpoint:
    """A checkpoint; every byte of it was just verified."""

    step: int
    """Number of steps that were done when it was saved."""
    path: Path
    """The folder of the checkpoint."""
    meta: dict[str, Any]
    """The JSON data that was saved with it."""


@dataclass(frozen=True, kw_only=True)
class _File:
    bytes: int
    sha256: str


def list_checkpoints(root: Path) -> list[Path]:
    """Return the checkpoint folders by step, newest first. Clocks and modification times do not matter."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if parse_step(path) >= 0), key=parse_step, reverse=True)


def has_checkpoint(run: Path) -> bool:
    """Return True if training in this run directory would resume from a checkpoint."""
    return bool(list_checkpoints(run / CHECKPOINTS))


def find_latest_checkpoint(root: Path, *, report: Callable[[str], None]) -> VerifiedCheckpoint | None:
    """Return the newest complete checkpoint by step, or None if there is no checkpoint at all.

    A damaged checkpoint stays in place, `report` receives a line about it, and the one before it is tried.

    Raises:
        CheckpointError: If all checkpoints are damaged.
    """
    steps = list_checkpoints(root)
    for path in steps:
        try:
            return verify_checkpoint(path)
        except CheckpointError as error:
            report(f"{path} is damaged ({error}); it is left in place and the checkpoint before it is tried")
    if steps:
        raise CheckpointError(f"all {len(steps)} checkpoints in {root} are damaged; restore one, or start a new run")
    return None


def verify_checkpoint(path: Path) -> VerifiedCheckpoint:
    """Verify one checkpoint folder against its manifest; raise CheckpointError that says what is wrong with it."""
    manifest, files = _read_manifest(path)
    for name, entry in files.items():
        _check_file(path, name, entry)
    return VerifiedCheckpoint(step=manifest["step"], path=path, meta=manifest["meta"])


def read_meta(path: Path) -> dict[str, Any]:
    """Return the JSON data of a checkpoint whose manifest is sound; its other files are not read.

    Raises:
        CheckpointError: The manifest is missing or damaged.
    """
    return _read_manifest(path)[0]["meta"]


def is_complete(path: Path) -> bool:
    """Return True if `verify_checkpoint` finds nothing wrong."""
    try:
        verify_checkpoint(path)
    except CheckpointError:
        return False
    return True


def is_known_complete(path: Path, known: KnownCheckpoints) -> bool:
    """Return `is_complete`, without reading the files if `known` has them and nobody has written to them since."""
    try:
        stamp = read_stamp(path)
    except OSError:
        return False
    if known.get(path) == stamp:
        return True
    if complete := is_complete(path):
        known[path] = stamp
    return complete


def read_stamp(path: Path) -> Stamp:
    """Return the stamp of a checkpoint folder."""
    files = [(file.relative_to(path).as_posix(), os.stat(file, follow_symlinks=False)) for file in path.rglob("*")]
    return tuple(sorted((name, x.st_ino, x.st_size, x.st_mtime_ns, x.st_ctime_ns) for name, x in files))


def describe_kept(root: Path) -> str:
    """Return the end of a DiskError: which checkpoint the user still has, and what to do."""
    try:
        names = [path.name for path in list_checkpoints(root) if (path / MANIFEST).is_file()]
    except OSError as error:
        return f"the checkpoints there cannot be listed ({describe_os_error(error)})"
    kept = f"{names[0]} is kept" if names else "there is no earlier one"
    return f"{kept}; free space on the disk or repair it, then run the same command again"


def write_manifest(folder: Path, step: int, meta: dict[str, Any]) -> None:
    """Sync every file in `folder` to disk, and write a manifest with their sizes and checksums."""
    contents = sorted(folder.rglob("*"))
    with ThreadPoolExecutor(1) as pool:  # the disk writes the files while they are hashed
        syncing = [pool.submit(sync, path) for path in contents]
        files = {path.relative_to(folder).as_posix(): _describe_file(path) for path in contents if path.is_file()}
        for one in syncing:
            one.result()
    body = json.loads(dump_json({"format": FORMAT, "step": step, "files": files, "meta": meta}))
    (folder / MANIFEST).write_text(dump_json({**body, "sha256": _hash_body(body)}), encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def verify_file(folder: Path, name: str) -> None:
    """Check one file of a checkpoint against its manifest, just before a caller reads it.

    Raises:
        CheckpointError: If the manifest does not list the file, or its size or sha256 differs.
    """
    _, files = _read_manifest(folder)
    if name not in files:
        raise CheckpointError(f"{folder / MANIFEST} does not list {name}")
    _check_file(folder, name, files[name])


def remove_leftovers(root: Path) -> list[str]:
    """Remove the temporary folders that killed saves left in `root`; return their names. The caller holds the lock."""
    if not root.is_dir():
        return []
    stale = sorted(path for path in root.iterdir() if _LEFTOVER.fullmatch(path.name) and not path.is_symlink())
    try:
        for path in stale:
            shutil.rmtree(path)
    except OSError as error:
        raise DiskError(
            f"cannot remove the leftovers in {root}: {describe_os_error(error)}; remove them by hand"
        ) from error
    return [path.name for path in stale]


def parse_step(path: Path) -> int:
    """Return the step in a checkpoint folder's name, or -1 if the name is not one of ours."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match and path.name == f"step-{int(match[1]):08d}" else -1


def _read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, _File]]:
    try:
        manifest = load_json(path / MANIFEST, max_bytes=1 << 26)
        if not isinstance(manifest, dict) or set(manifest) != {"format", "step", "files", "meta", "sha256"}:
            raise CheckpointError(f"{MANIFEST} is not a manifest of ours")
        seal = manifest.pop("sha256")
        if seal != _hash_body(manifest):
            raise CheckpointError(f"{MANIFEST} does not match its own sha256")
        if manifest["format"] != FORMAT or manifest["step"] != parse_step(path) or not manifest["files"]:
            raise CheckpointError(f"{MANIFEST} is of {manifest['format']!r}, step {manifest['step']!r}")
        return manifest, {name: from_json(_File, entry, name) for name, entry in manifest["files"].items()}
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _check_file(path: Path, name: str, entry: _File) -> None:
    if not _FILE.fullmatch(name):
        raise CheckpointError(f"{MANIFEST} lists {name!r}, which is no file of a checkpoint")
    try:
        size = os.stat(path / name, follow_symlinks=False).st_size
        found = _describe_file(path / name) if size == entry.bytes else None
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {describe_os_error(error)}") from error
    if found is None:
        raise CheckpointError(f"{name} has {size} bytes instead of {entry.bytes}")
    if found["sha256"] != entry.sha256:
        raise CheckpointError(f"{name} does not match its sha256")


def _describe_file(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _hash_body(body: Mapping[str, Any]) -> str:
    """Return the sha256 of the manifest's content. It does not depend on the layout of the file."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
