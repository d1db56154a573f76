"""The documents name only what exists: links, files, Python examples, commands and flags, in README and docs/*.md."""

import ast
import contextlib
import importlib
import io
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from unmask.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
MADE_LATER = ("runs/", "checkpoints/", ".venv/")  # folders that running the commands makes

FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```", re.M | re.S)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)")
PATH = re.compile(r"`((?:[\w.-]+/)+(?:[\w.-]+\.\w+)?)`")
CALL = re.compile(r"(?:^|[\s/`])unmask(?:\.cli)?\s+([a-z][\w-]*)([^`]*)")
TRAINING = {"train": "digits", "train-tokenizer": "cifar10-tokenizer", "train-features": "cifar10"}


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks."""
    return [(language, content) for _, language, content in FENCE.findall(text)]


def prose(text: str) -> str:
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """The fragments that GitHub makes of the headings."""
    headings = re.findall(r"^#+ +(.*)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def terms(text: str) -> set[str]:
    """The fragments that the documentation site makes of the terms of the glossary."""
    found = re.findall(r"\*\*([^*]+)\*\*", " ".join(re.findall(r"^\| (.*?) \| ", text, re.M)))
    return {re.sub(r"[^\w-]+", "-", term.lower()).strip("-") for term in found}


def broken_links(document: Path) -> Iterator[str]:
    for target in LINK.findall(prose(document.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        there = document.parent / name if name else document
        text = there.read_text(encoding="utf-8") if fragment and there.is_file() else ""
        known = anchors(text) | (terms(text) if there.name == "glossary.md" else set())
        if not there.exists() or (fragment and fragment not in known):
            yield target


def missing_paths(document: Path) -> Iterator[str]:
    """Paths in backticks that are neither in the repository, nor beside the document, nor in the package."""
    bases = (ROOT, document.parent, ROOT / "src" / "unmask", ROOT / "src")
    for path in PATH.findall(prose(document.read_text(encoding="utf-8"))):
        if not path.startswith(MADE_LATER) and not any((base / path).exists() for base in bases):
            yield path


def broken_python(text: str) -> Iterator[str]:
    """Python blocks that do not parse, or import from unmask what is not there."""
    for language, content in blocks(text):
        if language not in ("python", "py"):
            continue
        try:
            tree = ast.parse(content)
        except SyntaxError as error:
            yield f"{error.msg}: {content[:60]!r}"
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "unmask":
                module = importlib.import_module(node.module or "")
                yield from (f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name))


def missing_names(text: str) -> Iterator[str]:
    """Dotted names of the package in backticks that do not exist."""
    for name in dict.fromkeys(re.findall(r"`(unmask(?:\.\w+)+)", prose(text))):
        place, parts = importlib.import_module("unmask"), name.split(".")[1:]
        for number, part in enumerate(parts, 1):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(".".join(["unmask", *parts[:number]]))
            if not hasattr(place, part):
                yield name
                break
            place = getattr(place, part)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(command, words after it) of every `unmask ...` in a shell block or in backticks."""
    lines = []
    for language, content in blocks(text):
        if language not in ("python", "py"):
            lines += re.sub(r"\\\n\s*", " ", content).splitlines()
    lines += re.findall(r"`(unmask [^`\n]+)`", prose(text))
    found = []
    for line in lines:
        for name, rest in CALL.findall(re.sub(r"\s#.*|\s{3,}\S.*", "", line)):
            found.append((name, re.split(r"[;|&]", rest)[0].split()))
    return found


def missing_tests(text: str) -> Iterator[str]:
    """Tests named in backticks that no test file defines."""
    named = re.findall(r"`(test_\w+)`", prose(text))
    yield from (name for name in named if name not in defined_tests())


@cache
def defined_tests() -> frozenset[str]:
    texts = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "tests").rglob("test_*.py"))]
    return frozenset(name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.M))


@cache
def flags(command: str, positional: str) -> frozenset[str]:
    """What `unmask COMMAND [POSITIONAL] --help` lists, read in this process."""
    out = io.StringIO()
    words = [command, positional, "--help"] if positional else [command, "--help"]
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(words)
    # `--data DIR` is short for the --data.path of the recipe.
    extra = {"--data"} if "--data.path" in out.getvalue() else set()
    extra |= {"--source"} if command == "tokenize" else set()
    return frozenset({*re.findall(r"--[a-z][\w.-]*", out.getvalue()), *extra, "--help"})


def unknown_words(text: str) -> Iterator[str]:
    """Commands and flags that the command line does not know."""
    for name, words in commands(text):
        if name not in COMMANDS:
            yield f"unmask {name}"
            continue
        positional = words[0] if words and name in TRAINING and not words[0].startswith("-") else ""
        if re.search(r"[./]", positional):
            positional = TRAINING[name]  # a recipe file or a config.json of the reader's own
        known = flags(name, positional)
        for word in words:
            flag = word.partition("=")[0].replace("_", "-")
            if re.match(r"--[a-z]", word) and flag not in known:
                yield f"unmask {name} {word}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_document(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert text.strip()
    assert list(broken_links(document)) == []
    assert list(missing_paths(document)) == []
    assert list(broken_python(text)) == []
    assert list(missing_names(text)) == []
    assert list(missing_tests(text)) == []
    assert list(unknown_words(text)) == []


def test_the_documents_that_a_reader_needs_are_there() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS if path.is_file()}
    assert {"README.md", "docs/tour.md", "docs/glossary.md", "docs/design.md"} <= names


def test_the_package_says_each_thing_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for needs in (project["dependencies"], *project["optional-dependencies"].values()):
        names = [re.split(r"[\[<>=]", need)[0] for need in needs]
        assert sorted(names) == sorted(set(names))
    least = project["requires-python"].removeprefix(">=")
    for name in ("README.md", "Makefile"):
        found = re.findall(r"Python (?:>= )?(3\.\d+)", (ROOT / name).read_text(encoding="utf-8"))
        assert set(found) == {least}


def test_every_module_of_the_method_is_on_the_tour() -> None:
    package, tour = ROOT / "src" / "unmask", (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    names = ("schedules", "rand", "masking", "objectives", "critic", "guidance", "likelihood")
    package = package / "method"
    modules = [package / f"{name}.py" for name in names]
    modules += [path for folder in ("sampling", "models") for path in sorted((package / folder).glob("[!_]*.py"))]
    assert [path.name for path in modules if path.relative_to(package).as_posix() not in tour] == []


# -- the checks themselves can fail ------------------------------------------------------------------------------------


def test_a_broken_link_or_path_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A heading, of words\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](gone.md) [c](there.md#a-heading-of-words) [d](there.md#gone) [e](https://x.y/z)\n"
        "`examples/minimal.py` `examples/gone.py` `method/models/layers.py` `storage/` `gone/` `a/b`\n"
        "`runs/x/report.json`\n"
        "```\n[f](fenced.md)\n```\n"
    )
    assert list(broken_links(page)) == ["gone.md", "there.md#gone"]
    assert list(missing_paths(page)) == ["examples/gone.py", "gone/"]


def test_a_missing_test_is_found() -> None:
    assert list(missing_tests("`test_a_missing_test_is_found` `test_gone` `tests/house/test_docs.py`")) == ["test_gone"]


def test_a_missing_name_is_found() -> None:
    good = "`unmask.decode` `unmask.method.schedules.Cosine()` `unmask.evaluation.images`"
    assert list(missing_names(good)) == []
    assert list(missing_names(f"{good} `unmask.gone` `unmask.method.gone.Cosine`")) == [
        "unmask.gone",
        "unmask.method.gone.Cosine",
    ]


def test_terms_of_the_glossary_have_anchors() -> None:
    assert terms("| **unmasking order**, **top_k** | **bold** | b |\n") == {"unmasking-order", "top_k"}


def test_broken_python_is_found() -> None:
    good = "```python\nfrom unmask.method.schedules import Cosine\n\nprint(Cosine()(0.5))\n```\n"
    assert list(broken_python(good)) == []
    assert list(broken_python(good.replace("Cosine\n", "Sine\n"))) == ["unmask.method.schedules.Sine"]
    assert len(list(broken_python(good.replace("print(", "print((")))) == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("unmask schedule --tokens 16   # and --more words", None),
        ("unmask schedule --tokens 16      a remark with --flags", None),
        ("$ .venv/bin/unmask train digits --model.depth 2 --training.batch_size=8", None),
        ("torchrun --nproc-per-node 2 -m unmask train my/recipe.py \\\n  --training.strategy ddp", None),
        ("pip install unmask", None),
        ("unmask paint", "unmask paint"),
        ("unmask schedule --token 16", "unmask schedule --token"),
        ("unmask train digits --model.wide 3", "unmask train --model.wide"),
        ("unmask sample runs/demo \\\n  --stepps 3", "unmask sample --stepps"),
    ],
)
def test_a_wrong_command_or_flag_is_found(line: str, problem: str | None) -> None:
    assert list(unknown_words(f"```bash\n{line}\n```\n")) == ([problem] if problem else [])
