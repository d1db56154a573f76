"""Get files of the Hugging Face Hub through huggingface_hub, and report what fails in one line.

HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and the shared cache work as everywhere else. huggingface_hub is imported
where something is looked up or downloaded, and nowhere else.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path, PurePosixPath
from typing import Any

from unmask.errors import CheckpointError, DiskError, UnmaskError, describe_os_error
from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line

SPARE = 64 << 20
"""Bytes that stay free on the disk."""
LOG_IN = "log in with hf auth login, or set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class HubFacts:
    """What the Hub says about a file before its download."""

    commit: str
    """Commit of the repository."""
    size: int | None
    """Bytes of the file."""
    sha256: str | None
    """SHA-256 of a large file; None for a small one, which the Hub keeps without."""


def find_hub_file(repo: str, path: str) -> Path | None:
    """Return a file in the shared cache of huggingface_hub, or None if it is not there. Ask no server."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, path)
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


def find_file_commit(file: Path, path: str) -> str:
    """Return the commit of a file that `find_hub_file` or `download_hub_file` returned for `path`."""
    return file.parents[len(PurePosixPath(path).parts) - 1].name


def read_hub_facts(repo: str, path: str) -> HubFacts:
    """Ask the Hub for commit, size and SHA-256 of a file. Raises CheckpointError."""
    with report_hub_errors(f"cannot download {path} of {repo}"):
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        facts = get_hf_file_metadata(hf_hub_url(repo, path))
        if not facts.commit_hash or not facts.etag:
            raise ValueError("the answer does not come from a Hub: check HF_ENDPOINT and the proxy")
    sha256 = facts.etag if len(facts.etag) == 64 else None
    return HubFacts(commit=facts.commit_hash, size=facts.size, sha256=sha256)


def download_hub_file(
    repo: str, path: str, *, size: int | None = None, again: bool = False, progress: Progress | None = None
) -> Path:
    """Download a file into the shared cache and return its path. A connection that breaks is resumed.

    Args:
        repo: The repository, as OWNER/NAME.
        path: Path of the file in the repository.
        size: Bytes that must be free on the disk, if they are known.
        again: Replace the file that is there.
        progress: Called with the path, the bytes so far and all bytes.

    Raises:
        CheckpointError: The file cannot be had.
        DiskError: The cache cannot be written, or is full.
    """
    with report_hub_errors(f"cannot download {path} of {repo}"):
        from huggingface_hub import constants, hf_hub_download

        check_free_space(Path(constants.HF_HUB_CACHE), size or 0)
        options: dict[str, Any] = {"force_download": again}
        if "tqdm_class" in signature(hf_hub_download).parameters:  # older versions show a bar of their own
            options["tqdm_class"] = _make_bar(path, progress)
        return Path(hf_hub_download(repo, path, **options))


def download_hub_folder(repo: str, names: Sequence[str], *, revision: str | None = None, offline: bool = False) -> Path:
    """Download the files of a repository that match `names` into the shared cache; return their folder.

    The name of the folder is the commit. `offline`: use what is there already.
    Raises CheckpointError or DiskError.
    """
    with report_hub_errors(f"cannot load hf-hub:{repo}{f'@{revision}' if revision else ''}"):
        from huggingface_hub import snapshot_download

        bar = _make_bar(repo, None)
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=list(names), local_files_only=offline, tqdm_class=bar
            )
        )


def remove_hub_file(file: Path) -> None:
    """Remove a file from the shared cache: the link and what it leads to."""
    file.resolve().unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def check_free_space(folder: Path, size: int) -> None:
    """Raise DiskError unless `size` bytes fit on the disk of `folder`, which may not exist yet."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if size and free < size + SPARE:
        raise DiskError(
            f"{escape_line(str(folder))}: {size >> 20} MiB to download, and {free >> 20} MiB are free: make room, or "
            "set HF_HOME or UNMASK_CACHE to another disk"
        )


@contextmanager
def report_hub_errors(what: str, kind: type[UnmaskError] = CheckpointError) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line: a DiskError for the disk, else an error of this `kind`."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import logging

    # The bases are the root of what its HTTP client raises, whichever that is in its version.
    failures: tuple[type[Exception], ...] = (*errors.HfHubHTTPError.__bases__, OSError, ValueError, RuntimeError)
    failures += (getattr(errors, "XetDownloadError", OSError),)  # not in older versions
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # each retry would be a line
    try:
        yield
    except failures as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            where = escape_line(str(error.filename or constants.HF_HUB_CACHE))
            raise DiskError(f"{what}: {where}: {describe_os_error(error)}; repair it, or set HF_HOME") from error
        raise kind(f"{what}: {escape_line(_explain(error))}") from error
    finally:
        logging.set_verbosity(before)


def _explain(error: BaseException) -> str:
    """Return in a few words why the Hub gave nothing, and what to do."""
    from huggingface_hub import constants, errors

    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, errors.GatedRepoError):
            return f"its owner asks for consent: accept the terms on its page at {constants.ENDPOINT}, then {LOG_IN}"
        if isinstance(cause, errors.RepositoryNotFoundError):
            return f"there is no such repository, or it is private: check the name, or {LOG_IN}"
        if isinstance(cause, errors.RevisionNotFoundError):
            return "there is no such revision: check what follows the @"
        if status == 404:
            return "the repository has no such file: its owner may have moved it"
        if status in (401, 403):
            return f"the Hub refuses the token ({status}): {LOG_IN}"
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return "it is not in the cache, and HF_HUB_OFFLINE is set: run it once without"
        if status is not None:
            return f"{constants.ENDPOINT} is busy or out of order ({status}): try again later"
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is None:
        return "it is not in the cache, and this is offline: run it once without --offline"
    last = causes[-1]
    reason = (str(last).strip() or type(last).__name__).splitlines()[0].removesuffix(".")
    if "Consistency check" in reason:
        return "the connection ended too early, or the file has another size: try again"
    if isinstance(last, ValueError) or type(last) in (OSError, RuntimeError):
        return reason
    return f"{constants.ENDPOINT} does not answer ({reason}): check the network or HF_ENDPOINT, then try again"


def _make_bar(what: str, progress: Progress | None) -> Any:
    """Return a class of progress bars for huggingface_hub: it calls `progress`, or draws a bar on a terminal."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.received, self.whole = options.get("initial") or 0, options.get("total") or 0
            hidden = progress is not None or not sys.stderr.isatty()
            super().__init__(*args, **(options | ({"disable": True} if hidden else {})))

        def update(self, n: int | float | None = 1) -> Any:
            self.received += n or 0
            if progress is not None and self.whole:
                progress(what, int(self.received), int(self.whole))
            return super().update(n)

    return Bar
