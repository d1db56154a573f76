"""The tokenizer protocol: images to flat token ids and back. Models and samplers see only the ids."""

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
    def vocab_size(self) -> int:
        """Number of different tokens, K."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the flat tokens, such as (rows, columns)."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its images, in pixels."""

    @property
    def channels(self) -> int:
        """Number of channels of its images."""

    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b l"]:
        """Return the tokens of images in [-1, 1], on the images' device."""

    def decode(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b c h w"]:
        """Return the images of tokens, float32 in [-1, 1], on the tokens' device."""


@runtime_checkable
class Learned(Protocol):
    """The configuration of a tokenizer with weights: `build()` returns a module that is a Tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def grid(self) -> tuple[int, ...]: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def channels(self) -> int: ...

    def build(self) -> Any:
        """Build the tokenizer with random weights."""


def open_tokenizer(
    config: Pixels | Learned,
    weights: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    packed: bool = False,
    sha256: str | None = None,
) -> Tokenizer:
    """Build the tokenizer of a configuration; a learned one reads its weights from that file, once.

    Args:
        packed: lay out the layers for the fastest inference on this CPU; it can then be neither moved nor converted.
        sha256: the `fingerprint` that the weights must have, if known.

    Raises:
        CheckpointError: the file is missing, damaged, of another shape, or has another fingerprint.
    """
    if isinstance(config, Pixels):
        return config
    # A fingerprint is of the values in the file, so verify before anything is rounded or packed.
    kind = dtype if sha256 is None else torch.promote_types(dtype, torch.float32)
    with skip_initial_weights(kind):
        model: nn.Module = config.build()
    model = model.to(device, kind, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    if sha256 is not None:
        load_weights(model, weights)
        if hash_weights(model, config) != sha256:
            raise CheckpointError(f"{weights} is another tokenizer than the model was trained with")
        model = model.to(dtype)
    if packed:
        pack(model)
    if sha256 is None:
        load_weights(model, weights)
    return model  # type: ignore[return-value]


def verify_tokenizer(config: Pixels | Learned, weights: Path, sha256: str | None = None) -> None:
    """Raise CheckpointError if a learned tokenizer's weights are missing, or do not have a known fingerprint."""
    if isinstance(config, Pixels):
        return
    if not weights.is_file():
        where = f"{weights.parent}: no {weights.name} there"
        raise CheckpointError(f"{where}; unmask convert the tokenizer's file into it too")
    if sha256:
        open_tokenizer(config, weights, sha256=sha256)


def count_images_at_once(numbers: int) -> int:
    """Return how many images to convert at once, 1 to 256: an activation of `numbers` per image fits 256 MiB."""
    return min(256, max(1, (1 << 26) // numbers))


def encode_in_parts(
    convert: Callable[[Tensor], Tensor], images: Float[Tensor, "b c h w"], config: Learned, at_once: int
) -> Int[Tensor, "b l"]:
    """Convert images to tokens, `at_once` at a time, on the images' device; raise ConfigError for another size."""
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
    """Convert tokens to float32 images, `at_once` at a time, on the tokens' device.

    Raises:
        ConfigError: the rows have another length, or a token is out of range.
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
