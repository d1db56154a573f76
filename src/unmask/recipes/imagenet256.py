"""Train ImageNet at 256x256 like the PyTorch reproduction of MaskGIT (arXiv 2310.14400, table 1 and section 2).

    unmask train imagenet256 --data CODES      (tokens of the tokenizer that imagenet256-tokenizer trains)

Runs on 8 A100 GPUs: 96 hours in the report; not run yet.

There, 50,000 samples have a FID of 6.80 (`decoding/presets.py`). Details that the report does not state come from its
code (github.com/valeoai/Maskgit-pytorch, Trainer/vit.py): each token is masked by its own coin, visible tokens count in
the loss as well, gradients are clipped at 1, and weights are not averaged.

Differs from the report:

* There is no dropout (there 0.1). Dropout noise that is the same for any number of processes would cost about as much
  as the layers do.
* The network is the one of this package, with 172.447 M parameters where the report has 174.161 M: no layers before
  and after the blocks, no biases, RMSNorm, a separate head, the class in front.
* Weight decay leaves vectors out.
"""

from unmask.data.sources.choice import Codes
from unmask.decoding import presets
from unmask.method.models.configs import TransformerConfig
from unmask.method.objectives import MaskGIT
from unmask.method.schedules import Arccos
from unmask.metrics.configs import ClassifierConfig
from unmask.recipes import imagenet256_tokenizer
from unmask.recipes.schema import Recipe
from unmask.training.configs import AdamW, Constant, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=Codes(path=""),
        tokenizer=imagenet256_tokenizer.recipe().tokenizer,
        model=TransformerConfig(
            dim=768,
            depth=24,
            heads=16,
            mlp_ratio=4.0,
            gated=False,
            qk_norm=False,
            rotary=False,
            num_classes=1000,
            prefix=True,
        ),
        objective=MaskGIT(
            schedule=Arccos(), visible_weight=1.0, label_smoothing=0.1, drop=0.1, independent=True, stratified=False
        ),
        training=TrainConfig(
            steps=755_200,
            batch_size=512,
            optimizer=AdamW(learning_rate=1e-4, beta1=0.9, beta2=0.96, weight_decay=1e-5),
            learning_rate=Constant(),
            clip=1.0,
            ema=0.0,
            log_every=100,
            evaluate_every=10_000,
            save_every=2_500,
        ),
        sampling=presets.REPORT_256.sampling,
        classifier=ClassifierConfig(channels=3, num_classes=1000, residual=True, flip=True),
        unigram=False,
    )
