"""How classes are shared out among measured samples, by name."""

from typing import Literal

LabelRule = Literal["shares", "balanced"]
"""Classes of samples that are measured: in the shares of the held-out images, or as many of each class."""
