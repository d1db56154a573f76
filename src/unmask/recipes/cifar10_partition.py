"""Train CIFAR-10 on tokens as `cifar10` does, with a partition model: no mask tokens, fewer operations per image.

Runs on a CPU laptop: about as long as `cifar10`; not run to its end yet.

    unmask train-tokenizer cifar10-tokenizer --data DIR
    unmask tokenize runs/cifar10-tokenizer --out codes/cifar10
    unmask train cifar10-partition --data codes/cifar10
    unmask evaluate runs/cifar10-partition --samples 10000

It has three blocks that read the known tokens and three that answer for the others (arXiv 2505.18883), and samples in
the Halton order: a partition model is fast where the order is known in advance.
"""

from dataclasses import replace

from unmask.method.models.partition_config import PartitionConfig
from unmask.method.partitioning import Partition
from unmask.method.sampling.priorities import Halton
from unmask.recipes import cifar10
from unmask.recipes.schema import Recipe


def recipe() -> Recipe:
    plain = cifar10.recipe()
    return replace(
        plain,
        model=PartitionConfig(dim=256, encoder_depth=3, decoder_depth=3, heads=4),
        objective=Partition(),
        sampling=replace(plain.sampling, priority=Halton(plain.tokenizer.grid)),
    )
