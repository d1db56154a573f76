"""Embeddings of conditions. Each kind has an unconditional twin and is separate from the token vocabulary."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.method.guidance import NULL


class ClassEmbedding(nn.Module):
    """Embed class ids 0..num_classes-1, and NULL (-1), the learned "no class", which is also used for None."""

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.table = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, condition: Int[Tensor, "b"] | None, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b dim"]:
        """Return one embedding per row of `tokens`. NULL is row 0 of the table, so any other wrong id is an error."""
        if condition is None:
            condition = tokens.new_full((len(tokens),), NULL)
        return self.table(condition - NULL)
