"""How to compute, in the words of a recipe."""

from typing import Literal

Strategy = Literal["auto", "none", "ddp", "fsdp"]
"""How several processes share a training."""
Precision = Literal["auto", "fp32", "bf16"]
"""The number type of a forward pass."""
WeightType = Literal["auto", "fp32", "bf16", "int8"]
"""The number type of a loaded network; in int8 only its linear layers are rounded."""
