"""Conditions become embeddings. Each kind has an unconditional twin, and none of them lives in the token vocabulary."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.method.guidance import NULL


class ClassEmbedding(nn.Module):
    """Class ids 0..num_classes-1, and NULL (-1), the learned "no class", which also stands in when none is given."""

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.table = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, condition: Int[Tensor, "b"] | None, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b dim"]:
        """One embedding per row of `tokens`. NULL is row 0 of the table, so that any other foreign id is an error."""
        if condition is None:
            condition = tokens.new_full((len(tokens),), NULL)
        return self.table(condition - NULL)
