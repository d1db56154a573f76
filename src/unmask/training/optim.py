"""Optimizers. Weight decay applies to matrices only; Muon updates the blocks' matrices."""

import math
from collections.abc import Callable
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.runtime.distributed import gather_full, get_local, shard_like
from unmask.runtime.kernels import choose_dtype, move_all, multiply_all
from unmask.training.configs import AdamW, Muon
from unmask.training.configs import Constant as Constant
from unmask.training.configs import CosineDecay as CosineDecay
from unmask.training.configs import WarmupStableDecay as WarmupStableDecay

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that `orthogonalize` iterates (Jordan et al. 2024, "Muon"; as in torch.optim.Muon)."""
NEWTON_SCHULZ_STEPS = 5

Optimizers = list[torch.optim.Optimizer]


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


def build_muon(config: Muon, model: nn.Module) -> Optimizers:
    """Create Muon for the blocks' matrices of `model`, and AdamW for its other weights."""
    hidden = [p for n, p in model.named_parameters() if ".attention." in n or ".mlp." in n if p.ndim == 2]
    taken = {id(p) for p in hidden}
    muon = MuonOptimizer(
        [{"params": hidden, "base": config.learning_rate}],
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    return [muon, build_adamw(config.rest, [p for p in model.parameters() if id(p) not in taken])]


def build_adamw(config: AdamW, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Create AdamW for these weights; vectors do not decay."""
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
