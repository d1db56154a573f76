"""`MaskGit` of muse-maskgit-pytorch, without its tokenizer and its text encoder."""

from typing import Any

import torch
from peer import Peer
from sizes import Size
from stubs import stub_packages
from torch import Tensor, nn

NOT_NEEDED = (
    "torchvision",
    "memory_efficient_attention_pytorch",
    "muse_maskgit_pytorch.t5",
    "muse_maskgit_pytorch.trainers",
)


class MusePeer(Peer):
    """Each layer also attends to a text, here one fixed vector. Without guidance; `flash` is a Python loop on a CPU."""

    name, package = "muse-maskgit", "muse-maskgit-pytorch"

    def build(self, size: Size) -> nn.Module:
        with stub_packages(*NOT_NEEDED):
            from muse_maskgit_pytorch import MaskGit, MaskGitTransformer, VQGanVAE, muse_maskgit_pytorch

        class NoTokenizer(VQGanVAE):
            codebook_size = size.codes

            def __init__(self) -> None:
                nn.Module.__init__(self)

            def copy_for_eval(self) -> nn.Module:
                return self

            def get_encoded_fmap_size(self, image_size: int) -> int:
                return image_size

            def decode_from_ids(self, ids: Tensor) -> Tensor:
                return ids

        muse_maskgit_pytorch.tqdm = lambda steps, **_: steps
        muse_maskgit_pytorch.get_encoded_dim = lambda _: size.dim
        transformer = MaskGitTransformer(
            num_tokens=size.codes,
            dim=size.dim,
            seq_len=size.cells,
            depth=size.depth,
            heads=size.heads,
            dim_head=size.dim // size.heads,
            flash=False,
        )
        transformer.encode_text = self.encode_text
        return MaskGit(image_size=size.side, transformer=transformer, vae=NoTokenizer(), cond_drop_prob=0.0)

    @property
    def network(self) -> Any:
        return self.module.transformer

    def encode_text(self, texts: list[str]) -> Tensor:
        """Return one vector per text."""
        return torch.ones(len(texts), 1, self.size.dim, dtype=self.dtype)

    def sample(self) -> Tensor:
        texts = [""] * self.size.batch
        return self.module.generate(texts, timesteps=self.size.steps, cond_scale=1).flatten(1)

    def compute_loss(self, tokens: Tensor) -> Tensor:
        return self.module(tokens, texts=[""] * len(tokens))

    def answer_free(self, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        return logits, logits
