"""Train ImageNet at 512x512 like the PyTorch reproduction of MaskGIT (arXiv 2310.14400): fine-tune its 256x256 model.

    unmask train imagenet512 --data CODES      (1024 tokens per image, of the tokenizer of imagenet256)

Runs on A100 GPUs: 384 GPU hours in the report; not run yet.

The report starts from the weights of the `imagenet256` recipe, and 50,000 samples have a FID of 7.26;
`decoding/presets.py` has all of its scores. `experiments/finetune.py` carries those weights over, with the positions
resized from 16x16 to 32x32. The report does not say how it did this. The network has 173.037 M parameters; the report
has 176.307 M.

The tokenizer is the same network, with attention at its coarsest level, which now has 32x32 cells.
"""

from dataclasses import replace

from unmask.decoding import presets
from unmask.recipes import imagenet256, imagenet256_tokenizer
from unmask.recipes.schema import Recipe


def recipe() -> Recipe:
    base = imagenet256.recipe()
    return replace(
        base,
        tokenizer=replace(imagenet256_tokenizer.recipe().tokenizer, size=(512, 512), attention=(32,)),
        training=replace(base.training, steps=750_000, batch_size=128),
        sampling=presets.REPORT_512.sampling,
    )
