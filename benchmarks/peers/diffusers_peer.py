"""`UVit2DModel` and `AmusedScheduler` of diffusers: aMUSEd without its tokenizer and its text encoder."""

from typing import Any

import torch
import torch.nn.functional as F
from peer import NO_LABEL, Peer, mask_cosine
from sizes import Size
from torch import Tensor, nn

MICRO = 5
"""Numbers of its micro-conditioning: sizes, crop and score."""


class AmusedPeer(Peer):
    """Each layer also attends to a text, here one fixed vector. Of the layers, two are the U-Net's ends."""

    name, package = "diffusers-amused", "diffusers"

    def build(self, size: Size) -> nn.Module:
        from diffusers import AmusedScheduler, UVit2DModel

        self.scheduler = AmusedScheduler(mask_token_id=size.codes)
        return UVit2DModel(
            hidden_size=size.dim,
            cond_embed_dim=size.dim,
            micro_cond_encode_dim=size.dim,
            micro_cond_embed_dim=MICRO * size.dim,
            encoder_hidden_size=size.dim,
            vocab_size=size.codes + 1,
            codebook_size=size.codes,
            in_channels=size.dim,
            block_out_channels=size.dim,
            num_res_blocks=1,
            block_num_heads=size.heads,
            num_hidden_layers=max(1, size.depth - 2),
            num_attention_heads=size.heads,
            intermediate_size=2 * size.hidden // 3,
        )

    def predict(self, tokens: Tensor) -> Tensor:
        """Return logits [batch, codes, side, side]."""
        text = torch.ones(len(tokens), 1, self.size.dim, dtype=self.dtype)
        micro = torch.ones(len(tokens), MICRO, dtype=self.dtype)
        return self.network(tokens, text, text[:, 0], micro)

    def sample(self) -> Tensor:
        side = self.size.side
        canvas = torch.full((self.size.batch, side, side), self.size.codes)
        self.scheduler.set_timesteps(self.size.steps)
        for step in self.scheduler.timesteps:
            canvas = self.scheduler.step(self.predict(canvas), step, canvas).prev_sample
        return canvas.flatten(1)

    def compute_loss(self, tokens: Tensor) -> Tensor:
        visible, labels = mask_cosine(tokens, self.size.codes)
        logits = self.predict(visible.unflatten(1, (self.size.side, self.size.side)))
        return F.cross_entropy(logits.flatten(2), labels, ignore_index=NO_LABEL)

    def answer_free(self, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        return logits.mT.unflatten(2, (self.size.side, self.size.side))
