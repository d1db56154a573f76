"""MaskGIT's own VQGAN (Chang et al. 2022, arXiv 2202.04200): the autoencoder of arXiv 2012.09841 without attention.

Weights in torch: openMUSE/maskgit-vqgan-imagenet-f16-256 and fun-research/TiTok/maskgit-vqgan-imagenet-f16-256
(Apache-2.0). `unmask.pretrained.google` translates Google's flax files. TiTok uses the same decoder.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.pretrained.configs import NUM_GROUPS, MaskGITVQGAN
from unmask.tokenizers.base import count_images_at_once, decode_in_parts, encode_in_parts
from unmask.tokenizers.quantizers import disable_autocast
from unmask.tokenizers.vqgan import upsample

MASKGIT_VQGAN_256 = MaskGITVQGAN()
"""54,515,587 parameters in 168 tensors; rFID 2.28 on ImageNet at 256x256 as published."""

MASKGIT_VQGAN_512 = MaskGITVQGAN(size=(512, 512))
"""The same network for 512x512, with other weights in Google's files; rFID 1.97 as published."""


class MaskGITResidualBlock(nn.Module):
    """x + h with h = conv(silu(norm(conv(silu(norm(x)))))), or shortcut(h) + h where the number of channels changes.

    Differs from the paper: in the published code the 1x1 shortcut reads the block's own output, and x is lost.
    """

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(NUM_GROUPS, dim, eps=1e-6) for dim in (dim_in, dim_out))
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(dim_out, dim_out, 1, bias=False) if dim_in != dim_out else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _ h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(h))


class MaskGITLevel(nn.Module):
    """The residual blocks of one resolution. `upsample_conv` follows a nearest-neighbour upsampling by 2."""

    def __init__(self, dim_in: int, dim_out: int, blocks: int, *, double: bool):
        super().__init__()
        self.block = nn.Sequential(*(MaskGITResidualBlock(dim_out if i else dim_in, dim_out) for i in range(blocks)))
        self.upsample_conv = nn.Conv2d(dim_out, dim_out, 3, padding=1) if double else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _ _ _"]:
        x = self.block(x)
        return x if self.upsample_conv is None else upsample(x, self.upsample_conv)


def _build_middle(dim: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(MaskGITResidualBlock(dim, dim) for _ in range(blocks)))


class MaskGITEncoder(nn.Module):
    """Map images in [0, 1] to latents, one per cell."""

    def __init__(self, config: MaskGITVQGAN):
        super().__init__()
        dims = [config.width * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(config.channels, config.width, 3, padding=1, bias=False)
        pairs = zip([config.width, *dims[:-1]], dims, strict=True)
        self.down = nn.ModuleList(MaskGITLevel(a, b, config.blocks, double=False) for a, b in pairs)
        self.mid = _build_middle(dims[-1], config.blocks)
        self.norm_out = nn.GroupNorm(NUM_GROUPS, dims[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(dims[-1], config.dim, 1)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        x = self.conv_in(images)
        for i, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if i else x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class MaskGITDecoder(nn.Module):
    """Map latents of any grid to images in about [0, 1], not yet clamped."""

    def __init__(self, config: MaskGITVQGAN):
        super().__init__()
        dims = [config.width * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(config.dim, dims[-1], 3, padding=1)
        self.mid = _build_middle(dims[-1], config.blocks)
        # In the published code the last level is the coarsest and runs first.
        pairs = zip([*dims[1:], dims[-1]], dims, strict=True)
        self.up = nn.ModuleList(MaskGITLevel(a, b, config.blocks, double=i > 0) for i, (a, b) in enumerate(pairs))
        self.norm_out = nn.GroupNorm(NUM_GROUPS, dims[0], eps=1e-6)
        self.conv_out = nn.Conv2d(dims[0], config.channels, 3, padding=1)

    def forward(self, latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGITAutoencoder(nn.Module):
    """The tokenizer network. It takes and returns images in [-1, 1] and works in [0, 1] inside, as published."""

    def __init__(self, config: MaskGITVQGAN):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = MaskGITEncoder(config), MaskGITDecoder(config)
        self.codebook = nn.Embedding(config.codes, config.dim)
        nn.init.uniform_(self.codebook.weight, -1 / config.codes, 1 / config.codes)

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
    def at_once(self) -> int:
        """Number of images per batch in `encode` and `decode`: one activation of all pixels takes at most 256 MiB."""
        height, width = self.config.size
        return count_images_at_once(height * width * self.config.width)

    def find_nearest(self, latents: Float[Tensor, "b d h w"]) -> Int[Tensor, "b l"]:
        """Return the code at the smallest Euclidean distance from each latent, computed in float32 or wider."""
        dtype = torch.promote_types(latents.dtype, torch.float32)
        table, x = self.codebook.weight.to(dtype), latents.flatten(2).transpose(1, 2).to(dtype)
        offset = table.square().sum(1) / 2  # |x - c|^2 is least where x c - |c|^2 / 2 is largest
        with disable_autocast(x):
            parts = [(part @ table.T - offset).argmax(1) for part in x.flatten(0, 1).split(1 << 14)]
        return torch.cat(parts).reshape(x.shape[:2])

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b l"]:
        """Return tokens of images in [-1, 1], on the images' device. Raises ConfigError for another image size."""

        def convert(part: Tensor) -> Tensor:
            part = ((part + 1) / 2).to(self.codebook.weight).contiguous(memory_format=torch.channels_last)
            return self.find_nearest(self.encoder(part))

        return encode_in_parts(convert, images, self.config, self.at_once)

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b c h w"]:
        """Return float32 images in [-1, 1], on the tokens' device.

        Raises ConfigError for another row length or a token out of range.
        """

        def convert(part: Tensor) -> Tensor:
            codes = self.codebook(part.to(self.codebook.weight.device))
            z = codes.unflatten(1, self.grid).permute(0, 3, 1, 2)  # channels come last in memory
            return self.decoder(z).float().clamp(0, 1) * 2 - 1

        return decode_in_parts(convert, tokens, self.config, self.at_once)


def rename_layer(name: str) -> str:
    """Translate a published name of the encoder or decoder, such as "up.4.block.0.nin_shortcut.weight", to ours."""
    return name.replace("nin_shortcut", "shortcut")


def translate(config: MaskGITVQGAN, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate one tensor of the published torch file to our names; return an unknown name unchanged."""
    if name == "quantize.embedding.weight":
        return {"codebook.weight": tensor}
    return {rename_layer(name): tensor}
