"""Train a tokenizer for CIFAR-10: 32x32 colour photos as 8x8 = 64 tokens of 2,048; 2.9 M parameters.

Runs on a CPU laptop: 25 minutes on two cores with bfloat16 instructions.

    unmask train-tokenizer cifar10-tokenizer --data DIR
    unmask evaluate-tokenizer runs/cifar10-tokenizer

Expect the whole codebook to be in use and a PSNR of 25 dB. docs/results/cifar10.md has the run.
"""

from unmask.data.sources.cifar import Cifar10
from unmask.metrics.configs import ClassifierConfig
from unmask.recipes.schema import TokenizerRecipe
from unmask.tokenizers.configs import FSQ, VQGAN, PatchGAN, TokenizerLoss
from unmask.training.configs import AdamW, CosineDecay, TrainConfig


def recipe() -> TokenizerRecipe:
    return TokenizerRecipe(
        data=Cifar10(),
        tokenizer=VQGAN(
            size=(32, 32),
            patch=2,
            width=64,
            multipliers=(1, 2),
            blocks=1,
            decoder_blocks=2,
            attention=(),
            middle_attention=True,
            z_channels=128,
            groups=4,
            quantizer=FSQ(levels=(8, 8, 8, 4)),
        ),
        loss=TokenizerLoss(pixel=1.0, perceptual=1.0, adversarial=0.5, start=0.5, discriminator=PatchGAN(layers=2)),
        perceptual=ClassifierConfig(channels=3, num_classes=10, width=32, steps=1500, seed=1000),
        training=TrainConfig(
            steps=4000,
            batch_size=64,
            optimizer=AdamW(learning_rate=6e-4, beta1=0.5, beta2=0.98, weight_decay=0.0),
            learning_rate=CosineDecay(warmup=200),
            ema=0.999,
            evaluate_every=1000,
            save_every=500,
        ),
    )
