"""Train ImageNet at 256x256 with a partition model of the size of `imagenet256` (arXiv 2505.18883).

    unmask train imagenet256-partition --data CODES      (tokens of the tokenizer that imagenet256-tokenizer trains)

Runs on 8 A100 GPUs: not run yet.

Half of its 24 blocks read the known tokens, and half answer for the others. The paper reports a FID of 5.54 at 7.5
times the throughput of Halton-MaskGIT, with larger networks than this one.
"""

from dataclasses import replace

from unmask.method.models.partition_config import PartitionConfig
from unmask.method.partitioning import Partition
from unmask.method.sampling.priorities import Halton
from unmask.recipes import imagenet256
from unmask.recipes.schema import Recipe


def recipe() -> Recipe:
    plain = imagenet256.recipe()
    return replace(
        plain,
        model=PartitionConfig(
            dim=768, encoder_depth=12, decoder_depth=12, heads=16, mlp_ratio=4.0, num_classes=1000, prefix=True
        ),
        objective=Partition(label_smoothing=0.1),
        sampling=replace(plain.sampling, priority=Halton(plain.tokenizer.grid)),
    )
