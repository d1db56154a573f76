"""A saved model on its way elsewhere: the files of its text encoder, and to and from the Hugging Face hub."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unmask.data.decoding import one_line
from unmask.data.mnist import cache_dir
from unmask.errors import ConfigError

HUB = "hf-hub:"
"""What the name of a model begins with that is to come from the hub: hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION.

A mistyped folder so never becomes a stranger's model.
"""

TEXT_PARTS = ("text_encoder", "tokenizer")
TEXT_FILES = ("config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer_config.json",
              "special_tokens_map.json")  # fmt: skip
"""Folders beside a model that draws from texts, and the files in them."""


def copy_text_part(source: Path, into: Path) -> None:
    """The files of a text encoder or its tokenizer by their names, and no links: nothing else is taken along."""
    into.mkdir(parents=True, exist_ok=True)
    for name in TEXT_FILES:
        if (source / name).is_file() and not (source / name).is_symlink() and not (into / name).exists():
            shutil.copyfile(source / name, into / name)


def is_on_hub(name: str | Path) -> bool:
    """Whether a name is that of a model on the hub."""
    return str(name).startswith(HUB)


def upload(folder: Path, repo: str, *, private: bool, token: str | None) -> str:
    """A saved model to a repository of the hub, which is made if needed; gives its address. ConfigError if refused."""
    with _refusals(f"cannot upload to {repo}"):
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    return str(address)


def download(name: str, *, offline: bool = False) -> Path:
    """A saved model of the hub, of which only weights and configurations are asked for, as a folder in our cache.

    `offline`: what is there already. ConfigError if it cannot be had.
    """
    found = re.fullmatch(r"([\w.-]+)/([\w.-]+)(?:@([\w./-]+))?", name.removeprefix(HUB))
    if not found:
        raise ConfigError(f"{one_line(name)}: give {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION")
    owner, repo, revision = found.groups()
    folder = cache_dir() / "hub" / f"{owner}--{repo}@{(revision or 'main').replace('/', '--')}"
    texts = [f"{part}/{file}" for part in TEXT_PARTS for file in TEXT_FILES]
    with _refusals(f"cannot load {name}"):
        from huggingface_hub import snapshot_download

        snapshot_download(
            f"{owner}/{repo}",
            revision=revision,
            local_dir=folder,
            allow_patterns=["config.json", "*.safetensors", "README.md", *texts],
            local_files_only=offline,
        )
    return folder


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """What huggingface_hub raises inside, as one line."""
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
        raise ConfigError(f"{what}: {one_line(reason.strip())}") from error
