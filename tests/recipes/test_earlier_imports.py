"""Recipe files of users import a configuration from the module of what it builds, where it once stood."""

import importlib

import pytest

from unmask.recipes.reading import find_recipe
from unmask.recipes.schema import Recipe, TokenizerRecipe

EARLIER = {
    "unmask.method.models.transformer": ("TransformerConfig",),
    "unmask.tokenizers.vqgan": ("VQGAN",),
    "unmask.tokenizers.quantizers": ("FSQ", "LFQ", "VQ"),
    "unmask.tokenizers.losses": ("PatchGAN", "TokenizerLoss"),
    "unmask.tokenizers.lpips": ("LpipsFiles",),
    "unmask.training.loop": ("TrainConfig",),
    "unmask.training.optim": ("AdamW", "Constant", "CosineDecay", "Muon", "WarmupStableDecay"),
    "unmask.metrics.features": ("ClassifierConfig",),
    "unmask.metrics.judge": ("JudgeConfig",),
    "unmask.pretrained.amused": ("Amused",),
    "unmask.pretrained.google": ("GoogleMaskGIT",),
    "unmask.pretrained.halton_maskgit": ("HaltonMaskGIT",),
    "unmask.pretrained.maskgit_vqgan": ("MaskGITVQGAN",),
    "unmask.pretrained.titok": ("TiTok",),
    "unmask.pretrained.titok_bert": ("TiTokBert",),
    "unmask.pretrained.titok_uvit": ("TiTokUViT",),
    "unmask.pretrained.valeoai": ("ValeoaiMaskGIT",),
}
IMAGES = """
from unmask.data.sources.choice import Digits
from unmask.method.models.transformer import TransformerConfig
from unmask.metrics.features import ClassifierConfig
from unmask.recipes import Recipe
from unmask.tokenizers.pixels import Pixels
from unmask.training.loop import TrainConfig
from unmask.training.optim import AdamW, CosineDecay, Muon


def recipe():
    return Recipe(
        data=Digits(),
        tokenizer=Pixels(size=(8, 8), patch=2, levels=4),
        model=TransformerConfig(dim=128, depth=4, heads=4),
        training=TrainConfig(optimizer=Muon(rest=AdamW()), learning_rate=CosineDecay(warmup=50)),
        classifier=ClassifierConfig(channels=1, num_classes=10, steps=300),
    )
"""
PHOTOS = """
from unmask.data.sources.choice import Folder
from unmask.recipes.schema import TokenizerRecipe
from unmask.tokenizers.losses import PatchGAN, TokenizerLoss
from unmask.tokenizers.lpips import LpipsFiles
from unmask.tokenizers.quantizers import VQ
from unmask.tokenizers.vqgan import VQGAN


def recipe():
    loss = TokenizerLoss(discriminator=PatchGAN(layers=2))
    return TokenizerRecipe(data=Folder(path=""), tokenizer=VQGAN(quantizer=VQ()), loss=loss, perceptual=LpipsFiles())
"""


@pytest.mark.parametrize("module", EARLIER)
def test_a_configuration_is_found_where_it_once_stood(module):
    for name in EARLIER[module]:
        found = getattr(importlib.import_module(module), name)
        assert found.__name__ == name
        assert found is getattr(importlib.import_module(found.__module__), name)


@pytest.mark.parametrize(("text", "kind"), [(IMAGES, Recipe), (PHOTOS, TokenizerRecipe)])
def test_an_earlier_recipe_file_is_read(text, kind, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    assert type(find_recipe(str(path))) is kind
