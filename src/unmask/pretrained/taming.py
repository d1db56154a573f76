"""The published VQGAN with a 16-fold reduction and 1024 codes (arXiv 2012.09841).

The network is `unmask.tokenizers.vqgan` at its full size. Weights: `last.ckpt` of llvictorll/Maskgit-pytorch, under
pretrained_maskgit/VQGAN, the same weights as in the taming-transformers README (MIT). The generators of `valeoai` use
its tokens.
"""

import re
from dataclasses import replace
from functools import cache

from unmask.lazy import Tensor
from unmask.tokenizers.configs import VQ, VQGAN

TAMING_F16_1024 = VQGAN(
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
    quantizer=VQ(vocab_size=1024, dim=256, normalize=False, decay=0.0),
)
"""vqgan_imagenet_f16_1024: 72,141,699 values, rFID 7.94 in its README. It has no dropout, as published."""

TAMING_F16_1024_512 = replace(TAMING_F16_1024, size=(512, 512), attention=(32,))
"""The same weights for images of 512x512. Attention belongs to the coarsest level, which is 32 cells high here."""

TAMING_PARTS = {"nin_shortcut": "shortcut", "proj_out": "out"}
"""Published parts of a layer that have another name here, and ours."""


def translate(config: VQGAN, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate one tensor of the published `state_dict` to our names.

    Return {} for tensors of the loss, and an unknown name unchanged. The codebook counts as started, so that training
    continues from it and does not start from new centres.
    """
    if name.startswith("loss."):
        return {}
    if name == "quantize.embedding.weight":
        started = {"quantizer.count": tensor.new_ones(tensor.shape[:1]), "quantizer.started": tensor.new_ones(())}
        return {"quantizer.table": tensor, "quantizer.sum": tensor.clone(), **started}
    layer, _, rest = name.rpartition(".")
    places = _map_layers(config)
    if layer in places:
        return {f"{places[layer]}.{rest}": tensor}
    layer, _, part = layer.rpartition(".")
    if layer in places:
        return {f"{places[layer]}.{TAMING_PARTS.get(part, part)}.{rest}": tensor}
    return {name: tensor}


def translate_renamed(
    config: VQGAN, name: str, tensor: Tensor, renamed: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    """Translate one tensor of a file with other names, after `renamed` turned its name into the published one.

    `renamed` holds patterns and their replacements. It leaves the levels of the decoder as they are in such a file:
    counted in the order in which they run. Return an unknown name unchanged.
    """
    known = name
    for theirs, own in renamed:
        known = re.sub(theirs, own, known)
    finest = len(config.multipliers) - 1
    known = re.sub(r"(?<=^decoder\.up\.)[1-9]?[0-9](?=\.)", lambda level: str(finest - int(level[0])), known)
    translated = translate(config, known, tensor)
    return translated if translated and known not in translated else {name: tensor}


@cache
def _map_layers(config: VQGAN) -> dict[str, str]:
    """Map each published layer to its place in our lists of layers: "encoder.down.0.block.1" is "encoder.2"."""
    levels = range(len(config.multipliers))
    attended = [config.size[0] // config.patch >> i in config.attention for i in levels]
    middle = ["mid.block_1", *(["mid.attn_1"] if config.middle_attention else []), "mid.block_2"]
    ends = ["norm_out", "swish", "conv_out"]
    encoder, decoder = ["conv_in"], ["conv_in", *middle]
    for i in levels:
        encoder += _list_level(f"down.{i}", config.blocks, attended[i])
        encoder += [f"down.{i}.downsample"] if i < levels[-1] else []
    for i in reversed(levels):  # the coarsest level runs first and has the highest number
        decoder += _list_level(f"up.{i}", config.decoder_blocks, attended[i])
        decoder += [f"up.{i}.upsample"] if i > 0 else []
    places = {"quant_conv": "before", "post_quant_conv": "after"}
    for part, layers in (("encoder", [*encoder, *middle, *ends]), ("decoder", [*decoder, *ends])):
        places |= {f"{part}.{layer}": f"{part}.{i}" for i, layer in enumerate(layers)}
    return places


def _list_level(name: str, blocks: int, attended: bool) -> list[str]:
    kinds = ("block", "attn") if attended else ("block",)
    return [f"{name}.{kind}.{i}" for i in range(blocks) for kind in kinds]
