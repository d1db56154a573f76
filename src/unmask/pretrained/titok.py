"""TiTok, which writes an image as a row of 32 to 128 tokens (Yu et al. 2024, arXiv 2406.07550).

A transformer reads the patches of the image and K latent tokens, and the latents it gives become the nearest of 4096
unit vectors. A second one reads them and a canvas of mask tokens; what it gives there is, for each cell, a distribution
over the codes of the MaskGIT-VQGAN, whose mean code that tokenizer's decoder, fine-tuned, turns into pixels.
Published as `tokenizer_titok_{l32,b64,s128}` (Apache-2.0).
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.pretrained.maskgit_vqgan import Decoder, MaskGITVQGAN, decoder_name
from unmask.pretrained.vit import ViTBlock
from unmask.tokenizers.base import count_images_at_once, decode_in_parts, encode_in_parts
from unmask.tokenizers.quantizers import disable_autocast


@dataclass(frozen=True, kw_only=True)
class TiTok:
    """Sizes of the two transformers, the codebook, and the tokenizer `pixels` whose decoder makes the image.

    The image, and the cells that both transformers cut it into, are those of `pixels`.
    """

    num_latents: int = 32
    width: int = 1024
    depth: int = 24
    heads: int = 16
    vocab_size: int = 4096
    token_dim: int = 12
    pixels: MaskGITVQGAN = MaskGITVQGAN()

    def __post_init__(self) -> None:
        counts = (self.num_latents, self.width, self.depth, self.heads, self.vocab_size, self.token_dim)
        if min(counts) < 1 or self.width % self.heads:
            raise ValueError(f"{self}: counts must be at least 1 and width a multiple of heads")

    @property
    def grid(self) -> tuple[int]:
        return (self.num_latents,)

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.size

    @property
    def channels(self) -> int:
        return self.pixels.channels

    def build(self) -> "TiTokModel":
        return TiTokModel(self)


TITOK_L32 = TiTok()
"""641.1 M parameters."""
TITOK_B64 = TiTok(num_latents=64, width=768, depth=12, heads=12)
"""204.8 M parameters."""
TITOK_S128 = TiTok(num_latents=128, width=512, depth=8, heads=8)
"""83.7 M parameters."""


class ViT(nn.Module):
    """A transformer over a class token, the cells of an image and the latents; `norm_out` is left to its reader."""

    def __init__(self, config: TiTok):
        super().__init__()
        width, cells = config.width, torch.Size(config.pixels.grid).numel()
        self.class_token = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.position = nn.Parameter(torch.randn(1 + cells, width) * width**-0.5)
        self.latent_position = nn.Parameter(torch.randn(config.num_latents, width) * width**-0.5)
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            ViTBlock(width, config.heads, 4 * width, qkv_bias=True) for _ in range(config.depth)
        )

    def forward(
        self, cells: Float[Tensor, "b n width"], latents: Float[Tensor, "b k width"]
    ) -> Float[Tensor, "b 1+n+k width"]:
        canvas = torch.cat([self.class_token.expand(len(cells), -1, -1), cells], dim=1) + self.position
        x = self.norm_in(torch.cat([canvas, latents + self.latent_position], dim=1))
        for block in self.blocks:
            x = block(x)
        return x


class TiTokModel(nn.Module):
    """The tokenizer itself."""

    def __init__(self, config: TiTok):
        super().__init__()
        self.config = config
        width, pixels = config.width, config.pixels
        self.patches = nn.Conv2d(pixels.channels, width, pixels.factor, stride=pixels.factor)
        self.latents = nn.Parameter(torch.randn(config.num_latents, width) * width**-0.5)
        self.encoder, self.decoder = ViT(config), ViT(config)
        self.to_code, self.from_code = nn.Linear(width, config.token_dim), nn.Linear(config.token_dim, width)
        self.codes = nn.Parameter(torch.randn(config.vocab_size, config.token_dim))
        self.mask = nn.Parameter(torch.randn(width) * width**-0.5)
        self.hidden, self.to_pixel_code = nn.Linear(width, 2 * width), nn.Linear(2 * width, pixels.vocab_size)
        self.pixel_codes = nn.Parameter(torch.randn(pixels.vocab_size, pixels.dim))
        self.pixel_decoder = Decoder(pixels)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def grid(self) -> tuple[int]:
        return self.config.grid

    @property
    def size(self) -> tuple[int, int]:
        return self.config.size

    @property
    def channels(self) -> int:
        return self.config.channels

    def read(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l d"]:
        """Latents, not yet quantized, of images in [0, 1]."""
        cells = self.patches(images.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)
        x = self.encoder(cells, self.latents.expand(len(images), -1, -1))
        x = self.encoder.norm_out(x[:, 1 + cells.shape[1] :])
        # As published: the numbers of [l, width] are taken for [width, l] as they lie in memory, so that a code sees
        # every l-th number of all latents and not all numbers of its own. The weights were trained that way.
        return self.to_code(x.reshape(len(x), x.shape[2], x.shape[1]).transpose(1, 2))

    def nearest(self, z: Float[Tensor, "b l d"]) -> Int[Tensor, "b l"]:
        """The code at the smallest distance, with both on the unit sphere: the one of the smallest angle."""
        with disable_autocast(z):
            table = F.normalize(_precise(self.codes), dim=-1)
            return (_precise(z) @ table.T).argmax(-1)  # whatever the length of z

    def paint(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b c h w"]:
        """Images as the network gives them: about [0, 1]."""
        codes = F.normalize(F.embedding(tokens, _precise(self.codes)), dim=-1).to(self.codes.dtype)
        num_cells = len(self.decoder.position) - 1
        x = self.decoder(self.mask.expand(len(tokens), num_cells, -1), self.from_code(codes))
        x = self.decoder.norm_out(x[:, 1 : 1 + num_cells])
        logits = self.to_pixel_code(self.hidden(x).tanh())
        z = _precise(logits).softmax(-1).to(self.pixel_codes.dtype) @ self.pixel_codes
        # In memory, channels come last.
        return self.pixel_decoder(z.unflatten(1, self.config.pixels.grid).permute(0, 3, 1, 2))

    @property
    def at_once(self) -> int:
        """Images that `encode` and `decode` take at a time: one activation of all pixels fills 256 MiB at most."""
        height, width = self.config.size
        return count_images_at_once(height * width * self.config.pixels.width)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b l"]:
        """Tokens of images in [-1, 1], on the images' device; ConfigError for another size."""
        return encode_in_parts(
            lambda part: self.nearest(self.read(((part + 1) / 2).to(self.codes))), images, self.config, self.at_once
        )

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b c h w"]:
        """Images in [-1, 1], float32, on the tokens' device; ConfigError for another length or a token out of range."""
        at = self.codes.device
        return decode_in_parts(
            lambda part: self.paint(part.to(at)).clamp(0, 1).float() * 2 - 1, tokens, self.config, self.at_once
        )


def _precise(x: Tensor) -> Tensor:
    """In float32, unless it is more precise already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


NAMES = {
    "latent_tokens": "latents",
    "encoder.patch_embed": "patches",
    "encoder.conv_out": "to_code",
    "quantize.embedding.weight": "codes",
    "decoder.decoder_embed": "from_code",
    "decoder.mask_token": "mask",
    "decoder.ffn.0": "hidden",
    "decoder.ffn.2": "to_pixel_code",
    "pixel_quantize.embedding.weight": "pixel_codes",
}
"""Published parts of the tokenizer that are no part of its two transformers, and ours."""

CONVOLUTIONS = ("encoder.conv_out.weight", "decoder.ffn.0.weight", "decoder.ffn.2.weight")
"""Published as convolutions of single cells; here they are linear layers."""

VIT = {
    "class_embedding": "class_token",
    "positional_embedding": "position",
    "latent_token_positional_embedding": "latent_position",
    "ln_pre": "norm_in",
    "ln_post": "norm_out",
}
"""Published parts of a transformer, and ours."""

BLOCK = {
    "ln_1": "norm1",
    "attn.in_proj": "attention.qkv",
    "attn.out_proj": "attention.out",
    "ln_2": "norm2",
    "mlp.c_fc": "up",
    "mlp.c_proj": "down",
}
"""Published parts of a block, and ours."""


def translate(config: TiTok, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of the published file by our names; an unknown name is returned unchanged."""
    if name.startswith("pixel_decoder."):
        return {f"pixel_decoder.{decoder_name(name.removeprefix('pixel_decoder.'))}": tensor}
    if name == "decoder.mask_token" and tensor.shape[:-1] == (1, 1):
        tensor = tensor[0, 0]
    elif name in CONVOLUTIONS and tensor.shape[2:] == (1, 1):
        tensor = tensor[..., 0, 0]
    if name in NAMES:
        return {NAMES[name]: tensor}
    part, _, kind = name.rpartition(".")
    if part in NAMES:
        return {f"{NAMES[part]}.{kind}": tensor}
    side, _, rest = name.partition(".")
    if side in ("encoder", "decoder"):
        block = re.fullmatch(r"transformer\.(\d+)\.(.+)[._](weight|bias)", rest)
        if block and block[2] in BLOCK:
            return {f"{side}.blocks.{block[1]}.{BLOCK[block[2]]}.{block[3]}": tensor}
        outer = re.fullmatch(r"(.+?)((?:\.(?:weight|bias))?)", rest)
        if outer and outer[1] in VIT:
            return {f"{side}.{VIT[outer[1]]}{outer[2]}": tensor}
    return {name: tensor}
