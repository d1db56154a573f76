"""Get published weight files: check the known SHA-256 of a file, and pin an unknown one at its first use.

Weight files are read as data and nothing in them runs, so a file without a published SHA-256 is no danger. But a file
that changes between two uses would change results, so the second use stops.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from unmask.errors import CheckpointError, ConfigError, DiskError, describe_os_error
from unmask.runtime.progress import Progress
from unmask.storage.cache import find_cache_dir, lock_file
from unmask.storage.config import from_json, load_json, write_json
from unmask.storage.download import Unavailable, download_file, find_mismatch
from unmask.storage.files import escape_line, hash_file
from unmask.storage.hub import download_hub_file, find_file_commit, find_hub_file, read_hub_facts, remove_hub_file

PINS = "pins.json"
"""In the cache: the SHA-256 of each file that was used before, by its address."""
Note = Callable[[str], None]
"""Called with a line for the user."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A published file of a family: a path in a `repo` of the Hugging Face Hub, or a `url`."""

    family: str
    """The family, as `unmask convert --family` takes it; "" for a file that is copied."""
    name: str
    """Path in the repository, or the name of the file at its `url`."""
    repo: str | None = None
    """Repository on the Hugging Face Hub, as OWNER/NAME."""
    url: str | None = None
    """Address of a file that is published elsewhere."""
    size: int | None = None
    """Published bytes, if they are known."""
    sha256: str | None = None
    """Published SHA-256, or its first digits, if it is known."""
    optional: bool = False
    """True if some repositories do not have it."""

    @property
    def page(self) -> str:
        """Where a person finds it."""
        return self.url or f"https://huggingface.co/{self.repo}"

    @property
    def key(self) -> str:
        """Its name among the pins."""
        return self.url or f"{self.repo}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What a file was at its first use."""

    sha256: str
    """SHA-256 of the file."""
    size: int
    """Bytes of the file."""
    commit: str | None = None
    """Commit of its repository, for a file of the Hub."""


def fetch_file(
    file: File, *, offline: bool = False, progress: Progress | None = None, say: Note | None = None
) -> Path | None:
    """Return the path of a published file, and download it if it is not there; None if an optional file is not there.

    Args:
        file: The file.
        offline: Ask no server.
        progress: Called with the name, the bytes so far and all bytes.
        say: Called with a line on a file whose SHA-256 is not published, before its first download.

    Raises:
        CheckpointError: The file cannot be had, is not the published one, or is not the one of its first use.
        DiskError: The cache cannot be written, or is full.
    """
    return _fetch_hub_file(file, offline, progress, say) if file.repo else _fetch_url(file, offline, progress, say)


def describe_check(file: File) -> str:
    """Return in a few words how a download of the file is checked."""
    pin = read_pins().get(file.key)
    if file.sha256:
        return f"sha256 {file.sha256[:12]}... is published and demanded"
    return f"sha256 {pin.sha256[:12]}... pinned at the first use" if pin else "sha256 is pinned at the first use"


def read_pins() -> dict[str, Pin]:
    """Return the pins of the cache. Raises CheckpointError if they are damaged."""
    path = find_cache_dir() / PINS
    if not path.is_file():
        return {}
    try:
        return {key: from_json(Pin, entry, key) for key, entry in load_json(path).items()}
    except (ConfigError, AttributeError) as error:
        raise CheckpointError(
            f"{escape_line(str(path))} is damaged ({error}): delete it to trust the files of now"
        ) from error


def _pin(file: File, path: Path, commit: str | None, say: Note | None = None) -> None:
    """Compare a file with its published or pinned SHA-256, or pin it now. Raises CheckpointError or DiskError."""
    pin = read_pins().get(file.key)
    known = Pin(sha256=file.sha256, size=file.size or path.stat().st_size) if file.sha256 else pin
    if known is not None:
        if wrong := find_mismatch(path, known.size, known.sha256):
            raise CheckpointError(f"{escape_line(str(path))} is {wrong}: {_advise(file)}")
        return
    found = Pin(sha256=hash_file(path), size=path.stat().st_size, commit=commit)
    pins = find_cache_dir() / PINS
    try:
        pins.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(pins):
            write_json(pins, {key: asdict(pin) for key, pin in {**read_pins(), file.key: found}.items()})
    except OSError as error:
        raise DiskError(f"{escape_line(str(pins))}: {describe_os_error(error)}; or set UNMASK_CACHE") from error
    if say is not None:
        say(f"note: {file.key}: sha256 {found.sha256}, {found.size:,} bytes; pinned in {escape_line(str(pins))}")


def _advise(file: File) -> str:
    pins = escape_line(str(find_cache_dir() / PINS))
    if file.sha256:
        return f"get the file of {file.page}"
    return f"get the file of the first use, or delete its entry in {pins} to accept this one"


def _fetch_hub_file(file: File, offline: bool, progress: Progress | None, say: Note | None) -> Path | None:
    repo, name = str(file.repo), file.name
    path = find_hub_file(repo, name)
    damaged = False
    if path is not None:
        try:
            _pin(file, path, find_file_commit(path, name), say)
            return path
        except CheckpointError:
            if offline:
                raise
            damaged = True
    if offline:
        if file.optional:
            return None
        raise CheckpointError(
            f"cannot download {name} of {repo}: it is not in the cache, and this is offline: run it once without "
            "--offline"
        )
    try:
        facts = read_hub_facts(repo, name)
    except CheckpointError as error:
        if file.optional and "no such file" in str(error):
            return None
        raise
    pin = read_pins().get(file.key)
    wanted = file.sha256 or (pin.sha256 if pin else None)
    if wanted and facts.sha256 and not facts.sha256.startswith(wanted):
        since = "" if file.sha256 or pin is None else f" of the first use (commit {pin.commit})"
        raise CheckpointError(
            f"{name} of {repo} changed: the Hub has sha256 {facts.sha256[:12]} (commit {facts.commit[:12]}) and not "
            f"{wanted[:12]}{since}; {_advise(file)}"
        )
    if file.size and facts.size and file.size != facts.size:
        raise CheckpointError(f"{name} of {repo} is {facts.size:,} bytes and not the published {file.size:,}")
    path = download_hub_file(repo, name, size=facts.size, again=damaged, progress=progress)
    if wrong := find_mismatch(path, facts.size, facts.sha256 or wanted):
        remove_hub_file(path)
        raise CheckpointError(f"the download of {name} of {repo} is {wrong}, so nothing was kept: try again")
    _pin(file, path, facts.commit, say)
    return path


def _fetch_url(file: File, offline: bool, progress: Progress | None, say: Note | None) -> Path:
    url = str(file.url)
    parts = urlsplit(url)
    path = find_cache_dir() / "downloads" / parts.netloc.replace(":", "-") / parts.path.lstrip("/")
    by_hand = f"or put it at {escape_line(str(path))} by hand"
    if not path.is_file():
        if offline:
            raise CheckpointError(
                f"{escape_line(str(path))} is not there, and this is offline; go online once, {by_hand}"
            )
        pin = read_pins().get(file.key)
        size, sha256 = file.size or (pin.size if pin else None), file.sha256 or (pin.sha256 if pin else None)
        try:
            download_file([url], path, size=size, sha256=sha256, progress=progress)
        except Unavailable as error:
            more = "" if file.sha256 or pin is None else f"; {_advise(file)}"
            raise CheckpointError(f"cannot download {file.name} ({error}): try again, {by_hand}{more}") from error
    _pin(file, path, None, say)
    return path
