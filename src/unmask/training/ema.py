"""Exponential moving average of the weights, kept in float32: what validation and sampling use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unmask.runtime.distributed import get_local, reshard


class Ema:
    """average <- d average + (1 - d) weights after each step, with d = min(decay, (1 + step) / (10 + step)).

    The ramp forgets the initial weights quickly; it depends on the step alone, so resuming cannot restart it.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.average: dict[str, Tensor] = {n: p.detach().float().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the weights after optimizer step number `step`, counted from 0."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        average = [get_local(a) for a in self.average.values()]
        weights = [get_local(p).float() for p in self.model.parameters()]
        torch._foreach_lerp_(average, weights, weight)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the averaged weights inside; the raw ones come back, bit for bit, also after an exception."""
        reshard(self.model)
        raw = [get_local(p).detach().clone() for p in self.model.parameters()]
        self._write([get_local(a) for a in self.average.values()])
        try:
            yield
        finally:
            self._write(raw)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        # A forward may have left whole weights in place of the shards, and those are thrown away.
        reshard(self.model)
        for p, value in zip(self.model.parameters(), values, strict=True):
            get_local(p).copy_(value)
