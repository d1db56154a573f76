"""Text model + tokenizer + sampler in one object: write, go on from a prompt, or fill the holes of a text."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import Unpack

from unmask.data.tokens import count_rows_at_once
from unmask.decoding.sampling import FromCritic, Sampling
from unmask.decoding.settings import SamplingSettings
from unmask.errors import CheckpointError, ConfigError, check_type, check_whole_numbers
from unmask.method.critic import CriticScore
from unmask.method.guidance import Predict, guided
from unmask.method.masking import ABSENT
from unmask.method.models.partition import PartitionTransformer
from unmask.method.models.transformer import MaskedTransformer
from unmask.method.rand import seeded
from unmask.method.sampling.blocks import pad_canvas
from unmask.method.sampling.decode import State
from unmask.method.self_conditioning import guided_with_memory
from unmask.pipelines.base import LoadedModel, describe_device, load_network
from unmask.published.opening import open_model
from unmask.recipes.spec import TextModelSpec, collect_presets
from unmask.runtime.devices import pick_device
from unmask.runtime.int8 import split_dtype
from unmask.runtime.kernels import choose_dtype
from unmask.storage.files import write_bytes
from unmask.storage.layout import MODEL, TEXT_TOKENIZER
from unmask.storage.weights import write_weights
from unmask.tokenizers.text import BPETokenizer, TextTokenizer, open_text_tokenizer

MASK_PATTERN = re.compile(r"\[MASK(?::(\d+))?\]")
MASK_EXAMPLE = "[MASK:12]"
WRONG_MASK = re.compile(r"\[\s*mask[^\]]{0,40}\]", re.IGNORECASE)


@dataclass(frozen=True)
class MaskedText:
    """A text as tokens, some of them masked; the first `front` tokens are no text."""

    tokens: Int[Tensor, "l"]
    front: int


class TextPipeline(LoadedModel[TextModelSpec]):
    """A text model ready to use.

    Every call takes settings as keywords, by the names of the command line: steps, order, schedule, temperature, noise,
    sampler, block, top_k, top_p. What is left out is as the model has it.

    Examples:
        >>> pipe = unmask.load("runs/shakespeare")
        >>> texts = pipe("ROMEO:", num=2, steps=4)
        >>> texts[0][:6]
        'ROMEO:'
    """

    def __init__(
        self,
        model: MaskedTransformer | PartitionTransformer,
        tokenizer: TextTokenizer,
        sampling: Sampling,
        *,
        opens: bool,
    ):
        """`opens`: texts begin after an end token, as in a stream of many documents."""
        if (model.vocab_size, model.grid) != (tokenizer.vocab_size, tokenizer.grid):
            raise ConfigError(
                f"the model has {model.vocab_size} tokens on {model.grid}, the tokenizer {tokenizer.vocab_size} on "
                f"{tokenizer.grid}: they were not made for each other"
            )
        self.model, self.tokenizer, self.sampling, self.opens = model, tokenizer, sampling, opens
        self.device = next(model.parameters()).device
        self._unused = torch.tensor(tokenizer.unused, dtype=torch.long, device=self.device)
        self._front = [tokenizer.end_id] if opens else []

    # -- load and save -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        offline: bool = False,
        spec: TextModelSpec | None = None,
    ) -> "TextPipeline":
        """Load a text model, in bfloat16 where that is fast.

        Args:
            name: A run, an export or hf-hub:OWNER/NAME[@REVISION].
            device: "auto" (cuda, mps or cpu, whichever is there first), or the name of one.
            dtype: The type of the weights in memory; torch.int8, on a CPU, rounds the network's linear layers.
            offline: Use what is in the cache, and ask no server.
            spec: What config.json holds, if it was read before; `name` is then the folder.

        Raises:
            CheckpointError: There is no such model, or a file is missing or damaged.
            ConfigError: config.json does not fit, or int8 does not work here.
            DataError: The tokenizer's file is not one.
        """
        folder = Path(name)
        if spec is None:
            opened = open_model(name, offline=offline)
            spec, folder = opened.require_text_spec("sample"), opened.fetch()
        tokenizer = open_text_tokenizer(folder / TEXT_TOKENIZER, spec.tokenizer.context)
        if spec.tokenizer_sha256 not in (None, tokenizer.sha256):
            raise CheckpointError(f"{folder / TEXT_TOKENIZER} is another tokenizer than the model was trained with")
        where = pick_device(device)
        dtype, int8 = split_dtype(dtype, where)
        build = partial(spec.model.build, tokenizer.vocab_size, tokenizer.grid)
        model: Any = load_network(build, folder / MODEL, where, dtype or choose_dtype(where), int8=int8)
        pipeline = cls(model, tokenizer, spec.sampling, opens=spec.opens)
        pipeline.spec, pipeline.folder = spec.spec, folder
        return pipeline

    def _write_weights(self, out: Path, spec: TextModelSpec) -> TextModelSpec:
        out.mkdir(parents=True, exist_ok=True)
        write_weights(dict(self.model.named_parameters()), out / MODEL)
        write_bytes(self.tokenizer.to_bytes(), out / TEXT_TOKENIZER)
        return replace(spec, sampling=self.sampling, tokenizer_sha256=self.tokenizer.sha256)

    @property
    def _module(self) -> nn.Module:
        return self.model

    # -- generate, watch, infill ---------------------------------------------------------------------------------------

    def __call__(
        self, prompt: str = "", *, num: int = 1, seed: int = 0, **settings: Unpack[SamplingSettings]
    ) -> list[str]:
        """Generate `num` texts that begin with `prompt`."""
        return self.generate(prompt, num=num, seed=seed, **settings)

    def generate(
        self,
        prompt: str = "",
        *,
        num: int = 1,
        seed: int = 0,
        length: int | None = None,
        batch: int = 64,
        sampling: Sampling | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> list[str]:
        """Generate texts, each up to its end token.

        Args:
            prompt: The text to continue; it stays as it is.
            num: How many texts.
            seed: Text i of a seed is the same whatever the batch.
            length: Tokens at most, with the prompt; by default the model's context.
            batch: Texts sampled together, at most.
            sampling: All settings at once, in place of the model's own.
            settings: See `SamplingSettings`; an unknown one is refused with the nearest name.

        Raises:
            ConfigError: A prompt, number or setting that this model cannot use.
        """
        check_type("prompt", prompt, str)
        check_whole_numbers({"num": num, "seed": seed, "length": length, "batch": batch})
        canvas = self.make_canvas(prompt, length)
        chosen = self._choose_sampling(sampling, settings, self.model.grid)
        rows = self.finish(canvas, num, seed=seed, sampling=chosen, batch=batch)
        return [self.decode_row(row, canvas.front) for row in rows]

    def stream(self, prompt: str = "", *, seed: int = 0, **settings: Unpack[SamplingSettings]) -> Iterator[str]:
        """Yield the text after each step, the masked canvas first; "░" stands for a masked token."""
        check_type("prompt", prompt, str)
        check_whole_numbers({"seed": seed})
        canvas = self.make_canvas(prompt)
        sampling = self._choose_sampling(None, settings, self.model.grid)
        for state in self.stream_states(canvas.tokens[None], seed=seed, sampling=sampling):
            yield self._decode_masked(state.tokens[0, canvas.front :])

    def infill(
        self,
        text: str,
        *,
        num: int = 1,
        seed: int = 0,
        sampling: Sampling | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> list[str]:
        """Return `num` versions of `text` with each "[MASK:12]" filled by 12 tokens; "[MASK]" is one token.

        The given text stays as it is. With a byte-pair tokenizer a word includes the space before it, so a space before
        a mask is left to the mask. ConfigError for a text without masks, an empty mask, or one beyond the context.
        """
        check_type("text", text, str)
        check_whole_numbers({"num": num, "seed": seed})
        masked = self.mask_text(text)
        chosen = self._choose_sampling(sampling, settings, self.model.grid)
        rows = self.finish(masked, num, seed=seed, sampling=chosen, ends=False)
        return [self.tokenizer.decode(row[masked.front :]) for row in rows]

    # -- in tensors, for those who build on it -------------------------------------------------------------------------

    def predict(self, *, remember: bool = True, ends: bool = True) -> Predict:
        """Return the model's logits, without tokens that no text contains; a shorter canvas ends where its text does.

        A self-conditioned model needs a new one for each batch, as it remembers its last prediction.
        Without `ends`, no end token can be sampled.
        """
        remembers = isinstance(self.model, MaskedTransformer) and self.model.config.self_condition
        make = guided_with_memory if remembers and remember else guided
        whole = pad_canvas(make(self.model, None), self.model.length, self._beyond)
        end = self._unused.new_tensor([] if ends else [self.tokenizer.end_id])
        banned = torch.cat([self._unused, end])

        def predict(tokens: Tensor, t: float, *places: Tensor) -> Tensor:
            return whole(tokens, t, *places).float().index_fill(-1, banned, -torch.inf)

        predict.takes_places = getattr(whole, "takes_places", False)  # type: ignore[attr-defined]
        return predict

    def score_tokens(self, canvas: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """Return the critic's logit that a token is right."""
        rest = canvas.new_full((len(canvas), self.model.length - canvas.shape[1]), self._beyond)
        return self.model(torch.cat([canvas, rest], 1), judge=True)[:, : canvas.shape[1]]

    @property
    def _beyond(self) -> int:
        """What follows a short canvas: nothing (ABSENT) if the model knows that, or else tokens that stay masked."""
        return ABSENT if self.model.config.padded else self.model.mask_id

    def stream_states(
        self,
        tokens: Int[Tensor, "b l"],
        *,
        seed: int = 0,
        first: int = 0,
        sampling: Sampling | None = None,
        ends: bool = True,
        watch: Callable[[Predict], Predict] | None = None,
    ) -> Iterator[State]:
        """Decode step by step; row i draws the noise of text number `first + i`, whatever the batch.

        Without `ends` no end token is drawn, as inside of a given text. The sampler uses `watch(predict)`.
        """
        s = (sampling or self.sampling).fit_to((tokens.shape[1],))
        critic = CriticScore(self.score_tokens, s.priority.noise) if isinstance(s.priority, FromCritic) else s.priority
        predict = self.predict(ends=ends)
        return s.run(
            predict if watch is None else watch(predict),
            tokens.to(self.device),
            mask_id=self.model.mask_id,
            rand=seeded(seed, len(tokens), first=first, device=self.device),
            priority=critic,
        )

    def finish(
        self,
        canvas: MaskedText,
        num: int,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
        batch: int = 64,
        ends: bool = True,
    ) -> Iterator[Int[Tensor, "l"]]:
        """`num` versions of a canvas, a batch at a time that is small enough for a large vocabulary."""
        batch = count_rows_at_once(batch, len(canvas.tokens), self.model.vocab_size, self.device)
        for first in range(0, num, batch):
            rows = canvas.tokens.expand(min(batch, num - first), -1)
            for state in self.stream_states(rows, seed=seed, first=first, sampling=sampling, ends=ends):
                tokens = state.tokens
            yield from tokens

    def make_canvas(self, prompt: str, length: int | None = None) -> MaskedText:
        """Return the prompt, followed by as many masked tokens as there is room for."""
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
        return MaskedText(tokens, len(self._front))

    def mask_text(self, text: str) -> MaskedText:
        """Return a text with masks as tokens."""
        parts = MASK_PATTERN.split(text)  # text, count, text, count, ..., text
        if len(parts) == 1:
            raise ConfigError(f"there is no mask to fill: write {MASK_EXAMPLE} where 12 tokens are missing")
        ids: list[int] = list(self._front)
        for i, part in enumerate(parts):
            ids += self._encode_known(part, before_mask=i + 1 < len(parts)) if i % 2 == 0 else self._encode_mask(part)
        if len(ids) > self.model.length:
            raise ConfigError(
                f"text and masks take {len(ids)} tokens, but this model's context is {self.model.length}: shorten them"
            )
        if self.opens and len(ids) < self.model.length:
            ids.append(self.tokenizer.end_id)
        return MaskedText(torch.tensor(ids, device=self.device), len(self._front))

    def _encode_known(self, text: str, before_mask: bool) -> list[int]:
        if WRONG_MASK.search(text):
            raise ConfigError(f"{WRONG_MASK.search(text)[0]} is no mask: write [MASK] or {MASK_EXAMPLE}")  # type: ignore[index]
        if before_mask and isinstance(self.tokenizer, BPETokenizer) and text.endswith(" "):
            text = text[:-1]
        return self.tokenizer.encode(text).tolist()

    def _encode_mask(self, count: str | None) -> list[int]:
        if count is not None and not count.strip("0"):
            raise ConfigError(
                f"[MASK:{count}] is an empty hole: give the number of missing tokens, as in {MASK_EXAMPLE}"
            )
        if count is not None and (len(count) > 9 or int(count) > self.model.length):
            raise ConfigError(f"[MASK:{count}] is longer than this model's context of {self.model.length} tokens")
        return [self.model.mask_id] * (1 if count is None else int(count))

    def decode_row(self, tokens: Int[Tensor, "l"], front: int) -> str:
        """Return the text of a row, without its front and up to its end token."""
        row: Sequence[int] = tokens[front:].tolist()
        end = row.index(self.tokenizer.end_id) if self.tokenizer.end_id in row else len(row)
        return self.tokenizer.decode(row[:end])

    # -- as text -------------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, str]:
        """Return what the model is, in a few words each."""
        size = sum(p.numel() for p in self.model.parameters())
        return {
            "model": "by hand" if self.folder is None else self.folder.name,
            "context": f"{self.model.length} tokens of {self.model.vocab_size:,}",
            "network": f"{type(self.model).__name__}, {size:,} parameters",
            "sampling": f"{self.sampling.steps} steps, {type(self.sampling.priority).__name__}",
            "device": describe_device(self.device, self.model),
        }

    # -- inside --------------------------------------------------------------------------------------------------------

    def _choose_sampling(self, sampling: Sampling | None, settings: Any, grid: tuple[int, ...]) -> Sampling:
        for name, kind in (
            ("guidance", "nothing to guide towards"),
            ("ramp", "nothing to guide towards"),
            ("preset", "no such preset: unmask tune finds some"),
        ):
            if settings.get(name) not in (None, *collect_presets(self.spec)):
                raise ConfigError(f"{name} {settings[name]}: a text model has {kind}; leave it out")
        return super()._choose_sampling(sampling, settings, grid)

    def _decode_masked(self, tokens: Int[Tensor, "l"]) -> str:
        """Return the text of a row, a "░" for each masked token, up to the end token."""
        row: list[int] = tokens.tolist()
        parts: list[str] = []
        known: list[int] = []
        for token in [*row, None]:
            if token is None or token in (self.model.mask_id, self.tokenizer.end_id):
                parts.append(self.tokenizer.decode(known) if known else "")
                known = []
                if token != self.model.mask_id:
                    break
                parts.append("░")
            else:
                known.append(token)
        return "".join(parts)
