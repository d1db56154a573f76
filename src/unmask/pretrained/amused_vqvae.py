"""aMUSEd's tokenizer (arXiv 2401.01808): images of any multiple of 16 pixels to tokens from 8192 codes, and back.

The network is `unmask.tokenizers.vqgan` with other sizes, but the published one takes images in [0, 1]. Weights: the
folder `vqvae` of amused/amused-256 and amused/amused-512 (openrail++), formerly openMUSE/vqgan-f16-8192-laion.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.errors import ConfigError
from unmask.pretrained import taming
from unmask.pretrained.configs import AmusedVQ
from unmask.tokenizers.vqgan import Autoencoder

AMUSED_VQ_256 = AmusedVQ()
"""The tokenizer of amused/amused-256: 146,244,675 parameters."""

AMUSED_VQ_512 = AmusedVQ(size=(512, 512))
"""The tokenizer of amused/amused-512: the same network on a grid of 32x32."""


class ToSigned(nn.Module):
    """Map [0, 1] to [-1, 1]."""

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return images * 2 - 1


class AmusedAutoencoder(Autoencoder):
    """An `Autoencoder` for images in [-1, 1] that works in [0, 1] inside. It raises ConfigError in float16."""

    def __init__(self, config: AmusedVQ):
        super().__init__(config)
        self.decoder.append(ToSigned())

    def encode_latents(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        """Return the latents of images in [-1, 1]. Raises ConfigError in float16, which overflows."""
        self._check_dtype()
        return super().encode_latents((images + 1) / 2)

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b c h w"]:
        """Return images in [-1, 1]. Raises ConfigError in float16, which overflows."""
        self._check_dtype()
        return super().decode(tokens)

    def _check_dtype(self) -> None:
        if self.before.weight.dtype == torch.float16:
            raise ConfigError("aMUSEd's tokenizer overflows in float16: use bfloat16 or float32")


# -- the published names -----------------------------------------------------------------------------------------------

AMUSED_VQ_PATTERNS = (
    (r"\.(down|up|mid|norm_out|nin_shortcut)\.", r".not.\1."),  # this file holds no name of taming's own
    (r"(en|de)coder\.mid_block\.resnets\.0\.", r"\1coder.mid.block_1."),
    (r"(en|de)coder\.mid_block\.resnets\.1\.", r"\1coder.mid.block_2."),
    (r"(en|de)coder\.conv_norm_out\.", r"\1coder.norm_out."),
    (r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.up.\1.block."),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.\1.upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)
"""Patterns of diffusers' names, and taming's names of the same layers."""


def translate(config: AmusedVQ, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate one tensor of the published file to our names, through taming's; return an unknown name unchanged."""
    return taming.translate_renamed(config, name, tensor, AMUSED_VQ_PATTERNS)
