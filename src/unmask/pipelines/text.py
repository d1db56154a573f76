"""Text model + tokenizer + sampler in one object: write, go on from a prompt, or fill the holes of a text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.data.text.shards import TEXT_TOKENIZER
from unmask.data.tokens import rows_at_once
from unmask.decoding.sampling import FromCritic, Sampling
from unmask.errors import CheckpointError, ConfigError
from unmask.method.critic import CriticScore
from unmask.method.guidance import Predict, guided, remembering
from unmask.method.masking import ABSENT
from unmask.method.models.transformer import MaskedTransformer
from unmask.method.rand import seeded
from unmask.method.sampling.blocks import filled_up
from unmask.method.sampling.decode import State
from unmask.recipes.reading import read_recipe
from unmask.recipes.schema import TextRecipe
from unmask.runtime.kernels import fast_dtype
from unmask.runtime.packed import pack
from unmask.storage.weights import load_weights, skip_initial_weights
from unmask.tokenizers.text import BPETokenizer, TextTokenizer, open_text_tokenizer

HOLE = re.compile(r"\[MASK(?::(\d+))?\]")
MARK = "[MASK:12]"
WRONG = re.compile(r"\[\s*mask[^\]]{0,40}\]", re.IGNORECASE)


@dataclass(frozen=True)
class Holed:
    """A text as tokens, holes being masked: what `infill` works on; `front` tokens stand before its first."""

    tokens: Int[Tensor, "l"]
    front: int


class TextPipeline:
    """A trained model with its tokenizer; `sampling` holds the defaults that every call may replace.

    `opens`: texts begin after an end token, as they do in a stream of many documents.
    """

    def __init__(self, model: MaskedTransformer, tokenizer: TextTokenizer, sampling: Sampling, *, opens: bool):
        if (model.vocab_size, model.grid) != (tokenizer.vocab_size, tokenizer.grid):
            raise ConfigError(
                f"the model has {model.vocab_size} tokens on {model.grid}, the tokenizer {tokenizer.vocab_size} on "
                f"{tokenizer.grid}: they were not made for each other"
            )
        self.model, self.tokenizer, self.sampling, self.opens = model, tokenizer, sampling, opens
        self.device = next(model.parameters()).device
        self._unused = torch.tensor(tokenizer.unused, dtype=torch.long, device=self.device)
        self._front = [tokenizer.end_id] if opens else []

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None
    ) -> "TextPipeline":
        """Load `config.json`, `model.safetensors` and `tokenizer.json` of a run, in bfloat16 where that is fast.

        Raises CheckpointError, ConfigError or DataError, naming what is missing or does not fit.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no config.json there; give a run folder or an export")
        recipe = read_recipe(folder / "config.json", TextRecipe)
        tokenizer = open_text_tokenizer(folder / TEXT_TOKENIZER, recipe.tokenizer.context)
        if recipe.tokenizer_sha256 not in (None, tokenizer.sha256):
            raise CheckpointError(f"{folder / TEXT_TOKENIZER} is another tokenizer than the model was trained with")
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        kind = dtype or fast_dtype(where)
        with skip_initial_weights(kind):
            model = recipe.model.build(tokenizer.vocab_size, tokenizer.grid)
        model = pack(model.to(where, kind).eval())
        load_weights(model, folder / "model.safetensors")
        return cls(model, tokenizer, recipe.sampling, opens=recipe.opens)

    def predict(self, *, remember: bool = True, ends: bool = True) -> Predict:
        """The model's logits, with what no text is made of ruled out; a shorter canvas ends where its text does.

        Made anew for each batch, as a self-conditioned model remembers what it thought of this one, if it may.
        Without `ends` no end token can be drawn.
        """
        make = remembering if self.model.config.self_condition and remember else guided
        whole = filled_up(make(self.model, None), self.model.length, self._beyond)
        end = self._unused.new_tensor([] if ends else [self.tokenizer.end_id])
        banned = torch.cat([self._unused, end])
        return lambda tokens, t: whole(tokens, t).float().index_fill(-1, banned, -torch.inf)

    def judge(self, canvas: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """The critic's logit that a token is right."""
        rest = canvas.new_full((len(canvas), self.model.length - canvas.shape[1]), self._beyond)
        return self.model(torch.cat([canvas, rest], 1), judge=True)[:, : canvas.shape[1]]

    @property
    def _beyond(self) -> int:
        """What stands after the end of a canvas: nothing, if the model knows that, or else tokens that stay masked."""
        return ABSENT if self.model.config.padded else self.model.mask_id

    def states(
        self,
        tokens: Int[Tensor, "b l"],
        *,
        seed: int = 0,
        first: int = 0,
        sampling: Sampling | None = None,
        ends: bool = True,
    ) -> Iterator[State]:
        """Decode step by step; row i draws the noise of text number `first + i`, whatever the batch.

        Without `ends` no end token is drawn, as inside of a given text.
        """
        s = (sampling or self.sampling).on((tokens.shape[1],))
        critic = CriticScore(self.judge, s.priority.noise) if isinstance(s.priority, FromCritic) else s.priority
        return s.run(
            self.predict(ends=ends),
            tokens.to(self.device),
            mask_id=self.model.mask_id,
            rand=seeded(seed, len(tokens), first=first, device=self.device),
            priority=critic,
        )

    def generate(
        self,
        prompt: str = "",
        *,
        num: int = 1,
        length: int | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        batch: int = 64,
    ) -> list[str]:
        """`num` texts that begin with `prompt`, each up to its end token, of at most `length` tokens (the context)."""
        canvas = self.canvas(prompt, length)
        rows = self.finished(canvas, num, seed=seed, sampling=sampling, batch=batch)
        return [self.text(row, canvas.front) for row in rows]

    def finished(
        self,
        canvas: Holed,
        num: int,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
        batch: int = 64,
        ends: bool = True,
    ) -> Iterator[Int[Tensor, "l"]]:
        """`num` versions of a canvas, a batch at a time that is small enough for a large vocabulary."""
        batch = rows_at_once(batch, len(canvas.tokens), self.model.vocab_size, self.device)
        for first in range(0, num, batch):
            rows = canvas.tokens.expand(min(batch, num - first), -1)
            for state in self.states(rows, seed=seed, first=first, sampling=sampling, ends=ends):
                tokens = state.tokens
            yield from tokens

    def canvas(self, prompt: str, length: int | None = None) -> Holed:
        """The prompt and, after it, as many masked tokens as there is room for."""
        length = self.model.length if length is None else length
        known = [*self._front, *self.tokenizer.encode(prompt).tolist()]
        if not 1 <= length <= self.model.length:
            raise ConfigError(f"length {length}: this model's context holds 1 to {self.model.length} tokens")
        if len(known) >= length:
            raise ConfigError(
                f"the prompt takes {len(known)} of {length} tokens and leaves none to write: shorten it"
                + (", or raise the length" if length < self.model.length else "")
            )
        tokens = torch.full((length,), self.model.mask_id, device=self.device)
        tokens[: len(known)] = torch.tensor(known, dtype=torch.long)
        return Holed(tokens, len(self._front))

    def infill(self, text: str, *, num: int = 1, seed: int = 0, sampling: Sampling | None = None) -> list[str]:
        """`num` versions of `text` with each "[MASK:12]" filled by 12 tokens; "[MASK]" is one token.

        What is given stays as it is. Of a byte-pair tokenizer a word brings its own space, so one before a hole is left
        to the hole. Raises ConfigError for a text without holes, an empty hole, or one beyond the context.
        """
        holed = self.holed(text)
        rows = self.finished(holed, num, seed=seed, sampling=sampling, ends=False)
        return [self.tokenizer.decode(row[holed.front :]) for row in rows]

    def holed(self, text: str) -> Holed:
        """A text with holes as tokens."""
        parts = HOLE.split(text)  # text, count, text, count, ..., text
        if len(parts) == 1:
            raise ConfigError(f"there is no hole to fill: write {MARK} where 12 tokens are missing")
        ids: list[int] = list(self._front)
        for i, part in enumerate(parts):
            ids += self._known(part, before_hole=i + 1 < len(parts)) if i % 2 == 0 else self._hole(part)
        if len(ids) > self.model.length:
            raise ConfigError(
                f"text and holes take {len(ids)} tokens, but this model's context is {self.model.length}: shorten them"
            )
        if self.opens and len(ids) < self.model.length:
            ids.append(self.tokenizer.end_id)
        return Holed(torch.tensor(ids, device=self.device), len(self._front))

    def _known(self, text: str, before_hole: bool) -> list[int]:
        if WRONG.search(text):
            raise ConfigError(f"{WRONG.search(text)[0]} is no hole: write [MASK] or {MARK}")  # type: ignore[index]
        if before_hole and isinstance(self.tokenizer, BPETokenizer) and text.endswith(" "):
            text = text[:-1]
        return self.tokenizer.encode(text).tolist()

    def _hole(self, count: str | None) -> list[int]:
        if count is not None and not count.strip("0"):
            raise ConfigError(f"[MASK:{count}] is an empty hole: give the number of missing tokens, as in {MARK}")
        if count is not None and (len(count) > 9 or int(count) > self.model.length):
            raise ConfigError(f"[MASK:{count}] is longer than this model's context of {self.model.length} tokens")
        return [self.model.mask_id] * (1 if count is None else int(count))

    def text(self, tokens: Int[Tensor, "l"], front: int) -> str:
        """The text of a row, from after its front up to its end token."""
        row: Sequence[int] = tokens[front:].tolist()
        end = row.index(self.tokenizer.end_id) if self.tokenizer.end_id in row else len(row)
        return self.tokenizer.decode(row[:end])
