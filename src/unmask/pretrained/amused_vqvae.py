"""aMUSEd's tokenizer (arXiv 2401.01808), by our names: pictures of any multiple of 16 pixels to 8192 codes and back.

The network is `unmask.tokenizers.vqgan` with other numbers, but for pictures that are published as [0, 1]. Weights: the
folder `vqvae` of amused/amused-256 and amused/amused-512 (openrail++), which were openMUSE/vqgan-f16-8192-laion.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.errors import ConfigError
from unmask.pretrained import taming
from unmask.tokenizers.quantizers import FSQ, LFQ, VQ
from unmask.tokenizers.vqgan import VQGAN, Autoencoder


@dataclass(frozen=True, kw_only=True)
class AmusedVQ(VQGAN):
    """No attention anywhere, so the same weights serve every size."""

    multipliers: tuple[int, ...] = (1, 2, 2, 4, 6)
    attention: tuple[int, ...] = ()
    middle_attention: bool = False
    z_channels: int = 64
    quantizer: FSQ | VQ | LFQ = VQ(vocab_size=8192, dim=64, normalize=False, decay=0.0)

    def build(self) -> "AmusedAutoencoder":
        return AmusedAutoencoder(self)


AMUSED_VQ_256 = AmusedVQ()
"""Of amused/amused-256: 146,244,675 parameters."""

AMUSED_VQ_512 = AmusedVQ(size=(512, 512))
"""Of amused/amused-512: the same network on a grid of 32x32."""


class Signed(nn.Module):
    """[0, 1] to [-1, 1]."""

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return images * 2 - 1


class AmusedAutoencoder(Autoencoder):
    """`Autoencoder` with images in [-1, 1] outside and [0, 1] inside. ConfigError in float16, which overflows."""

    def __init__(self, config: AmusedVQ):
        super().__init__(config)
        self.decoder.append(Signed())

    def encode_latents(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        self._refuse_float16()
        return super().encode_latents((images + 1) / 2)

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b c h w"]:
        self._refuse_float16()
        return super().decode(tokens)

    def _refuse_float16(self) -> None:
        if self.before.weight.dtype == torch.float16:
            raise ConfigError("aMUSEd's tokenizer overflows in float16: take bfloat16 or float32")


# -- the published names -----------------------------------------------------------------------------------------------

RENAMED = (
    (r"\.(down|up|mid|norm_out|nin_shortcut)\.", r".not.\1."),  # taming's own names are none of this file
    (r"(en|de)coder\.mid_block\.resnets\.0\.", r"\1coder.mid.block_1."),
    (r"(en|de)coder\.mid_block\.resnets\.1\.", r"\1coder.mid.block_2."),
    (r"(en|de)coder\.conv_norm_out\.", r"\1coder.norm_out."),
    (r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.up.\1.block."),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.\1.upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)
"""Diffusers' names, and taming's of the same layers."""


def translate(config: AmusedVQ, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of the published file by our names, by way of taming's; an unknown name is returned unchanged."""
    return taming.translate_renamed(config, name, tensor, RENAMED)
