"""Optimizers and learning-rate curves. Weight decay applies to matrices only; Muon updates the blocks' matrices."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.errors import STEP_COUNTS, check_ranges
from unmask.runtime.distributed import gather_full, get_local, shard_like
from unmask.runtime.kernels import choose_dtype, move_all, multiply_all

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that `orthogonalize` iterates (Jordan et al. 2024, "Muon"; as in torch.optim.Muon)."""
NEWTON_SCHULZ_STEPS = 5

Optimizers = list[torch.optim.Optimizer]


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

    def build(self, model: nn.Module) -> Optimizers:
        """Create the optimizer for all weights of `model`."""
        return [_build_adamw(self, list(model.parameters()))]


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

    def build(self, model: nn.Module) -> Optimizers:
        """Create Muon for the blocks' matrices of `model`, and AdamW for its other weights."""
        hidden = [p for n, p in model.named_parameters() if ".attention." in n or ".mlp." in n if p.ndim == 2]
        taken = {id(p) for p in hidden}
        muon = MuonOptimizer(
            [{"params": hidden, "base": self.learning_rate}],
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        return [muon, _build_adamw(self.rest, [p for p in model.parameters() if id(p) not in taken])]


class MuonOptimizer(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): Nesterov momentum, orthogonalized, for matrices only.

    It has the same update and the same state, `momentum_buffer`, as `torch.optim.Muon` with `match_rms_adamw`.

    Differs from torch: all matrices of one shape are orthogonalized in one batched product, in the type that is fast on
    their device (`choose_dtype`). torch always takes bfloat16. A CPU without such instructions emulates it, 17 times
    slower than float32 (`benchmarks/muon.py`).
    """

    def __init__(self, params: list[dict], *, lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step. Every parameter needs a gradient, and `closure` is not called."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:  # such as in a tokenizer without attention
                continue
            updates = self._update_momentum(parameters, group["momentum"])
            multiply_all([get_local(p) for p in parameters], 1 - group["lr"] * group["weight_decay"])
            order = sorted(range(len(parameters)), key=lambda i: tuple(parameters[i].shape))
            for shape, same in groupby(order, key=lambda i: tuple(parameters[i].shape)):
                indices = list(same)
                batch = torch.stack([gather_full(updates[i]) for i in indices])
                factor = group["lr"] * 0.2 * math.sqrt(max(shape))  # to the root mean square of AdamW's update
                for i, update in zip(indices, orthogonalize(batch, choose_dtype(batch.device)), strict=True):
                    parameters[i].add_(shard_like(update.to(batch.dtype), parameters[i]), alpha=-factor)

    def _update_momentum(self, parameters: list[nn.Parameter], momentum: float) -> list[Tensor]:
        """Add the gradients to their running averages, and return the Nesterov updates."""
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        averages = [get_local(self.state[p]["momentum_buffer"]) for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        move_all(averages, [get_local(g) for g in gradients], 1 - momentum)
        return [g.lerp(self.state[p]["momentum_buffer"], momentum) for p, g in zip(parameters, gradients, strict=True)]


def orthogonalize(matrices: Float[Tensor, "n a b"], dtype: torch.dtype) -> Float[Tensor, "n a b"]:
    """Move all singular values of each matrix near 1 (within about [0.7, 1.2]), in `dtype`.

    Newton-Schulz iteration (Jordan et al. 2024): X <- P X with P = a + b A + c A^2 and A = X X^T, from X / ||X||_F.

    In float32, for matrices more than 1.5 times as long as wide, the product of all P is computed first, from
    A <- P A P. That takes up to 2.7 times fewer operations. In bfloat16 its rounding errors would grow too large.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    if dtype == torch.float32 and 2 * x.shape[-1] > 3 * x.shape[-2]:
        x = _multiply_steps(x @ x.mT) @ x
    else:
        for _ in range(NEWTON_SCHULZ_STEPS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _multiply_steps(gram: Float[Tensor, "n m m"]) -> Float[Tensor, "n m m"]:
    product = factor = _compute_step_factor(gram)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        gram = factor @ (factor @ gram)  # P A P, since all these matrices commute
        factor = _compute_step_factor(gram)
        product = factor @ product
    return product


def _compute_step_factor(gram: Float[Tensor, "n m m"]) -> Float[Tensor, "n m m"]:
    a, b, c = NEWTON_SCHULZ
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor


def _build_adamw(config: AdamW, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
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


def set_learning_rate(optimizers: Optimizers, factor: float) -> None:
    """Set the learning rate of every parameter group to `factor` times its base rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * factor


def create_optimizer_state(optimizers: Optimizers) -> None:
    """Create all optimizer state without changing a weight, so that a checkpoint has tensors to load into.

    It takes one step with zero gradients at learning rate 0, and sets the step counters back to 0.
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


def collect_optimizer_state(optimizers: Optimizers, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return every tensor of optimizer state, named `optimizer.<parameter name>.<key>`."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"optimizer.{names[id(p)]}.{key}": value
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }
