"""Continue or infill texts step by step, for the tab Text; no part of this knows the page."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unmask.app.commands import write_command, write_python
from unmask.app.watching import LOGITS
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.figures.texts import render_page, render_row
from unmask.method.sampling.decode import State
from unmask.pipelines.text import MASK_PATTERN, WRONG_MASK, TextPipeline
from unmask.runtime.shortage import check_memory
from unmask.storage.files import write_text
from unmask.tokenizers.text import TextTokenizer

PAGE_TEXTS = 4
"""Texts at once on the page."""
BETWEEN = "-" * 50
"""The line between two texts, as the command prints it."""
STYLE = (
    "<style>.texts { font: 16px/1.6 Georgia, serif; background: #fff; padding: 1.2em 1em .2em; border-radius: 8px } "
    ".texts p { white-space: pre-wrap; overflow-wrap: anywhere; margin: .6em 0 } "
    ".texts p + p { border-top: 1px solid #ddd; padding-top: .6em } "
    ".texts span:not([data-step]) { color: #333 !important } "
    ".texts span.hidden:not([data-step]) { color: #767676 !important }</style>"
)
"""How the page shows texts, in light and dark themes alike."""


@dataclass(frozen=True, kw_only=True)
class TextWish:
    """What to write."""

    text: str = ""
    """A text to continue; with [MASK:12] in it, a text to infill."""
    num: int = 1
    """How many texts."""
    length: int | None = None
    """Tokens at most, with the text to continue; None is the model's context."""
    seed: int = 0
    """The seed."""

    @property
    def has_masks(self) -> bool:
        """Whether the text is infilled, not continued; a mask that is misspelt counts, so that it is refused."""
        return MASK_PATTERN.search(self.text) is not None or WRONG_MASK.search(self.text) is not None


@dataclass(kw_only=True)
class TextRecording:
    """All steps of writing some texts, on the CPU; what the page draws and steps through."""

    tokenizer: TextTokenizer
    front: int
    """How many tokens in front are no text."""
    whole: bool
    """Whether a text ends where its tokens end, as an infilled one does, and not at its end token."""
    steps: int
    """The number of steps, as planned."""
    last: int
    """The state whose tokens are blue: the last one, or about that while the texts are written."""
    states: list[State] = field(default_factory=list)
    """Each step, the masked canvas first."""

    def render(self, number: int) -> str:
        """Return HTML of all texts after a step; each token has the colour of its step, and all text is escaped."""
        states = self.states[: number + 1]
        last = max(self.last, number)
        rows = [render_row(states, self.tokenizer, self.front, i, last) for i in range(len(states[0].tokens))]
        return f'{STYLE}<div class="texts">{"".join(rows)}</div>'

    def is_complete(self, mask_id: int) -> bool:
        """Return whether no token is masked any more."""
        return not bool((self.states[-1].tokens == mask_id).any())


def stream_texts(pipeline: TextPipeline, wish: TextWish, sampling: Sampling) -> tuple[TextRecording, Iterator[int]]:
    """Return a recording, and an iterator that adds a step to it each time and yields its number.

    Raises:
        ConfigError: A text or a number that this model cannot use.
        ShortageError: So many texts do not fit into memory.
    """
    if not 1 <= wish.num <= PAGE_TEXTS:
        raise ConfigError(f"{wish.num} texts: take 1 to {PAGE_TEXTS}")
    whole = wish.has_masks
    canvas = pipeline.mask_text(wish.text) if whole else pipeline.make_canvas(wish.text, wish.length)
    logits = wish.num * len(canvas.tokens) * pipeline.model.vocab_size
    check_memory(LOGITS * 4 * logits, pipeline.device, "take fewer texts at once")
    masked = int((canvas.tokens == pipeline.model.mask_id).sum())
    recording = TextRecording(
        tokenizer=pipeline.tokenizer, front=canvas.front, whole=whole, steps=sampling.steps,
        last=min(sampling.steps, masked),
    )  # fmt: skip
    rows = canvas.tokens.expand(wish.num, -1)
    states = pipeline.stream_states(rows, seed=wish.seed, sampling=sampling, ends=not whole)
    return recording, _record_texts(recording, states)


def _record_texts(recording: TextRecording, states: Iterator[State]) -> Iterator[int]:
    for number, state in enumerate(states):
        recording.states.append(replace(state, tokens=state.tokens.cpu(), revealed=state.revealed.cpu()))
        yield number
    recording.last = len(recording.states) - 1


def decode_texts(pipeline: TextPipeline, recording: TextRecording) -> list[str]:
    """Return the finished texts."""
    rows, front = recording.states[-1].tokens, recording.front
    if recording.whole:
        return [pipeline.tokenizer.decode(row[front:]) for row in rows]
    return [pipeline.decode_row(row, front) for row in rows]


def write_text_lines(name: str, wish: TextWish, settings: dict[str, Any]) -> tuple[str, str]:
    """Return the command line and the Python lines that write the same texts."""
    given = {"num": wish.num, "seed": wish.seed} | settings
    if wish.has_masks:
        command = write_command("infill", [name, wish.text], given)
        return command, write_python(name, "texts = pipe.infill", [wish.text], given)
    command = write_command("generate", [name], {"prompt": wish.text or None, "length": wish.length} | given)
    arguments = [wish.text] if wish.text else []
    return command, write_python(name, "texts = pipe.generate", arguments, {"length": wish.length} | given)


def write_text_downloads(folder: Path, recording: TextRecording, texts: list[str]) -> tuple[str, str]:
    """Write the texts as the command prints them, and a page on which a slider steps through them."""
    plain, page = folder / "texts.txt", folder / "texts.html"
    ending = f"\n{BETWEEN}\n" if len(texts) > 1 else "\n"
    write_text("".join(text + ending for text in texts), plain)
    rows = len(recording.states[0].tokens)
    write_text(render_page(recording.states, recording.tokenizer, recording.front, "unmask", rows), page)
    return str(plain), str(page)
