"""`unmask schedule`: tokens per step, as each code base of the field counts them."""

import json as json_text
import sys
from dataclasses import dataclass

from unmask.cli.parsing import catch_value_errors, parse


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
