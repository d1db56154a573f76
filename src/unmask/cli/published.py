"""`unmask models`, `fetch`, `convert` and `export`: published weights, and models that leave the machine."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unmask.cli import describe_command
from unmask.cli.flags import WeightsFlags, fetch_model, say_on_stderr
from unmask.cli.help import make_sentence, print_examples
from unmask.cli.parsing import catch_disk_errors, parse, split_positional
from unmask.errors import ConfigError, look_up, suggest_nearest
from unmask.published.names import MODEL_NAMES
from unmask.runtime.progress import show_progress
from unmask.storage.layout import CONFIG, TOKENIZER

if TYPE_CHECKING:
    from unmask.published.catalogue import Published


def list_models(arguments: list[str]) -> None:
    """Run `unmask models`."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: unmask models [NAME]\n\n{make_sentence(describe_command('models'))}\n")
        print_examples("models")
        return
    if len(arguments) > 1 or any(word.startswith("-") for word in arguments):
        raise ConfigError(f"unmask models takes one name and no flags, not {' '.join(arguments)}")
    from unmask.published.catalogue import MODELS

    if arguments:
        return _describe_model(arguments[0], look_up(MODELS, arguments[0], "published model"))
    for name, model in MODELS.items():
        print(f"{name}: {model.about}")
        print(f"  one command  {_show_command(name, model)}")
        print(f"  {', '.join(_list_facts(name, model))}\n")
    print("Scores are as published: the authors' weights, samplers and evaluations. More: unmask models NAME")


def _show_command(name: str, model: "Published") -> str:
    """Return the command that samples from a model, with nothing else to do before."""
    from unmask.pretrained.conditions import takes_prompts

    return f"unmask sample {name} " + (
        '--prompt "a cat"' if takes_prompts(model.size.model) else '--labels "golden retriever"'
    )


def _list_facts(name: str, model: "Published") -> list[str]:
    """Return what a model takes, its size, licence, expected score, and whether it is on the disk."""
    from unmask.pretrained.conditions import takes_prompts
    from unmask.storage.cache import find_cache_dir

    generator, tokenizer = model.parameters
    sizes = [file.size for file in (model.model, model.tokenizer) if file.size]
    there = (find_cache_dir() / "models" / name / CONFIG).is_file()
    return [
        "text conditional" if takes_prompts(model.size.model) else "class conditional",
        f"{generator / 1e6:.0f} + {tokenizer / 1e6:.0f} M parameters",
        *([f"{sum(sizes) / 1e9:.1f} GB to download"] if len(sizes) == 2 else []),
        model.licence,
        f"FID {model.preset.expected.fid:.2f} ({model.preset.source})" if model.preset else "no score on ImageNet",
        "on the disk" if there else "not on the disk",
    ]


def _describe_model(name: str, model: "Published") -> None:
    from unmask.published.card import SAMPLING_FACTS, describe_fields
    from unmask.published.files import describe_check

    generator, tokenizer = model.parameters
    print(f"{name}: {model.about}")
    print(f"one command {_show_command(name, model)}")
    print(f"            {', '.join(_list_facts(name, model))}")
    print(f"parameters  {generator:,} and {tokenizer:,} of the tokenizer")
    print(f"licence     {model.licence}; trained on {model.data}")
    print(f"sampled     {describe_fields(model.sampling, always=SAMPLING_FACTS)}")
    if model.preset is not None:
        found = {what.replace("_", " "): value for what, value in vars(model.preset.expected).items()}
        scores = ", ".join(f"{what} {value}" for what, value in found.items() if value is not None)
        print(f"published   {scores} ({model.preset.source})")
    for what, file in (("generator", model.model), ("tokenizer", model.tokenizer)):
        place = file.page if file.page.endswith(file.name) else f"{file.name} of {file.page}"
        print(f"{what:11s} {place} ({describe_check(file)})")


def run_fetch(arguments: list[str]) -> None:
    """Run `unmask fetch`."""
    name, rest = split_positional(arguments, "fetch NAME, where NAME is one of unmask models")
    flags = parse(WeightsFlags, rest, f"fetch {name}")
    from unmask.published.catalogue import MODELS
    from unmask.published.store import fetch_published
    from unmask.storage.cache import find_cache_dir

    look_up(MODELS, name, "published model")
    with catch_disk_errors(find_cache_dir()), show_progress(shown=True) as progress:
        folder = fetch_published(
            name, weights=flags.weights, offline=flags.offline, progress=progress, say=say_on_stderr
        )
    print(f"wrote {folder}; next: unmask sample {name}")


FAMILY_CHOICES = (
    "{valeoai-v1, taming-vqgan, halton-maskgit, llamagen-vq16, google-maskgit, google-vqgan, maskgit-vqgan, "
    "titok-bert, titok-uvit, titok-tokenizer, amused, amused-vqvae}"
)
"""What help shows for --family: words, so that it needs no torch. A test compares them."""


@dataclass(frozen=True, kw_only=True)
class ConvertFlags:
    """What to convert, and where to."""

    family: Annotated[str, tyro.conf.arg(metavar=FAMILY_CHOICES)]
    """Whose file it is."""
    out: Path
    """Folder to make; a tokenizer joins the generator that was converted there before."""
    overwrite: bool = False
    """Replace files there that unmask did not make. A model is never replaced."""


def run_convert(arguments: list[str]) -> None:
    """Run `unmask convert`."""
    name, rest = split_positional(arguments, "convert FILE --family NAME --out DIR")
    flags = parse(ConvertFlags, rest, f"convert {name}")
    from unmask.pretrained.families import FAMILIES
    from unmask.published.store import convert_into

    if flags.family not in FAMILIES:
        raise ConfigError(f"no family {flags.family}{suggest_nearest(flags.family, FAMILIES)}")
    with catch_disk_errors(flags.out):
        done = convert_into(Path(name), flags.family, flags.out, overwrite=flags.overwrite)
    report = done.report
    print(
        f"{len(report.matched)} tensors kept their names, {len(report.renamed)} were renamed, {len(report.split)} "
        f"split, {len(report.dropped)} not needed, none missing or unknown: {report.parameters:,} parameters"
    )
    missing = FAMILIES[flags.family].is_tokenizer or (flags.out / TOKENIZER).exists()
    what = f"unmask sample {flags.out}" if (flags.out / TOKENIZER).exists() else f"unmask tokenize {flags.out}"
    more = f"convert its tokenizer into {flags.out} as well"
    print(f"wrote {flags.out}; next: {what if missing else more}")


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Where to write."""

    published: Annotated[WeightsFlags, tyro.conf.arg(name="")] = field(default_factory=WeightsFlags)
    out: Path
    """Folder to write: a new one, or one that was exported before."""
    overwrite: bool = False
    """Replace files there that unmask did not make. A run is never replaced."""


def run_export(arguments: list[str]) -> None:
    """Run `unmask export`."""
    name, rest = split_positional(arguments, f"export MODEL --out DIR, where MODEL is {MODEL_NAMES}")
    flags = parse(ExportFlags, rest, f"export {name}")
    from unmask.pipelines.exporting import check_export
    from unmask.pipelines.load import export_model

    opened = flags.published.open(name)
    with catch_disk_errors(flags.out):
        check_export(flags.out, opened.folder, overwrite=flags.overwrite)
    fetch_model(opened)
    with catch_disk_errors(flags.out):
        export_model(opened, flags.out, overwrite=flags.overwrite)
    command = "generate" if opened.is_text else "sample"
    print(f"wrote {flags.out}: unmask {command} {flags.out}, or unmask.load({str(flags.out)!r}) in Python")
