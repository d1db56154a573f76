"""A run folder on the disk: which checkpoints it holds, whether each is complete, and who is using it.

A checkpoint is a folder `step-N/` with a manifest that holds the size and sha256 of every file, and its own sha256.
The manifest proves integrity, not authorship: it is not signed. The lock is the kernel's (`flock`), so it is released
however the process ends.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.errors import CheckpointError, ConfigError, DiskError
from unmask.storage.config import dump_json, from_json, load_json
from unmask.storage.files import sync
from unmask.storage.layout import CHECKPOINTS

FORMAT = "unmask-checkpoint-1"
PAYLOAD, SHARDS, MANIFEST = "state.safetensors", "dcp", "manifest.json"
_STEP = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"step-\d+\.tmp-.+")
_FILE = re.compile(rf"{re.escape(PAYLOAD)}|{SHARDS}/[\w.-]*\w")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A checkpoint whose every byte was just verified."""

    step: int
    path: Path
    meta: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _File:
    bytes: int
    sha256: str


def checkpoints(root: Path) -> list[Path]:
    """The checkpoint folders, newest step first. Clocks and modification times have no say."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if step_of(path) >= 0), key=step_of, reverse=True)


def goes_on(run: Path) -> bool:
    """Whether a training in this run folder goes on from a checkpoint, and needs no model to start from."""
    return bool(checkpoints(run / CHECKPOINTS))


def latest(root: Path, *, report: Callable[[str], None]) -> Found | None:
    """The newest complete checkpoint by step, or None if there is none at all.

    A damaged one is named through `report`, left in place, and the one before is tried. Raises CheckpointError if
    all of them are damaged.
    """
    steps = checkpoints(root)
    for path in steps:
        try:
            return inspect(path)
        except CheckpointError as error:
            report(f"{path} is damaged ({error}); it is left in place and the checkpoint before it is tried")
    if steps:
        raise CheckpointError(f"all {len(steps)} checkpoints in {root} are damaged; restore one, or start a new run")
    return None


def inspect(path: Path) -> Found:
    """Verify one checkpoint folder against its manifest; CheckpointError says what is wrong with it."""
    manifest, files = _manifest(path)
    for name, entry in files.items():
        _check_file(path, name, entry)
    return Found(step=manifest["step"], path=path, meta=manifest["meta"])


def is_complete(path: Path) -> bool:
    """Whether `inspect` finds nothing wrong."""
    try:
        inspect(path)
    except CheckpointError:
        return False
    return True


def what_is_kept(root: Path) -> str:
    """The end of a DiskError: what a user still has, and what to do."""
    try:
        names = [path.name for path in checkpoints(root) if (path / MANIFEST).is_file()]
    except OSError as error:
        return f"what is kept there cannot be listed ({error.strerror})"
    kept = f"{names[0]} is kept" if names else "there is no earlier one"
    return f"{kept}; free or mend the disk, then run the same command again"


def write_manifest(folder: Path, step: int, meta: dict[str, Any]) -> None:
    """Make every file in `folder` durable and vouch for it."""
    contents = sorted(folder.rglob("*"))
    for path in contents:
        sync(path)
    files = {path.relative_to(folder).as_posix(): _describe(path) for path in contents if path.is_file()}
    body = json.loads(dump_json({"format": FORMAT, "step": step, "files": files, "meta": meta}))
    (folder / MANIFEST).write_text(dump_json({**body, "sha256": _seal(body)}), encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def verify_file(folder: Path, name: str) -> None:
    """Check one file of a checkpoint against its manifest, just before it is read; else CheckpointError."""
    _, files = _manifest(folder)
    if name not in files:
        raise CheckpointError(f"{folder / MANIFEST} does not vouch for {name}")
    _check_file(folder, name, files[name])


def clean(root: Path) -> list[str]:
    """Remove the temporary folders that killed saves left in `root`, and name them. The caller holds the lock."""
    if not root.is_dir():
        return []
    stale = sorted(path for path in root.iterdir() if _LEFTOVER.fullmatch(path.name) and not path.is_symlink())
    try:
        for path in stale:
            shutil.rmtree(path)
    except OSError as error:
        raise DiskError(f"cannot remove the leftovers in {root}: {error.strerror}; remove them by hand") from error
    return [path.name for path in stale]


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name, or -1 if it is not one of ours."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match and path.name == f"step-{int(match[1]):08d}" else -1


def _manifest(path: Path) -> tuple[dict[str, Any], dict[str, _File]]:
    try:
        manifest = load_json(path / MANIFEST, max_bytes=1 << 26)
        if not isinstance(manifest, dict) or set(manifest) != {"format", "step", "files", "meta", "sha256"}:
            raise CheckpointError(f"{MANIFEST} is not a manifest of ours")
        seal = manifest.pop("sha256")
        if seal != _seal(manifest):
            raise CheckpointError(f"{MANIFEST} does not match its own sha256")
        if manifest["format"] != FORMAT or manifest["step"] != step_of(path) or not manifest["files"]:
            raise CheckpointError(f"{MANIFEST} is of {manifest['format']!r}, step {manifest['step']!r}")
        return manifest, {name: from_json(_File, entry, name) for name, entry in manifest["files"].items()}
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _check_file(path: Path, name: str, entry: _File) -> None:
    if not _FILE.fullmatch(name):
        raise CheckpointError(f"{MANIFEST} lists {name!r}, which no checkpoint has")
    try:
        size = os.stat(path / name, follow_symlinks=False).st_size
        found = _describe(path / name) if size == entry.bytes else None
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror}") from error
    if found is None:
        raise CheckpointError(f"{name} has {size} bytes instead of {entry.bytes}")
    if found["sha256"] != entry.sha256:
        raise CheckpointError(f"{name} does not match its sha256")


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(descriptor, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _seal(body: Mapping[str, Any]) -> str:
    """The sha256 of the manifest's content, whatever its layout."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
