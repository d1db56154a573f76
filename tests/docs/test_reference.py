"""The API reference has every public name once, each says what it does, and the examples of the most used ones run."""

import ast
import doctest
import importlib
import inspect
import re
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import unmask

ROOT = Path(__file__).parents[2]
PAGES = [path for path in sorted((ROOT / "docs/reference").glob("*.md")) if path.name != "index.md"]
LISTED = [name for page in PAGES for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.M)]
GUIDES = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/guides").glob("*.md"), ROOT / "README.md"]


def find_object(name: str) -> object:
    """Return what a dotted name stands for."""
    module, _, last = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), last)


OBJECTS = {name: find_object(name) for name in LISTED}


def list_imported(text: str) -> set[tuple[str, str]]:
    """Return (module, name) of what the Python blocks of a page import from unmask."""
    found = set()
    for block in re.findall(r"^```(?:python|py)\n(.*?)^```", text, re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "unmask":
                found |= {(node.module or "", alias.name) for alias in node.names}
    return found


def list_members(kind: type) -> list[str]:
    """Return the public methods and properties that a class defines itself."""
    kinds = (staticmethod, classmethod, property)
    return [name for name, value in vars(kind).items()
            if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds))]  # fmt: skip


def test_every_public_name_is_in_the_reference_once():
    assert sorted(LISTED) == sorted(set(LISTED))
    assert {f"unmask.{name}" for name in unmask.__all__} - set(LISTED) == set()


@pytest.mark.parametrize("page", GUIDES, ids=lambda path: path.stem)
def test_what_a_guide_imports_is_in_the_reference(page):
    modules = {value.__name__ for value in OBJECTS.values() if inspect.ismodule(value)}
    for module, name in list_imported(page.read_text(encoding="utf-8")):
        value = getattr(importlib.import_module(module), name)
        listed = any(value is known for known in OBJECTS.values()) or module in modules
        assert listed or module.startswith("unmask.recipes."), f"{module}.{name}"


def is_explained(name: str) -> bool:
    """Return whether a docstring stands below a constant or an alias in the source."""
    module, _, last = name.rpartition(".")
    place = importlib.import_module(unmask._AT_FIRST_USE[last] if module == "unmask" else module)
    for node, after in pairwise(ast.parse(inspect.getsource(place)).body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == last for target in targets):
            return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return False


@pytest.mark.parametrize("name", LISTED)
def test_every_public_name_says_what_it_does(name):
    value = OBJECTS[name]
    if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
        assert is_explained(name)
        return
    assert len(inspect.getdoc(value) or "") > 20
    if not inspect.isclass(value):
        return
    for member in list_members(value):
        assert inspect.getdoc(getattr(value, member)), f"{name}.{member}"
    if is_dataclass(value):
        source = ast.parse(inspect.cleandoc("\n" + inspect.getsource(value))).body[0]
        body = source.body  # type: ignore[attr-defined]
        said = {node.target.id for node, after in pairwise(body)
                if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr)}  # fmt: skip
        own = {field.name for field in fields(value)} & {n.target.id for n in body if isinstance(n, ast.AnnAssign)}
        assert own - said == set(), f"{name}: fields without a docstring"


MOST_USED = (
    "load", "Pipeline", "TextPipeline", "recipe", "train", "evaluate", "sweep", "score", "Sampling", "decode", "ratios",
    "count_reveals", "Cosine", "Confidence", "Halton", "seeded", "guided", "MaskGIT", "MaskedTransformer",
    "compute_exact_nll",
)  # fmt: skip


class Checker(doctest.OutputChecker):
    """Compare output where it is stated; what a line without it prints is a log."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def find_examples(name: str) -> list[doctest.DocTest]:
    """Return the examples of a name, in its docstring or below its entry in the reference."""
    names = {"unmask": unmask, "torch": torch}
    found = doctest.DocTestFinder(recurse=False).find(getattr(unmask, name), name, globs=names)
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    below = re.findall(rf"^::: unmask\.{name}\n\nExample:\n\n```pycon\n(.*?)^```", pages, re.M | re.S)
    found += [doctest.DocTestParser().get_doctest(text, names, name, None, 0) for text in below]
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", MOST_USED)
def test_the_example_of_a_most_used_name_runs(name, home, monkeypatch):
    examples = find_examples(name)
    assert examples, "no example"
    monkeypatch.chdir(home)
    for test in examples:
        report: list[str] = []
        doctest.DocTestRunner(Checker()).run(test, out=report.append)
        assert report == []


def test_an_example_that_is_wrong_is_found():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(Checker()).run(test, out=lambda text: None).failed == 1
