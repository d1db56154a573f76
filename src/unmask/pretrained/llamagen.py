"""LlamaGen's VQGAN with a 16-fold reduction and 16,384 codes (Sun et al. 2024, arXiv 2406.06525).

The network is `unmask.tokenizers.vqgan`, with codes of 8 numbers on the unit sphere. Weights: `vq_ds16_c2i.pt` of
FoundationVision/LlamaGen (MIT). The generators of `halton_maskgit` use its tokens.
"""

from dataclasses import replace

from unmask.lazy import Tensor
from unmask.pretrained import taming
from unmask.tokenizers.configs import VQ, VQGAN

LLAMAGEN_VQ16 = VQGAN(
    size=(256, 256),
    channels=3,
    width=128,
    multipliers=(1, 1, 2, 2, 4),
    blocks=2,
    decoder_blocks=3,
    attention=(16,),
    middle_attention=True,
    z_channels=256,
    groups=32,
    quantizer=VQ(vocab_size=16384, dim=8, normalize=True, decay=0.0, commitment=0.25, revive=0.0),
)
"""VQ-16: 71,883,403 values; rFID 2.19 in its README. Gradients train its codes, and it revives none. No dropout."""

LLAMAGEN_VQ16_384 = replace(LLAMAGEN_VQ16, size=(384, 384), attention=(24,))
"""The same weights for images of 384x384. Attention belongs to the coarsest level, which is 24 cells high here."""

LLAMAGEN_PATTERNS = (
    (r"\.(down|up|block|block_1|attn_1|block_2)\.", r".not.\1."),  # this file holds no name of taming's own
    (r"^encoder\.conv_blocks\.", "encoder.down."),
    (r"^decoder\.conv_blocks\.", "decoder.up."),
    (r"\.res\.", ".block."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)
"""Patterns of LlamaGen's names, and taming's names of the same layers."""


def translate(config: VQGAN, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate one tensor of the published `model` to our names, through taming's.

    Return {} for the log of used codes, and an unknown name unchanged.
    """
    return {} if name == "quantize.codebook_used" else taming.translate_renamed(config, name, tensor, LLAMAGEN_PATTERNS)
