"""What TiTok's two generators share (Yu et al. 2024, arXiv 2406.07550): a row of tokens behind the token of its class.

The published tables hold codes, mask, classes and "no class" in one vocabulary, and the positions of class and cells in
one sequence. Here each of them is a table of its own, so that classes and grid can be exchanged for fine-tuning.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.errors import CheckpointError
from unmask.method.models.conditioning import ClassEmbedding
from unmask.pretrained.ids import check_classes, check_rows


class ClassFirst(nn.Module):
    """Embeds a class and l tokens as a sequence of 1 + l; reads logits of the K codes off the last l of its outputs."""

    def __init__(self, dim: int, num_classes: int, vocab_size: int, grid: tuple[int, ...]):
        super().__init__()
        if vocab_size < 1 or not 1 <= len(grid) <= 3 or min(grid) < 1:
            raise ValueError(f"vocab_size {vocab_size} and grid {grid}: need a token or more, and 1 to 3 axes of cells")
        self.vocab_size, self.grid = vocab_size, grid
        self.length = torch.Size(grid).numel()
        self.embedding = nn.Embedding(vocab_size + 1, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.classes = ClassEmbedding(num_classes, dim)
        self.class_position = nn.Parameter(torch.randn(dim) * 0.02)
        self.position = nn.Parameter(torch.randn(self.length, dim) * 0.02)
        self.head = nn.Linear(dim, vocab_size)

    @property
    def mask_id(self) -> int:
        """The input row of a masked token: K, one past the last value."""
        return self.vocab_size

    def embed(self, tokens: Int[Tensor, "b l"], condition: Int[Tensor, "b"] | None) -> Float[Tensor, "b 1+l dim"]:
        """Class, then tokens, each with its position; ValueError for a row, token or class that cannot be."""
        check_rows(tokens, self.grid, self.mask_id)
        check_classes(condition, self.classes.table.num_embeddings - 1)
        first = self.classes(condition, tokens) + self.class_position
        return torch.cat([first[:, None], self.embedding(tokens) + self.position], dim=1)

    def read(self, x: Float[Tensor, "b n dim"], at: Bool[Tensor, "b l"] | None) -> Float[Tensor, "..."]:
        """Logits [b, l, K], or only those of the tokens `at`, [n, K], in float32 or better."""
        logits = self.head(x[:, 1:] if at is None else x[:, 1:][at])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def split_vocabulary(name: str, tensor: Tensor, num_classes: int) -> dict[str, Tensor]:
    """The published rows (codes, mask, classes, "no class") by our names; "no class" goes first."""
    if tensor.ndim != 2 or len(tensor) < num_classes + 3:
        raise CheckpointError(
            f"{name} is {tuple(tensor.shape)}: it must be a table of the codes, a mask, {num_classes} classes and none"
        )
    rows, classes, null = tensor.split([len(tensor) - num_classes - 1, num_classes, 1])
    return {"embedding.weight": rows, "classes.table.weight": torch.cat([null, classes])}


def split_positions(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The published positions, that of the class first, by our names."""
    if tensor.ndim != 2 or len(tensor) < 2:
        raise CheckpointError(f"{name} is {tuple(tensor.shape)}: it must be a position of the class, then of the cells")
    return {"class_position": tensor[0], "position": tensor[1:]}
