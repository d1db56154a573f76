"""unmask: masked generative transformers. Training masks tokens; sampling unmasks them.

The names here are the method (ring 1), and `load`, which opens a run, an export or a published model as a
`unmask.pipelines.image.Pipeline`; `unmask.cli` is the commands.
"""

from importlib.metadata import version
from typing import Any

from unmask.method.guidance import NULL, CosineRamp, Interval, LinearRamp, guided
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.objectives import Loss, MaskGIT
from unmask.method.rand import Rand, seeded
from unmask.method.sampling.adaptive import EntropyBound, Threshold, decode_adaptive
from unmask.method.sampling.ancestral import decode_ancestral
from unmask.method.sampling.blocks import decode_blocks
from unmask.method.sampling.decode import State, decode
from unmask.method.sampling.priorities import (
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
from unmask.method.sampling.remasking import decode_remasking
from unmask.method.schedules import Arccos, Cosine, Exp, Log, Power, Sigmoid, ratios, ratios_from_counts

__version__ = version("unmask")

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
    "decode",
    "decode_adaptive",
    "decode_ancestral",
    "decode_blocks",
    "decode_remasking",
    "guided",
    "ratios",
    "ratios_from_counts",
    "seeded",
]


def __getattr__(name: str) -> Any:
    """`load` brings most of the package with it, so it is imported when it is asked for."""
    if name == "load":
        from unmask.pipelines.load import load

        return load
    raise AttributeError(f"module 'unmask' has no attribute {name!r}")
