"""unmask: masked generative transformers. Training masks tokens; sampling unmasks them.

Each name is imported at its first use. The method (samplers, schedules, orders, objectives, guidance) needs torch only.
"""

import importlib
from typing import TYPE_CHECKING, Any

from unmask.errors import name_arguments

if TYPE_CHECKING:
    __version__: str
    from unmask.decoding.sampling import Sampling
    from unmask.evaluation.measuring import evaluate, score, sweep
    from unmask.evaluation.plans import SweepChoices, TuneChoices
    from unmask.evaluation.tuned_model import tune
    from unmask.experiments.training import tokenize, train, train_tokenizer
    from unmask.method.critic import WithCritic
    from unmask.method.guidance import NULL, guided
    from unmask.method.likelihood import compute_exact_nll, estimate_bound
    from unmask.method.models.configs import TransformerConfig
    from unmask.method.models.partition import PartitionTransformer
    from unmask.method.models.partition_config import PartitionConfig
    from unmask.method.models.transformer import MaskedTransformer
    from unmask.method.objectives import Loss, MaskedDiffusion, MaskGIT
    from unmask.method.partitioning import Partition
    from unmask.method.ramps import CosineRamp, Interval, LinearRamp
    from unmask.method.rand import Rand, seeded
    from unmask.method.sampling.adaptive import EntropyBound, Threshold, decode_adaptive
    from unmask.method.sampling.ancestral import decode_ancestral
    from unmask.method.sampling.blocks import decode_blocks
    from unmask.method.sampling.decode import State, decode
    from unmask.method.sampling.extra_priorities import MarginRepulsion, Moment
    from unmask.method.sampling.priorities import Confidence, Entropy, Halton, Margin, MaxLogit, Random, Raster
    from unmask.method.sampling.remasking import Cap, ConfidenceWeighted, Rescale, decode_remasking
    from unmask.method.schedules import (
        Arccos,
        Cosine,
        Exp,
        Log,
        Power,
        Sigmoid,
        count_reveals,
        ratios,
        ratios_from_counts,
    )
    from unmask.method.self_conditioning import guided_with_memory
    from unmask.pipelines.image import Pipeline
    from unmask.pipelines.load import load
    from unmask.pipelines.text import TextPipeline
    from unmask.recipes.reading import find_recipe as recipe
    from unmask.recipes.schema import Recipe, TextRecipe, TokenizerRecipe
    from unmask.recipes.spec import ModelSpec, TextModelSpec


_AT_FIRST_USE = {
    "Arccos": "unmask.method.schedules",
    "Cap": "unmask.method.sampling.remasking",
    "Confidence": "unmask.method.sampling.priorities",
    "ConfidenceWeighted": "unmask.method.sampling.remasking",
    "Cosine": "unmask.method.schedules",
    "CosineRamp": "unmask.method.ramps",
    "Entropy": "unmask.method.sampling.priorities",
    "EntropyBound": "unmask.method.sampling.adaptive",
    "Exp": "unmask.method.schedules",
    "Halton": "unmask.method.sampling.priorities",
    "Interval": "unmask.method.ramps",
    "LinearRamp": "unmask.method.ramps",
    "Log": "unmask.method.schedules",
    "Loss": "unmask.method.objectives",
    "Margin": "unmask.method.sampling.priorities",
    "MarginRepulsion": "unmask.method.sampling.extra_priorities",
    "MaskGIT": "unmask.method.objectives",
    "MaskedDiffusion": "unmask.method.objectives",
    "MaskedTransformer": "unmask.method.models.transformer",
    "MaxLogit": "unmask.method.sampling.priorities",
    "ModelSpec": "unmask.recipes.spec",
    "Moment": "unmask.method.sampling.extra_priorities",
    "NULL": "unmask.method.guidance",
    "Partition": "unmask.method.partitioning",
    "PartitionConfig": "unmask.method.models.partition_config",
    "PartitionTransformer": "unmask.method.models.partition",
    "Pipeline": "unmask.pipelines.image",
    "Power": "unmask.method.schedules",
    "Rand": "unmask.method.rand",
    "Random": "unmask.method.sampling.priorities",
    "Raster": "unmask.method.sampling.priorities",
    "Recipe": "unmask.recipes.schema",
    "Rescale": "unmask.method.sampling.remasking",
    "Sampling": "unmask.decoding.sampling",
    "Sigmoid": "unmask.method.schedules",
    "State": "unmask.method.sampling.decode",
    "SweepChoices": "unmask.evaluation.plans",
    "TuneChoices": "unmask.evaluation.plans",
    "TextModelSpec": "unmask.recipes.spec",
    "TextPipeline": "unmask.pipelines.text",
    "TextRecipe": "unmask.recipes.schema",
    "Threshold": "unmask.method.sampling.adaptive",
    "TokenizerRecipe": "unmask.recipes.schema",
    "TransformerConfig": "unmask.method.models.configs",
    "WithCritic": "unmask.method.critic",
    "compute_exact_nll": "unmask.method.likelihood",
    "count_reveals": "unmask.method.schedules",
    "decode": "unmask.method.sampling.decode",
    "decode_adaptive": "unmask.method.sampling.adaptive",
    "decode_ancestral": "unmask.method.sampling.ancestral",
    "decode_blocks": "unmask.method.sampling.blocks",
    "decode_remasking": "unmask.method.sampling.remasking",
    "estimate_bound": "unmask.method.likelihood",
    "evaluate": "unmask.evaluation.measuring",
    "guided": "unmask.method.guidance",
    "guided_with_memory": "unmask.method.self_conditioning",
    "load": "unmask.pipelines.load",
    "ratios": "unmask.method.schedules",
    "ratios_from_counts": "unmask.method.schedules",
    "recipe": "unmask.recipes.reading",
    "score": "unmask.evaluation.measuring",
    "seeded": "unmask.method.rand",
    "sweep": "unmask.evaluation.measuring",
    "tokenize": "unmask.experiments.training",
    "train": "unmask.experiments.training",
    "train_tokenizer": "unmask.experiments.training",
    "tune": "unmask.evaluation.tuned_model",
}
"""The public names, and where they are."""
_COMMANDS = ("evaluate", "load", "recipe", "score", "sweep", "tokenize", "train", "train_tokenizer", "tune")
"""The functions that do what commands do, whose errors name flags."""

__all__ = [
    "NULL",
    "Arccos",
    "Cap",
    "Confidence",
    "ConfidenceWeighted",
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
    "MaskedDiffusion",
    "MaskedTransformer",
    "MaxLogit",
    "ModelSpec",
    "Moment",
    "Partition",
    "PartitionConfig",
    "PartitionTransformer",
    "Pipeline",
    "Power",
    "Rand",
    "Random",
    "Raster",
    "Recipe",
    "Rescale",
    "Sampling",
    "Sigmoid",
    "State",
    "SweepChoices",
    "TextModelSpec",
    "TextPipeline",
    "TextRecipe",
    "Threshold",
    "TokenizerRecipe",
    "TransformerConfig",
    "TuneChoices",
    "WithCritic",
    "compute_exact_nll",
    "count_reveals",
    "decode",
    "decode_adaptive",
    "decode_ancestral",
    "decode_blocks",
    "decode_remasking",
    "estimate_bound",
    "evaluate",
    "guided",
    "guided_with_memory",
    "load",
    "ratios",
    "ratios_from_counts",
    "recipe",
    "score",
    "seeded",
    "sweep",
    "tokenize",
    "train",
    "train_tokenizer",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("unmask")
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    module = importlib.import_module(_AT_FIRST_USE[name])
    value = getattr(module, "find_recipe" if name == "recipe" else name)
    if name in _COMMANDS:
        value = name_arguments(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
