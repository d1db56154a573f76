"""The families of published weight files, by the names that `unmask convert --family` takes, and their conversion."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unmask.errors import CheckpointError
from unmask.pretrained import (
    amused,
    amused_vqvae,
    google,
    halton_maskgit,
    llamagen,
    maskgit_vqgan,
    taming,
    titok,
    titok_bert,
    titok_uvit,
    valeoai,
)
from unmask.pretrained.conversion import Converted, convert_tensors
from unmask.pretrained.networks import AnyGeneratorConfig, LearnedConfig
from unmask.storage.files import escape_line
from unmask.storage.foreign.reader import open_foreign


@dataclass(frozen=True, kw_only=True)
class Size:
    """One published size: a generator with its tokenizer, or only a tokenizer."""

    tokenizer: LearnedConfig
    """The tokenizer; it decides vocabulary and grid of the generator."""
    model: AnyGeneratorConfig | None = None
    """The generator, or None for a tokenizer alone."""

    @property
    def config(self) -> AnyGeneratorConfig | LearnedConfig:
        """The configuration of the network whose weights the file holds."""
        return self.tokenizer if self.model is None else self.model

    def build(self) -> nn.Module:
        """Build the network whose weights the file holds, with random weights."""
        if self.model is None:
            return self.tokenizer.build()
        return self.model.build(self.tokenizer.vocab_size, self.tokenizer.grid)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to read the weight files of one code base."""

    sizes: tuple[Size, ...]
    """The published sizes."""
    translate: Callable[[Any, str, Tensor], dict[str, Tensor]]
    """Translates one tensor of the file to our names, given the size's `config`."""
    container: str | None = None
    """The entry of the file that holds the weights, if the file has several entries."""

    @property
    def is_tokenizer(self) -> bool:
        """True if the files hold tokenizers, not generators."""
        return self.sizes[0].model is None


def _list_halton_sizes() -> tuple[Size, ...]:
    models = (
        halton_maskgit.HALTON_TINY,
        halton_maskgit.HALTON_SMALL,
        halton_maskgit.HALTON_BASE,
        halton_maskgit.HALTON_LARGE,
        halton_maskgit.HALTON_XLARGE,
    )
    tokenizers = (llamagen.LLAMAGEN_VQ16, llamagen.LLAMAGEN_VQ16_384)
    return tuple(Size(model=model, tokenizer=tokenizer) for tokenizer in tokenizers for model in models)


VALEOAI_SIZES = (
    Size(model=valeoai.VALEOAI_BASE_256, tokenizer=taming.TAMING_F16_1024),
    Size(model=valeoai.VALEOAI_BASE_512, tokenizer=taming.TAMING_F16_1024_512),
    Size(model=valeoai.VALEOAI_BIG_256, tokenizer=taming.TAMING_F16_1024),
    Size(model=valeoai.VALEOAI_HUGE_256, tokenizer=taming.TAMING_F16_1024),
)
GOOGLE_SIZES = (
    Size(model=google.GOOGLE_BASE_256, tokenizer=maskgit_vqgan.MASKGIT_VQGAN_256),
    Size(model=google.GOOGLE_BASE_512, tokenizer=maskgit_vqgan.MASKGIT_VQGAN_512),
)
TITOK_SIZES = (
    Size(model=titok_bert.TITOK_BERT_SIZE, tokenizer=titok.TITOK_L32_TOKENIZER),
    Size(model=titok_bert.TITOK_BERT_SIZE, tokenizer=titok.TITOK_B64_TOKENIZER),
    Size(model=titok_uvit.TITOK_UVIT_SIZE, tokenizer=titok.TITOK_S128_TOKENIZER),
)
AMUSED_SIZES = (
    Size(model=amused.AMUSED_256, tokenizer=amused_vqvae.AMUSED_VQ_256),
    Size(model=amused.AMUSED_512, tokenizer=amused_vqvae.AMUSED_VQ_512),
)


def keep_tokenizers(sizes: tuple[Size, ...]) -> tuple[Size, ...]:
    """Return the same sizes without their generators."""
    return tuple(replace(size, model=None) for size in sizes)


FAMILIES: dict[str, Family] = {
    "valeoai-v1": Family(sizes=VALEOAI_SIZES, translate=valeoai.translate, container="model_state_dict"),
    "taming-vqgan": Family(
        sizes=keep_tokenizers(VALEOAI_SIZES[:2]), translate=taming.translate, container="state_dict"
    ),
    "halton-maskgit": Family(
        sizes=_list_halton_sizes(), translate=halton_maskgit.translate, container="model_state_dict"
    ),
    "llamagen-vq16": Family(
        sizes=(Size(tokenizer=llamagen.LLAMAGEN_VQ16), Size(tokenizer=llamagen.LLAMAGEN_VQ16_384)),
        translate=llamagen.translate,
        container="model",
    ),
    "google-maskgit": Family(sizes=GOOGLE_SIZES, translate=google.translate),
    "google-vqgan": Family(sizes=keep_tokenizers(GOOGLE_SIZES), translate=google.translate_tokenizer),
    "maskgit-vqgan": Family(sizes=keep_tokenizers(GOOGLE_SIZES), translate=maskgit_vqgan.translate),
    "titok-bert": Family(sizes=TITOK_SIZES[:2], translate=titok_bert.translate),
    "titok-uvit": Family(sizes=TITOK_SIZES[2:], translate=titok_uvit.translate),
    "titok-tokenizer": Family(sizes=keep_tokenizers(TITOK_SIZES), translate=titok.translate),
    "amused": Family(sizes=AMUSED_SIZES, translate=amused.translate),
    "amused-vqvae": Family(sizes=keep_tokenizers(AMUSED_SIZES), translate=amused_vqvae.translate),
}


def choose_tokenizer_dtype(config: object, dtype: torch.dtype) -> torch.dtype:
    """Return float32 for a tokenizer of a published size, as its code base has it, and `dtype` for any other.

    In bfloat16 many pictures get other codes (`benchmarks/tokenizer_precision.py`).
    """
    published = any(size.tokenizer == config for family in FAMILIES.values() for size in family.sizes)
    return torch.promote_types(dtype, torch.float32) if published else dtype


def convert_file(
    path: Path, family: str, *, dtype: torch.dtype = torch.float32, like: Size | None = None
) -> tuple[Size, Converted]:
    """Convert a foreign file as the size `like`, or as the size of its family that it fits best.

    Raises CheckpointError if the file is damaged or does not fit exactly.
    """
    rules = FAMILIES[family]
    try:
        tensors = open_foreign(path, container=rules.container)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (wanted: the weights of {family})") from error
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    sizes = (like,) if like is not None else rules.sizes
    size = min(sizes, key=lambda one: _count_differences(one, rules, shapes))
    with torch.device("meta"):
        model = size.build()
    done = convert_tensors(
        tensors, partial(rules.translate, size.config), model, source=escape_line(path.name), dtype=dtype,
        family=family, families=list_known_names(),
    )  # fmt: skip
    parameters = {name for name, _ in model.named_parameters()}  # our files hold only these
    return size, replace(done, weights={name: value for name, value in done.weights.items() if name in parameters})


def _count_differences(size: Size, rules: Family, shapes: Mapping[str, Tensor]) -> int:
    """Count the names and shapes in which the translated file and the network differ."""
    with torch.device("meta"):
        wanted = {(name, tuple(tensor.shape)) for name, tensor in size.build().state_dict().items()}
    found: set[tuple[str, tuple[int, ...]]] = set()
    for name, tensor in shapes.items():
        try:
            found |= {(ours, tuple(part.shape)) for ours, part in rules.translate(size.config, name, tensor).items()}
        except CheckpointError:
            found.add((name, ()))
    return len(wanted ^ found)


def list_known_names() -> dict[str, tuple[str, ...]]:
    """Return, for each family, a few tensor names that tell its files from others."""
    return {
        "valeoai-v1": ("tok_emb.weight", "pos_emb", "bias", "first_layer.0.weight", "last_layer.4.weight"),
        "taming-vqgan": ("encoder.down.0.block.0.norm1.weight", "decoder.up.4.attn.0.q.weight", "quant_conv.weight"),
        "halton-maskgit": ("cls_emb.weight", "reg_tokens.weight", "last_norm.norm_final.weight"),
        "llamagen-vq16": ("encoder.conv_blocks.0.res.0.norm1.weight", "quantize.codebook_used"),
        "google-maskgit": ("Embed_0/word_embeddings/embedding", "MlmLayer_0/mlm_bias/bias"),
        "google-vqgan": ("encoder/Conv_0/kernel", "quantizer/codebook"),
        "maskgit-vqgan": (
            "encoder.mid.0.norm1.weight",
            "decoder.up.1.upsample_conv.weight",
            "quantize.embedding.weight",
        ),
        "titok-bert": ("model.embeddings.word_embeddings.weight", "model.lm_head.weight"),
        "titok-uvit": ("in_blocks.0.attn.qkv.weight", "out_blocks.0.skip_linear.weight"),
        "titok-tokenizer": ("latent_tokens", "pixel_quantize.embedding.weight"),
        "amused": ("embed.embeddings.weight", "encoder_proj.weight"),
        "amused-vqvae": ("quantize.embedding.weight", "encoder.down_blocks.0.resnets.0.norm1.weight"),
    }
