"""All networks that a recipe can name as generator or tokenizer: our own and the published ones."""

from unmask.method.models.partition import PartitionConfig
from unmask.method.models.transformer import TransformerConfig
from unmask.pretrained.amused import Amused
from unmask.pretrained.amused_vqvae import AmusedVQ
from unmask.pretrained.google import GoogleMaskGIT
from unmask.pretrained.halton_maskgit import HaltonMaskGIT
from unmask.pretrained.maskgit_vqgan import MaskGITAutoencoder, MaskGITVQGAN
from unmask.pretrained.titok import TiTok, TiTokModel
from unmask.pretrained.titok_bert import TiTokBert
from unmask.pretrained.titok_uvit import TiTokUViT
from unmask.pretrained.valeoai import ValeoaiMaskGIT
from unmask.tokenizers.vqgan import VQGAN, Autoencoder

GeneratorConfig = (
    TransformerConfig | PartitionConfig | ValeoaiMaskGIT | HaltonMaskGIT | GoogleMaskGIT | TiTokBert | TiTokUViT
)
"""Generators conditioned on classes. Each has `num_classes` and `build(vocab_size, grid)`."""

AnyGeneratorConfig = GeneratorConfig | Amused
"""All generators, including those conditioned on prompts. Each has `build(vocab_size, grid)`."""

LearnedConfig = VQGAN | AmusedVQ | MaskGITVQGAN | TiTok
"""Tokenizers with weights. Each has `vocab_size, grid, size, channels` and `build()`."""

LearnedModel = Autoencoder | MaskGITAutoencoder | TiTokModel
"""The networks that a `LearnedConfig` builds."""
