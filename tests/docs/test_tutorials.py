"""The tutorials are sound notebooks: titles, imports, texts beside pictures, words.

`tests/house/test_docs.py` reads them as documents: links, commands and flags. Nothing runs here.
"""

import ast
import importlib
import re
from pathlib import Path

import pytest
from test_docs import DOCUMENTS, FENCE, prose

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9]_*.md"))
AVOIDED = {
    r"data sets?": "dataset",
    r"judges?": "classifier, or feature extractor",
    r"holes?": "mask, masked region",
    r"floor": "real-data baseline",
    r"order of revealing": "unmasking order",
    r"anew": "again, or from scratch",
    r"goes on|go on": "continue, resume",
    r"of which|that of|of its own": "a plain noun",
    r"figures?": "metric, or plot",
}
"""Words that the project's texts do not use, and what they use."""

every_tutorial = pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)


def split_notebook(text: str) -> tuple[str, str]:
    """Return the header of a jupytext file and the rest."""
    _, header, body = re.split(r"^---\n", text, maxsplit=2, flags=re.M)
    return header, body


def code(text: str) -> list[tuple[str, str]]:
    """Return (first line, source) of the cells of Python."""
    found = re.finditer(r"^```python([^\n]*)\n(.*?)^```", text, re.M | re.S)
    return [(match[1], match[2]) for match in found]


def unfulfilled_imports(source: str) -> list[str]:
    """Return what a cell imports from unmask, or uses as `unmask.NAME`, that is not there."""
    missing = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "unmask":
            module = importlib.import_module(node.module or "")
            missing += [f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name)]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "unmask":
            missing += [] if hasattr(importlib.import_module("unmask"), node.attr) else [f"unmask.{node.attr}"]
    return missing


def avoided_words(text: str) -> list[str]:
    """Return the words of the prose that the project does not use."""
    plain = re.sub(r"`[^`]*`", "", prose(text))
    return [match[0] for word in AVOIDED for match in re.finditer(rf"\b(?:{word})\b", plain, re.I)]


def test_there_are_five_tutorials():
    assert [path.stem[0] for path in TUTORIALS] == ["1", "2", "3", "4", "5"]


@every_tutorial
def test_a_tutorial_is_a_notebook_with_a_title(tutorial):
    header, body = split_notebook(tutorial.read_text(encoding="utf-8"))
    assert "format_name: markdown" in header
    assert "name: python3" in header
    assert re.match(r"\n# \S", body)
    assert len(re.findall(r"^# ", prose(body), re.M)) == 1
    first = body.split("\n## ")[0]
    assert re.search(r"At the end you have", first), "the first lines say what the reader will have"
    assert re.search(r"minutes?|hour", first), "and how long it takes"


@every_tutorial
def test_a_tutorial_names_only_what_there_is(tutorial):
    text = tutorial.read_text(encoding="utf-8")
    assert code(text)
    for _, source in code(text):
        assert unfulfilled_imports(source) == []
    assert tutorial in DOCUMENTS


@every_tutorial
def test_a_tutorial_uses_the_words_of_the_project(tutorial):
    assert avoided_words(split_notebook(tutorial.read_text(encoding="utf-8"))[1]) == []


@every_tutorial
def test_a_cell_that_shows_a_picture_says_what_it_shows(tutorial):
    for options, source in code(tutorial.read_text(encoding="utf-8")):
        *_, last = ast.parse(source).body
        shown = ast.unparse(last)
        if re.match(r"(draw_\w+|Image\.open|put_side_by_side)\(", shown) or "display(" in shown:
            assert re.search(r'alt="[^"]{20,}"', options), shown


def test_every_fence_of_a_tutorial_is_closed():
    for tutorial in TUTORIALS:
        text = tutorial.read_text(encoding="utf-8")
        assert len(re.findall(r"^```", text, re.M)) == 2 * len(FENCE.findall(text)), tutorial.name


# -- the checks themselves can fail ------------------------------------------------------------------------------------


def test_a_wrong_import_or_word_is_found():
    assert unfulfilled_imports("from unmask.method.schedules import Cosine, Sine") == ["unmask.method.schedules.Sine"]
    assert unfulfilled_imports("import unmask\nunmask.load(1)\nunmask.lode(1)") == ["unmask.lode"]
    assert avoided_words("This data set has `holes` and a floor.\n\n```python\njudge = 1\n```\n") == [
        "data set",
        "floor",
    ]
