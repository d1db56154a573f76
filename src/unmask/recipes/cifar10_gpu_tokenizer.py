"""Train the `cifar10-tokenizer` recipe on one modern GPU: a wider network, 100 epochs, the same 64 tokens of 2,048.

    unmask train-tokenizer cifar10-gpu-tokenizer --data DIR

Runs on one GPU: not run yet.

Expect a lower rFID than the CPU preset has in docs/results/cifar10.md.
"""

from dataclasses import replace

from unmask.recipes import cifar10_tokenizer
from unmask.recipes.schema import TokenizerRecipe
from unmask.training.configs import AdamW, CosineDecay

CIFAR10_GPU_TOKENIZER_BATCH = 256


def recipe() -> TokenizerRecipe:
    base = cifar10_tokenizer.recipe()
    network = replace(base.tokenizer, patch=1, width=128, multipliers=(1, 2, 2), blocks=2, decoder_blocks=3, groups=32)
    return replace(
        base,
        tokenizer=replace(network, z_channels=256),
        training=replace(
            base.training,
            steps=100 * 50_000 // CIFAR10_GPU_TOKENIZER_BATCH,
            batch_size=CIFAR10_GPU_TOKENIZER_BATCH,
            optimizer=AdamW(learning_rate=4e-4, beta1=0.5, beta2=0.98, weight_decay=0.0),
            learning_rate=CosineDecay(warmup=500),
            evaluate_every=2000,
            save_every=2000,
        ),
    )
