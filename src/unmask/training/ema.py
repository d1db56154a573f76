"""Exponential moving average of the weights, kept in float32, for validation and sampling."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unmask.runtime.distributed import get_local, reshard
from unmask.runtime.kernels import move_all


class Ema:
    """Averaged weights: average <- d average + (1 - d) weights, with d = min(decay, (1 + step) / (10 + step)).

    The ramp forgets the initial weights quickly. It depends on the step alone, so resuming cannot restart it.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.average: dict[str, Tensor] = {n: p.detach().float().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the current weights to the average, after optimizer step number `step`, counted from 0."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        average = [get_local(a) for a in self.average.values()]
        weights = [get_local(p).float() for p in self.model.parameters()]
        move_all(average, weights, weight)

    @contextmanager
    def swap_weights(self) -> Iterator[None]:
        """Put the averaged weights into the model inside a `with` block.

        The raw weights come back at the end, bit for bit, also after an exception.
        """
        reshard(self.model)
        raw = [get_local(p).detach().clone() for p in self.model.parameters()]
        self._write([get_local(a) for a in self.average.values()])
        try:
            yield
        finally:
            self._write(raw)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        # A forward pass may have left gathered weights in place of the shards, and writes to those would be lost.
        reshard(self.model)
        for p, value in zip(self.model.parameters(), values, strict=True):
            get_local(p).copy_(value)
