"""Record what the folder of a model holds, and verify a file against that record when it is read.

`manifest.json` lists the size and sha256 of the weights and of what lies with them, and ties config.json to them.
`begin_files` writes it first, without hashes, so that an unfinished folder is recognised; `record_files` writes it
last. A folder without a manifest, as earlier versions left it, is read without verification. A manifest proves
integrity, not authorship.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unmask.errors import CheckpointError, ConfigError
from unmask.storage.config import from_json, load_json, write_json
from unmask.storage.files import escape_line, hash_file
from unmask.storage.layout import CONFIG, FOLDER_MANIFEST

FOLDER_FORMAT = "unmask-folder-1"
FREE_FIELDS = ("data", "training")
"""Fields of a run's config.json that may change by hand: where its data is, and how a longer training goes on."""
_verified: dict[Path, tuple[object, ...]] = {}
"""What `verify_recorded` has found equal in this process: a file is hashed once."""


@dataclass(frozen=True, kw_only=True)
class RecordedFile:
    """One file of a manifest."""

    bytes: int
    """Size of the file."""
    sha256: str
    """SHA-256 of the file, in hexadecimal."""


Records = dict[str, RecordedFile | None]
"""Name to record; None while the file is being written."""


def begin_files(folder: Path, names: Iterable[str], *, finished: Iterable[str] = ()) -> None:
    """Note that files of these names are being written into `folder`; until `record_files`, none of them loads.

    Files that are `finished` are recorded as they are, so they load.
    """
    records = {name: _describe_recorded(folder / name) for name in sorted(finished)}
    _write_records(folder, {**records, **dict.fromkeys(sorted(names))})


def record_files(folder: Path, names: Iterable[str]) -> None:
    """Write the manifest of `folder`: the sizes and hashes of these files, as they are now.

    Raises:
        DiskError: The manifest cannot be written.
    """
    _write_records(folder, {name: _describe_recorded(folder / name) for name in sorted(names)})


def update_record(folder: Path, name: str) -> None:
    """Record one file again after this program has rewritten it; do nothing in a folder without a manifest."""
    records = read_records(folder)
    if records is not None and name in records:
        _write_records(folder, {**records, name: _describe_recorded(folder / name)})


def read_records(folder: Path) -> Records | None:
    """Return what the manifest of `folder` lists; None if there is no manifest.

    Raises:
        CheckpointError: The manifest is damaged, or another program wrote it.
    """
    path = folder / FOLDER_MANIFEST
    if not path.exists():
        return None
    try:
        data = load_json(path)
        if not isinstance(data, dict) or set(data) != {"format", "files", "sha256"} or data["format"] != FOLDER_FORMAT:
            raise ConfigError("it is not a manifest of this version")
        if data.pop("sha256") != _hash_json(data):
            raise ConfigError("it does not match its own sha256")
        return {
            name: None if entry is None else from_json(RecordedFile, entry, name)
            for name, entry in data["files"].items()
        }
    except (ConfigError, AttributeError) as error:
        raise CheckpointError(
            f"{_show(path)} is damaged ({error}): restore it, or delete it to use the folder without verification"
        ) from error


def verify_recorded(folder: Path, name: str) -> None:
    """Compare a file with the manifest of its folder, if there is one; a link is compared where it leads to.

    The file is read once in a process, at about a second per GB.

    Raises:
        CheckpointError: The file differs from what was written, or its folder is unfinished.
    """
    path, records = folder / name, read_records(folder)
    while records is None and path.is_symlink() and path.exists():  # a cache is links to links
        path = path.parent / path.readlink()
        name, records = path.name, read_records(path.parent)
    if records is None or not path.is_file():
        return
    status = path.stat()
    facts = (status.st_ino, status.st_size, status.st_mtime_ns, records.get(name))
    if _verified.get(path.absolute()) == facts:
        return
    if records.get(name) is None:
        raise CheckpointError(f"{_show(path)} is unfinished: run the command that made {_show(path.parent)} again")
    if _describe_recorded(path) != records[name]:
        raise CheckpointError(
            f"{_show(path)} is damaged or was changed: its sha256 is not the one in {FOLDER_MANIFEST}; restore it or "
            f"make it again, or delete {FOLDER_MANIFEST} to accept the change"
        )
    _verified[path.absolute()] = facts


def list_unchanged(folder: Path) -> set[str]:
    """Return the names in the manifest whose files are as this program wrote them, or are unfinished."""
    records = read_records(folder) or {}
    return {
        name
        for name, entry in records.items()
        if entry is None or ((folder / name).is_file() and _describe_recorded(folder / name) == entry)
    }


def list_unfinished(folder: Path) -> set[str]:
    """Return the names in the manifest that a command was still writing when it ended."""
    return {name for name, entry in (read_records(folder) or {}).items() if entry is None}


def _describe_recorded(path: Path) -> RecordedFile:
    """Describe a file; of config.json, what the model is: not how it is written, nor FREE_FIELDS."""
    if path.name == CONFIG:
        with contextlib.suppress(ConfigError, AttributeError):  # damaged: its bytes are compared, and differ
            data = load_json(path)
            text = json.dumps({name: value for name, value in data.items() if name not in FREE_FIELDS}, sort_keys=True)
            return RecordedFile(bytes=len(text), sha256=hashlib.sha256(text.encode()).hexdigest())
    return RecordedFile(bytes=os.stat(path).st_size, sha256=hash_file(path))


def _write_records(folder: Path, records: Mapping[str, RecordedFile | None]) -> None:
    files = {name: None if entry is None else asdict(entry) for name, entry in records.items()}
    body: dict[str, Any] = {"format": FOLDER_FORMAT, "files": files}
    write_json(folder / FOLDER_MANIFEST, {**body, "sha256": _hash_json(body)})


def _hash_json(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _show(path: Path) -> str:
    return escape_line(str(path))
