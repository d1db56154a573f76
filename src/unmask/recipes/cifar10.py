"""Train CIFAR-10 on tokens: 64 tokens with a codebook of 2,048, class-conditional; 8.1 M parameters.

Runs on a CPU laptop: less than 2 hours on two cores with bfloat16 instructions, the tokenizer included.

    unmask train-tokenizer cifar10-tokenizer --data DIR
    unmask tokenize runs/cifar10-tokenizer --out codes/cifar10
    unmask train cifar10 --data codes/cifar10
    unmask evaluate runs/cifar10 --samples 10000

Expect the classifier to recognise the class of nine samples in ten, in 8 steps, as often as for real photos.
docs/results/cifar10.md has the run, explains its distances, and is the source of the guidance scale.
"""

from unmask.data.sources.choice import Codes
from unmask.decoding.sampling import Sampling
from unmask.method.models.configs import TransformerConfig
from unmask.method.objectives import MaskGIT
from unmask.method.ramps import LinearRamp
from unmask.method.sampling.priorities import Confidence
from unmask.method.schedules import Arccos
from unmask.metrics.configs import ClassifierConfig
from unmask.recipes import cifar10_tokenizer
from unmask.recipes.schema import Recipe
from unmask.training.configs import AdamW, Muon, TrainConfig, WarmupStableDecay


def recipe() -> Recipe:
    return Recipe(
        data=Codes(path=""),
        tokenizer=cifar10_tokenizer.recipe().tokenizer,
        model=TransformerConfig(dim=256, depth=6, heads=4),
        objective=MaskGIT(schedule=Arccos()),
        training=TrainConfig(
            steps=4000,
            batch_size=128,
            optimizer=Muon(learning_rate=4e-3, rest=AdamW(learning_rate=1e-3)),
            learning_rate=WarmupStableDecay(warmup=200, decay=0.4),
            evaluate_every=500,
            save_every=250,
        ),
        sampling=Sampling(steps=8, priority=Confidence(4.5), scale=LinearRamp(scale=6.0)),
        classifier=ClassifierConfig(
            channels=3,
            num_classes=10,
            width=32,
            features=128,
            steps=4000,
            learning_rate=3e-3,
            residual=True,
            flip=True,
            shift=2,
            precision="auto",
        ),
    )
