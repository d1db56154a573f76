"""unmask generate, infill: text from a run."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from unmask import text_figures
from unmask.cli.parsing import disk_errors, parse, positional, value_errors
from unmask.cli.sampling import SamplingFlags, applied
from unmask.errors import ConfigError
from unmask.text_pipeline import Holed, TextPipeline


@dataclass(frozen=True, kw_only=True)
class WritingFlags:
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    num: int = 3
    """How many versions."""
    seed: int = 0
    frames: bool = False
    """Show every step of the first in colours: red came first, blue last."""
    html: Path | None = None
    """Also write a page on which a slider goes through the steps."""


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(WritingFlags):
    prompt: str = ""
    """The text to go on from; it stays."""
    length: int | None = None
    """At most so many tokens, the prompt among them; by default the model's context."""


def generate(arguments: list[str]) -> None:
    """write texts with a run on text, from nothing or from a prompt"""
    name, rest = positional(arguments, "generate RUN, where RUN is a run folder on text")
    flags = parse(GenerateFlags, rest, f"generate {name}")
    pipeline = TextPipeline.from_pretrained(name)
    with value_errors():
        _write(pipeline, pipeline.canvas(flags.prompt, flags.length), flags, whole=False)


def infill(arguments: list[str]) -> None:
    """fill the holes of a text: unmask infill RUN "The [MASK:12] dog ran to the [MASK:3]." """
    usage = 'infill RUN "The [MASK:12] dog ran to the [MASK:3].", where RUN is a run folder on text'
    name, rest = positional(arguments, usage)
    if rest == ["--help"]:
        template, rest = "TEXT", rest
    else:
        if not rest or rest[0].startswith("--"):
            raise ConfigError(f"usage: unmask {usage}")
        template, rest = rest[0], rest[1:]
    flags = parse(WritingFlags, rest, f"infill {name} TEXT")
    pipeline = TextPipeline.from_pretrained(name)
    with value_errors():
        _write(pipeline, pipeline.holed(template), flags, whole=True)


def _write(pipeline: TextPipeline, canvas: Holed, flags: WritingFlags, *, whole: bool) -> None:
    """Sample `num` versions of the canvas and print them; `whole`: also what stands after an end token."""
    if flags.num < 1:
        raise ConfigError(f"--num {flags.num}: at least 1")
    if flags.sampling.scale is not None:
        raise ConfigError(f"--scale {flags.sampling.scale}: a model of text has nothing to guide towards; leave it out")
    sampling = applied(flags.sampling, pipeline)
    states = list(pipeline.states(canvas.tokens.expand(flags.num, -1), seed=flags.seed, sampling=sampling))
    if flags.frames:
        for number, frame in enumerate(text_figures.frames(states, pipeline.tokenizer, canvas.front)):
            print(f"--- step {number} of {len(states) - 1} ---\n{frame}\n")
    for row in states[-1].tokens:
        tokens = row[canvas.front :]
        print(pipeline.tokenizer.decode(tokens) if whole else pipeline.text(row, canvas.front))
        if flags.num > 1:
            print("-" * 50)
    if flags.html is not None:
        with disk_errors(flags.html.parent):
            text = text_figures.page(states, pipeline.tokenizer, canvas.front, "unmask", flags.num)
            flags.html.write_text(text, encoding="utf-8")
        print(f"wrote {flags.html}", file=sys.stderr)
