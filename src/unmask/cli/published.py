"""`unmask models`, `fetch` and `convert`: weights that others published."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.cli.parsing import disk_errors, parse, positional
from unmask.decoding.names import look_up, suggest_nearest
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.evaluation import linked
from unmask.pretrained.amused import Amused
from unmask.pretrained.families import FAMILIES
from unmask.published import store as published
from unmask.published.catalogue import MODELS, Published
from unmask.published.hub import HUB, is_on_hub
from unmask.recipes.reading import read_recipe
from unmask.runtime.distributed import World, barrier
from unmask.runtime.progress import show_progress
from unmask.storage.cache import find_cache_dir
from unmask.storage.files import one_line
from unmask.storage.layout import TOKENIZER


@dataclass(frozen=True, kw_only=True)
class WeightsFlags:
    weights: tuple[Path, ...] = ()
    """Published files, or folders that hold them, to take instead of a download. Needed once: a training that goes on
    from a checkpoint does not look at them."""
    offline: bool = False
    """Take what is in the cache, and ask no server."""


def located(name: str, flags: WeightsFlags) -> Path:
    """The folder of a run or an export, or of a published model, which is made at its first use."""
    with disk_errors(find_cache_dir()), show_progress(shown=True) as progress:
        return published.located(name, weights=flags.weights, offline=flags.offline, progress=progress)


def located_once(name: str, flags: WeightsFlags, here: World) -> Path:
    """As `located`, under torchrun: the main process makes it, and the others wait."""
    folder = located(name, flags) if here.is_main else None
    barrier(here)
    return folder or published.located(name, offline=is_on_hub(name))


MEASURABLE = "a run folder, an export, one of unmask models or hf-hub:OWNER/NAME"


@dataclass(frozen=True, kw_only=True)
class MeasuredFlags(WeightsFlags):
    data: str | None = None
    """For a model trained elsewhere: the codes of pictures to measure against, as unmask tokenize NAME makes them."""


def measured(name: str, flags: MeasuredFlags, out: Path | None, here: World) -> Path:
    """A run to measure: the one of this name, or of a model trained elsewhere one in `out` (runs/NAME).

    Nothing is written into the folder of such a model.
    """
    folder = located_once(name, flags, here)
    if not linked.trained_elsewhere(folder):
        if is_on_hub(name):
            data = one_line(str(read_recipe(folder / "config.json", None).data))
            raise ConfigError(
                f"{name} was trained by its owner on {data}: to measure it with these at hand, unmask export "
                f"{name} --out DIR, then give DIR"
            )
        if flags.data is not None:
            raise ConfigError("--data is for published models: a run knows its pictures")
        return folder
    run = out or Path("runs") / short(name)
    if here.is_main:
        with disk_errors(run):
            linked.as_run(folder, flags.data, run)
    barrier(here)
    return run


def short(name: str) -> str:
    """What a folder for the figures of a model is called: as the model or its folder is, or OWNER--NAME of the hub."""
    return name.removeprefix(HUB).replace("/", "--") if is_on_hub(name) else Path(os.path.abspath(name)).name


def check_prompts(name: str, prompts: Sequence[str]) -> None:
    """ConfigError where a published model draws texts and has none, or the other way round; before a download."""
    theirs = published.described(name) if published.is_catalogued(name) else None
    if theirs is not None and isinstance(theirs.model, Amused) != bool(prompts):
        needed = "draws from texts: give --prompt" if not prompts else "knows classes and no texts: give --labels"
        raise ConfigError(f"{name} {needed}")


def check_text(name: str, instead: str) -> None:
    """ConfigError where a run on text is needed and a published model was given: all of these draw pictures."""
    if published.is_catalogued(name):
        raise ConfigError(f"{name} draws pictures and writes no text: take unmask {instead}")


def models(arguments: list[str]) -> None:
    """list the published models that run here, or tell all of one: unmask models besnier-256"""
    if arguments and not arguments[0].startswith("-"):
        if len(arguments) > 1:
            raise ConfigError(f"unmask models takes one name, not {' '.join(arguments)}")
        return _tell(arguments[0], look_up(MODELS, arguments[0], "published model"))
    if arguments:
        print("usage: unmask models [NAME]")
        return
    print(f"{'name':18s}{'parameters':>16s}  {'FID':>6s}  {'licence':12s}what it is")
    for name, model in MODELS.items():
        generator, tokenizer = model.parameters
        fid = "–" if model.preset is None else f"{model.preset.expected.fid:.2f}"
        size = f"{generator / 1e6:.0f} + {tokenizer / 1e6:.0f} M"
        print(f"{name:18s}{size:>16s}  {fid:>6s}  {model.licence:12s}{model.about}")
    print("\nFID as published for ImageNet: the authors' weights, samplers and evaluations. More: unmask models NAME")


def _tell(name: str, model: Published) -> None:
    generator, tokenizer = model.parameters
    print(f"{name}: {model.about}")
    print(f"parameters  {generator:,} and {tokenizer:,} of the tokenizer")
    print(f"licence     {model.licence}; trained on {model.data}")
    print(f"sampled     {_in_short(model.sampling)}")
    if model.preset is not None:
        scores = ", ".join(
            f"{what} {value}" for what, value in vars(model.preset.expected).items() if value is not None
        )
        print(f"published   {scores} ({model.preset.source})")
    for what, file in (("generator", model.model), ("tokenizer", model.tokenizer)):
        how = "by hand, with --weights: no hash is known here" if file.source is None else "fetched"
        if file.source is not None:
            how += f", sha256 {file.source.sha256}..." if file.source.sha256 else ", of no published hash"
        place = file.page if file.page.endswith(file.name) else f"{file.name} of {file.page}"
        print(f"{what:11s} {place} ({how})")


def _in_short(sampling: Sampling) -> str:
    """How, in four parts, and what else differs from the plain sampling; long lists by their ends."""
    plain, said = Sampling(), ("steps", "schedule", "priority", "scale")
    parts = {name: value for name, value in vars(sampling).items() if name in said or value != getattr(plain, name)}
    text = ", ".join(f"{name} {value}" for name, value in parts.items())
    return re.sub(r"\(([\d.e-]+),[\d., e-]*, ([\d.e-]+)\)", lambda ends: f"({ends[1]} ... {ends[2]})", text)


def fetch(arguments: list[str]) -> None:
    """download and convert a published model ahead of its first use, or convert files at hand with --weights"""
    name, rest = positional(arguments, "fetch NAME, where NAME is one of unmask models")
    flags = parse(WeightsFlags, rest, f"fetch {name}")
    look_up(MODELS, name, "published model")
    with disk_errors(find_cache_dir()), show_progress(shown=True) as progress:
        folder = published.made(name, weights=flags.weights, offline=flags.offline, progress=progress)
    print(f"wrote {folder}; next: unmask sample {name}")


@dataclass(frozen=True, kw_only=True)
class ConvertFlags:
    family: str
    """Whose file it is: valeoai-v1, taming-vqgan, halton-maskgit, llamagen-vq16, google-maskgit, google-vqgan,
    maskgit-vqgan, titok-bert, titok-uvit, titok-tokenizer, amused or amused-vqvae."""
    out: Path
    """The folder to make; a tokenizer joins the generator that was converted there before."""


def convert(arguments: list[str]) -> None:
    """turn a published weight file into safetensors and config.json, strictly and without running anything in it"""
    name, rest = positional(arguments, "convert FILE --family NAME --out DIR")
    flags = parse(ConvertFlags, rest, f"convert {name}")
    if flags.family not in FAMILIES:
        raise ConfigError(f"no family {flags.family}{suggest_nearest(flags.family, FAMILIES)}")
    with disk_errors(flags.out):
        done = published.convert_into(Path(name), flags.family, flags.out)
    report = done.report
    print(
        f"{len(report.matched)} tensors kept their names, {len(report.renamed)} were renamed, {len(report.split)} "
        f"split, {len(report.dropped)} not needed, none missing or unknown: {report.parameters:,} parameters"
    )
    missing = FAMILIES[flags.family].is_tokenizer or (flags.out / TOKENIZER).exists()
    what = f"unmask sample {flags.out}" if (flags.out / TOKENIZER).exists() else f"unmask tokenize {flags.out}"
    more = f"convert its tokenizer into {flags.out} as well"
    print(f"wrote {flags.out}; next: {what if missing else more}")
