"""What a recipe or a flag states of the networks that measure. It needs no torch."""

import math
from dataclasses import dataclass

from unmask.errors import BATCH_SIZES, CLASS_COUNTS, DEPTHS, SEEDS, STEP_COUNTS, WIDTHS, ConfigError, check_ranges
from unmask.runtime.choices import Precision

SMALLEST_SIDE = 8  # pixels; two halvings leave 2x2, three leave 1x1


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Architecture and training of the in-domain classifier. The defaults are this library's own, for digits."""

    channels: int
    """Channels of the images."""
    num_classes: int
    """Number of classes, at least 2."""
    width: int = 32
    """Channels of the first convolution."""
    features: int = 64
    """Dimension of the features (the penultimate layer)."""
    steps: int = 1500
    """Number of optimizer steps."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    residual: bool = False
    """Use a deeper residual network, for photos."""
    flip: bool = False
    """Mirror half of the training images. Digits have no mirror image, so the default is off."""
    shift: int = 1
    """Shift each training image by up to this number of pixels, from 0 to 7."""
    precision: Precision = "fp32"
    """Number type of the forward pass: fp32, bf16, or auto (bf16 where the device is fast in it)."""
    seed: int = 0
    """Seed of the first weights, the batches and the augmentation."""

    def __post_init__(self):
        if not 0 <= self.shift < SMALLEST_SIDE:
            raise ConfigError(f"shift must be from 0 to {SMALLEST_SIDE - 1} pixels, got {self.shift}")
        for name in ("channels", "width", "features", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, got {self.num_classes}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning_rate must be positive and finite, got {self.learning_rate}; try 2e-3")
        check_ranges(
            self,
            {
                "channels": (1, 64),
                "num_classes": CLASS_COUNTS,
                "width": WIDTHS,
                "features": WIDTHS,
                "steps": STEP_COUNTS,
                "batch_size": BATCH_SIZES,
                "learning_rate": (0, 1e3),
                "seed": SEEDS,
            },
        )


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Architecture and training of the judge. The defaults are this library's own, for characters on a CPU."""

    dim: int = 256
    """Dimension of the embedding and of the LSTM's state."""
    depth: int = 1
    """Number of LSTM layers."""
    steps: int = 3000
    """Number of optimizer steps."""
    batch_size: int = 16
    """Pieces of text per step."""
    context: int = 128
    """Tokens per piece in training. The trained judge reads rows of any length."""
    learning_rate: float = 6e-3
    """Peak learning rate of AdamW."""
    seed: int = 0
    """Seed of the first weights and the batches."""

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "steps", "batch_size", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning_rate must be positive and finite, got {self.learning_rate}; try 6e-3")
        check_ranges(
            self,
            {
                "dim": WIDTHS,
                "depth": DEPTHS,
                "steps": STEP_COUNTS,
                "batch_size": BATCH_SIZES,
                "context": (1, 1 << 24),
                "learning_rate": (0, 1e3),
                "seed": SEEDS,
            },
        )
