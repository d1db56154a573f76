"""Optimizers and learning-rate curves. Weight decay touches matrices only; Muon takes the hidden ones of the blocks."""

import math
from dataclasses import dataclass

import torch
from torch import nn

Optimizers = list[torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Decoupled weight decay (arXiv 1711.05101)."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.weight_decay >= 0):
            raise ValueError(f"{self}: needs a positive learning rate, betas in [0, 1) and a weight decay >= 0")

    def build(self, model: nn.Module) -> Optimizers:
        return [_adamw(self, list(model.parameters()))]


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Orthogonalised momentum for the blocks' attention and MLP matrices (torch.optim.Muon), AdamW for all the rest.

    The update is scaled to AdamW's root mean square (arXiv 2502.16982), so learning rates are of AdamW's size.
    """

    learning_rate: float = 3e-3
    momentum: float = 0.95
    weight_decay: float = 0.01
    rest: AdamW = AdamW()

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise ValueError(f"{self}: needs a positive learning rate, a momentum in [0, 1) and a weight decay >= 0")

    def build(self, model: nn.Module) -> Optimizers:
        hidden = [p for n, p in model.named_parameters() if ".attention." in n or ".mlp." in n if p.ndim == 2]
        taken = {id(p) for p in hidden}
        muon = torch.optim.Muon(
            [{"params": hidden, "base": self.learning_rate}],
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        return [muon, _adamw(self.rest, [p for p in model.parameters() if id(p) not in taken])]


def _adamw(config: AdamW, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    decay = {True: config.weight_decay, False: 0.0}
    groups = [
        {
            "params": [p for p in parameters if (p.ndim >= 2) == matrix],
            "weight_decay": decay[matrix],
            "base": config.learning_rate,
        }
        for matrix in (True, False)
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=betas)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Linear warm-up over `warmup` steps, then 1."""

    warmup: int = 0

    def __post_init__(self) -> None:
        _check_curve(self.warmup)

    def __call__(self, step: int, steps: int) -> float:
        return _warm(step, self.warmup)


@dataclass(frozen=True, kw_only=True)
class CosineDecay:
    """Warm-up, then half a cosine down to the fraction `final` at the last step."""

    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_curve(self.warmup, self.final)

    def __call__(self, step: int, steps: int) -> float:
        x = min(1.0, max(0, step - self.warmup) / max(1, steps - self.warmup))
        return _warm(step, self.warmup) * (self.final + (1 - self.final) * (1 + math.cos(math.pi * x)) / 2)


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Warm-up, a flat middle, and a linear fall to `final` over the last `decay` fraction of the steps (WSD)."""

    warmup: int = 0
    decay: float = 0.3
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_curve(self.warmup, self.final)
        if not 0 <= self.decay <= 1:
            raise ValueError(f"WarmupStableDecay(decay={self.decay}): the fraction of steps must lie in [0, 1]")

    def __call__(self, step: int, steps: int) -> float:
        left = (steps - step) / max(1.0, self.decay * steps)
        return _warm(step, self.warmup) * (self.final + (1 - self.final) * min(1.0, left))


def _check_curve(warmup: int, final: float = 0.0) -> None:
    if warmup < 0 or not 0 <= final <= 1:
        raise ValueError(f"learning_rate: warmup {warmup} must be at least 0 steps, and final {final} lie in [0, 1]")


def _warm(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / (warmup + 1))


def set_learning_rate(optimizers: Optimizers, factor: float) -> None:
    """Give every parameter group `factor` times its own base rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * factor


def prime(optimizers: Optimizers) -> None:
    """Create all optimizer state without moving a weight, so a checkpoint has something to load into.

    One step with zero gradients at learning rate 0, after which the step counters go back to 0.
    """
    set_learning_rate(optimizers, 0.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for state in optimizer.state.values():
            if "step" in state:
                state["step"].zero_()


def state_tensors(optimizers: Optimizers, model: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of optimizer state under `optimizer.<parameter name>.<key>`."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"optimizer.{names[id(p)]}.{key}": value
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }
