"""The base of TiTok's two generators (Yu et al. 2024, arXiv 2406.07550): the class is the first token of the sequence.

The published tables hold codes, mask, classes and "no class" in one vocabulary, and the positions of class and cells in
one sequence. Here each of them has its own table, so that fine-tuning can replace classes and grid.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.errors import CheckpointError
from unmask.pretrained.configs import GeneratorSizes
from unmask.pretrained.generators import ClassGenerator


class ClassFirst(ClassGenerator):
    """Embed a class and l tokens as a sequence of 1 + l, and read logits of the K codes from the last l outputs."""

    def __init__(self, config: GeneratorSizes, vocab_size: int, grid: tuple[int, ...]):
        super().__init__(config.dim, config.num_classes, vocab_size, grid)
        self.config = config
        self.class_position = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.position = nn.Parameter(torch.randn(self.length, config.dim) * 0.02)
        self.head = nn.Linear(config.dim, vocab_size)

    def embed(self, tokens: Int[Tensor, "b l"], label: Float[Tensor, "b dim"]) -> Float[Tensor, "b 1+l dim"]:
        """Return the class, then the tokens, each with its position."""
        first = label + self.class_position
        return torch.cat([first[:, None], self.embedding(tokens) + self.position], dim=1)

    def read(self, x: Float[Tensor, "b n dim"], at: Bool[Tensor, "b l"] | None) -> Float[Tensor, "..."]:
        """Return logits [b, l, K], or only those of the tokens `at`, [n, K]."""
        return self.head(x[:, 1:] if at is None else x[:, 1:][at])


def split_vocabulary(name: str, tensor: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Split the published rows (codes, mask, classes, "no class") into our tables; "no class" goes first in ours."""
    if tensor.ndim != 2 or len(tensor) < num_classes + 3:
        raise CheckpointError(
            f"{name} is {tuple(tensor.shape)}: it must be a table of the codes, a mask, {num_classes} classes and none"
        )
    rows, classes, null = tensor.split([len(tensor) - num_classes - 1, num_classes, 1])
    return {"embedding.weight": rows, "classes.table.weight": torch.cat([null, classes])}


def split_positions(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Split the published positions, where the class comes first, into our two parameters."""
    if tensor.ndim != 2 or len(tensor) < 2:
        raise CheckpointError(f"{name} is {tuple(tensor.shape)}: it must be a position of the class, then of the cells")
    return {"class_position": tensor[0], "position": tensor[1:]}
