"""Uniform noise without state: a pure function of (seed, step, stream, row of the global batch, column).

All randomness of the method enters through one argument, `rand`. A draw does not depend on earlier draws. So resuming,
the world size, micro-batches and the split of a batch cannot change a result, and CPU and GPU see the same numbers. The
generator is splitmix64 as a counter-based hash (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195).
"""

import zlib
from dataclasses import dataclass, replace

from jaxtyping import Float, Float64, Int, Shaped

from unmask.lazy import Tensor, torch

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15, 2^64 / golden ratio, as a signed integer
_M1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_M2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


BELOW_ONE = 1 - 2.0**-24
"""The largest float32 below 1."""


def choose_wide_dtype(device: "torch.device") -> "torch.dtype":
    """Return float64, or float32 on MPS, which has no wider type."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_double(x: Shaped[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """Return numbers in float64; those of MPS on the CPU."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _mix(z: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Apply splitmix64's finaliser to int64: multiplication wraps, and the masks make the right shifts logical."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _M1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _M2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


@dataclass(frozen=True)
class Rand:
    """`rand("order", 16)` draws a [b, 16] matrix of uniforms in the open interval (0, 1), 52 bits each.

    `rows` are the indices of this process's rows in the global batch of `num_rows`. `stream` names the purpose of the
    noise, so that two uses never share numbers. `at(step)` selects another step.
    """

    seed: int
    """Seed of all noise, a signed 64-bit integer."""
    rows: Int[Tensor, "b"]
    """Index of each row in the global batch."""
    num_rows: int
    """Number of rows of the global batch."""
    step: int = 0
    """Step of the training or the sampling."""

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed}: it must fit a signed 64-bit integer")

    def at(self, step: int) -> "Rand":
        """Return the noise of the same rows at another step."""
        return replace(self, step=step)

    def __call__(self, stream: str, *shape: int) -> Float[Tensor, "b ..."]:
        """Draw uniforms of shape [b, *shape] for the named stream: in float64, or on MPS those rounded to float32."""
        if self.rows.device.type == "mps":
            u = replace(self, rows=self.rows.cpu())(stream, *shape)
            return u.clamp(max=BELOW_ONE).to(self.rows.device, torch.float32)
        key = torch.zeros((), dtype=torch.int64)
        for word in (self.seed, self.step, zlib.crc32(stream.encode())):
            key = _mix(key + torch.tensor(word) * _M1 + _GOLDEN)
        state = _mix(self.rows * _M2 + (key + _GOLDEN).item())
        size = torch.Size(shape).numel()
        counter = torch.arange(1, size + 1, device=self.rows.device) * _GOLDEN
        bits = _mix(_mix(state[:, None] + counter))
        # The top 52 bits, at the middle of their cell: u is never exactly 0 or 1, so log(u) is always finite.
        u = (((bits >> 12) & 0xFFFFFFFFFFFFF).double() + 0.5) * 2.0**-52
        return u.view(len(self.rows), *shape)


def seeded(seed: int, num_rows: int, *, first: int = 0, device: "torch.device | str" = "cpu") -> Rand:
    """Return the noise of a whole batch in one process; `first` is the index of row 0 among all samples."""
    return Rand(seed, torch.arange(first, first + num_rows, device=device), num_rows)
