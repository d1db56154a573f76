"""`NonAutoregressiveWrapper` of x-transformers around its `Encoder`."""

from typing import Any

from peer import Peer
from sizes import Size
from torch import Tensor, nn


class XTransformersPeer(Peer):
    """With `attn_flash`, its fastest attention; without its top-k filter, which would be work that ours does not do."""

    name, package = "x-transformers", "x-transformers"

    def build(self, size: Size) -> nn.Module:
        from x_transformers import Encoder, NonAutoregressiveWrapper, TransformerWrapper

        layers = Encoder(
            dim=size.dim,
            depth=size.depth,
            heads=size.heads,
            attn_dim_head=size.dim // size.heads,
            attn_flash=True,
        )
        network = TransformerWrapper(
            num_tokens=size.codes + 1, logits_dim=size.codes, max_seq_len=size.cells, attn_layers=layers
        )
        return NonAutoregressiveWrapper(network, mask_id=size.codes, steps=size.steps, schedule="cosine")

    @property
    def network(self) -> Any:
        return self.module.net

    def sample(self) -> Tensor:
        return self.module.generate(batch_size=self.size.batch, filter_thres=None)

    def compute_loss(self, tokens: Tensor) -> Tensor:
        return self.module(tokens).loss

    def answer_free(self, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        return logits, logits
