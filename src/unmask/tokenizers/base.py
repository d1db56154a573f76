"""What every tokenizer offers: pictures to flat token ids and back. Models and samplers see only the ids."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Tokenizer(Protocol):
    """Images in [-1, 1] to tokens 0..vocab_size-1, flat in the row-major order of `grid`, and back."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def grid(self) -> tuple[int, ...]: ...

    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b l"]: ...

    def decode(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b c h w"]: ...
