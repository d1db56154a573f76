"""What every package of the comparison offers: a network, a sampling loop, and a loss."""

import importlib.util
from abc import ABC, abstractmethod
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from sizes import Size
from torch import Tensor, nn

SEED = 0
NO_LABEL = -100
"""The target that `F.cross_entropy` leaves out."""


class Peer(ABC):
    """One package at one size. `cast` is how its numbers become bfloat16, or "float32" if they stay."""

    name: ClassVar[str]
    package: ClassVar[str]
    """The name that pip knows, or nothing if nothing needs to be installed."""
    sampling_casts: ClassVar[tuple[str, ...]] = ("float32", "autocast", "bfloat16")
    training_casts: ClassVar[tuple[str, ...]] = ("float32", "autocast")
    """The weights stay in float32, as in all training of this project."""
    trains: ClassVar[bool] = True
    """Whether training differs from that of an earlier row."""
    can_be_freed: ClassVar[bool] = True
    """Whether fixed logits can stand in for the network."""

    def __init__(self, size: Size, cast: str = "float32"):
        torch.manual_seed(SEED)
        self.size, self.cast, self.passes = size, cast, 0
        self.module: Any = self.build(size)
        self.forward = self.network.forward
        self.replace_forward(self.forward)
        self.weights = sum(p.numel() for p in self.module.parameters())
        self.prepare()
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-4)
        self.tokens = torch.randint(size.codes, (size.batch, size.cells))

    @classmethod
    def is_installed(cls) -> bool:
        """Return whether the package can be found."""
        return not cls.package or importlib.util.find_spec(cls.package.replace("-", "_")) is not None

    @classmethod
    def describe_version(cls) -> str:
        """Return the version of the package."""
        return version(cls.package) if cls.package else "part of this benchmark"

    @property
    def network(self) -> Any:
        """The network inside `module`, whose forward passes are counted."""
        return self.module

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.module.parameters()).dtype

    @abstractmethod
    def build(self, size: Size) -> nn.Module:
        """Return all weights, in float32 and random."""

    @abstractmethod
    def sample(self) -> Tensor:
        """Return tokens [batch, cells] of the package's own sampling loop."""

    @abstractmethod
    def compute_loss(self, tokens: Tensor) -> Tensor:
        """Return the package's own loss of clean `tokens`."""

    def answer_free(self, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the network would return if these [batch, cells, codes] were its logits."""
        return logits

    def prepare(self) -> None:
        """Cast the weights, if this is the way of casting."""
        if self.cast == "bfloat16":
            self.module.bfloat16()

    def replace_forward(self, forward: Any) -> None:
        """Let the network compute `forward`, and count how often."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.passes += 1
            return forward(*args, **kwargs)

        self.network.forward = counted

    def free_network(self) -> None:
        """Replace the network by fixed logits, so that only the sampling loop is left."""
        logits = torch.randn(self.size.batch, self.size.cells, self.size.codes)
        self.replace_forward(lambda *args, **kwargs: self.answer_free(logits, *args, **kwargs))

    def run_cast(self) -> torch.autocast:
        """Return the context in which the network runs."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.cast == "autocast")

    def run_sampling(self) -> Tensor:
        """Sample one batch; raise ValueError if a token is masked or no code."""
        self.module.eval()
        with torch.inference_mode(), self.run_cast():
            tokens = self.sample()
        if tokens.shape != self.tokens.shape or not 0 <= int(tokens.min()) <= int(tokens.max()) < self.size.codes:
            raise ValueError(f"tokens of shape {tuple(tokens.shape)} in {int(tokens.min())}..{int(tokens.max())}")
        return tokens

    def train_step(self) -> None:
        """Take one step of AdamW, which is the same for all."""
        self.module.train()
        with self.run_cast():
            loss = self.compute_loss(self.tokens)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def mask_cosine(tokens: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """Return a masked canvas and its labels, for packages that leave this to their user."""
    share = torch.cos(torch.rand(len(tokens), 1) * torch.pi / 2)
    masked = torch.rand(tokens.shape) < share
    return tokens.masked_fill(masked, mask_id), tokens.masked_fill(~masked, NO_LABEL)
