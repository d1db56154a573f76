"""A folder with a tokenizer alone: config.json of the network, and its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.pretrained.networks import LearnedConfig, LearnedModel
from unmask.storage.config import from_json, load_json, to_json, write_json
from unmask.storage.layout import CONFIG, MODEL
from unmask.storage.weights import write_weights
from unmask.tokenizers.base import open_tokenizer


@dataclass(frozen=True, kw_only=True)
class LoneTokenizer:
    """A tokenizer without a generator, such as the one beside a token dataset."""

    tokenizer: LearnedConfig


def parse_lone_tokenizer(data: Any) -> LoneTokenizer:
    """Read the JSON of such a config.json; ConfigError if it is something else."""
    if isinstance(data, dict):
        data = {"type": "VQGAN"} | data  # older files have no type
    return from_json(LoneTokenizer, {"tokenizer": data}, CONFIG)


def read_lone_tokenizer(folder: Path) -> LearnedModel:
    """Load the tokenizer in `folder`, with its weights."""
    return open_tokenizer(read_lone_tokenizer_config(folder), folder / MODEL)  # type: ignore[return-value]


def read_lone_tokenizer_config(folder: Path) -> LearnedConfig:
    """Return the configuration of the tokenizer in `folder`."""
    return parse_lone_tokenizer(load_json(folder / CONFIG)).tokenizer


def write_lone_tokenizer(model: LearnedModel, folder: Path) -> None:
    """Write what `read_lone_tokenizer` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(dict(model.named_parameters()), folder / MODEL)
    write_lone_tokenizer_config(model.config, folder)


def write_lone_tokenizer_config(config: LearnedConfig, folder: Path) -> None:
    """Write config.json beside the weights of a tokenizer alone."""
    write_json(folder / CONFIG, to_json(LoneTokenizer(tokenizer=config))["tokenizer"])
