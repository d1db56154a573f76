"""Read and write a folder that holds only a tokenizer: config.json of the network, and its weights."""

from dataclasses import dataclass
from pathlib import Path

from unmask.pretrained.networks import LearnedConfig, LearnedModel
from unmask.storage.config import from_json, load_json, to_json, write_json
from unmask.storage.weights import write_weights
from unmask.tokenizers.base import open_tokenizer

TOKENIZER_CONFIG, TOKENIZER_WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class TokenizerFolder:
    """The content of such a config.json."""

    tokenizer: LearnedConfig


def read_tokenizer(folder: Path) -> LearnedModel:
    """Load the tokenizer of a folder that `write_tokenizer` wrote."""
    return open_tokenizer(read_tokenizer_config(folder), folder / TOKENIZER_WEIGHTS)  # type: ignore[return-value]


def read_tokenizer_config(folder: Path) -> LearnedConfig:
    """Read the configuration that `write_tokenizer_config` wrote."""
    data = load_json(folder / TOKENIZER_CONFIG)
    if isinstance(data, dict):
        data = {"type": "VQGAN"} | data  # older files do not name the type
    return from_json(TokenizerFolder, {"tokenizer": data}, TOKENIZER_CONFIG).tokenizer


def write_tokenizer(model: LearnedModel, folder: Path) -> None:
    """Write a folder that `read_tokenizer` loads: config.json and weights. Raises DiskError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(dict(model.named_parameters()), folder / TOKENIZER_WEIGHTS)
    write_tokenizer_config(model.config, folder)


def write_tokenizer_config(config: LearnedConfig, folder: Path) -> None:
    """Write config.json for a folder that holds only a tokenizer. Raises DiskError."""
    write_json(folder / TOKENIZER_CONFIG, to_json(TokenizerFolder(tokenizer=config))["tokenizer"])
