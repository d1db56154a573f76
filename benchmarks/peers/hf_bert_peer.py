"""`BertForMaskedLM` of transformers, with the plain loop around it."""

from typing import Any

import torch.nn.functional as F
from naive_peer import sample_plainly
from peer import Peer, mask_cosine
from sizes import Size
from torch import Tensor, nn


class BertPeer(Peer):
    """The mask is the last word of its vocabulary; the sampling loop leaves its logit out."""

    name, package = "hf-bert-maskgit", "transformers"

    def build(self, size: Size) -> nn.Module:
        from transformers import BertConfig, BertForMaskedLM

        return BertForMaskedLM(
            BertConfig(
                vocab_size=size.codes + 1,
                hidden_size=size.dim,
                num_hidden_layers=size.depth,
                num_attention_heads=size.heads,
                intermediate_size=size.hidden,
                max_position_embeddings=size.cells,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                pad_token_id=None,
            )
        )

    def sample(self) -> Tensor:
        return sample_plainly(lambda tokens: self.network(tokens).logits[..., : self.size.codes], self.size)

    def compute_loss(self, tokens: Tensor) -> Tensor:
        visible, labels = mask_cosine(tokens, self.size.codes)
        return self.network(visible, labels=labels).loss

    def answer_free(self, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import MaskedLMOutput

        return MaskedLMOutput(logits=F.pad(logits, (0, 1)))
