"""A folder with a tokenizer alone: config.json of the network, and its weights."""

from pathlib import Path

from unmask.pretrained.maskgit_vqgan import MaskGITAutoencoder
from unmask.pretrained.networks import LearnedConfig, LoneTokenizer, parse_lone_tokenizer
from unmask.pretrained.titok import TiTokModel
from unmask.storage.config import load_json, to_json, write_json
from unmask.storage.layout import CONFIG, MODEL
from unmask.storage.weights import write_weights
from unmask.tokenizers.base import open_tokenizer
from unmask.tokenizers.vqgan import Autoencoder

LearnedModel = Autoencoder | MaskGITAutoencoder | TiTokModel
"""The networks that a `LearnedConfig` builds."""


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
