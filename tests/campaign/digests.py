"""Compare what runs leave: files by their content, without clocks and without the order of names in a header."""

import csv
import hashlib
import io
import json
import re
import struct
from pathlib import Path
from typing import Any

CLOCK = re.compile(r"second|duration|elapsed|^curve$")
"""Names of fields that hold time or speed, and the digest of a curve, which holds both."""
UNCOMPARED = re.compile(r"(^|/)\.lock$|\.tmp(-|$)|(^|/)\.[^/]*tmp|\.damaged-")
"""Locks, leftovers, and what was set aside: no result."""
STEP = re.compile(r"(?:.*/)?checkpoints/(step-\d+)/")


def digest_folder(folder: Path, parts: tuple[str, ...] = ("",)) -> dict[str, str]:
    """Return a digest per file below `folder`, of those whose relative path starts with one of `parts`.

    Of checkpoints it takes the newest: a signal leaves one more behind it.
    """
    found = {}
    newest = max((path.name for path in folder.rglob("step-*") if STEP.match(f"{path.as_posix()}/")), default="")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        step = STEP.match(name)
        if step is not None and (step[1] != newest or _is_sharded_index(path)):
            continue
        if path.is_file() and name.startswith(parts) and not UNCOMPARED.search(name):
            found[name] = digest_file(path)
    return found


def _is_sharded_index(path: Path) -> bool:
    """Whether torch puts random names of files into it, so that it differs each time; a manifest holds its hash."""
    return path.name == ".metadata" or (path.name == "manifest.json" and (path.parent / "dcp").is_dir())


def digest_file(path: Path) -> str:
    """Return a digest of what a file says."""
    data = path.read_bytes()
    try:
        if path.name == "manifest.json" and "checkpoints" not in path.parts:
            # safetensors writes its metadata in any order, and so the hashes differ; what is not sound does not load
            data = json.dumps(sorted((name, bool(entry)) for name, entry in json.loads(data)["files"].items())).encode()
        elif path.suffix == ".json":
            value = _drop_clock(json.loads(data))
            if path.name == "manifest.json":
                del value["sha256"]  # of its own content, with the curve's digest
            data = json.dumps(value, sort_keys=True).encode()
        elif path.suffix == ".jsonl":
            rows = [_drop_clock(json.loads(line)) for line in data.splitlines()]
            data = json.dumps(rows, sort_keys=True).encode()
        elif path.suffix == ".safetensors":
            data = _sort_header(data)
        elif path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(data.decode())))
            data = json.dumps([_drop_clock(row) for row in rows]).encode()
    except (ValueError, LookupError, AttributeError, struct.error):
        pass  # damaged: its bytes are what is compared
    return hashlib.sha256(data).hexdigest()[:16]


def _drop_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _drop_clock(v) for k, v in value.items() if not CLOCK.search(str(k))}
    return [_drop_clock(v) for v in value] if isinstance(value, list) else value


def _sort_header(data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return json.dumps(header, sort_keys=True).encode() + data[8 + length :]


def list_differences(found: dict[str, str], wanted: dict[str, str]) -> str:
    """Return in one line which files differ, or ""."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    words = [f"{what} {', '.join(names[:3])}" for what, names in
             (("other", other), ("missing", missing), ("extra", extra)) if names]  # fmt: skip
    return "; ".join(words)
