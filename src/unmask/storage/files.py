"""Read and write files: atomic writes, checksums, and text that stays on one line."""

import contextlib
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.tmp-([0-9a-f]{8})[0-9a-f]{8}", re.DOTALL)
"""The name of a temporary file of `write_atomic`; the group is the process id."""


def escape_line(text: str) -> str:
    """Escape every character that would break a line or a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def is_encodable(text: str) -> bool:
    """Return whether UTF-8 can write a text; it cannot write half of a surrogate pair."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def write_atomic(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and rename it to `path` when the block ends.

    A reader sees the old file or the whole new one, never a part. If the block or the rename fails, the temporary file
    is removed and the old file stays. A killed process leaves the temporary file: `.NAME.tmp-` and 16 hexadecimal
    digits, which begin with the process id (8 digits). The new file gets the permissions of the umask, even if the
    writer of the temporary file sets others, as safetensors does.

    Args:
        durable: Sync the file before the rename and the folder after it, so that a power cut cannot undo the write.

    Raises:
        OSError: The disk refused the write.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid():08x}{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        mode = os.fstat(descriptor).st_mode & 0o777
        os.close(descriptor)
        yield temporary
        if temporary.stat().st_mode & 0o777 != mode:
            temporary.chmod(mode)
        move_into_place(temporary, path, durable=durable)
    finally:
        # On a disk that refuses even this, the first error is the one to report.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: Path) -> list[str]:
    """Remove the temporary files that killed writes left in `folder`; return their names.

    Only files of dead processes are removed, and of this process id, which a container gives again and again. Hold the
    lock of the folder (`storage/lock.py`), which also covers the processes of other machines. A disk that refuses keeps
    them.
    """
    removed = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            found = _TEMPORARY.fullmatch(path.name)
            if found and (int(found[1], 16) == os.getpid() or is_process_dead(int(found[1], 16))):
                path.unlink(missing_ok=True)
                removed.append(path.name)
    return sorted(removed)


def is_process_dead(pid: int) -> bool:
    """Return whether no process with this id runs on this machine; Windows cannot say, so there it is False.

    A process that ended keeps its id until its parent asks how it ended, and in many containers no one asks.
    """
    if sys.platform == "win32":
        return False  # os.kill would end the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # no such files on macOS, or it has just ended
        return False
    return state in "ZX"


def move_into_place(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Rename a finished file to `path` in the same folder; see `write_atomic` for `durable`."""
    if durable:
        sync(temporary)
    os.replace(temporary, path)
    if durable:
        sync(path.parent)


def write_text(text: str, path: Path) -> None:
    """Write a text file with `write_atomic`, in UTF-8."""
    with write_atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(data: bytes | memoryview, path: Path, *, durable: bool = True) -> None:
    """Write a binary file with `write_atomic`."""
    with write_atomic(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def sync(path: Path) -> None:
    """Force a file or a folder to the disk; a renamed file is durable only after a sync of its folder.

    Windows cannot sync a folder, and syncs only files that are open for writing.
    """
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
