"""Show how a text was sampled, token by token: coloured frames for a terminal, and one HTML page to step through."""

import html
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.method.sampling.decode import State
from unmask.tokenizers.text import TextTokenizer

MASKED_CHARACTER, END_CHARACTER = "·", "⏹"
HIDDEN = ' class="hidden"'


def find_unmasking_steps(states: Sequence[State], row: int = 0) -> Int[Tensor, "l"]:
    """Return the number of the state, from 1, that finally unmasked each token; 0 if the token was given."""
    when = torch.zeros(states[0].tokens.shape[1], dtype=torch.long)
    for number, state in enumerate(states):
        when[state.revealed[row].cpu()] = number
    return when


def choose_colour(when: int, last: int) -> tuple[int, int, int]:
    """Choose a colour for state number `when`: red for the first, over yellow and green, to blue for the last."""
    x = (when - 1) / max(1, last - 1)
    stops = [(214, 69, 65), (214, 158, 46), (56, 142, 60), (30, 100, 200)]
    place = min(2, int(x * 3))
    part = x * 3 - place
    low, high = stops[place], stops[place + 1]
    return tuple(round(a + (b - a) * part) for a, b in zip(low, high, strict=True))  # type: ignore[return-value]


def group_runs(
    tokens: Int[Tensor, "l"], when: Sequence[int], tokenizer: TextTokenizer, front: int
) -> Iterator[tuple[int | None, str]]:
    """Yield (state number, text) for adjacent tokens of one state; None as number means masked.

    Tokens are decoded together, since one character may be several tokens.
    """
    ids = tokens.tolist()
    kinds = [None if ids[place] >= tokenizer.vocab_size else when[place] for place in range(front, len(ids))]
    for kind, group in groupby(range(front, len(ids)), key=lambda place: kinds[place - front]):
        places = list(group)
        if kind is None:
            yield None, MASKED_CHARACTER * len(places)
            continue
        parts = [list(part) for _, part in groupby(places, key=lambda place: ids[place] == tokenizer.end_id)]
        ended = (
            END_CHARACTER * len(part) if ids[part[0]] == tokenizer.end_id else _decode_text(ids, part, tokenizer)
            for part in parts
        )
        yield kind, "".join(ended)


def _decode_text(ids: list[int], places: list[int], tokenizer: TextTokenizer) -> str:
    return tokenizer.decode([ids[place] for place in places])


def render_frames(states: Sequence[State], tokenizer: TextTokenizer, front: int, row: int = 0) -> Iterator[str]:
    """Yield one frame per state for a terminal with 24-bit colours. Given text is plain, masked tokens are dots."""
    when, last = find_unmasking_steps(states, row).tolist(), len(states) - 1
    for state in states:
        words = []
        for kind, text in group_runs(state.tokens[row], when, tokenizer, front):
            red, green, blue = choose_colour(kind or 1, last)
            words.append(f"\x1b[38;2;{red};{green};{blue}m{text}\x1b[0m" if kind else text)
        yield "".join(words)


def render_page(states: Sequence[State], tokenizer: TextTokenizer, front: int, title: str, rows: int) -> str:
    """Return a self-contained HTML page with a slider that steps through the sampling of `rows` texts."""
    last = len(states) - 1
    body = "\n".join(render_row(states, tokenizer, front, row, last) for row in range(rows))
    return _PAGE.format(title=html.escape(title), body=body, last=last)


def render_row(states: Sequence[State], tokenizer: TextTokenizer, front: int, row: int, last: int) -> str:
    """Return a paragraph of HTML: a text after the last of `states`, each part coloured by the state that unmasked it.

    Masked tokens are dots of the class "hidden". `last` is the number of the state whose colour is blue.
    """
    spans = []
    for kind, text in group_runs(states[-1].tokens[row], find_unmasking_steps(states, row).tolist(), tokenizer, front):
        if not kind:
            spans.append(f"<span{HIDDEN if kind is None else ''}>{html.escape(text)}</span>")
            continue
        red, green, blue = choose_colour(kind, last)
        spans.append(
            f'<span data-step="{kind}" style="color:rgb({red},{green},{blue})" title="step {kind}">'
            f"{html.escape(text)}</span>"
        )
    return f"<p>{''.join(spans)}</p>"


_PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="generator" content="made by unmask">
<title>{title}</title>
<style>
  body {{ font: 16px/1.6 Georgia, serif; max-width: 46em; margin: 2em auto; padding: 0 1em; color: #333 }}
  p {{ white-space: pre-wrap; border-bottom: 1px solid #ddd; padding-bottom: 1em }}
  span.hidden {{ color: #bbb !important }}
  input {{ width: 100% }}
</style>
<h1>{title}</h1>
<label>step <output id="now">{last}</output> of {last}: black was given, red came first, blue last
<input id="step" type="range" min="0" max="{last}" value="{last}"></label>
{body}
<script>
  const spans = [...document.querySelectorAll("span[data-step]")];
  for (const s of spans) s.dataset.text = s.textContent;
  document.getElementById("step").addEventListener("input", event => {{
    const now = +event.target.value;
    document.getElementById("now").textContent = now;
    for (const s of spans) {{
      const hidden = +s.dataset.step > now;
      s.classList.toggle("hidden", hidden);
      s.textContent = hidden ? "·".repeat(s.dataset.text.length) : s.dataset.text;
    }}
  }});
</script>
"""
