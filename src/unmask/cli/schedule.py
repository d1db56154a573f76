"""`unmask schedule`: tokens per step, as each code base of the field counts them."""

import json as json_text
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from unmask.cli.flag_types import show_default
from unmask.cli.parsing import catch_value_errors, parse
from unmask.decoding.choices import SHAPE_CHOICES, STYLE_CHOICES


@dataclass(frozen=True, kw_only=True)
class ScheduleFlags:
    style: Annotated[str, tyro.conf.arg(metavar=STYLE_CHOICES)] = "google"
    """Code base whose way of counting to use."""
    shape: Annotated[str | None, tyro.conf.arg(metavar=SHAPE_CHOICES), show_default("cosine, or that of the style")] = (
        None
    )
    """Fraction still masked over time."""
    tokens: int = 256
    """Tokens to reveal, at least 1."""
    steps: int = 8
    """Forward passes, at least 1."""
    json: bool = False
    """Print the list alone, as JSON."""


def run_schedule(arguments: list[str]) -> None:
    """Run `unmask schedule`."""
    flags = parse(ScheduleFlags, arguments, "schedule")
    from unmask.decoding.named_counts import FIXED, count_tokens

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
