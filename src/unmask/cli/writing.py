"""`unmask generate` and `infill`: text from a run."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unmask.cli.flag_types import show_default
from unmask.cli.flags import (
    Device,
    OutputFlags,
    SamplingFlags,
    WeightsFlags,
    WeightType,
    check_device,
    collect_settings,
    fetch_model,
    find_dtype,
)
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.errors import ConfigError
from unmask.published.names import MODEL_NAMES
from unmask.storage.files import write_text
from unmask.storage.outputs import check_file

if TYPE_CHECKING:
    from unmask.pipelines.text import MaskedText, TextPipeline

MOST_TEXTS = 16  # texts on a page


@dataclass(frozen=True, kw_only=True)
class WritingFlags(OutputFlags):
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    num: int = 3
    """Number of texts, at least 1."""
    offline: bool = False
    """For a model of the Hub: use the cache alone, and ask no server."""
    seed: int = 0
    """Seed of the texts: the same seed gives the same texts."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    dtype: WeightType = "auto"
    """Number type of weights: auto is bf16 where fast; int8 is faster for wide networks on a CPU, but less exact."""
    frames: bool = False
    """Show every step of the first text in colours: red came first, blue last."""
    html: Annotated[Path | None, show_default("no page")] = None
    """Also write a page on which a slider moves through the steps of the first texts, 16 at most."""


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(WritingFlags):
    prompt: Annotated[str, tyro.conf.arg(metavar="TEXT"), show_default("nothing")] = ""
    """Text to continue; it stays as it is."""
    length: Annotated[int | None, show_default("the model's context")] = None
    """Tokens at most, with the prompt."""


def run_generate(arguments: list[str]) -> None:
    """Run `unmask generate`."""
    name, rest = split_positional(arguments, f"generate MODEL, where MODEL is a text model: {MODEL_NAMES}")
    flags = parse(GenerateFlags, rest, f"generate {name}")
    _check_page(flags)
    pipeline = _open_text(name, f"sample {name}", flags)
    with catch_value_errors():
        _write(pipeline, pipeline.make_canvas(flags.prompt, flags.length), flags, whole=False)


def run_infill(arguments: list[str]) -> None:
    """Run `unmask infill`."""
    usage = 'infill MODEL TEXT, where MODEL is a text model, and TEXT such as "The [MASK:12] dog ran."'
    name, rest = split_positional(arguments, usage)
    template, rest = ("", rest) if rest == ["--help"] else split_positional(rest, usage)
    flags = parse(WritingFlags, rest, f"infill {name}" if rest == ["--help"] else f"infill {name} TEXT")
    _check_page(flags)
    pipeline = _open_text(name, f"inpaint {name} PHOTO", flags)
    with catch_value_errors():
        _write(pipeline, pipeline.mask_text(template), flags, whole=True)


def _check_page(flags: WritingFlags) -> None:
    """ConfigError, before the work, if the page has another suffix or would replace something of the user."""
    if flags.html is None:
        return
    if flags.html.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--html {flags.html}: the page is a .html file")
    check_file(flags.html, overwrite=flags.overwrite)


def _open_text(name: str, instead: str, flags: WritingFlags) -> "TextPipeline":
    from unmask.pipelines.text import TextPipeline

    opened = WeightsFlags(offline=flags.offline).open(name)
    spec = opened.require_text_spec(instead)
    check_device(flags.device, flags.dtype)
    folder, dtype = fetch_model(opened), find_dtype(flags.dtype)
    return TextPipeline.from_pretrained(folder, device=flags.device, dtype=dtype, spec=spec)


def _write(pipeline: "TextPipeline", canvas: "MaskedText", flags: WritingFlags, *, whole: bool) -> None:
    """Sample `num` versions of the canvas and print them; `whole`: also what stands after an end token."""
    from unmask.decoding.settings import change_sampling
    from unmask.figures import texts as text_figures
    from unmask.recipes.spec import collect_presets

    if flags.num < 1:
        raise ConfigError(f"--num {flags.num}: at least 1")
    for name in ("guidance", "ramp"):
        if (value := getattr(flags.sampling, name)) is not None:
            raise ConfigError(f"--{name} {value}: a text model has nothing to guide towards; leave it out")
    own = collect_presets(pipeline.spec)
    if flags.sampling.preset not in (None, *own):
        hint = f"it has {', '.join(own)}" if own else "unmask tune finds some"
        raise ConfigError(f"--preset {flags.sampling.preset}: no preset of this text model: {hint}")
    sampling = change_sampling(pipeline.sampling, pipeline.model.grid, collect_settings(flags.sampling), own)
    shown = min(flags.num, MOST_TEXTS) if flags.html is not None else 1
    states = []
    if flags.frames or flags.html is not None:
        rows = canvas.tokens.expand(shown, -1)
        states = list(pipeline.stream_states(rows, seed=flags.seed, sampling=sampling, ends=not whole))
    if flags.frames:
        for number, frame in enumerate(text_figures.render_frames(states, pipeline.tokenizer, canvas.front)):
            print(f"--- step {number} of {len(states) - 1} ---\n{frame}\n")
    for row in pipeline.finish(canvas, flags.num, seed=flags.seed, sampling=sampling, ends=not whole):
        tokens = row[canvas.front :]
        print(pipeline.tokenizer.decode(tokens) if whole else pipeline.decode_row(row, canvas.front))
        if flags.num > 1:
            print("-" * 50)
    if flags.html is not None:
        with catch_disk_errors(flags.html.parent):
            text = text_figures.render_page(states, pipeline.tokenizer, canvas.front, "unmask", shown)
            flags.html.parent.mkdir(parents=True, exist_ok=True)
            write_text(text, flags.html)
        print(f"wrote {flags.html}", file=sys.stderr)
