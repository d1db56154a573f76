"""What `--help` says: each flag of each command and recipe has a line, its default and its choices."""

import contextlib
import importlib
import io
import re
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from unmask.cli import COMMANDS, describe_command, main
from unmask.cli.help import EXAMPLES
from unmask.cli.parsing import parse
from unmask.cli.published import FAMILY_CHOICES
from unmask.cli.training import TrainFlags
from unmask.data.sources.choice import Codes
from unmask.decoding import choices, named_counts, names
from unmask.errors import ConfigError
from unmask.pretrained.families import FAMILIES
from unmask.recipes import Recipe, TextRecipe, TokenizerRecipe
from unmask.recipes.listing import read_recipe_note
from unmask.recipes.reading import find_recipe, list_recipes, load_recipe, write_config

ROOT = Path(__file__).parents[2]
TAKES_RECIPES = ("train", "train-tokenizer", "tokenize-text")
TEXTS = ["shakespeare", "tinystories", "tinystories-gpu"]
HELPS = [
    *([name] for name in COMMANDS if name not in (*TAKES_RECIPES, "models", "completion")),
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
    kinds = ("valeoai-v1", "google", "x-transformers")
    plain = {name for name in names.list_schedules(64) if not name.startswith(kinds)}
    assert split(choices.SCHEDULE_CHOICES) == {*plain, *(f"{kind}-SHAPE" for kind in kinds)}
    assert {f"{kind}-{shape}" for kind in kinds for shape in names.list_shapes(64)} <= set(names.list_schedules(64))
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


# -- recipes and examples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", TAKES_RECIPES)
def test_recipes_are_listed_with_what_where_and_how_long(command):
    text = read_help(command)
    assert max(map(len, text.splitlines())) <= 80
    shown = re.sub(r"\s+", " ", text)
    kind = {"train": Recipe, "train-tokenizer": TokenizerRecipe, "tokenize-text": TextRecipe}[command]
    found = list_recipes(kind) if command != "tokenize-text" else TEXTS
    assert found
    for name in found:
        note = read_recipe_note(name)
        assert note.hardware in ("CPU laptop", "one GPU", "8 GPUs", "A100 GPUs", "8 A100 GPUs"), name
        assert f"{name} {note.hardware}: {note.duration} {note.about}" in shown
        assert note.about == importlib.import_module(f"unmask.recipes.{name.replace('-', '_')}").__doc__.split(".\n")[0]


def test_the_help_of_a_source_has_the_flags_of_that_source():
    assert "--data.name" in read_help("train-features", "hub")
    assert "--data.path" not in read_help("train-features", "digits")


def test_the_list_of_commands_fits_a_terminal():
    text = read_help()
    assert max(map(len, text.splitlines())) <= 80
    for name in COMMANDS:
        assert re.sub(r"\s+", " ", f"{name} {describe_command(name)}") in re.sub(r"\s+", " ", text)


def test_the_kind_of_a_recipe_is_read_from_its_file():
    for name in [*list_recipes(), *list_recipes(TokenizerRecipe)]:
        assert read_recipe_note(name).kind == type(find_recipe(name)).__name__


def test_every_command_ends_its_help_with_two_examples():
    assert set(EXAMPLES) == {*COMMANDS} - {"completion"}  # whose help is a list of examples
    for command, lines in EXAMPLES.items():
        assert [shlex.split(line)[:2] for line in lines] == [["unmask", command]] * 2
        assert len(set(lines)) == 2
        assert read_help(command).rstrip("\n").endswith("examples:\n  " + "\n  ".join(lines))


class Parsed(Exception):
    """The flags of a command were read."""


@pytest.fixture
def only_parsing(monkeypatch, tmp_path):
    """Commands read their flags and then raise `Parsed`, in a folder with some runs and photos."""

    def parse_and_stop(kind, arguments, command, default=None):
        raise Parsed(parse(kind, arguments, command, default))

    for name in (
        "app",
        "data",
        "demo",
        "editing",
        "evaluating",
        "networks",
        "published",
        "sampling",
        "schedule",
        "scoring",
    ):
        monkeypatch.setattr(importlib.import_module(f"unmask.cli.{name}"), "parse", parse_and_stop)
    for name in ("sweeping", "text", "tokenizers", "training", "tuning", "writing"):
        monkeypatch.setattr(importlib.import_module(f"unmask.cli.{name}"), "parse", parse_and_stop)
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "pictures", "DIR"):
        Path(folder, "a").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(Path(folder, "a/1.png"))
    for name in ("digits", "folder", "folder-tokenizer"):
        Path("runs", name).mkdir(parents=True)
        recipe = find_recipe(name)
        write_config(replace(recipe, data=Codes(path="codes")) if name == "folder" else recipe, Path("runs", name))
    shutil.copytree("runs/folder-tokenizer", "runs/folder-tokenizer-128")


@pytest.mark.parametrize("line", [line for command in EXAMPLES if command != "models" for line in EXAMPLES[command]])
def test_every_example_is_read(line, only_parsing):
    """Its flags are read without a mistake; the work itself is not begun."""
    with pytest.raises(Parsed):
        main(shlex.split(line)[1:])


PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/guides").glob("*.md")])
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(path.relative_to(ROOT).as_posix() for path in PAGES)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_documented_command_is_read(document, only_parsing, capsys):
    """With all its values. A .py recipe of the reader's own is not there."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, re.M | re.S)
    for line in re.sub(r"\\\n\s*", " ", "\n".join(blocks)).splitlines():
        call = re.match(r"(?:\$ )?unmask ([^#;|&]*)", re.split(r"\s{3,}", line.strip())[0])
        words = shlex.split(call[1]) if call else []
        if words[:1] == ["models"] or words[-1:] == ["--help"] or any(word.endswith(".py") for word in words):
            continue
        if words:
            ends = (Parsed, SystemExit)
            with pytest.raises(ends) as end:
                main(words)
            assert end.type is Parsed, (line, capsys.readouterr().err)


def test_help_shows_no_text_of_the_usage_in_a_default_and_no_space_before_a_full_stop():
    assert "(default: runs/SOURCE-features)" in " ".join(read_help("train-features").replace("│", "").split())
    assert not re.search(r" \.(\s|$)", read_help("inpaint"))
