"""TiTok, a tokenizer that encodes an image as a row of 32 to 128 tokens (Yu et al. 2024, arXiv 2406.07550).

A transformer reads the patches of the image and K latent tokens. Each latent that it returns becomes the nearest of
4096 unit vectors. A second transformer reads these vectors and a canvas of mask tokens. For each cell it predicts a
distribution over the codes of the MaskGIT-VQGAN. The mean code of that distribution goes into the decoder of the
MaskGIT-VQGAN, fine-tuned, which makes the pixels. Published as `tokenizer_titok_{l32,b64,s128}` (Apache-2.0).
"""

import re

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.pretrained.configs import TiTok
from unmask.pretrained.generators import widen
from unmask.pretrained.maskgit_vqgan import MaskGITDecoder, rename_layer
from unmask.pretrained.vit import ViTBlock
from unmask.tokenizers.base import count_images_at_once, decode_in_parts, encode_in_parts
from unmask.tokenizers.quantizers import disable_autocast

TITOK_L32_TOKENIZER = TiTok()
"""TiTok-L-32: 641.1 M parameters."""
TITOK_B64_TOKENIZER = TiTok(num_latents=64, width=768, depth=12, heads=12)
"""TiTok-B-64: 204.8 M parameters."""
TITOK_S128_TOKENIZER = TiTok(num_latents=128, width=512, depth=8, heads=8)
"""TiTok-S-128: 83.7 M parameters."""


class ViT(nn.Module):
    """A transformer over a class token, the cells of an image and the latents. The caller applies `norm_out`."""

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
    """The tokenizer network; its images are in [-1, 1]."""

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
        self.pixel_decoder = MaskGITDecoder(pixels)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def size(self) -> tuple[int, int]:
        return self.config.size

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def grid(self) -> tuple[int]:
        return self.config.grid

    def read(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l d"]:
        """Return the latents of images in [0, 1], before quantization."""
        cells = self.patches(images.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)
        x = self.encoder(cells, self.latents.expand(len(images), -1, -1))
        x = self.encoder.norm_out(x[:, 1 + cells.shape[1] :])
        # As published: the code reads the memory of [l, width] as [width, l]. So a code sees every l-th number of all
        # latents, and not all numbers of its own latent. The weights were trained that way.
        return self.to_code(x.reshape(len(x), x.shape[2], x.shape[1]).transpose(1, 2))

    def find_nearest(self, z: Float[Tensor, "b l d"]) -> Int[Tensor, "b l"]:
        """Return the code at the smallest angle: the nearest one, as both latents and codes are on the unit sphere."""
        with disable_autocast(z):
            table = F.normalize(widen(self.codes), dim=-1)
            return (widen(z) @ table.T).argmax(-1)  # the length of z makes no difference

    def paint(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b c h w"]:
        """Return the images as the network makes them, in about [0, 1]."""
        codes = F.normalize(F.embedding(tokens, widen(self.codes)), dim=-1).to(self.codes.dtype)
        num_cells = len(self.decoder.position) - 1
        x = self.decoder(self.mask.expand(len(tokens), num_cells, -1), self.from_code(codes))
        x = self.decoder.norm_out(x[:, 1 : 1 + num_cells])
        logits = self.to_pixel_code(self.hidden(x).tanh())
        z = widen(logits).softmax(-1).to(self.pixel_codes.dtype) @ self.pixel_codes
        # Channels come last in memory.
        return self.pixel_decoder(z.unflatten(1, self.config.pixels.grid).permute(0, 3, 1, 2))

    @property
    def at_once(self) -> int:
        """Number of images per batch in `encode` and `decode`: one activation of all pixels takes at most 256 MiB."""
        height, width = self.config.size
        return count_images_at_once(height * width * self.config.pixels.width)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b l"]:
        """Return tokens of images in [-1, 1], on the images' device. Raises ConfigError for another image size."""
        return encode_in_parts(
            lambda part: self.find_nearest(self.read(((part + 1) / 2).to(self.codes))),
            images,
            self.config,
            self.at_once,
        )

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b c h w"]:
        """Return float32 images in [-1, 1], on the tokens' device.

        Raises ConfigError for another row length or a token out of range.
        """
        at = self.codes.device
        return decode_in_parts(
            lambda part: self.paint(part.to(at)).clamp(0, 1).float() * 2 - 1, tokens, self.config, self.at_once
        )


TITOK_LAYERS = {
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
"""Published layers and parameters outside of the two transformers, and ours."""

TITOK_CONVOLUTIONS = ("encoder.conv_out.weight", "decoder.ffn.0.weight", "decoder.ffn.2.weight")
"""Published as 1x1 convolutions; here they are linear layers."""

TITOK_VIT_PARTS = {
    "class_embedding": "class_token",
    "positional_embedding": "position",
    "latent_token_positional_embedding": "latent_position",
    "ln_pre": "norm_in",
    "ln_post": "norm_out",
}
"""Published parts of a transformer outside of its blocks, and ours."""

TITOK_BLOCK_LAYERS = {
    "ln_1": "norm1",
    "attn.in_proj": "attention.qkv",
    "attn.out_proj": "attention.out",
    "ln_2": "norm2",
    "mlp.c_fc": "up",
    "mlp.c_proj": "down",
}
"""Published layers of one block, and ours."""


def translate(config: TiTok, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate one tensor of the published file to our names; return an unknown name unchanged."""
    if name.startswith("pixel_decoder."):
        return {f"pixel_decoder.{rename_layer(name.removeprefix('pixel_decoder.'))}": tensor}
    if name == "decoder.mask_token" and tensor.shape[:-1] == (1, 1):
        tensor = tensor[0, 0]
    elif name in TITOK_CONVOLUTIONS and tensor.shape[2:] == (1, 1):
        tensor = tensor[..., 0, 0]
    if name in TITOK_LAYERS:
        return {TITOK_LAYERS[name]: tensor}
    part, _, kind = name.rpartition(".")
    if part in TITOK_LAYERS:
        return {f"{TITOK_LAYERS[part]}.{kind}": tensor}
    side, _, rest = name.partition(".")
    if side in ("encoder", "decoder"):
        block = re.fullmatch(r"transformer\.(\d+)\.(.+)[._](weight|bias)", rest)
        if block and block[2] in TITOK_BLOCK_LAYERS:
            return {f"{side}.blocks.{block[1]}.{TITOK_BLOCK_LAYERS[block[2]]}.{block[3]}": tensor}
        outer = re.fullmatch(r"(.+?)((?:\.(?:weight|bias))?)", rest)
        if outer and outer[1] in TITOK_VIT_PARTS:
            return {f"{side}.{TITOK_VIT_PARTS[outer[1]]}{outer[2]}": tensor}
    return {name: tensor}
