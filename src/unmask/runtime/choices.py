"""How to compute, in the words of a recipe."""

from typing import Literal

Strategy = Literal["auto", "none", "ddp", "fsdp"]
"""How several processes share a training."""
Precision = Literal["auto", "fp32", "bf16"]
"""The number type of a forward pass."""
