"""Pack linear layers: store their weights in the layout of oneDNN, so that a CPU converts them once, not in each call.

In float32 oneDNN then also computes the product: up to twice as fast as torch's own choice on CPUs with AVX-512. On
CPUs without AVX-512 it is 1.3 times as slow, so nothing is packed there. Results are equal except for the order of
sums, and for GELU, which is computed from the sum before the sum is rounded (`benchmarks/published.py`).
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
    "this network is packed for inference on a CPU and can be neither trained nor moved nor converted: load it with "
    "the device and dtype you want, or train with unmask train RECIPE --init"
)
CANNOT_SAVE = (
    "this network is rounded to 8-bit integers, so its weights can be neither saved nor loaded: load the model without "
    "dtype int8"
)
GELU = Literal["none", "tanh"]
"""The names of torch for the exact GELU and its tanh approximation."""


def arrange_weight(weight: Float[Tensor, "o i"]) -> Tensor:
    """Return a copy of the weight in the layout of oneDNN, which only oneDNN can read; `to_dense` undoes it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def to_dense(weight: Tensor) -> Tensor:
    """Return an arranged weight in rows and columns again, and any other tensor unchanged.

    TypeError for a weight that is rounded to 8-bit integers: its values are not the model's.
    """
    if weight.is_mkldnn and weight.dtype == torch.int8:
        raise TypeError(CANNOT_SAVE)
    return weight.detach().to_dense() if weight.is_mkldnn else weight.detach()


class LinearGELU(nn.Linear):
    """A linear layer followed by GELU; when packed, both run as one kernel."""

    def __init__(self, in_features: int, out_features: int, approximate: GELU = "none"):
        super().__init__(in_features, out_features)
        self.approximate = approximate

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        return F.gelu(super().forward(x), approximate=self.approximate)


class PackedLinear(nn.Module):
    """The same function as `layer`. The weight has no gradient and cannot change its type or device."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.gelu: GELU | None = layer.approximate if isinstance(layer, LinearGELU) else None
        self.weight = nn.Parameter(arrange_weight(layer.weight.detach()), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        if torch.is_grad_enabled():  # the kernel has no gradient
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
        """Copy and pickle the plain layer, because only this machine can read the packed layout."""
        return PackedLinear, (_make_plain(self),)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = to_dense(self.weight)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        name = f"{prefix}weight"
        if name in state_dict:
            state_dict = {**state_dict, name: arrange_weight(state_dict[name].to(self.weight.dtype))}
        super()._load_from_state_dict(state_dict, prefix, *rest)


def pack(network: Network) -> Network:
    """Pack the linear layers inside `network` in place, one at a time, where `packs_linear` says that it is faster."""
    # glibc keeps freed blocks up to the size of the largest block freed so far, at most 32 MiB. Without this block, the
    # activations of each layer could be new memory, with a fault for each page.
    torch.empty(31 << 20, dtype=torch.uint8)
    return replace_layers(network, lambda layer: PackedLinear(layer) if _can_pack(layer) else layer)


def unpack(network: Network) -> Network:
    """Replace packed layers inside `network` by plain ones, in place: undo `pack`."""
    return replace_layers(network, lambda layer: _make_plain(layer) if isinstance(layer, PackedLinear) else layer)


def replace_layers(network: Network, convert: Callable[[nn.Module], nn.Module]) -> Network:
    """Replace each module inside `network` by what `convert` returns for it, in place, one at a time."""
    for name in [name for name, _ in network.named_children()]:  # a list of the old layers would keep all weights
        setattr(network, name, replace_layers(convert(network.get_submodule(name)), convert))
    return network


def _can_pack(layer: nn.Module) -> TypeGuard[nn.Linear]:
    if type(layer) not in (nn.Linear, LinearGELU):
        return False
    assert isinstance(layer, nn.Linear)
    return layer.weight.device.type == "cpu" and packs_linear(layer.weight.dtype)


def _make_plain(packed: PackedLinear) -> nn.Linear:
    weight = to_dense(packed.weight)
    with torch.device("meta"):
        shape = (weight.shape[1], weight.shape[0])
        layer = nn.Linear(*shape) if packed.gelu is None else LinearGELU(*shape, packed.gelu)
    layer.weight, layer.bias = nn.Parameter(weight), copy.deepcopy(packed.bias)
    return layer.eval()
