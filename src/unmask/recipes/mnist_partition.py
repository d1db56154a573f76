"""Train MNIST as `mnist` does, with a partition model: no mask tokens, and fewer operations per image.

    unmask train mnist-partition --data DIR      (without --data it is downloaded once)
    unmask evaluate runs/mnist-partition --samples 5000

Runs on a CPU laptop: about as long as `mnist`.

It has the 1.2 M parameters of `mnist`, in two blocks that read the known tokens and two that answer for the others
(arXiv 2505.18883). The order is known in advance, so a step computes only the tokens that it reveals.
"""

from dataclasses import replace

from unmask.method.models.partition_config import PartitionConfig
from unmask.method.partitioning import Partition
from unmask.recipes import mnist
from unmask.recipes.schema import Recipe


def recipe() -> Recipe:
    return replace(
        mnist.recipe(),
        model=PartitionConfig(dim=128, encoder_depth=2, decoder_depth=2, heads=4),
        objective=Partition(),
    )
