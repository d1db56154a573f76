"""Train the demo: scikit-learn's 1,797 real 8x8 digits as 2x2 patches of 4 grey levels, which gives 16 tokens of 256.

    unmask demo            (or: unmask train digits, then unmask evaluate runs/digits)

Runs on a CPU laptop: one minute in all on two cores with bfloat16 instructions.

Expect the classifier to recognise the class of 99 % of samples, where it recognises 99.7 % of real digits, and a
Frechet distance near the real-data baseline. docs/results/demo.md has the run.
"""

from unmask.data.sources.choice import Digits
from unmask.decoding.sampling import Sampling
from unmask.method.models.configs import TransformerConfig
from unmask.method.objectives import MaskGIT
from unmask.method.ramps import LinearRamp
from unmask.method.schedules import Arccos
from unmask.metrics.configs import ClassifierConfig
from unmask.recipes.schema import Recipe
from unmask.tokenizers.pixels import Pixels
from unmask.training.configs import AdamW, CosineDecay, Muon, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=Digits(),
        tokenizer=Pixels(size=(8, 8), patch=2, levels=4),
        model=TransformerConfig(dim=128, depth=4, heads=4),
        objective=MaskGIT(schedule=Arccos()),
        training=TrainConfig(
            steps=1000,
            batch_size=64,
            optimizer=Muon(learning_rate=3e-3, rest=AdamW(learning_rate=1e-3)),
            learning_rate=CosineDecay(warmup=50),
            evaluate_every=250,
            save_every=250,
        ),
        sampling=Sampling(temperature=0.9, scale=LinearRamp(scale=2.0)),
        classifier=ClassifierConfig(channels=1, num_classes=10, steps=300),
    )
