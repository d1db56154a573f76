"""The command line: `unmask <command> ...`. Each command reads its flags, calls one function, and says what it made.

The table COMMANDS knows each command by name, and its code is imported when it runs: `unmask --help` needs no torch.

Errors a user can act on are one line and an exit code: 2 wrong flag or field, 3 data, 4 checkpoint or run folder,
5 a number that is not finite, 6 disk, 7 memory, 8 another process of torchrun, 85 stopped by a signal after saving, and
128 plus the number of a signal that stopped anything else: 129 SIGHUP, 130 Ctrl-C, 138 SIGUSR1, 140 SIGUSR2,
143 SIGTERM; 141 is a reader of the output that left.
"""

import importlib
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unmask.cli.ending import check_text, finish_in_one_line
from unmask.errors import ConfigError, suggest_nearest
from unmask.runtime.memory import keep_freed_memory
from unmask.runtime.torchrun import check_alone


@dataclass(frozen=True)
class Command:
    """A command of the program. Calling it imports its code, and runs it on the words after its name."""

    group: str
    """The heading it stands under in the help."""
    about: str
    """What it does, in one line."""
    place: str
    """The module in this folder, and the function in it that takes the words."""

    overview: str = ""
    """The same for a function that prints the help without a recipe, where the flags depend on the recipe."""

    def __call__(self, arguments: list[str]) -> None:
        if self.overview and arguments[:1] in (["-h"], ["--help"]):
            return _find(self.overview)()
        _find(self.place)(arguments)


def _find(place: str) -> Callable[..., None]:
    module, function = place.split(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)


GROUPS = DATA, TRAIN, USE, MEASURE, SHARE = "make data", "train", "use", "measure", "share"
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": Command(
        TRAIN, "learn real handwritten digits in a few minutes, sample, inpaint and measure them", "demo.run_demo"
    ),
    "train": Command(
        TRAIN,
        "train a recipe (a name, a .py file, a run or its config.json); run it again to resume",
        "training.run_train",
        "recipes.print_train_help",
    ),
    "train-tokenizer": Command(
        TRAIN,
        "train a tokenizer (a name, a .py file, a run or its config.json); run it again to resume",
        "tokenizers.run_train_tokenizer",
        "recipes.print_train_tokenizer_help",
    ),
    "train-features": Command(
        TRAIN,
        "train a classifier on images with classes; unmask evaluate measures in its features",
        "networks.run_train_features",
    ),
    "data": Command(
        DATA,
        "say what a dataset of images holds: splits, classes, sizes, copies, faults; draw a contact sheet",
        "data.run_data",
    ),
    "tokenize": Command(
        DATA,
        "turn images into a token dataset once, with a trained tokenizer, so that training reads tokens only",
        "tokenizers.run_tokenize",
    ),
    "tokenize-text": Command(
        DATA,
        "turn a text corpus into a folder of tokens ahead of training; unmask train does it too",
        "text.run_tokenize_text",
        "recipes.print_tokenize_text_help",
    ),
    "sample": Command(USE, "generate images from a run, an export or a published model", "sampling.run_sample"),
    "inpaint": Command(
        USE,
        "fill a masked region of a photo of any size, extend its canvas, or replace a part",
        "editing.run_inpaint",
    ),
    "generate": Command(USE, "generate texts from nothing or from a prompt", "writing.run_generate"),
    "infill": Command(
        USE,
        'fill masked parts of a text, such as "The [MASK:12] dog ran to the [MASK:3]."',
        "writing.run_infill",
    ),
    "app": Command(
        USE,
        "open a web page: watch a model sample, compare settings, paint over an image, infill a text",
        "app.run_app",
    ),
    "evaluate": Command(
        MEASURE,
        "measure a run (FID-style metrics, class accuracy, near-duplicates) into report.json, and plot its samples",
        "sampling.run_evaluate",
    ),
    "evaluate-tokenizer": Command(
        MEASURE,
        "measure a tokenizer (rFID, PSNR, SSIM, codebook use) into report.json, and draw reconstructions",
        "evaluating.run_evaluate_tokenizer",
    ),
    "evaluate-inpaint": Command(
        MEASURE,
        "mask parts of held-out images, inpaint them with several schedules and early stops, and measure the results",
        "evaluating.run_evaluate_inpaint",
    ),
    "evaluate-text": Command(
        MEASURE,
        "measure generated text by order, steps and temperature, beside held-out text",
        "text.run_evaluate_text",
    ),
    "sweep": Command(
        MEASURE,
        "compare orders, schedules, steps, noises and guidance in one table with plots; run again to resume",
        "sweeping.run_sweep",
    ),
    "score": Command(
        MEASURE,
        "rank orders and numbers of steps by the exact likelihood of held-out data: no samples, no classifier",
        "scoring.run_score",
    ),
    "tune": Command(
        MEASURE,
        "find the best way to sample with few forward passes, and keep it as a preset of the model",
        "tuning.run_tune",
    ),
    "schedule": Command(
        MEASURE,
        "print how many tokens each step reveals, as each code base of the field counts them",
        "schedule.run_schedule",
    ),
    "models": Command(
        SHARE,
        "list the published models that run here, or describe one: unmask models besnier-256",
        "published.list_models",
    ),
    "fetch": Command(
        SHARE,
        "download and convert a published model ahead of its first use, or convert local files with --weights",
        "published.run_fetch",
    ),
    "convert": Command(
        SHARE,
        "turn a published weight file into safetensors and config.json, strictly and without running anything in it",
        "published.run_convert",
    ),
    "export": Command(
        SHARE,
        "write a model to a new folder, with a model card; it names no path, host or user of yours",
        "published.run_export",
    ),
    "completion": Command(
        SHARE,
        "print a script by which bash, zsh or fish complete commands, flags and names",
        "completion.run_completion",
    ),
}

ALONE = ("data", "tokenize-text", "sample", "inpaint", "generate", "infill", "app", "export", "fetch", "convert")
"""Commands whose work the ranks of torchrun do not share."""


def describe_command(name: str) -> str:
    """Return the line of a command in the help."""
    command = COMMANDS.get(name)
    return command.about if isinstance(command, Command) else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    keep_freed_memory()
    with finish_in_one_line(arguments[0] if arguments else ""):
        _dispatch(arguments)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _print_commands()
    if arguments[0] in ("-V", "--version"):
        from unmask.runtime.provenance import describe_version  # which starts git

        return print(describe_version())
    check_text(arguments)
    name, *rest = arguments
    if name not in COMMANDS:
        raise ConfigError(f"no command {name}{suggest_nearest(name, COMMANDS)}")
    if name in ALONE:
        check_alone(name)
    COMMANDS[name](rest)


def _print_commands() -> None:
    """Print the table, under its headings."""
    print("usage: unmask COMMAND ...\n\nunmask COMMAND --help tells the flags of each; unmask --version the version.")
    commands = {name: command for name, command in COMMANDS.items() if isinstance(command, Command)}
    for group in GROUPS:
        print(f"\n{group}")
        for name, command in commands.items():
            if command.group == group:
                print(
                    textwrap.fill(
                        command.about,
                        80,
                        initial_indent=f"  {name:18s} ",
                        subsequent_indent=" " * 21,
                        break_on_hyphens=False,
                    )
                )
