"""Which device to compute on."""

import torch

from unmask.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of this name; "auto" is the first of cuda, mps and cpu. ConfigError if it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    kind = name.partition(":")[0]
    if kind not in there:
        raise ConfigError(f"device {name}: give auto, cuda, mps or cpu")
    if not there[kind]:
        raise ConfigError(f"device {name}: there is none here, or this build of torch does not support it; use auto")
    return torch.device(name)
