"""Train the `cifar10` recipe on one modern GPU: 40 M parameters, 400 epochs.

    unmask train-tokenizer cifar10-gpu-tokenizer --data DIR
    unmask tokenize runs/cifar10-gpu-tokenizer --out codes/cifar10-gpu
    unmask train cifar10-gpu --data codes/cifar10-gpu

Runs on one GPU: not run yet.

Expect better results than the CPU preset has in docs/results/cifar10.md.
"""

from dataclasses import replace

from unmask.method.models.configs import TransformerConfig
from unmask.recipes import cifar10, cifar10_gpu_tokenizer
from unmask.recipes.schema import Recipe
from unmask.training.configs import AdamW, Muon, WarmupStableDecay

CIFAR10_GPU_BATCH = 512


def recipe() -> Recipe:
    base = cifar10.recipe()
    return replace(
        base,
        tokenizer=cifar10_gpu_tokenizer.recipe().tokenizer,
        model=TransformerConfig(dim=512, depth=10, heads=8),
        training=replace(
            base.training,
            steps=400 * 50_000 // CIFAR10_GPU_BATCH,
            batch_size=CIFAR10_GPU_BATCH,
            ema=0.9995,
            optimizer=Muon(learning_rate=3e-3, rest=AdamW(learning_rate=1e-3)),
            learning_rate=WarmupStableDecay(warmup=500, decay=0.4),
            evaluate_every=2000,
            save_every=2000,
        ),
    )
