"""A saved model on its way elsewhere: to and from the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unmask.errors import ConfigError
from unmask.pretrained.conditions import EXTRA_FILES
from unmask.storage.cache import find_cache_dir
from unmask.storage.files import escape_line
from unmask.storage.layout import CONFIG, FOLDER_MANIFEST, README, TEXT_TOKENIZER

HUB = "hf-hub:"
"""What the name of a model begins with that is to come from the hub: hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION.

A mistyped folder so never becomes a stranger's model.
"""


def is_on_hub(name: str | Path) -> bool:
    """Return whether a name means a model on the Hub."""
    return str(name).startswith(HUB)


def upload_model(folder: Path, repo: str, *, private: bool, token: str | None) -> str:
    """Upload a saved model to the Hub, into a new repository if needed; return its address. Raises ConfigError."""
    with _refusals(f"cannot upload to {repo}"):
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    return str(address)


def download_model(name: str, *, offline: bool = False) -> Path:
    """Download a saved model's weights and configurations from the Hub; return the folder in our cache.

    `offline`: use what is there already. ConfigError if it cannot be had.
    """
    found = re.fullmatch(r"([\w.-]+)/([\w.-]+)(?:@([\w./-]+))?", name.removeprefix(HUB))
    if not found:
        raise ConfigError(f"{escape_line(name)}: give {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION")
    owner, repo, revision = found.groups()
    folder = find_cache_dir() / "hub" / f"{owner}--{repo}@{(revision or 'main').replace('/', '--')}"
    with _refusals(f"cannot load {name}"):
        from huggingface_hub import snapshot_download

        snapshot_download(
            f"{owner}/{repo}",
            revision=revision,
            local_dir=folder,
            allow_patterns=[CONFIG, FOLDER_MANIFEST, "*.safetensors", TEXT_TOKENIZER, README, *EXTRA_FILES],
            local_files_only=offline,
        )
    return folder


def read_revision(folder: Path) -> str | None:
    """Return the commit of a model that `download_model` got, as the Hub's client noted it; None if it noted none."""
    note = folder / ".cache/huggingface/download" / f"{CONFIG}.metadata"
    found = note.read_text(encoding="utf-8", errors="replace").splitlines() if note.is_file() else []
    return found[0] if found and re.fullmatch(r"[0-9a-f]{40}", found[0]) else None


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Report what huggingface_hub raises inside in one line."""
    try:
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ConfigError(f"{what}: it takes huggingface_hub: pip install 'unmask[data]'") from error
    # The bases are the root of what its HTTP client raises, whichever that is in its version.
    failures: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OSError, ValueError)
    try:
        yield
    except failures as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if "Client Error" not in line), lines[0])  # which is a number alone
        raise ConfigError(f"{what}: {escape_line(reason.strip())}") from error
