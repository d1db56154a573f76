"""Upload models to the Hugging Face Hub, and download them by the name hf-hub:OWNER/NAME."""

import re
from pathlib import Path

from unmask.errors import ConfigError
from unmask.pretrained.conditions import EXTRA_FILES
from unmask.storage.files import escape_line
from unmask.storage.hub import download_hub_folder, report_hub_errors
from unmask.storage.layout import CONFIG, FOLDER_MANIFEST, README, TEXT_TOKENIZER

HUB = "hf-hub:"
"""How the name of a model of the Hub begins: hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION.

A mistyped folder so never becomes a stranger's model.
"""


def is_on_hub(name: str | Path) -> bool:
    """Return whether a name means a model on the Hub."""
    return str(name).startswith(HUB)


def upload_model(folder: Path, repo: str, *, private: bool, token: str | None) -> str:
    """Upload a saved model to the Hub, into a new repository if needed; return its address. Raises ConfigError."""
    with report_hub_errors(f"cannot upload to {repo}", ConfigError):
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    return str(address)


def download_model(name: str, *, offline: bool = False) -> Path:
    """Download a saved model's weights and configurations from the Hub; return the folder in its shared cache.

    `offline`: use what is there already. Raises ConfigError for a name that is none, CheckpointError or DiskError.
    """
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name.removeprefix(HUB))
    if not found:
        raise ConfigError(f"{escape_line(name)}: give {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION")
    names = [CONFIG, FOLDER_MANIFEST, "*.safetensors", TEXT_TOKENIZER, README, *EXTRA_FILES]
    return download_hub_folder(found[1], names, revision=found[2], offline=offline)


def read_revision(folder: Path) -> str | None:
    """Return the commit of a model that `download_model` returned; None if its folder does not tell."""
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
