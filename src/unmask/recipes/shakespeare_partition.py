"""Train Tiny Shakespeare as `shakespeare` does, with a partition model: no mask tokens, fewer operations per text.

    unmask train shakespeare-partition --data tinyshakespeare.txt
    unmask generate runs/shakespeare-partition --prompt "ROMEO:"
    unmask score runs/shakespeare-partition

Runs on a CPU laptop: about as long as `shakespeare`; not run to its end yet.

It has three blocks that read the known tokens and three that answer for the others (arXiv 2505.18883). Its loss is the
likelihood bound, as that of `shakespeare`.
"""

from dataclasses import replace

from unmask.method.models.partition_config import PartitionConfig
from unmask.method.partitioning import Partition
from unmask.recipes import shakespeare
from unmask.recipes.schema import TextRecipe


def recipe() -> TextRecipe:
    return replace(
        shakespeare.recipe(),
        model=PartitionConfig(dim=256, encoder_depth=3, decoder_depth=3, heads=4),
        objective=Partition(likelihood=True),
    )
