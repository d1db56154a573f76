"""What every tokenizer offers: pictures to flat token ids and back. Models and samplers see only the ids."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.tokenizers.pixels import Pixels
from unmask.weights import load_weights, unfilled


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
    config: Pixels | Learned, weights: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tokenizer:
    """The tokenizer of a configuration, ready to use; a learned one with its weights read from that file."""
    if isinstance(config, Pixels):
        return config
    with unfilled():
        model: nn.Module = config.build()
    model = model.to(device, dtype)
    load_weights(model, weights)
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
