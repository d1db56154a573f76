"""torch, imported at its first use: `from unmask.lazy import Tensor, torch`.

A recipe holds schedules, orders and objectives as data, and each of them computes with torch. Help needs their fields
only, and importing torch takes over a second. So their modules take torch from here. At the top level of such a module
use `Tensor` in annotations such as `Float[Tensor, "b l"]`, and put quotes around others, such as `"torch.dtype"`.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
else:

    class _Lazy:
        """A module that is imported when one of its names is looked up."""

        def __init__(self, name: str):
            self._name = name

        def __getattr__(self, name: str) -> Any:
            found = getattr(importlib.import_module(self._name), name)
            setattr(self, name, found)  # a second look-up is as fast as that of a module
            return found

    class _TensorType(type):
        def __instancecheck__(cls, value: object) -> bool:
            loaded = sys.modules.get("torch")  # without torch there is no tensor
            return loaded is not None and isinstance(value, loaded.Tensor)

    class Tensor(metaclass=_TensorType):
        """`torch.Tensor` in annotations and for `isinstance`."""

    torch, nn, F = _Lazy("torch"), _Lazy("torch.nn"), _Lazy("torch.nn.functional")

__all__ = ["F", "Tensor", "nn", "torch"]
