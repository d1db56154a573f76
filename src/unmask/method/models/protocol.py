"""The protocol of a generator network, as samplers and pipelines use it."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int

from unmask.lazy import Tensor, nn


@runtime_checkable
class HasClasses(Protocol):
    """The configuration of a network; `num_classes` is 0 without classes."""

    @property
    def num_classes(self) -> int: ...


@runtime_checkable
class Generator(Protocol):
    """A network that samplers and pipelines can use, such as `models.transformer.MaskedTransformer`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def grid(self) -> tuple[int, ...]: ...
    @property
    def length(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def config(self) -> HasClasses: ...

    def __call__(
        self,
        tokens: Int[Tensor, "b l"],
        condition: Int[Tensor, "b"] | None = None,
        at: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "..."]: ...

    def parameters(self) -> "Iterator[nn.Parameter]": ...

    def named_parameters(self) -> "Iterator[tuple[str, nn.Parameter]]": ...
