"""Encode texts for aMUSEd's network (arXiv 2401.01808) with CLIP ViT-L/14's text model and its projection.

The text model comes from the folders `text_encoder` and `tokenizer` of amused/amused-256 or amused/amused-512, and runs
in transformers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.errors import ConfigError
from unmask.method.guidance import NULL
from unmask.pretrained.amused import Prompt, UVit2D
from unmask.pretrained.clip import read_clip
from unmask.pretrained.ids import check_ids
from unmask.storage.files import escape_line

TEXTS_AT_ONCE = 64
"""Texts per batch; the 13 states of all layers of one batch take 200 MiB."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The configuration of a `Prompted` network: its classes are texts."""

    num_classes: int
    """Number of texts."""


class Prompted:
    """A network with fixed prompts, which `guided` can call as `(tokens, ids) -> logits`: id i is prompt i.

    NULL (-1) and None are the prompt `empty`: the empty text, or a negative prompt.
    """

    def __init__(self, network: UVit2D, texts: Prompt, empty: Prompt):
        if len(empty.hidden) != 1 or texts.hidden.shape[1:] != empty.hidden.shape[1:]:
            raise ValueError(
                f"texts of shape {tuple(texts.hidden.shape)} and an empty one of {tuple(empty.hidden.shape)}: it must "
                "be one text, encoded like the others"
            )
        self.network = network
        device = network.head.weight.device
        self.prompts = Prompt(
            torch.cat([empty.hidden, texts.hidden]).to(device),
            torch.cat([empty.pooled, texts.pooled]).to(device),
            torch.cat([empty.micro, texts.micro]).to(device),
        )

    @property
    def vocab_size(self) -> int:
        return self.network.vocab_size

    @property
    def grid(self) -> tuple[int, ...]:
        return self.network.grid

    @property
    def length(self) -> int:
        return self.network.length

    @property
    def mask_id(self) -> int:
        return self.network.mask_id

    @property
    def config(self) -> "Texts":
        return Texts(num_classes=len(self.prompts.hidden) - 1)

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.network.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.network.named_parameters()

    def __call__(
        self,
        tokens: Int[Tensor, "b l"],
        condition: Int[Tensor, "b"] | None = None,
        at: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "..."]:
        if condition is None:
            condition = tokens.new_full((len(tokens),), NULL)
        check_ids("texts", condition, NULL, self.config.num_classes - 1, f"{NULL} is no text")
        # `index_select`, because plain indexing would read an id of -2 as the last text.
        hidden, pooled, micro = (
            table.index_select(0, (condition - NULL).to(table.device))
            for table in (self.prompts.hidden, self.prompts.pooled, self.prompts.micro)
        )
        return self.network(tokens, Prompt(hidden, pooled, micro), at)


class TextReader:
    """Encode texts as a `Prompt`.

    `encoder` is a transformers.CLIPTextModelWithProjection, and `tokenizer` is its CLIPTokenizer.
    """

    def __init__(self, tokenizer: Any, encoder: Any):
        self.tokenizer, self.encoder = tokenizer, encoder
        self.longest: int = encoder.config.max_position_embeddings

    @torch.no_grad()
    def __call__(
        self,
        texts: list[str] | tuple[str, ...],
        size: tuple[int, int],
        *,
        aesthetic: float = 6.0,
        crop: tuple[int, int] = (0, 0),
    ) -> Prompt:
        """Return one row per text, on the encoder's device.

        Args:
            texts: At least one text; "" is the empty text.
            size: Height and width of the images in pixels.
            aesthetic: Aesthetic score that the images should have, about 1 to 10, as the training images were labelled.
            crop: Upper left corner of the crop in pixels, as the training images were labelled.

        Raises:
            ConfigError: There is no text, or one has more than 77 tokens, start and end included. diffusers cuts such
                a text off silently.
        """
        if not texts:
            raise ConfigError("no text to encode: give at least one (the empty text is '')")
        # As published, padding has no attention mask, so the network reads the padding too.
        rows = self.tokenizer(list(texts), padding="max_length", max_length=self.longest).input_ids
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.longest:
                raise ConfigError(
                    f"{escape_line(text)!r} has {len(row)} tokens with start and end, and {self.longest} fit: "
                    "shorten it"
                )
        ids = torch.tensor(rows, device=self.encoder.device)
        parts = [self.encoder(part, output_hidden_states=True) for part in ids.split(TEXTS_AT_ONCE)]
        facts = torch.tensor([size[1], size[0], *crop, aesthetic], dtype=torch.float32, device=ids.device)
        return Prompt(
            hidden=torch.cat([part.hidden_states[-2] for part in parts]),
            pooled=torch.cat([part.text_embeds for part in parts]),
            micro=facts.expand(len(ids), -1),
        )


def load_text_reader(folder: Path) -> TextReader:
    """Load the text encoder of a folder that holds `text_encoder` and `tokenizer`; see `read_clip`."""
    clip = read_clip(folder)
    return TextReader(clip.tokenizer, clip.encoder)
