"""Fine-tune a published model on your own classes: a short training from its weights, one image folder per class.

    unmask train finetune --init besnier-256 --data my_folder --num-classes 12
    unmask evaluate runs/finetune

Runs on one GPU: not run yet.

`--init` is required. Network, tokenizer and sampling come from that model and override the values here. The recipe is
meant for the models at 256x256. `--training.accumulate 4` uses less GPU memory for the same curve.

20,000 steps of batch size 64 see 1.28 million images, as many as one epoch of ImageNet; the `imagenet256` recipe has
302 epochs. The learning rate is half of that recipe's, for an eighth of its batch. It rises slowly, because the class
table is initialized from scratch.
"""

from unmask.data.sources.choice import Codes
from unmask.method.objectives import MaskGIT
from unmask.method.schedules import Arccos
from unmask.metrics.configs import ClassifierConfig
from unmask.pretrained.configs import ValeoaiMaskGIT
from unmask.pretrained.taming import TAMING_F16_1024
from unmask.recipes.schema import Recipe
from unmask.training.configs import AdamW, CosineDecay, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        init="",
        data=Codes(path=""),
        tokenizer=TAMING_F16_1024,
        model=ValeoaiMaskGIT(),
        objective=MaskGIT(schedule=Arccos(), label_smoothing=0.1, drop=0.1),
        training=TrainConfig(
            steps=20_000,
            batch_size=64,
            optimizer=AdamW(learning_rate=5e-5, beta1=0.9, beta2=0.96, weight_decay=1e-5),
            learning_rate=CosineDecay(warmup=1000),
            clip=1.0,
            ema=0.999,
            log_every=50,
            evaluate_every=1000,
            save_every=500,
        ),
        classifier=ClassifierConfig(channels=3, num_classes=1000, residual=True, flip=True),
        unigram=False,
    )
