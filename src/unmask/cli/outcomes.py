"""Say what a command made, or that it found everything made already."""

from pathlib import Path

from unmask.storage.files import hash_file


def hash_if_there(path: Path) -> str | None:
    """Return the hash of a file before a command begins; None if there is no such file."""
    return hash_file(path) if path.is_file() else None


def describe_outcome(path: Path, before: str | None, shown: Path | None = None) -> str:
    """Return "wrote PATH", or "up to date: PATH" if the file is the same as before.

    Args:
        path: The file by which to tell.
        before: What `hash_if_there` returned before the work.
        shown: The path to name, if it is another one.
    """
    return f"{'wrote' if before is None or hash_file(path) != before else 'up to date:'} {shown or path}"
