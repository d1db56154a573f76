"""What a recipe states of a training: steps, batch, optimizer and learning rate. It needs no torch."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unmask.errors import BATCH_SIZES, SEEDS, STEP_COUNTS, check_ranges
from unmask.runtime.choices import Precision, Strategy
from unmask.training.trackers import Tracker

if TYPE_CHECKING:
    from torch import nn

    from unmask.training.optim import Optimizers


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    learning_rate: float = 1e-3
    """Peak learning rate of AdamW. torch's default is 0.001."""
    beta1: float = 0.9
    """Decay per step of the mean gradient, in [0, 1). The paper has 0.9."""
    beta2: float = 0.98
    """Decay per step of the mean squared gradient, in [0, 1). The paper has 0.999; 0.98 is this library's."""
    weight_decay: float = 0.01
    """Weight decay of matrices, multiplied by the learning rate at each step. torch's default is 0.01."""

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.weight_decay >= 0):
            raise ValueError(f"{self}: needs a positive learning rate, betas in [0, 1) and a weight decay >= 0")
        check_ranges(self, {"learning_rate": (0, 1e3), "weight_decay": (0, 1e3)})

    def build(self, model: "nn.Module") -> "Optimizers":
        """Create the optimizer for all weights of `model`."""
        from unmask.training.optim import build_adamw

        return [build_adamw(self, list(model.parameters()))]


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Orthogonalized momentum for the blocks' attention and MLP matrices (`MuonOptimizer`), AdamW for all the rest.

    The update is scaled to AdamW's root mean square (arXiv 2502.16982), so learning rates are of AdamW's size.
    """

    learning_rate: float = 3e-3
    """Peak learning rate of Muon. 0.003 is this library's."""
    momentum: float = 0.95
    """Decay per step of the mean gradient, in [0, 1). Jordan has 0.95."""
    weight_decay: float = 0.01
    """Weight decay of Muon's matrices, multiplied by the learning rate at each step. 0.01 is this library's."""
    rest: AdamW = AdamW()
    """AdamW settings for all other weights."""

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise ValueError(f"{self}: needs a positive learning rate, a momentum in [0, 1) and a weight decay >= 0")
        check_ranges(self, {"learning_rate": (0, 1e3), "weight_decay": (0, 1e3)})

    def build(self, model: "nn.Module") -> "Optimizers":
        """Create Muon for the blocks' matrices of `model`, and AdamW for its other weights."""
        from unmask.training.optim import build_muon

        return build_muon(self, model)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Linear warm-up over `warmup` steps, then 1."""

    warmup: int = 0
    """Steps of linear warm-up."""

    def __post_init__(self) -> None:
        _check_curve(self.warmup)

    def __call__(self, step: int, steps: int) -> float:
        return _warm_up(step, self.warmup)


@dataclass(frozen=True, kw_only=True)
class CosineDecay:
    """Linear warm-up, then half a cosine down to the fraction `final` at the last step."""

    warmup: int = 0
    """Steps of linear warm-up."""
    final: float = 0.0
    """Fraction of the peak learning rate at the last step, in [0, 1]."""

    def __post_init__(self) -> None:
        _check_curve(self.warmup, self.final)

    def __call__(self, step: int, steps: int) -> float:
        x = min(1.0, max(0, step - self.warmup) / max(1, steps - self.warmup))
        return _warm_up(step, self.warmup) * (self.final + (1 - self.final) * (1 + math.cos(math.pi * x)) / 2)


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Linear warm-up, a constant middle, and a linear fall to `final` over the last steps (WSD)."""

    warmup: int = 0
    """Steps of linear warm-up."""
    decay: float = 0.3
    """Fraction of all steps over which the rate falls, in [0, 1]. 0.3 is this library's."""
    final: float = 0.0
    """Fraction of the peak learning rate at the last step, in [0, 1]."""

    def __post_init__(self) -> None:
        _check_curve(self.warmup, self.final)
        if not 0 <= self.decay <= 1:
            raise ValueError(f"WarmupStableDecay(decay={self.decay}): the fraction of steps must lie in [0, 1]")

    def __call__(self, step: int, steps: int) -> float:
        left = (steps - step) / max(1.0, self.decay * steps)
        return _warm_up(step, self.warmup) * (self.final + (1 - self.final) * min(1.0, left))


def _check_curve(warmup: int, final: float = 0.0) -> None:
    if not 0 <= warmup <= STEP_COUNTS[1] or not 0 <= final <= 1:
        raise ValueError(
            f"learning_rate: warmup {warmup} must be from 0 to {STEP_COUNTS[1]:,}, and final {final} in [0, 1]"
        )


def _warm_up(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / (warmup + 1))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training settings. The defaults are this library's own, for small models on a CPU; recipes set their own."""

    steps: int = 1500
    """Number of optimizer steps."""
    batch_size: int = 64
    """Rows of the global batch: the sum over all processes and all `accumulate` micro-batches."""
    accumulate: int = 1
    """Micro-batches per step. Higher values need less memory and give the same result."""
    optimizer: AdamW | Muon = field(default_factory=Muon)
    """Optimizer of the weights."""
    learning_rate: Constant | CosineDecay | WarmupStableDecay = CosineDecay(warmup=100)
    """Learning-rate curve over the steps: a factor on the optimizer's own learning rate."""
    clip: float = 1.0
    """Largest global norm of the gradient. Larger gradients are scaled down to it."""
    ema: float = 0.999
    """Decay per step of the averaged weights, in [0, 1). 0 keeps the latest weights."""
    precision: Precision = "auto"
    """Number type of the forward pass: fp32, bf16, or auto (bf16 where the device is fast in it)."""
    compile: bool = False
    """Compile the blocks: up to a minute at the start, then up to a third less time. A CPU needs a C++ compiler."""
    strategy: Strategy = "auto"
    """How several processes share the work: none, ddp, fsdp, or auto (ddp for several processes)."""
    seed: int = 0
    """Seed of the data order, the masks and the noise."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    evaluate_every: int = 500
    """Steps between two evaluations on held-out data."""
    save_every: int = 500
    """Steps between two checkpoints."""
    keep: int = 2
    """Number of checkpoints to keep on disk, at least 2, so that a damaged one has a fallback."""
    tracker: Tracker = "none"
    """Where metrics go besides metrics.jsonl: none, tensorboard, wandb or trackio."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} = {getattr(self, name)}: must be at least 1")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"training.batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}"
            )
        if self.keep < 2 or not self.clip > 0 or not 0 <= self.ema < 1:
            raise ValueError(
                f"training: keep {self.keep} >= 2, clip {self.clip} > 0 and ema {self.ema} in [0, 1) needed"
            )
        check_ranges(
            self,
            {
                "steps": STEP_COUNTS,
                "batch_size": BATCH_SIZES,
                "seed": SEEDS,
                "log_every": STEP_COUNTS,
                "evaluate_every": STEP_COUNTS,
                "save_every": STEP_COUNTS,
                "keep": STEP_COUNTS,
            },
        )
