"""unmask: masked generative transformers. Training masks tokens; sampling unmasks them.

The names here are the method (ring 1), and `load`, which opens a run, an export or a published model as a
`unmask.pipeline.Pipeline`; `unmask.cli` is the commands.
"""

from typing import Any

from unmask.guidance import NULL, CosineRamp, Interval, LinearRamp, guided
from unmask.models.transformer import MaskedTransformer, TransformerConfig
from unmask.objectives import Loss, MaskGIT
from unmask.rand import Rand, seeded
from unmask.sampling.adaptive import EntropyBound, Threshold, adaptive
from unmask.sampling.ancestral import ancestral
from unmask.sampling.blocks import blocks
from unmask.sampling.decode import State, decode
from unmask.sampling.priorities import (
    Confidence,
    Entropy,
    Halton,
    Margin,
    MarginRepulsion,
    MaxLogit,
    Moment,
    Random,
    Raster,
)
from unmask.sampling.remasking import remdm
from unmask.schedules import Arccos, Cosine, Exp, Log, Power, Sigmoid, ratios, ratios_from_counts

__version__ = "0.1.0"

__all__ = [
    "NULL",
    "Arccos",
    "Confidence",
    "Cosine",
    "CosineRamp",
    "Entropy",
    "EntropyBound",
    "Exp",
    "Halton",
    "Interval",
    "LinearRamp",
    "Log",
    "Loss",
    "Margin",
    "MarginRepulsion",
    "MaskGIT",
    "MaskedTransformer",
    "MaxLogit",
    "Moment",
    "Power",
    "Rand",
    "Random",
    "Raster",
    "Sigmoid",
    "State",
    "Threshold",
    "TransformerConfig",
    "adaptive",
    "ancestral",
    "blocks",
    "decode",
    "guided",
    "ratios",
    "ratios_from_counts",
    "remdm",
    "seeded",
]


def __getattr__(name: str) -> Any:
    """`load` brings most of the package with it, so it is imported when it is asked for."""
    if name == "load":
        from unmask.published import load

        return load
    raise AttributeError(f"module 'unmask' has no attribute {name!r}")
