"""The convolutional autoencoder of VQGAN (Esser, Rombach and Ommer 2021, arXiv 2012.09841) around any quantizer.

One configurable network: taming's f16-1024, LlamaGen's VQ-16, and sizes that two CPU cores train on 32x32 images.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.tokenizers.base import count_images_at_once, decode_in_parts, encode_in_parts
from unmask.tokenizers.configs import VQGAN
from unmask.tokenizers.quantizers import Quantized


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); a 1x1 convolution on the shortcut where channels change."""

    def __init__(self, dim_in: int, dim_out: int, groups: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(groups, dim, eps=1e-6) for dim in (dim_in, dim_out))
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, padding=1)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1)
        self.shortcut = nn.Conv2d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _ h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class SpatialAttention(nn.Module):
    """x + one head of attention over all cells."""

    def __init__(self, dim: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)
        self.q, self.k, self.v, self.out = (nn.Conv2d(dim, dim, 1) for _ in range(4))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.out(mixed.reshape(x.shape))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded right and below as published."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c _ _"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def upsample(x: Float[Tensor, "b c h w"], conv: nn.Conv2d) -> Float[Tensor, "b c _ _"]:
    """Double the size by nearest neighbour, then apply a 3x3 convolution.

    Only four of the nine pixels under the kernel differ, so the same result comes from a 4x4 transposed convolution of
    stride 2, with 4/9 of the products. It is used on a CPU without gradients, where it saves more than building its
    weight costs. In bfloat16 it rounds sums of weights, which is a little less exact.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.shape[0] * x.shape[2] * x.shape[3] < x.shape[1]:
        return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    nine = conv.weight.permute(0, 2, 3, 1).flatten(1, 2).mT
    sums = nine.new_tensor(
        [[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]]
    )  # rows: which of the 3 weights fall on each of the 4 places
    weight = (nine @ torch.kron(sums, sums).T).transpose(0, 1).unflatten(2, (4, 4))
    return F.conv_transpose2d(x, weight, conv.bias, stride=2, padding=1)


class Upsample(nn.Module):
    """`upsample` as a module with its convolution."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c _ _"]:
        return upsample(x, self.conv)


def _build_level(dim_in: int, dim_out: int, blocks: int, attention: bool, groups: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(blocks):
        layers.append(ResidualBlock(dim_in if i == 0 else dim_out, dim_out, groups))
        if attention:
            layers.append(SpatialAttention(dim_out, groups))
    return layers


def _build_middle(dim: int, config: VQGAN) -> list[nn.Module]:
    attention = [SpatialAttention(dim, config.groups)] if config.middle_attention else []
    return [ResidualBlock(dim, dim, config.groups), *attention, ResidualBlock(dim, dim, config.groups)]


def _build_out(dim: int, channels: int, config: VQGAN) -> list[nn.Module]:
    return [nn.GroupNorm(config.groups, dim, eps=1e-6), nn.SiLU(), nn.Conv2d(dim, channels, 3, padding=1)]


def _build_encoder(config: VQGAN) -> nn.Sequential:
    dims = [config.width * m for m in config.multipliers]
    height = config.size[0] // config.patch
    layers: list[nn.Module] = [nn.PixelUnshuffle(config.patch)] if config.patch > 1 else []
    layers.append(nn.Conv2d(config.channels * config.patch**2, config.width, 3, padding=1))
    for i, (dim_in, dim_out) in enumerate(zip([config.width, *dims[:-1]], dims, strict=True)):
        layers += _build_level(dim_in, dim_out, config.blocks, height >> i in config.attention, config.groups)
        if i + 1 < len(dims):
            layers.append(Downsample(dim_out))
    layers += _build_middle(dims[-1], config)
    return nn.Sequential(*layers, *_build_out(dims[-1], config.z_channels, config))


def _build_decoder(config: VQGAN) -> nn.Sequential:
    dims = [config.width * m for m in reversed(config.multipliers)]
    height = config.grid[0]
    layers: list[nn.Module] = [nn.Conv2d(config.z_channels, dims[0], 3, padding=1)]
    layers += _build_middle(dims[0], config)
    for i, (dim_in, dim_out) in enumerate(zip([dims[0], *dims[:-1]], dims, strict=True)):
        layers += _build_level(dim_in, dim_out, config.decoder_blocks, height << i in config.attention, config.groups)
        if i + 1 < len(dims):
            layers.append(Upsample(dim_out))
    layers += _build_out(dims[-1], config.channels * config.patch**2, config)
    return nn.Sequential(*layers, *([nn.PixelShuffle(config.patch)] if config.patch > 1 else []))


class Autoencoder(nn.Module):
    """The tokenizer; as a module it reconstructs: `model(images) -> (images, Quantized, latents)`."""

    def __init__(self, config: VQGAN):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = _build_encoder(config), _build_decoder(config)
        self.quantizer = config.quantizer.build()
        self.before = nn.Conv2d(config.z_channels, config.quantizer.dim, 1)
        self.after = nn.Conv2d(config.quantizer.dim, config.z_channels, 1)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.grid

    @property
    def size(self) -> tuple[int, int]:
        return self.config.size

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def last_layer(self) -> nn.Parameter:
        """Weights whose gradients balance the adversarial loss (eq. 7)."""
        convolutions = [layer for layer in self.decoder if isinstance(layer, nn.Conv2d)]
        return convolutions[-1].weight  # type: ignore[return-value]

    def encode_latents(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        """Return the latents before quantization."""
        return self.before(self.encoder(images.contiguous(memory_format=torch.channels_last)))

    def forward(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Quantized, Float[Tensor, "b d _ _"]]:
        z = self.encode_latents(images)
        quantized = self.quantizer(z)
        return self.decoder(self.after(quantized.latents)), quantized, z

    @property
    def at_once(self) -> int:
        """Images that `encode` and `decode` convert at once: one activation of all pixels fills at most 256 MiB."""
        height, width = self.config.size
        return count_images_at_once(height * width * self.config.width // self.config.patch**2)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b l"]:
        """Return the tokens of images in [-1, 1], on the images' device; raise ConfigError for another size."""
        at = self.before.weight
        return encode_in_parts(
            lambda part: self.quantizer(self.encode_latents(part.to(at))).tokens, images, self.config, self.at_once
        )

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b c h w"]:
        """Return float32 images in [-1, 1] on the tokens' device.

        Raises:
            ConfigError: the rows have another length, or a token is out of range.
        """
        at = self.after.weight

        def convert(part: Tensor) -> Tensor:
            vectors = self.quantizer.look_up(part.to(at.device)).to(at.dtype)
            z = vectors.unflatten(1, self.grid).permute(0, 3, 1, 2)  # in memory, channels come last
            return self.decoder(self.after(z)).clamp(-1, 1)

        return decode_in_parts(convert, tokens, self.config, self.at_once)
