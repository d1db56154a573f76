"""Train the configuration of the nanoMaskGIT exercise: dim 512, depth 8, 500 M tokens of 14x14 binarised MNIST.

    unmask train mnist-gpu --data DIR

Runs on one GPU: not run yet; on two CPU cores it would take days.

Expect at least the result of the `mnist` recipe (docs/results/mnist.md). Differs from the exercise in the transformer
block, the optimizer (Muon) and the mask ratios, which are those of the `mnist` recipe.
"""

from dataclasses import replace

from unmask.method.models.configs import TransformerConfig
from unmask.recipes import mnist
from unmask.recipes.schema import Recipe
from unmask.training.configs import AdamW, CosineDecay, Muon

TOKENS = 500_000_000
MNIST_GPU_BATCH = 1024


def recipe() -> Recipe:
    base = mnist.recipe()
    return replace(
        base,
        model=TransformerConfig(dim=512, depth=8, heads=8),
        training=replace(
            base.training,
            steps=TOKENS // (MNIST_GPU_BATCH * 49),
            batch_size=MNIST_GPU_BATCH,
            optimizer=Muon(learning_rate=3e-3, rest=AdamW(learning_rate=1e-3)),
            learning_rate=CosineDecay(warmup=300),
            evaluate_every=1000,
            save_every=1000,
        ),
    )
