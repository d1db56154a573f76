"""Flags stand before or after what a command works on, and the table of flags is the one of the help."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from unmask.cli import main
from unmask.cli.command_flags import list_command_flags
from unmask.cli.flag_table import Flag, find_operand, is_flag, list_flags
from unmask.cli.parsing import split_positional
from unmask.errors import ConfigError

COMMANDS = [
    "demo", "sample", "inpaint", "generate", "infill", "evaluate", "evaluate-inpaint", "evaluate-tokenizer", "sweep",
    "score", "schedule", "export", "fetch", "convert", "data", "tokenize", "train-features", "evaluate-text",
]  # fmt: skip


def read_flags(capsys, *words):
    """The names of all flags in the help of a command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert text.count("usage:") == 1
    heads = re.findall(r"(?m)^[│|]? {1,2}((?:-h, )?--[a-z].*)", text)
    return {name for head in heads for name in re.findall(r"(?<![\w-])--[a-z][\w.-]*", head.split("  ")[0])}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_table_knows_each_flag_of_the_help(command, capsys):
    known = {name for flag in list_command_flags(command) for name in flag.names}
    found = read_flags(capsys, command)
    assert len(found) > 1
    assert found <= known
    if command in ("data", "tokenize", "train-features"):
        return  # the table has the flags of all sources
    assert {re.sub(r"no-", "", name) for name in known - found - {"-h"}} <= {re.sub(r"no-", "", name) for name in found}


@pytest.mark.parametrize("recipe", ["digits", "mnist", "cifar10", "shakespeare", "folder"])
def test_the_table_knows_each_flag_of_a_recipe(recipe, capsys):
    known = {name for flag in list_command_flags("train") for name in flag.names}
    assert read_flags(capsys, "train", recipe) <= known


@pytest.mark.parametrize(
    ("line", "run", "rest"),
    [
        ("runs/demo --num 4", "runs/demo", "--num 4"),
        ("--num 4 runs/demo", "runs/demo", "--num 4"),
        ("--num=4 runs/demo --seed 3", "runs/demo", "--num=4 --seed 3"),
        ("--labels 3 4 --num 4 runs/demo", "runs/demo", "--labels 3 4 --num 4"),
        ("--compile runs/demo --labels 3", "runs/demo", "--compile --labels 3"),
        ("--temperature -1 runs/demo", "runs/demo", "--temperature -1"),
        ("--top_k 3 runs/demo", "runs/demo", "--top_k 3"),
        ("--classes 3 --out a.png runs/demo --scale 2", "runs/demo", "--classes 3 --out a.png --scale 2"),
    ],
)
def test_flags_stand_on_either_side_of_the_run(line, run, rest):
    assert split_positional(line.split(), "sample MODEL") == (run, rest.split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--labels 3 4 runs/demo", "--labels takes all words after it, runs/demo too: put what to work on first"),
        ("--nun 4 runs/demo", "no flag --nun: did you mean --num? (flags: unmask sample --help)"),
        ("--xyzzy runs/demo", "no flag --xyzzy (flags: unmask sample --help)"),
        ("--num 4", "usage: unmask sample MODEL"),
        ("--num", "usage: unmask sample MODEL"),
        ("--labels 3", "usage: unmask sample MODEL"),
        ("", "usage: unmask sample MODEL"),
    ],
)
def test_what_is_missing_or_unclear_before_the_run_is_one_line(line, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        split_positional(line.split(), "sample MODEL")
    assert "\n" not in str(error.value)


def test_the_recipe_is_found_among_flags_that_depend_on_it(capsys):
    main(["train", "--training.steps", "3", "--dry-run", "digits", "--model.dim", "16"])
    assert "3 steps" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "--data.path", "digits", "--dry-run", "mnist"])
    assert capsys.readouterr().err.startswith("unmask: usage: unmask train RECIPE")


def test_words_that_are_no_flags():
    assert [is_flag(word) for word in ("-5", "-0.5", "- The cat", "--", "-", "a", "")] == [False] * 7
    assert [is_flag(word) for word in ("-h", "--num", "--num=4", "--data.path=a\nb")] == [True] * 4


@dataclass(frozen=True, kw_only=True)
class Inner:
    sizes: tuple[int, int] = (1, 2)
    many: tuple[int, ...] = ()
    either: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = Inner()
    fast: bool = True
    out: Path


def test_a_flag_says_how_many_words_it_takes():
    assert [(flag.names[0], flag.values) for flag in list_flags(Outer)] == [
        ("--inner.sizes", 2),
        ("--inner.many", None),
        ("--inner.either", 1),
        ("--fast", 0),
        ("--out", 1),
        ("-h", 0),
    ]
    assert find_operand(["--inner.sizes", "3", "4", "x"], list_flags(Outer), "unmask") == 3
    assert find_operand([], [Flag(names=("--a",))], "unmask") is None
