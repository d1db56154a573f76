"""What a model is, without how it was trained: all that an export, an upload or a published model carries.

A spec holds no path, host or user name. A recipe is a spec plus data and training (`recipes/schema.py`).
"""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal, TypeVar

import tyro

from unmask.decoding.sampling import Sampling
from unmask.errors import CLASS_COUNTS, check_ranges
from unmask.method.models.configs import TransformerConfig
from unmask.method.models.partition_config import PartitionConfig
from unmask.pretrained.networks import AnyGeneratorConfig, LearnedConfig
from unmask.tokenizers.pixels import Pixels
from unmask.tokenizers.text import BPE, Bytes, Characters


@dataclass(frozen=True, kw_only=True)
class NamedSampling:
    """A way to sample that was found for one model, and the name that `--preset` takes."""

    name: str
    """Name of the preset, such as tuned-4."""
    sampling: Sampling
    """How to sample."""


AnySpec = TypeVar("AnySpec", bound="ModelSpec | TextModelSpec")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An image model: network, tokenizer, sampling and classes."""

    tokenizer: Pixels | LearnedConfig
    """How images become tokens."""
    model: AnyGeneratorConfig
    """The network."""
    sampling: Sampling = Sampling()
    """How to sample, unless a call or a flag says otherwise."""
    classes: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """Names of the classes, filled in from the data; () if unconditional, or if only numbers are known."""
    empty_classes: Annotated[tuple[int, ...], tyro.conf.Suppress] = ()
    """Ids of classes without a training picture, filled in from the data; they are never sampled."""
    tokenizer_sha256: Annotated[str | None, tyro.conf.Suppress] = None
    """Fingerprint of a learned tokenizer, filled in from the data."""
    trained_on: Annotated[str | None, tyro.conf.Suppress] = None
    """A sentence on the training data, filled in from the data. It holds no path."""
    presets: Annotated[tuple[NamedSampling, ...], tyro.conf.Suppress] = ()
    """Ways to sample that `unmask tune` found for these weights, filled in from its file."""

    def __post_init__(self) -> None:
        check_ranges(self, {"empty_classes": CLASS_COUNTS})

    @property
    def grid(self) -> tuple[int, ...]:
        """The cells of the canvas."""
        return self.tokenizer.grid

    @property
    def length(self) -> int:
        """Tokens per image."""
        return math.prod(self.grid)

    @property
    def spec(self) -> "ModelSpec":
        """What leaves the machine: the fields of a spec alone."""
        return narrow_to(ModelSpec, self)


@dataclass(frozen=True, kw_only=True)
class TextModelSpec:
    """A text model: network, tokenizer and sampling."""

    tokenizer: Characters | Bytes | BPE
    """How text becomes rows of `tokenizer.context` tokens."""
    packing: Literal["stream", "documents"] = "stream"
    """Cut the stream of documents into rows, with end tokens between; or put one per row (needs model.padded)."""
    model: TransformerConfig | PartitionConfig = TransformerConfig()
    """The network."""
    sampling: Sampling = Sampling()
    """How to sample, unless a call or a flag says otherwise."""
    documents: Annotated[int, tyro.conf.Suppress] = 0
    """Documents of the corpus, filled in from the data."""
    tokenizer_sha256: Annotated[str | None, tyro.conf.Suppress] = None
    """Fingerprint of the tokenizer, filled in from the data."""
    trained_on: Annotated[str | None, tyro.conf.Suppress] = None
    """A sentence on the training data, filled in from the data. It holds no path."""
    presets: Annotated[tuple[NamedSampling, ...], tyro.conf.Suppress] = ()
    """Ways to sample that `unmask tune` found for these weights, filled in from its file."""

    def __post_init__(self) -> None:
        if self.packing == "documents" and not self.model.padded:
            raise ValueError("packing documents: rows end early, so --model.padded is needed")
        if self.model.num_classes:
            raise ValueError(f"model.num_classes {self.model.num_classes}: text has no classes; leave it at 0")
        check_ranges(self, {"documents": (0, 1 << 62)})

    @property
    def grid(self) -> tuple[int, ...]:
        """The canvas: one row of tokens."""
        return (self.tokenizer.context,)

    @property
    def length(self) -> int:
        """Tokens per row."""
        return self.tokenizer.context

    @property
    def opens(self) -> bool:
        """Whether a text begins after an end token, as in a stream of many documents."""
        return self.packing == "stream" and self.documents > 1

    @property
    def spec(self) -> "TextModelSpec":
        """What leaves the machine: the fields of a spec alone."""
        return narrow_to(TextModelSpec, self)


def collect_presets(spec: "ModelSpec | TextModelSpec | None") -> dict[str, Sampling]:
    """Return the model's own presets by their names."""
    return {} if spec is None else {preset.name: preset.sampling for preset in spec.presets}


def narrow_to(kind: type[AnySpec], spec: AnySpec) -> AnySpec:
    """Return `spec`, which may be a recipe, with the fields of `kind` alone."""
    return kind(**{field.name: getattr(spec, field.name) for field in fields(kind)})
