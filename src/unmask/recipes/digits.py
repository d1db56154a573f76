"""The demo: scikit-learn's 1,797 real 8x8 digits, 2x2 patches of 4 grey levels, that is 16 tokens of 256.

    unmask demo            (or: unmask train digits --run runs/digits; unmask evaluate runs/digits)
"""

from unmask.data.sources import Digits
from unmask.models.transformer import TransformerConfig
from unmask.objectives import MaskGIT
from unmask.recipes import Recipe
from unmask.tokenizers.pixels import Pixels
from unmask.training.loop import TrainConfig
from unmask.training.optim import CosineDecay, Muon


def recipe() -> Recipe:
    return Recipe(
        data=Digits(),
        tokenizer=Pixels(size=(8, 8), patch=2, levels=4),
        model=TransformerConfig(dim=128, depth=4, heads=4),
        objective=MaskGIT(),
        training=TrainConfig(steps=1500, batch_size=64, optimizer=Muon(), learning_rate=CosineDecay(warmup=50)),
    )
