"""What every tokenizer offers: pictures to flat token ids and back. Models and samplers see only the ids."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError
from unmask.runtime.packed import pack
from unmask.storage.weights import hash_weights, load_weights, skip_initial_weights
from unmask.tokenizers.pixels import Pixels


@runtime_checkable
class Tokenizer(Protocol):
    """Images in [-1, 1] to tokens 0..vocab_size-1, flat in the row-major order of `grid`, and back."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def grid(self) -> tuple[int, ...]: ...

    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b l"]: ...

    def decode(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b c h w"]: ...


@runtime_checkable
class Learned(Protocol):
    """The configuration of a tokenizer with weights: `build()` gives a module that is a Tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def grid(self) -> tuple[int, ...]: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def channels(self) -> int: ...

    def build(self) -> Any: ...


def open_tokenizer(
    config: Pixels | Learned,
    weights: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    packed: bool = False,
) -> Tokenizer:
    """The tokenizer of a configuration, ready to use; a learned one with its weights read from that file.

    If `packed`, it is as fast as it can be on this CPU, and cannot be moved or converted.
    """
    if isinstance(config, Pixels):
        return config
    with skip_initial_weights(dtype):
        model: nn.Module = config.build()
    model = model.to(device, dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    if packed:
        pack(model)
    load_weights(model, weights)
    return model  # type: ignore[return-value]


def verify_tokenizer(config: Pixels | Learned, weights: Path, sha256: str | None) -> None:
    """CheckpointError if a learned tokenizer's weights are not there, or not those of a known fingerprint."""
    if isinstance(config, Pixels):
        return
    if not weights.is_file():
        where = f"{weights.parent}: no {weights.name} there"
        raise CheckpointError(f"{where}; unmask convert the tokenizer's file into it too")
    model = open_tokenizer(config, weights) if sha256 else None
    if isinstance(model, nn.Module) and sha256 != hash_weights(model, config):
        raise CheckpointError(f"{weights} is another tokenizer than the model was trained with")


def images_at_once(numbers: int) -> int:
    """Images of which one activation, `numbers` in float32 for each, fills 256 MiB at most; 1 to 256."""
    return min(256, max(1, (1 << 26) // numbers))


def encode_in_parts(
    convert: Callable[[Tensor], Tensor], images: Float[Tensor, "b c h w"], config: Learned, at_once: int
) -> Int[Tensor, "b l"]:
    """Tokens of images, so many converted at a time, on the images' device; ConfigError for another size."""
    need = (config.channels, *config.size)
    if images.shape[1:] != need:
        raise ConfigError(f"images are {tuple(images.shape[1:])} (c, h, w), not {need}: resize them")
    tokens = torch.empty(len(images), math.prod(config.grid), dtype=torch.int64, device=images.device)
    for i in range(0, len(images), at_once):
        tokens[i : i + at_once] = convert(images[i : i + at_once])
    return tokens


def decode_in_parts(
    convert: Callable[[Tensor], Tensor], tokens: Int[Tensor, "b l"], config: Learned, at_once: int
) -> Float[Tensor, "b c h w"]:
    """Images of tokens, so many converted at a time, in float32 on the tokens' device.

    ConfigError for another length or a token out of range.
    """
    if tokens.shape[1] != math.prod(config.grid):
        raise ConfigError(f"rows hold {tokens.shape[1]} tokens, not {'*'.join(map(str, config.grid))}")
    if not ((tokens >= 0) & (tokens < config.vocab_size)).all():
        span = f"{int(tokens.min())}..{int(tokens.max())}"
        raise ConfigError(f"tokens span {span}, not 0..{config.vocab_size - 1} ({config.vocab_size} is the mask)")
    images = torch.empty(len(tokens), config.channels, *config.size, device=tokens.device)
    for i in range(0, len(tokens), at_once):
        images[i : i + at_once] = convert(tokens[i : i + at_once])
    return images
