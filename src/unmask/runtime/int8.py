"""Linear layers that multiply 8-bit integers: faster sampling with wide networks on a CPU, less exact.

A weight is rounded once, each output channel to multiples of its own step. An activation is rounded in each call, each
row to multiples of its own step: so a row's result never depends on the other rows. The product of the integers is
exact, and everything else stays in the type of the network.

Steps are bfloat16 numbers. An integer times a step is then exact in float32, and rounding a second time changes
nothing.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from unmask.errors import ConfigError
from unmask.runtime.kernels import check_int8
from unmask.runtime.packed import CANNOT_CHANGE, CANNOT_SAVE, GELU, LinearGELU, Network, replace_layers

SMALLEST_STEP = 1e-30
"""Step of a row of zeros, instead of 0."""
LEAST_WIDTH = 128
"""Layers with fewer inputs or outputs stay as they are: to round their input takes longer than it saves."""
MOST_INPUTS = 65_536
"""Sums of more products of 8-bit integers could exceed 32 bits."""
ROUNDED_AT_ONCE = 1 << 18
"""Activations that are rounded at a time: they stay in the cache, and need no fresh memory."""


def split_dtype(dtype: torch.dtype | None, device: torch.device) -> tuple[torch.dtype | None, bool]:
    """Return the type of what is not rounded, None for the usual one, and whether linear layers are rounded to int8.

    Raises:
        ConfigError: `dtype` is int8, and this device or this torch cannot multiply 8-bit integers.
    """
    if dtype != torch.int8:
        return dtype, False
    check_int8(device)
    return None, True


def round_layers(network: Network) -> Network:
    """Replace the linear layers inside `network`, in place, that are wide enough.

    Raises:
        ConfigError: None is.
    """
    network = replace_layers(network, lambda layer: Int8Linear(layer) if _can_round(layer) else layer)
    if not has_rounded_layers(network):
        raise ConfigError(
            f"dtype int8: no linear layer of this network has {LEAST_WIDTH} inputs and outputs, so none is rounded: "
            "leave the dtype out"
        )
    return network


def has_rounded_layers(network: nn.Module) -> bool:
    """Return whether some weights of a network are rounded to 8-bit integers."""
    return any(isinstance(layer, Int8Linear) for layer in network.modules())


class Int8Linear(nn.Module):
    """The function of `layer` on rounded weights and activations; a product takes its type from its input.

    With gradients enabled, only the weights are rounded. The weight has no gradient and cannot change its type or
    device.
    """

    step: Tensor
    zero: Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.gelu: GELU | None = layer.approximate if isinstance(layer, LinearGELU) else None
        integers, step = round_weight(layer.weight.detach(), find_weight_limit())
        arranged = torch.ops.onednn.qlinear_prepack(integers, None)
        self.weight = nn.Parameter(arranged, requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("step", step, persistent=False)
        self.register_buffer("zero", torch.zeros(len(step), dtype=torch.int32), persistent=False)

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        if torch.is_grad_enabled():  # the kernel has no gradient
            y = F.linear(x, self.restore_weight().to(x.dtype), self.bias)
        else:
            integers, step = round_activations(x.reshape(-1, x.shape[-1]))
            y = multiply_integers(integers, self.weight, self.step, self.zero, x.dtype)
            y = y.mul_(step) if self.bias is None else torch.addcmul(self.bias, y, step, out=y)
            y = y.view(*x.shape[:-1], len(self.step))
        return y if self.gelu is None else F.gelu(y, approximate=self.gelu)

    def restore_weight(self) -> Float[Tensor, "o i"]:
        """Return the rounded weight in float32."""
        return self.weight.detach().to_dense().T * self.step[:, None]

    def train(self, mode: bool = True) -> "Int8Linear":
        if mode:
            raise TypeError(CANNOT_CHANGE)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Linear":
        raise TypeError(CANNOT_CHANGE)

    def __reduce__(self) -> tuple[type["Int8Linear"], tuple[nn.Linear]]:
        """Copy and pickle a plain layer of the rounded weight, because only this machine can read the layout."""
        weight = self.restore_weight()
        with torch.device("meta"):
            shape = (weight.shape[1], weight.shape[0])
            layer = nn.Linear(*shape) if self.gelu is None else LinearGELU(*shape, self.gelu)
        layer.weight, layer.bias = nn.Parameter(weight), copy.deepcopy(self.bias)
        return Int8Linear, (layer.eval(),)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        raise TypeError(CANNOT_SAVE)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        raise TypeError(CANNOT_SAVE)


def round_weight(weight: Float[Tensor, "o i"], limit: int) -> tuple[Int8[Tensor, "o i"], Float[Tensor, "o"]]:
    """Return a weight as integers from -limit to limit, and the step of each output channel in float32."""
    step = _measure_step(weight, limit).float()
    # oneDNN reads a weight as if it lay row by row.
    return (weight / step).round_().clamp_(-limit, limit).to(torch.int8).contiguous(), step[:, 0].contiguous()


def round_activations(x: Float[Tensor, "n i"]) -> tuple[UInt8[Tensor, "n i"], Float[Tensor, "n 1"]]:
    """Return each row as integers, 128 for zero and 1 to 255 in all, and its step in the type of `x`."""
    integers, steps = torch.empty(x.shape, dtype=torch.uint8), x.new_empty(len(x), 1)
    rows = max(1, ROUNDED_AT_ONCE // x.shape[1])
    for part, into, step in zip(x.split(rows), integers.split(rows), steps.split(rows), strict=True):
        step.copy_(_measure_step(part, 127))
        # The conversion cuts off the fraction. In bfloat16 some products would round to 256, which wraps around.
        into.copy_((part * step.float().reciprocal()).add_(128.5))
    return integers, steps


def multiply_integers(
    x: UInt8[Tensor, "n i"], weight: Tensor, step: Float[Tensor, "o"], zero: Tensor, dtype: torch.dtype
) -> Float[Tensor, "n o"]:
    """Return (x - 128) times an arranged weight of integers, times the step of each output channel.

    The input is unsigned, because signed input takes a kernel that is 1,000 times as slow.
    """
    if not len(x):
        return torch.empty(0, len(step), dtype=dtype)
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 128, weight, step, zero, None, 1.0, 0, dtype, "none", [], ""
    )  # fmt: skip


@cache
def find_weight_limit() -> int:
    """Return the largest integer for a weight: 127, or 63 where the CPU adds two products in 16 bits.

    That is so without VNNI: 2 * 255 * 127 saturates, 2 * 255 * 63 does not. One product tells.
    """
    rows, inputs, outputs = 16, 64, 64
    weight = torch.ops.onednn.qlinear_prepack(torch.full((outputs, inputs), 127, dtype=torch.int8), None)
    x = torch.full((rows, inputs), 255, dtype=torch.uint8)
    zero = torch.zeros(outputs, dtype=torch.int32)
    y = multiply_integers(x, weight, torch.ones(outputs), zero, torch.float32)
    return 127 if bool((y == 127 * 127 * inputs).all()) else 63


def _measure_step(x: Float[Tensor, "n i"], limit: int) -> Float[Tensor, "n 1"]:
    """Return the step of each row in bfloat16: its largest magnitude is `limit` steps, within 0.2 %."""
    return (x.abs().amax(-1, keepdim=True).float() / limit).clamp_(min=SMALLEST_STEP).bfloat16()


def _can_round(layer: nn.Module) -> TypeGuard[nn.Linear]:
    if type(layer) not in (nn.Linear, LinearGELU):
        return False
    assert isinstance(layer, nn.Linear)
    sides = (layer.in_features, layer.out_features)
    return min(sides) >= LEAST_WIDTH and layer.in_features <= MOST_INPUTS
