"""LlamaGen's VQGAN with a 16-fold reduction and 16,384 codes, by our names (Sun et al. 2024, arXiv 2406.06525).

The network is `unmask.tokenizers.vqgan`, with codes of 8 numbers on the unit sphere. Weights: `vq_ds16_c2i.pt` of
FoundationVision/LlamaGen (MIT). The tokens of `halton_maskgit`'s generators.
"""

from dataclasses import replace

from torch import Tensor

from unmask.tokenizers.quantizers import VQ
from unmask.tokenizers.vqgan import VQGAN

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
"""VQ-16: 71,883,403 values; rFID 2.19 in its README. Its codes are learned by gradient; none is revived. No dropout."""

LLAMAGEN_VQ16_384 = replace(LLAMAGEN_VQ16, size=(384, 384), attention=(24,))
"""The same weights on images of 384x384: attention is part of the coarsest level, which is 24 cells high here."""

PARTS = {"nin_shortcut": "shortcut", "proj_out": "out"}


def translate(config: VQGAN, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of the published `model` by our names: {} for the log of used codes, an unknown one unchanged.

    The codebook is one that has started: training goes on from it, and not from new centres.
    """
    if name == "quantize.codebook_used":
        return {}
    if name == "quantize.embedding.weight":
        started = {"quantizer.count": tensor.new_ones(tensor.shape[:1]), "quantizer.started": tensor.new_ones(())}
        return {"quantizer.table": tensor, "quantizer.sum": tensor.clone(), **started}
    places = _places(config)
    layer, _, rest = name.rpartition(".")
    if layer in places:
        return {f"{places[layer]}.{rest}": tensor}
    layer, _, part = layer.rpartition(".")
    if layer in places:
        return {f"{places[layer]}.{PARTS.get(part, part)}.{rest}": tensor}
    return {name: tensor}


def _places(config: VQGAN) -> dict[str, str]:
    """Where each of the published layers is in our lists of them: "encoder.conv_blocks.0.res.1" is "encoder.2".

    Both halves number their levels in the order in which they run: the decoder's 0 is the coarsest.
    """
    levels = range(len(config.multipliers))
    attended = [config.size[0] // config.patch >> i in config.attention for i in levels]
    middle, ends = ["mid.0", "mid.1", "mid.2"], ["norm_out", "swish", "conv_out"]
    encoder, decoder = ["conv_in"], ["conv_in", *middle]
    for i in levels:
        encoder += _level(i, config.blocks, attended[i])
        encoder += [f"conv_blocks.{i}.downsample"] if i < levels[-1] else []
        decoder += _level(i, config.decoder_blocks, attended[levels[-1] - i])
        decoder += [f"conv_blocks.{i}.upsample"] if i < levels[-1] else []
    places = {"quant_conv": "before", "post_quant_conv": "after"}
    for half, layers in (("encoder", [*encoder, *middle, *ends]), ("decoder", [*decoder, *ends])):
        places |= {f"{half}.{layer}": f"{half}.{i}" for i, layer in enumerate(layers)}
    return places


def _level(i: int, blocks: int, attended: bool) -> list[str]:
    kinds = ("res", "attn") if attended else ("res",)
    return [f"conv_blocks.{i}.{kind}.{j}" for j in range(blocks) for kind in kinds]
