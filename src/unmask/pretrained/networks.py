"""All networks that a recipe can name as generator or tokenizer: our own and the published ones. It needs no torch."""

from dataclasses import dataclass
from typing import Any

from unmask.method.models.configs import TransformerConfig
from unmask.method.models.partition_config import PartitionConfig
from unmask.pretrained.configs import (
    Amused,
    AmusedVQ,
    GoogleMaskGIT,
    HaltonMaskGIT,
    MaskGITVQGAN,
    TiTok,
    TiTokBert,
    TiTokUViT,
    ValeoaiMaskGIT,
)
from unmask.storage.config import from_json
from unmask.storage.layout import CONFIG
from unmask.tokenizers.configs import VQGAN

GeneratorConfig = (
    TransformerConfig | PartitionConfig | ValeoaiMaskGIT | HaltonMaskGIT | GoogleMaskGIT | TiTokBert | TiTokUViT
)
"""Generators conditioned on classes. Each has `num_classes` and `build(vocab_size, grid)`."""

AnyGeneratorConfig = GeneratorConfig | Amused
"""All generators, including those conditioned on prompts. Each has `build(vocab_size, grid)`."""

LearnedConfig = VQGAN | AmusedVQ | MaskGITVQGAN | TiTok
"""Tokenizers with weights. Each has `vocab_size, grid, size, channels` and `build()`."""


@dataclass(frozen=True, kw_only=True)
class LoneTokenizer:
    """A tokenizer without a generator, such as the one beside a token dataset."""

    tokenizer: LearnedConfig


def parse_lone_tokenizer(data: Any) -> LoneTokenizer:
    """Read the JSON of such a config.json; ConfigError if it is something else."""
    if isinstance(data, dict):
        data = {"type": "VQGAN"} | data  # older files have no type
    return from_json(LoneTokenizer, {"tokenizer": data}, CONFIG)
