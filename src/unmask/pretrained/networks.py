"""Everything that can stand in a recipe for the generator or the tokenizer: ours, and those of published weights."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.models.transformer import TransformerConfig
from unmask.pretrained.amused_vqvae import AmusedVQ
from unmask.pretrained.google import GoogleMaskGIT
from unmask.pretrained.halton_maskgit import HaltonMaskGIT
from unmask.pretrained.maskgit_vqgan import MaskGITAutoencoder, MaskGITVQGAN
from unmask.pretrained.titok import TiTok, TiTokModel
from unmask.pretrained.titok_bert import TiTokBert
from unmask.pretrained.titok_uvit import TiTokUViT
from unmask.pretrained.valeoai import ValeoaiMaskGIT
from unmask.tokenizers.vqgan import VQGAN, Autoencoder

GeneratorConfig = TransformerConfig | ValeoaiMaskGIT | HaltonMaskGIT | GoogleMaskGIT | TiTokBert | TiTokUViT
"""Networks of classes; each has `num_classes` and `build(vocab_size, grid)`. Amused is of texts, and has the latter."""

LearnedConfig = VQGAN | AmusedVQ | MaskGITVQGAN | TiTok
"""Tokenizers with weights; each has `vocab_size, grid, size, channels` and `build()`."""


LearnedModel = Autoencoder | MaskGITAutoencoder | TiTokModel
"""What they build."""


@runtime_checkable
class Classed(Protocol):
    """A network's configuration: of so many classes, 0 for none."""

    @property
    def num_classes(self) -> int: ...


@runtime_checkable
class Generator(Protocol):
    """What samplers and pipelines ask of a network: the contract of `models.transformer.MaskedTransformer`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def grid(self) -> tuple[int, ...]: ...
    @property
    def length(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def config(self) -> Classed: ...

    def __call__(
        self,
        tokens: Int[Tensor, "b l"],
        condition: Int[Tensor, "b"] | None = None,
        at: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "..."]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
