"""MNIST as the nanoMaskGIT exercise has it: 14x14 binarised, 2x2 patches, 49 tokens of 16, class-conditional.

    unmask train mnist --data DIR
"""

from unmask.data.sources import Mnist
from unmask.models.transformer import TransformerConfig
from unmask.objectives import MaskGIT
from unmask.recipes import Recipe
from unmask.tokenizers.pixels import Pixels
from unmask.training.loop import TrainConfig
from unmask.training.optim import CosineDecay, Muon


def recipe() -> Recipe:
    return Recipe(
        data=Mnist(),
        tokenizer=Pixels(size=(14, 14), patch=2, levels=2),
        model=TransformerConfig(dim=128, depth=4, heads=4),
        objective=MaskGIT(),
        training=TrainConfig(steps=3000, batch_size=256, optimizer=Muon(), learning_rate=CosineDecay(warmup=100)),
    )
