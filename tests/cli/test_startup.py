"""What a command imports: measured by modules and not by seconds, in processes of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unmask.cli import COMMANDS
from unmask.recipes.listing import list_recipe_names, read_recipe_note

EXPORT = Path(__file__).parents[1] / "fixtures/earlier/export"
TEXT = EXPORT.with_name("text_export")
NEVER = [
    "matplotlib", "sympy", "sklearn", "pandas", "scipy", "transformers", "datasets", "torch._dynamo",
    "torch._inductor", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.checkpoint",
]  # fmt: skip
"""Modules that are never on the way to a picture or a text."""
SLOW_IMPORTS = {"torch", "matplotlib", "sympy"}
"""Modules that no help imports."""
NEED_NUMPY = ("data", "tokenize", "train-features", "evaluate-text")
"""Commands whose flags are those of classes that need NumPy, such as a source of images."""
RECIPE_HELPS = [
    *(["train", name] for name in list_recipe_names()),
    *(["train-tokenizer", name] for name in list_recipe_names(tokenizers=True)),
    *(["tokenize-text", name] for name in list_recipe_names() if read_recipe_note(name).kind == "TextRecipe"),
]
"""Each command that takes a recipe, with each of its recipes."""
PROGRAM = """
import contextlib, io, json, sys
from unmask.__main__ import main
sys.argv = ["unmask", *sys.argv[1:]]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
print(json.dumps(sorted(sys.modules)))
"""


def list_imported(*words, program=PROGRAM):
    """The modules that a command has imported at its end."""
    command = [sys.executable, "-c", program, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["train", "--help"], ["train-tokenizer", "--help"]])
def test_the_help_of_the_program_imports_almost_nothing(words):
    assert not list_imported(*words) & {"torch", "numpy", "matplotlib", "PIL", "tyro", "rich", "jaxtyping"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_imports_no_torch(name):
    found = list_imported(name, "--help")
    assert not found & (SLOW_IMPORTS if name in NEED_NUMPY else SLOW_IMPORTS | {"numpy", "PIL"})


@pytest.mark.parametrize("words", RECIPE_HELPS, ids=" ".join)
def test_the_help_of_a_recipe_imports_no_torch(words):
    found = list_imported(*words, "--help")
    assert f"unmask.recipes.{words[1].replace('-', '_')}" in found
    assert not found & (SLOW_IMPORTS | set(NEVER))


@pytest.mark.parametrize("words", [["tokenize", "besnier-256"], ["data", "digits"], ["train-features", "hub"]])
def test_the_help_of_a_source_imports_no_torch(words):
    found = list_imported(*words, "--help")
    assert "unmask.data.sources.choice" in found
    assert not found & SLOW_IMPORTS


LINES = ["sample run --nun 3", "sample", "sample --labels 3 run", "smaple", "train digits --nun 3"]


@pytest.mark.parametrize("line", LINES)
def test_a_mistake_in_the_flags_is_found_without_torch(line):
    command = [sys.executable, "-X", "importtime", "-m", "unmask", *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "unmask.cli.ending" in done.stderr
    assert not re.search(r"\| +torch$", done.stderr, re.M)


@pytest.mark.parametrize(
    "words",
    [
        ["sample", EXPORT, "--num", "2", "--out", "a.png", "--gif", "a.gif"],
        ["generate", TEXT, "--num", "1", "--steps", "2"],
        ["schedule"],
    ],
    ids=lambda words: words[0],
)
def test_commands_import_only_what_they_need(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = list_imported(*words)
    assert not found & set(NEVER)
    assert "torch" in found


def test_the_library_imports_itself_at_the_first_use():
    program = "import json, sys; import unmask; dir(unmask); print(json.dumps(sorted(sys.modules)))"
    found = list_imported(program=program)
    assert {name for name in found if name.startswith("unmask")} == {"unmask", "unmask.errors"}
    assert not found & {"torch", "numpy", "importlib.metadata"}


def test_the_version_is_one_line():
    done = subprocess.run([sys.executable, "-m", "unmask", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("unmask ")
    assert done.stdout.count("\n") == 1
