"""`unmask schedule`: tokens per step, as each code base of the field counts them."""

import json as json_text
import sys
from dataclasses import dataclass

from unmask.cli.parsing import catch_value_errors, parse
from unmask.decoding import counts
from unmask.decoding.names import list_shapes
from unmask.errors import ConfigError, look_up

SHAPED = {
    "google": counts.count_google,
    "valeoai-v1": counts.count_valeoai_v1,
    "halton-confidence": counts.count_halton_confidence,
    "x-transformers": counts.count_x_transformers,
    "muse": counts.count_muse,
}
FIXED = {
    "halton": (counts.count_halton, "arccos"),
    "nanofm": (counts.count_nanofm, "constant"),
    "llada": (counts.count_llada, "linear"),
    "4m": (counts.count_fourm, "cosine"),
}


@dataclass(frozen=True, kw_only=True)
class ScheduleFlags:
    style: str = "google"
    """google, valeoai-v1, halton, halton-confidence, x-transformers, muse, nanofm, llada or 4m."""
    shape: str | None = None
    """uniform, linear, pow2, square, pow3, pow0.5, root, cosine, arccos, log, exp or sigmoid; cosine by default."""
    tokens: int = 256
    steps: int = 8
    json: bool = False
    """Only the list, as JSON."""


def run_schedule(arguments: list[str]) -> None:
    """print how many tokens each step reveals, as each code base of the field counts them"""
    flags = parse(ScheduleFlags, arguments, "schedule")
    with catch_value_errors():
        tokens = count_tokens(flags.style, flags.shape, flags.tokens, flags.steps)
    if flags.json:
        print(json_text.dumps(tokens))
        return
    shape = FIXED[flags.style][1] if flags.style in FIXED else flags.shape or "cosine"
    print(f"{flags.style} {shape}: {flags.tokens} tokens in {flags.steps} steps\n step  tokens    known")
    known, ink = 0, "█" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    for step, count in enumerate(tokens, 1):
        known += count
        print(f"{step:5d} {count:7d} {100 * known / flags.tokens:6.1f} %  {ink * round(48 * count / max(tokens))}")


def count_tokens(style: str, shape: str | None, tokens: int, steps: int) -> list[int]:
    """Return the tokens per step of a style; a style with one shape refuses others."""
    if style in FIXED:
        count, only = FIXED[style]
        if shape not in (None, only):
            raise ConfigError(f"--style {style} has one shape, {only}: leave --shape out")
        return count(tokens, steps)
    if style not in SHAPED:
        look_up(dict.fromkeys([*SHAPED, *FIXED]), style, "style")
    return SHAPED[style](tokens, steps, look_up(list_shapes(tokens), shape or "cosine", "shape"))
