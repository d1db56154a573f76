"""What `--help` says: each flag of each command and recipe has a line, its default and its choices."""

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from unmask.cli import COMMANDS, main
from unmask.cli.parsing import parse
from unmask.cli.published import FAMILY_CHOICES
from unmask.cli.training import TrainFlags
from unmask.decoding import choices, named_counts, names
from unmask.errors import ConfigError
from unmask.pretrained.families import FAMILIES
from unmask.recipes import TokenizerRecipe
from unmask.recipes.reading import list_recipes, load_recipe

TAKES_RECIPES = ("train", "train-tokenizer", "tokenize-text")
TEXTS = ["shakespeare", "tinystories", "tinystories-gpu"]
HELPS = [
    *([name] for name in COMMANDS if name not in (*TAKES_RECIPES, "models")),
    *(["train", name] for name in list_recipes()),
    *(["train-tokenizer", name] for name in list_recipes(TokenizerRecipe)),
    *(["tokenize-text", name] for name in TEXTS),
    *(["train-features", name] for name in ("arrays", "cifar10", "digits", "hub", "mnist", "shards")),
]


def read_help(*words):
    """Return the help of a command, as a terminal of the width in COLUMNS shows it."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    output.seek(0)
    return output.read()


def find_flags(text):
    """Return the names of each flag in a help text, and what is said of it."""
    found, flag = {}, ""
    for line in text.splitlines():
        row = line.strip("│ ")
        names = re.match(r"│ (-h, )?(--[a-z].*?)(  +|$)", line.rstrip("│ "))
        if names:
            flag = (names[1] or "") + names[2]
            found[flag] = line.rstrip("│ ")[len(names[0]) :]
        elif not line.startswith("│") or set(row) <= {"─"}:
            flag = ""
        elif flag:
            found[flag] = f"{found[flag]} {row}".strip()
    return found


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_every_flag_says_what_it_does(words):
    text = read_help(*words)
    assert max(map(len, text.splitlines())) <= 80
    flags = find_flags(text)
    assert len(flags) > 1
    for flag, said in flags.items():
        explained = re.sub(r"\((default: .*|required)\)$|^[^{]*\}( \.\.\.)?", "", said).strip()
        assert 10 < len(explained) < 125, (flag, said)
        assert flag.startswith("-h") or re.search(r"\((default: .+|required)\)$", said), (flag, said)
        assert "None" not in flag + said.partition("(default")[2], (flag, said)


@pytest.mark.parametrize("words", [["sample"], ["train", "digits"], ["train-tokenizer", "folder-tokenizer"]])
def test_booleans_are_pairs_with_their_default(words):
    flags = find_flags(read_help(*words))
    said = {flag: re.search(r"\(default: (.*)\)$", text) for flag, text in flags.items()}
    switches = {flag for flag, default in said.items() if default is not None and default[1] in ("True", "False")}
    assert switches
    for flag in switches:
        on, off = flag.split(", ")
        assert off == re.sub(r"(--|\.)([^.]*)$", r"\1no-\2", on)
    assert switches == {flag for flag in flags if re.search(r"(--|\.)no-", flag)}


def test_both_sides_of_a_pair_are_read():
    kind = parse(
        TrainFlags,
        ["--model.no-gated", "--overwrite"],
        "train",
        TrainFlags(recipe=load_recipe("digits"), out=Path("x")),
    )
    assert not kind.recipe.model.gated
    assert kind.overwrite
    again = parse(TrainFlags, ["--model.gated", "--no-overwrite"], "train", kind)
    assert again.recipe.model.gated
    assert not again.overwrite


def test_the_choices_in_help_are_those_of_the_tables():
    def split(text):
        return set(text.strip("{}").split(", "))

    assert split(choices.PRESET_CHOICES) == set(names.SAMPLINGS)
    assert split(choices.ORDER_CHOICES) == set(names.list_orders((8, 8)))
    assert split(choices.SAMPLER_CHOICES) == set(names.SAMPLERS)
    assert split(choices.SHAPE_CHOICES) == set(names.list_shapes(64))
    shapes = {name for name in names.list_schedules(64) if not name.startswith("valeoai-v1-")}
    assert split(choices.SCHEDULE_CHOICES) == {*shapes, "valeoai-v1-SHAPE"}
    assert split(choices.STYLE_CHOICES) == {*named_counts.FIXED, *named_counts.SHAPED}
    assert split(FAMILY_CHOICES) == set(FAMILIES)


@dataclass(frozen=True, kw_only=True)
class Odd:
    one: int | None = None
    some: tuple[int, ...] = ()
    scale: float | tuple[float, ...] = 1.0
    kind: Literal["a", "b"] | None = "a"


def test_unset_and_several_values_are_shown_plainly_and_read():
    def read(*words):
        return parse(Odd, list(words), "odd")

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        read("--help")
    for line in ("--one INT (default: unset)", "--some INT ... (default: none)", "--scale FLOAT ... (default: 1.0)"):
        assert line in re.sub(r"\s+", " ", shown.getvalue())
    assert "--kind {a,b}" in shown.getvalue()
    assert read() == Odd()
    assert read("--one", "3", "--some", "1", "2", "--scale", "2", "--kind", "b") == Odd(
        one=3, some=(1, 2), scale=2.0, kind="b"
    )
    assert read("--scale", "2", "3", "--kind", "None", "--some") == Odd(scale=(2.0, 3.0), kind=None)
    assert read("--one", "None") == Odd()
    with pytest.raises(ConfigError, match="--kind"):
        read("--kind", "c")
    with pytest.raises(ConfigError, match="--one"):
        read("--one", "x")
