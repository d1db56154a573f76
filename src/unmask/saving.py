"""A saved model on its way elsewhere: the files of its text encoder, and the upload to the Hugging Face hub."""

import shutil
import sys
from pathlib import Path

from unmask.errors import ConfigError

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


def upload(folder: Path, repo: str, *, private: bool, token: str | None) -> str:
    """A saved model to a repository of the hub, which is made if needed; gives its address. ConfigError if refused."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ConfigError("push_to_hub needs huggingface_hub: pip install 'unmask[data]'") from error
    # What its client raises without a network, whichever of the two it uses; its own errors are the first kinds.
    clients = tuple(sys.modules[name].TransportError for name in ("httpx2", "httpx") if name in sys.modules)
    failures: tuple[type[Exception], ...] = (OSError, ValueError, *clients)
    try:
        api = HfApi(token=token)
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    except failures as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"cannot upload to {repo}: {reason}") from error
    return str(address)
