"""The flags of each command by its name: to find the run among them, and to complete them."""

import importlib
from dataclasses import replace
from pathlib import Path

from unmask.cli.flag_table import HELP, Flag, list_flags
from unmask.recipes.listing import list_recipe_names

RECIPE_COMMANDS = ("train", "train-tokenizer", "tokenize-text")
FLAGS = {
    "app": "app.AppFlags",
    "demo": "demo.DemoFlags",
    "evaluate": "sampling.EvaluateFlags",
    "evaluate-inpaint": "evaluating.EvaluateInpaintFlags",
    "evaluate-text": "text.EvaluateTextFlags",
    "evaluate-tokenizer": "evaluating.EvaluateTokenizerFlags",
    "convert": "published.ConvertFlags",
    "export": "published.ExportFlags",
    "fetch": "flags.WeightsFlags",
    "generate": "writing.GenerateFlags",
    "infill": "writing.WritingFlags",
    "inpaint": "editing.InpaintFlags",
    "sample": "sampling.SampleFlags",
    "schedule": "schedule.ScheduleFlags",
    "score": "scoring.ScoreFlags",
    "sweep": "sweeping.SweepFlags",
    "tune": "tuning.TuneFlags",
}
"""The flags of each command whose flags depend on nothing else."""


def list_command_flags(command: str) -> list[Flag]:
    """Return the flags of a command; of one that takes a recipe or a source, those of all recipes or sources."""
    if command in FLAGS:
        module, name = FLAGS[command].split(".")
        return list_flags(getattr(importlib.import_module(f"unmask.cli.{module}"), name))
    if command in RECIPE_COMMANDS:
        return merge_flags([*_list_recipe_flags(command), Flag(names=("--data",)), Flag(names=("--seed",))])
    if command in ("data", "tokenize", "train-features"):
        return merge_flags(_list_source_flags(command))
    return [HELP]


def merge_flags(flags: list[Flag]) -> list[Flag]:
    """Return one flag for each first name, with the choices of all."""
    found: dict[str, Flag] = {}
    for flag in flags:
        before = found.get(flag.names[0], flag)
        found[flag.names[0]] = replace(before, choices=tuple(dict.fromkeys((*before.choices, *flag.choices))))
    return list(found.values())


def _list_recipe_flags(command: str) -> list[Flag]:
    from unmask.cli.text import TokenizeTextFlags
    from unmask.cli.tokenizers import TrainTokenizerFlags
    from unmask.cli.training import TrainFlags, TrainTextFlags
    from unmask.recipes import TextRecipe, TokenizerRecipe
    from unmask.recipes.reading import find_recipe

    flags: list[Flag] = []
    for name in list_recipe_names(tokenizers=command == "train-tokenizer"):
        recipe, out = find_recipe(name), Path("runs")
        if isinstance(recipe, TokenizerRecipe):
            flags += list_flags(TrainTokenizerFlags, TrainTokenizerFlags(recipe=recipe, out=out))
        elif command == "tokenize-text":
            text = isinstance(recipe, TextRecipe)
            flags += list_flags(TokenizeTextFlags, TokenizeTextFlags(recipe=recipe, out=out)) if text else []
        elif isinstance(recipe, TextRecipe):
            flags += list_flags(TrainTextFlags, TrainTextFlags(recipe=recipe, out=out))
        else:
            flags += list_flags(TrainFlags, TrainFlags(recipe=recipe, out=out))
    return flags


def _list_source_flags(command: str) -> list[Flag]:
    from unmask.cli.data import SurveyFlags
    from unmask.cli.networks import FeatureFlags
    from unmask.cli.tokenizers import TokenizeFlags, list_sources

    sources = list_sources(32, 3)
    flags: list[Flag] = [Flag(names=("--size",) if command == "data" else ("--data",))]
    flags += [Flag(names=("--seed",))] if command == "train-features" else []
    flags += [Flag(names=("--source",), choices=tuple(sources))] if command == "tokenize" else []
    for source in sources.values():
        if command == "data":
            flags += list_flags(SurveyFlags, SurveyFlags(data=source))
        elif command == "tokenize":
            flags += list_flags(TokenizeFlags, TokenizeFlags(data=source, out=Path("codes")))
        else:
            flags += list_flags(FeatureFlags, FeatureFlags(data=source, out=Path("runs")))
    return flags
