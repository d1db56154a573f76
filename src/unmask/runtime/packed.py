"""Linear layers whose weights lie as oneDNN multiplies them, so that a CPU arranges them once and not in each call.

In float32 oneDNN then multiplies too: up to twice as fast as torch's own choice on CPUs with AVX-512. On those without
it is 1.3 times as slow, so nothing is packed there. The numbers are the same but for the order of sums, and a GELU that
is taken of the sum before it is rounded (`benchmarks/published.py`).
"""

import copy
from collections.abc import Callable
from typing import Any, Literal, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unmask.runtime.kernels import packs_linear

Network = TypeVar("Network", bound=nn.Module)
CANNOT_CHANGE = (
    "this network is laid out for inference on a CPU, and can be neither trained nor moved nor converted: load it with "
    "the device and dtype you want, or train with unmask train RECIPE --init"
)
GELU = Literal["none", "tanh"]
"""As torch names them: the exact one, and its approximation."""


def arrange_weight(weight: Float[Tensor, "o i"]) -> Tensor:
    """A copy in oneDNN's own order, which only it can read; `dense` undoes it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def to_dense(weight: Tensor) -> Tensor:
    """The numbers in rows and columns again; any other tensor as it is."""
    return weight.detach().to_dense() if weight.is_mkldnn else weight.detach()


class LinearGELU(nn.Linear):
    """A linear layer, then the GELU of it; packed, they are one."""

    def __init__(self, in_features: int, out_features: int, approximate: GELU = "none"):
        super().__init__(in_features, out_features)
        self.approximate = approximate

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        return F.gelu(super().forward(x), approximate=self.approximate)


class PackedLinear(nn.Module):
    """The same function as `layer`, whose weight has no gradient and stays in its type on its CPU."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.gelu: GELU | None = layer.approximate if isinstance(layer, LinearGELU) else None
        self.weight = nn.Parameter(arrange_weight(layer.weight.detach()), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        if torch.is_grad_enabled():  # the kernel knows no gradient
            if self.weight.requires_grad:
                raise TypeError(CANNOT_CHANGE)
            y = F.linear(x, to_dense(self.weight), self.bias)
            return y if self.gelu is None else F.gelu(y, approximate=self.gelu)
        after, how = ("none", "") if self.gelu is None else ("gelu", self.gelu)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, after, [], how)

    def train(self, mode: bool = True) -> "PackedLinear":
        if mode:
            raise TypeError(CANNOT_CHANGE)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        raise TypeError(CANNOT_CHANGE)

    def __reduce__(self) -> tuple[type["PackedLinear"], tuple[nn.Linear]]:
        """Copies and pickles are of the plain layer, since only here the blocks can be read."""
        return PackedLinear, (_plain(self),)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = to_dense(self.weight)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        name = f"{prefix}weight"
        if name in state_dict:
            state_dict = {**state_dict, name: arrange_weight(state_dict[name].to(self.weight.dtype))}
        super()._load_from_state_dict(state_dict, prefix, *rest)


def pack(network: Network) -> Network:
    """Replace the linear layers inside `network`, one at a time, where this CPU has a layout of its own for them."""
    # glibc keeps for itself blocks of up to the size of the largest one that it was given back, and of 32 MiB at most:
    # or else the activations of each layer could be new memory, a fault for each page.
    torch.empty(31 << 20, dtype=torch.uint8)
    return _replaced(network, lambda layer: PackedLinear(layer) if _fits(layer) else layer)


def unpack(network: Network) -> Network:
    """Undo `pack`."""
    return _replaced(network, lambda layer: _plain(layer) if isinstance(layer, PackedLinear) else layer)


def _replaced(network: Network, made: Callable[[nn.Module], nn.Module]) -> Network:
    for name in [name for name, _ in network.named_children()]:  # to hold the old layers would be to hold all weights
        setattr(network, name, _replaced(made(network.get_submodule(name)), made))
    return network


def _fits(layer: nn.Module) -> TypeGuard[nn.Linear]:
    if type(layer) not in (nn.Linear, LinearGELU):
        return False
    assert isinstance(layer, nn.Linear)
    return layer.weight.device.type == "cpu" and packs_linear(layer.weight.dtype)


def _plain(packed: PackedLinear) -> nn.Linear:
    weight = to_dense(packed.weight)
    with torch.device("meta"):
        shape = (weight.shape[1], weight.shape[0])
        layer = nn.Linear(*shape) if packed.gelu is None else LinearGELU(*shape, packed.gelu)
    layer.weight, layer.bias = nn.Parameter(weight), copy.deepcopy(packed.bias)
    return layer.eval()
