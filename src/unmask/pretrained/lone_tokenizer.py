"""A folder with a tokenizer alone: config.json of the network, and its weights."""

from dataclasses import dataclass
from pathlib import Path

from unmask.pretrained.networks import LearnedConfig, LearnedModel
from unmask.storage.config import from_json, load_json, to_json, write_json
from unmask.storage.weights import write_weights
from unmask.tokenizers.base import open_tokenizer

TOKENIZER_CONFIG, TOKENIZER_WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class TokenizerFolder:
    """The tokenizer beside codes."""

    tokenizer: LearnedConfig


def read_tokenizer(folder: Path) -> LearnedModel:
    """The tokenizer beside codes: config.json is that of the network alone."""
    return open_tokenizer(read_tokenizer_config(folder), folder / TOKENIZER_WEIGHTS)  # type: ignore[return-value]


def read_tokenizer_config(folder: Path) -> LearnedConfig:
    """What `write_tokenizer_config` wrote."""
    data = load_json(folder / TOKENIZER_CONFIG)
    if isinstance(data, dict):
        data = {"type": "VQGAN"} | data  # as older files do not say
    return from_json(TokenizerFolder, {"tokenizer": data}, TOKENIZER_CONFIG).tokenizer


def write_tokenizer(model: LearnedModel, folder: Path) -> None:
    """What `read_tokenizer` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(dict(model.named_parameters()), folder / TOKENIZER_WEIGHTS)
    write_tokenizer_config(model.config, folder)


def write_tokenizer_config(config: LearnedConfig, folder: Path) -> None:
    """config.json beside the weights of a tokenizer alone."""
    write_json(folder / TOKENIZER_CONFIG, to_json(TokenizerFolder(tokenizer=config))["tokenizer"])
