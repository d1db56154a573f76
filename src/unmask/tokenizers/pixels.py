"""Tokens without a network: each small block of quantised pixels is one number. Two levels and 2x2 blocks give the 16
tokens of nanoMaskGIT's binary MNIST. Encoding is exact, so every error in a sample is an error of the model."""

from dataclasses import dataclass

from jaxtyping import Float, Int

from unmask.errors import SIDES, WIDTHS, ConfigError, check_ranges
from unmask.lazy import Tensor, torch

MAX_PIXEL_VOCAB = 65_536
SLACK = 1e-3  # how far beyond [-1, 1] rounding may carry a pixel before we call it an error


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """One token = a `channels x patch x patch` block read as a number in base `levels`, first pixel leading."""

    size: tuple[int, int]
    """Height and width of the images, in pixels."""
    channels: int = 1
    """Number of channels of the images."""
    patch: int = 2
    """Height and width of a block, in pixels."""
    levels: int = 2
    """Grey levels per pixel and channel."""

    def __post_init__(self):
        if min(*self.size, self.channels, self.patch) < 1:
            raise ConfigError(f"size {self.size}, channels {self.channels}, patch {self.patch}: all must be at least 1")
        if self.size[0] % self.patch or self.size[1] % self.patch:
            raise ConfigError(f"size {self.size} is not divisible by patch {self.patch}: change one of them")
        if self.levels < 2:
            raise ConfigError(f"levels {self.levels}: at least 2 are needed to tell pixels apart")
        digits = self.channels * self.patch**2
        # Check the digit count first, so that a huge patch cannot make us compute an astronomical power.
        if digits > 16 or self.levels**digits > MAX_PIXEL_VOCAB:
            raise ConfigError(
                f"{self.levels} levels ** {digits} pixels per patch is more than {MAX_PIXEL_VOCAB} tokens: lower patch "
                f"(now {self.patch}), levels (now {self.levels}) or channels (now {self.channels})"
            )
        check_ranges(self, {"size": SIDES, "channels": (1, 64), "patch": SIDES, "levels": WIDTHS})

    @property
    def grid(self) -> tuple[int, int]:
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def vocab_size(self) -> int:
        return self.levels ** (self.channels * self.patch**2)

    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b l"]:
        """Round each pixel to the nearest of `levels` greys and pack; raise ValueError for another size or range."""
        if images.shape[1:] != (self.channels, *self.size):
            raise ValueError(f"images are {tuple(images.shape[1:])} (c, h, w), not {(self.channels, *self.size)}")
        if not (images.abs() <= 1 + SLACK).all():  # written so that NaN fails too
            low, high = images.min().item(), images.max().item()
            raise ValueError(f"images span [{low:g}, {high:g}], not [-1, 1]: scale them first")
        top = self.levels - 1
        level = ((images.float() + 1) / 2 * top).round().clamp(0, top).long()
        (rows, columns), p = self.grid, self.patch
        blocks = level.reshape(-1, self.channels, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        digits = blocks.reshape(len(images), rows * columns, self.channels * p * p)
        return (digits * self._list_place_values(images.device)).sum(-1)

    def decode(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b c h w"]:
        """Return images of level centres; raise ValueError for another length or a token outside 0..vocab_size-1."""
        (rows, columns), p = self.grid, self.patch
        if tokens.shape[1] != rows * columns:
            raise ValueError(f"rows hold {tokens.shape[1]} tokens, not {rows}*{columns} = {rows * columns}")
        if not ((tokens >= 0) & (tokens < self.vocab_size)).all():
            low, high = tokens.min().item(), tokens.max().item()
            raise ValueError(f"tokens span {low}..{high}, not 0..{self.vocab_size - 1} ({self.vocab_size} is the mask)")
        digits = tokens.long()[..., None] // self._list_place_values(tokens.device) % self.levels
        blocks = digits.reshape(-1, rows, columns, self.channels, p, p).permute(0, 3, 1, 4, 2, 5)
        level = blocks.reshape(len(tokens), self.channels, *self.size)
        return level.float() * 2 / (self.levels - 1) - 1

    def _list_place_values(self, device: "torch.device") -> Int[Tensor, " d"]:
        """Return levels ** (d-1), ..., levels, 1."""
        powers = torch.arange(self.channels * self.patch**2 - 1, -1, -1, device=device)
        return self.levels**powers
