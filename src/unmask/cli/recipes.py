"""Help for the commands that take a recipe: what recipes there are. Their flags depend on the recipe."""

import textwrap
from collections.abc import Iterable
from pathlib import Path

from unmask.cli import describe_command
from unmask.cli.help import WIDTH, make_sentence, print_examples, wrap
from unmask.recipes.listing import RecipeNote, list_recipe_names, read_recipe_note
from unmask.storage.layout import CONFIG

SHORT = "--data is short for --data.path or --data.name, and --seed for --training.seed."
TRUST = "A .py recipe is code, and it is executed: only give one that you trust."
OTHER_WAYS = "a .py file, a run, or its config.json"
HEADINGS = {"Recipe": "images", "TextRecipe": "text", "TokenizerRecipe": "tokenizers"}
"""The heading of the recipes of each kind."""


def describe_train() -> str:
    """Return the usage of `unmask train`."""
    return f"train RECIPE, where RECIPE is one of {', '.join(list_recipe_names())}, {OTHER_WAYS}"


def describe_train_tokenizer() -> str:
    """Return the usage of `unmask train-tokenizer`."""
    return (
        f"train-tokenizer RECIPE, where RECIPE is one of {', '.join(list_recipe_names(tokenizers=True))}, {OTHER_WAYS}"
    )


def is_recipe(word: str) -> bool:
    """Return whether a word is the name of a recipe, or of a file that may hold one."""
    return word in (*list_recipe_names(), *list_recipe_names(tokenizers=True)) or word.endswith((".py", ".json"))


def is_run(word: str) -> bool:
    """Return whether a word is the directory of a run."""
    return (Path(word) / CONFIG).is_file()


def print_train_help() -> None:
    """Print the help of `unmask train` without a recipe."""
    notes = [read_recipe_note(name) for name in list_recipe_names()]
    _print_help("train RECIPE", notes, "digits")


def print_train_tokenizer_help() -> None:
    """Print the help of `unmask train-tokenizer` without a recipe."""
    notes = [read_recipe_note(name) for name in list_recipe_names(tokenizers=True)]
    _print_help("train-tokenizer RECIPE", notes, "cifar10-tokenizer")


def print_tokenize_text_help() -> None:
    """Print the help of `unmask tokenize-text` without a recipe."""
    notes = [note for name in list_recipe_names() if (note := read_recipe_note(name)).kind == "TextRecipe"]
    _print_help("tokenize-text RECIPE --data FILE", notes, "shakespeare")


def _print_help(usage: str, notes: Iterable[RecipeNote], example: str) -> None:
    """Print what a command does, its recipes by kind, and two examples."""
    command = usage.split()[0]
    print(f"usage: unmask {usage} [OPTIONS]\n")
    print(make_sentence(describe_command(command)) + "\n")
    print(wrap(f"RECIPE is one of these, {OTHER_WAYS}. It decides the options: unmask {command} {example} --help"))
    for kind, heading in HEADINGS.items():
        found = [note for note in notes if note.kind == kind]
        if found:
            print(f"\n{heading}")
        for note in found:
            print(_fill(f"{note.name:22s} {note.hardware}: {note.duration}", " " * 23))
            print(_fill(f"{'':22s} {note.about}", " " * 23))
    print(f"\n{wrap(SHORT)}\n{TRUST}\n")
    print_examples(command)


def _fill(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH - 2, initial_indent="  ", subsequent_indent="  " + indent, break_on_hyphens=False)
