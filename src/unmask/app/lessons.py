"""What the page teaches: each setting in two sentences with its source, and a schedule as a curve and as counts."""

import html
from dataclasses import dataclass

import torch

from unmask.decoding.named_counts import FIXED, count_tokens
from unmask.decoding.names import list_shapes
from unmask.errors import ConfigError, look_up

MOST_TOKENS, MOST_BARS = 4096, 256
"""The largest canvas and the most steps that the page draws."""
CURVED = ("google", "x-transformers", "muse")
"""Styles that round g(t); the shape of valeoai-v1 is a density, and others have a rule of their own."""


@dataclass(frozen=True)
class Lesson:
    """A setting, two sentences on it, and the paper that it comes from."""

    setting: str
    text: str
    source: str
    paper: str


LESSONS = (
    Lesson(
        "Steps",
        "Each step is one forward pass that predicts all masked tokens at once and keeps some of them. "
        "More steps let later tokens see more of the earlier ones, and cost as much more time.",
        "MaskGIT, section 3.2", "2202.04200",
    ),
    Lesson(
        "Schedule",
        "The schedule says which fraction of the tokens is still masked after each step. "
        "Cosine reveals few tokens at first, when little is known, and many at the end.",
        "MaskGIT, section 3.3", "2202.04200",
    ),
    Lesson(
        "Order confidence",
        "The tokens that the model is surest of are revealed first. "
        "Neighbours are often sure together, although they were sampled independently.",
        "MaskGIT, section 3.2", "2202.04200",
    ),
    Lesson(
        "Order halton",
        "Tokens are revealed in a fixed order in which neighbours lie far apart. "
        "Tokens of one step then depend little on each other, so many steps keep helping.",
        "Halton-MaskGIT, section 4", "2503.17076",
    ),
    Lesson(
        "Temperature",
        "The logits are divided by it before a token is sampled: below 1 is sharper, 0 takes the likeliest token. "
        "valeoai's code multiplies instead, so its 1.3 is 0.77 here.",
        "MaskGIT reproduction", "2310.14400",
    ),
    Lesson(
        "Noise",
        "Gumbel noise on the log-confidence makes the order confidence more random, and falls to 0 over the steps. "
        "Without it the model is sure of plain surfaces, and images become flat.",
        "MaskGIT reproduction", "2310.14400",
    ),
    Lesson(
        "Guidance scale",
        "The logits move away from those without a class: null + s (class - null). "
        "1 is no guidance; higher values follow the class and cost variety.",
        "Classifier-free guidance", "2207.12598",
    ),
    Lesson(
        "Guidance ramp",
        "Guidance can start at 1 and rise to its scale while the canvas fills. "
        "Strong guidance harms early, when most tokens are masked, and helps late.",
        "Guidance of masked diffusion", "2507.08965",
    ),
    Lesson(
        "Sampler entropy-bound",
        "The model itself says how many tokens a step reveals: as many as are nearly certain together. "
        "Easy canvases then end in fewer steps.",
        "EB-Sampler", "2505.24857",
    ),
    Lesson(
        "Sampler remdm",
        "Some revealed tokens are masked again, so that mistakes can be mended. "
        "It needs more steps than the others before it pays.",
        "ReMDM", "2503.00307",
    ),
    Lesson(
        "Top-k and top-p",
        "Tokens are sampled from the k likeliest, or from the smallest set with probability p. "
        "Lower values give safer and more uniform results.",
        "Nucleus sampling", "1904.09751",
    ),
)  # fmt: skip
"""The settings of the page."""


def write_lessons() -> str:
    """Return the lessons as Markdown."""
    lines = [f"**{one.setting}.** {one.text} [{one.source}](https://arxiv.org/abs/{one.paper})" for one in LESSONS]
    return "\n\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ScheduleDrawing:
    """A schedule as numbers."""

    ratios: list[float]
    """Fraction still masked after each step, 1 first."""
    counts: list[int]
    """Tokens that each step reveals."""
    curve: list[float]
    """The schedule itself at 65 times from 0 to 1; [] for a style that counts by another rule."""


def trace_schedule(style: str, shape: str, tokens: int, steps: int) -> ScheduleDrawing:
    """Return a schedule as `unmask schedule` counts it; ConfigError for a number or name that there is not."""
    if not 1 <= tokens <= MOST_TOKENS or not 1 <= steps <= MOST_BARS:
        raise ConfigError(
            f"{tokens} tokens in {steps} steps: take 1 to {MOST_TOKENS} tokens and 1 to {MOST_BARS} steps"
        )
    counts = count_tokens(style, None if style in FIXED else shape, tokens, steps)
    left, ratios = tokens, [1.0]
    for count in counts:
        left -= count
        ratios.append(left / tokens)
    curve = []
    if style in CURVED:
        curve = look_up(list_shapes(tokens), shape, "shape")(torch.linspace(0, 1, 65)).tolist()
    return ScheduleDrawing(ratios=ratios, counts=counts, curve=curve)


DRAWING_WIDTH, HEIGHT, LEFT, BELOW = 720, 260, 46, 30


def draw_schedule(drawing: ScheduleDrawing, title: str) -> str:
    """Return a schedule as SVG: bars for the tokens of each step, a line for the fraction still masked."""
    steps, most = len(drawing.counts), max(drawing.counts)
    room, top = DRAWING_WIDTH - 2 * LEFT, 16
    wide = room / steps
    bars = "".join(
        f'<rect x="{LEFT + i * wide + wide * 0.1:.1f}" y="{_place(count / most, top):.1f}" width="{wide * 0.8:.1f}" '
        f'height="{HEIGHT - BELOW - _place(count / most, top):.1f}"><title>step {i + 1}: {count} tokens</title></rect>'
        for i, count in enumerate(drawing.counts)
    )
    labels = "".join(
        f'<text x="{LEFT + (i + 0.5) * wide:.1f}" y="{_place(count / most, top) - 4:.1f}">{count}</text>'
        for i, count in enumerate(drawing.counts)
        if steps <= 24
    )
    after = _join([(i / steps, ratio) for i, ratio in enumerate(drawing.ratios)], room, top)
    ideal = _join([(i / 64, ratio) for i, ratio in enumerate(drawing.curve)], room, top) if drawing.curve else ""
    marks = "".join(
        f'<text x="{LEFT - 6}" y="{_place(x, top) + 4:.1f}" text-anchor="end">{x:.0%}</text>' for x in (0.0, 0.5, 1.0)
    )
    said = f"{title}: {', '.join(map(str, drawing.counts[:64]))} tokens per step"
    return (
        f'<svg viewBox="0 0 {DRAWING_WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(said)}" class="schedule">'
        f'<g class="bars">{bars}</g><g class="labels" text-anchor="middle">{labels}</g>'
        f'<polyline class="curve" points="{ideal}"/><polyline class="after" points="{after}"/>'
        f'<g class="labels">{marks}<text x="{LEFT}" y="{HEIGHT - 8}">step 1</text>'
        f'<text x="{DRAWING_WIDTH - LEFT}" y="{HEIGHT - 8}" text-anchor="end">step {steps}</text></g></svg>'
    )


def _place(share: float, top: int) -> float:
    """Return the height of a share, from the lower edge (0) to the upper one (1)."""
    return HEIGHT - BELOW - share * (HEIGHT - BELOW - top)


def _join(points: list[tuple[float, float]], room: int, top: int) -> str:
    return " ".join(f"{LEFT + x * room:.1f},{_place(y, top):.1f}" for x, y in points)
