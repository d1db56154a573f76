"""How a text came to be, token by token: coloured frames for a terminal, and one HTML page to step through."""

import html
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.sampling.decode import State
from unmask.tokenizers.text import TextTokenizer

HOLE = "·"


def revealed_at(states: Sequence[State], row: int = 0) -> Int[Tensor, "l"]:
    """The number of the state, from 1, that revealed each token for good; 0 if it was given."""
    when = torch.zeros(states[0].tokens.shape[1], dtype=torch.long)
    for number, state in enumerate(states):
        when[state.revealed[row].cpu()] = number
    return when


def colour(when: int, last: int) -> tuple[int, int, int]:
    """Red for what came first, over yellow and green, to blue for what came last."""
    x = (when - 1) / max(1, last - 1)
    stops = [(214, 69, 65), (214, 158, 46), (56, 142, 60), (30, 100, 200)]
    place = min(2, int(x * 3))
    part = x * 3 - place
    low, high = stops[place], stops[place + 1]
    return tuple(round(a + (b - a) * part) for a, b in zip(low, high, strict=True))  # type: ignore[return-value]


def frames(states: Sequence[State], tokenizer: TextTokenizer, front: int, row: int = 0) -> Iterator[str]:
    """One frame per state for a terminal of 24-bit colours: what was given is plain, holes are dots."""
    when, last = revealed_at(states, row).tolist(), len(states) - 1
    for state in states:
        ids = state.tokens[row].tolist()
        words = []
        for place in range(front, len(ids)):
            if ids[place] >= tokenizer.vocab_size:
                words.append(HOLE)
                continue
            text = tokenizer.decode([ids[place]]) if ids[place] != tokenizer.end_id else "⏹"
            red, green, blue = colour(when[place], last)
            words.append(text if not when[place] else f"\x1b[38;2;{red};{green};{blue}m{text}\x1b[0m")
        yield "".join(words)


def page(states: Sequence[State], tokenizer: TextTokenizer, front: int, title: str, rows: int) -> str:
    """An HTML page without any script from elsewhere: a slider goes through the steps of `rows` texts."""
    last = len(states) - 1
    body = "\n".join(_row(states, tokenizer, front, row, last) for row in range(rows))
    return _PAGE.format(title=html.escape(title), body=body, last=last)


def _row(states: Sequence[State], tokenizer: TextTokenizer, front: int, row: int, last: int) -> str:
    when = revealed_at(states, row).tolist()
    ids = states[-1].tokens[row].tolist()
    spans = []
    for place in range(front, len(ids)):
        piece = "⏹" if ids[place] == tokenizer.end_id else tokenizer.decode([ids[place]])
        if not when[place]:
            spans.append(f"<span>{html.escape(piece)}</span>")
            continue
        red, green, blue = colour(when[place], last)
        spans.append(
            f'<span data-step="{when[place]}" style="color:rgb({red},{green},{blue})" title="step {when[place]}">'
            f"{html.escape(piece)}</span>"
        )
    return f"<p>{''.join(spans)}</p>"


_PAGE = """<!doctype html>
<meta charset="utf-8">
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
      s.textContent = hidden ? "·" : s.dataset.text;
    }}
  }});
</script>
"""
