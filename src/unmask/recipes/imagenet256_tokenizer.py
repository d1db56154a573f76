"""Train the tokenizer of the ImageNet recipes: taming-transformers' VQGAN f16-1024, 256x256 to 16x16 tokens of 1024.

    unmask train-tokenizer imagenet256-tokenizer --data DIR --perceptual.vgg FILE --perceptual.linear FILE

Runs on 8 GPUs: not run yet.

DIR holds `train` and `val` with one folder per class. The two files are those of unmask.tokenizers.lpips. Network,
losses and optimizer follow imagenet_vqgan.yaml in github.com/CompVis/taming-transformers. Its result has 72.142 M
parameters, as here, and a reconstruction FID of 7.94.

The source states a batch of 3 per GPU, a learning rate of 4.5e-6 times the whole batch (here: of 8 GPUs), and no number
of steps. Its codebook loss weighs the encoder by 1 and the codebook by 0.25. Adam is insensitive to the second weight.

Differs from the source:

* Photos are shrunk to cover 288 pixels and centre-cropped before a random crop. The source shrinks to 256 and crops
  along the longer side.
* Photos are mirrored.
* The codebook starts from k-means.
* The discriminator differs as PatchGAN states.
"""

from unmask.data.sources.choice import Folder
from unmask.recipes.schema import TokenizerRecipe
from unmask.tokenizers.configs import VQ, VQGAN, LpipsFiles, PatchGAN, TokenizerLoss
from unmask.training.configs import AdamW, Constant, TrainConfig

STEPS = 1_000_000
IMAGENET256_TOKENIZER_BATCH = 24


def recipe() -> TokenizerRecipe:
    return TokenizerRecipe(
        data=Folder(path="", size=288, channels=3),
        tokenizer=VQGAN(quantizer=VQ(vocab_size=1024, dim=256, normalize=False, decay=0.0, commitment=1.0, revive=0.0)),
        loss=TokenizerLoss(
            pixel=1.0,
            perceptual=1.0,
            adversarial=0.8,
            start=250_001 / STEPS,
            discriminator=PatchGAN(width=64, layers=3),
        ),
        perceptual=LpipsFiles(),
        training=TrainConfig(
            steps=STEPS,
            batch_size=IMAGENET256_TOKENIZER_BATCH,
            optimizer=AdamW(learning_rate=4.5e-6 * IMAGENET256_TOKENIZER_BATCH, beta1=0.5, beta2=0.9, weight_decay=0.0),
            learning_rate=Constant(),
            clip=1e6,  # none, that is
            ema=0.0,
            log_every=100,
            evaluate_every=10_000,
            save_every=5_000,
        ),
    )
