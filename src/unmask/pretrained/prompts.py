"""Texts as aMUSEd's network reads them (arXiv 2401.01808): CLIP ViT-L/14's text model with its projection.

From the folders `text_encoder` and `tokenizer` of amused/amused-256 or amused/amused-512, by way of transformers.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError
from unmask.method.guidance import NULL
from unmask.pretrained.amused import Prompt, UVit2D
from unmask.pretrained.clip import read_clip, write_vocabulary
from unmask.pretrained.ids import check_ids
from unmask.storage.config import to_json
from unmask.storage.files import one_line
from unmask.storage.weights import skip_initial_weights

AT_ONCE = 64  # texts; of these the 13 states of all layers fill 200 MiB
FIXED: dict[str, Any] = {"attn_implementation": "sdpa", "bos_token_id": None, "pad_token_id": None}
"""What no file decides: attention is torch's own, and the network needs the number of no token but the end."""
FAILURES = (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, ImportError, RuntimeError)
"""What transformers may still raise; which of them, differs with its version."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What a `Prompted` network has for classes: so many texts."""

    num_classes: int


class Prompted:
    """The network as `guided` takes it, `(tokens, ids) -> logits`: id i is text i, and NULL (-1), as None, the
    empty text, or a negative one."""

    def __init__(self, network: UVit2D, texts: Prompt, empty: Prompt):
        if len(empty.hidden) != 1 or texts.hidden.shape[1:] != empty.hidden.shape[1:]:
            raise ValueError(
                f"texts of shape {tuple(texts.hidden.shape)} and an empty one of {tuple(empty.hidden.shape)}: it must "
                "be one text, encoded as the others are"
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
    def grid(self) -> tuple[int, int]:
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
        # `index_select`, as plain indexing would take an id of -2 for the last text.
        hidden, pooled, micro = (
            table.index_select(0, (condition - NULL).to(table.device))
            for table in (self.prompts.hidden, self.prompts.pooled, self.prompts.micro)
        )
        return self.network(tokens, Prompt(hidden, pooled, micro), at)


class TextReader:
    """Texts to `Prompt`s. `encoder` is a transformers.CLIPTextModelWithProjection, `tokenizer` its CLIPTokenizer."""

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
        """One row per text, for pictures of `size` (height, width), on the encoder's device.

        `aesthetic`, of about 1 to 10, and `crop`, in pixels from the upper left corner, are what the training pictures
        were labelled with. ConfigError for no text, or for one of more than 77 tokens with start and end: where
        diffusers cuts it off, half a sentence would be drawn without a word.
        """
        if not texts:
            raise ConfigError("no text to encode; the empty text is ''")
        # To pad is as published: without a mask, so the network reads the padding as well.
        rows = self.tokenizer(list(texts), padding="max_length", max_length=self.longest).input_ids
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.longest:
                raise ConfigError(
                    f"{one_line(text)!r} has {len(row)} tokens with start and end, and {self.longest} fit: shorten it"
                )
        ids = torch.tensor(rows, device=self.encoder.device)
        parts = [self.encoder(part, output_hidden_states=True) for part in ids.split(AT_ONCE)]
        facts = torch.tensor([size[1], size[0], *crop, aesthetic], dtype=torch.float32, device=ids.device)
        return Prompt(
            hidden=torch.cat([part.hidden_states[-2] for part in parts]),
            pooled=torch.cat([part.text_embeds for part in parts]),
            micro=facts.expand(len(ids), -1),
        )


def load_text_reader(folder: Path) -> TextReader:
    """From a folder that holds `text_encoder` and `tokenizer`; nothing is downloaded and no code in there is run.

    transformers sees what `read_clip` read, and not the folder. CheckpointError for a folder without them, for another
    network's weights, or for a tokenizer of another vocabulary.
    """
    try:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer
    except ImportError as error:
        raise ConfigError("prompts need transformers: pip install 'unmask[prompts]'") from error
    found = read_clip(folder)
    try:
        config = CLIPTextConfig(**to_json(found.sizes), **FIXED)
        with skip_initial_weights(torch.float32):
            encoder: Any = CLIPTextModelWithProjection(config)
        encoder.load_state_dict(found.weights)
        with tempfile.TemporaryDirectory(prefix="unmask-words-") as own:
            write_vocabulary(found.vocabulary, Path(own))
            tokenizer: Any = CLIPTokenizer.from_pretrained(Path(own) / "tokenizer", local_files_only=True)
    except FAILURES as error:
        reason = one_line((str(error).strip() or type(error).__name__).splitlines()[0])
        raise CheckpointError(
            f"{one_line(str(folder))}: transformers makes no CLIP text model of it ({reason}); copy the folder anew"
        ) from error
    return TextReader(tokenizer, encoder.requires_grad_(False).eval())
