"""Everything that can stand in a recipe for the generator or the tokenizer: ours, and those of published weights."""

from unmask.method.models.transformer import TransformerConfig
from unmask.pretrained.amused_vqvae import AmusedVQ
from unmask.pretrained.google import GoogleMaskGIT
from unmask.pretrained.halton_maskgit import HaltonMaskGIT
from unmask.pretrained.maskgit_vqgan import MaskGITAutoencoder, MaskGITVQGAN
from unmask.pretrained.titok import TiTok, TiTokModel
from unmask.pretrained.titok_bert import TiTokBert
from unmask.pretrained.titok_uvit import TiTokUViT
from unmask.pretrained.valeoai import ValeoaiMaskGIT
from unmask.tokenizers.vqgan import VQGAN, Autoencoder

GeneratorConfig = TransformerConfig | ValeoaiMaskGIT | HaltonMaskGIT | GoogleMaskGIT | TiTokBert | TiTokUViT
"""Networks of classes; each has `num_classes` and `build(vocab_size, grid)`. Amused is of texts, and has the latter."""

LearnedConfig = VQGAN | AmusedVQ | MaskGITVQGAN | TiTok
"""Tokenizers with weights; each has `vocab_size, grid, size, channels` and `build()`."""


LearnedModel = Autoencoder | MaskGITAutoencoder | TiTokModel
"""What they build."""
