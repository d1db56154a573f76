"""The documentation site builds without a warning, asks for nothing from elsewhere, and has every command and flag."""

import contextlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unmask.cli import COMMANDS, describe_command, main
from unmask.recipes.listing import list_recipe_names

pytest.importorskip("zensical", reason="the documentation needs zensical: pip install 'unmask[docs]'")
pytest.importorskip("mkdocstrings_handlers", reason="the documentation needs mkdocstrings: pip install 'unmask[docs]'")
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs/site/build.py"
LOADED = re.compile(r"<(?:script|img|iframe|source|video)\b[^>]*?\ssrc=\"?(?:https?:)?//[^\s\">]+"
                    r"|<link\b(?=[^>]*rel=\"?(?:stylesheet|preconnect|preload|icon|dns-prefetch))[^>]*?href=\"?(?:https?:)?//"
                    r"|@import|url\([\"']?(?:https?:)?//", re.I)  # fmt: skip
pytestmark = pytest.mark.slow


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / SCRIPT.relative_to(ROOT)), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the build."""
    out = copy_sources(tmp_path_factory.mktemp("site"))
    done = build(out, out / "build")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"built .*: \d+ pages\n", done.stdout)
    return out / "build"


def copy_sources(out: Path) -> Path:
    """Copy what the site is made from; the package is only linked."""
    for name in ("docs", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "README.md", "mkdocs.yml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, out / name)
    (out / "src").symlink_to(ROOT / "src")
    return out


def find_loaded(text: str) -> list[str]:
    """What a page loads from another host; links that a reader follows do not count."""
    return [match[0] for match in LOADED.finditer(text)]


def test_no_page_loads_anything_from_elsewhere(site):
    pages = [*(site / "site").rglob("*.html"), *(site / "site").rglob("*.css")]
    assert len(pages) > 50
    assert {page.name: found for page in pages if (found := find_loaded(page.read_text(encoding="utf-8")))} == {}


def test_what_is_loaded_from_elsewhere_is_found():
    loaded = [
        '<script async src="https://a.b/c.js">',
        '<img alt="a" src=//a.b/c.png>',
        '<link href="https://a.b/c.css" rel="stylesheet">',
        "<link rel=preconnect href=https://a.b>",
        "url(https://a.b/f.woff)",
    ]
    assert [text for text in loaded if not find_loaded(text)] == []
    assert find_loaded('<a href="https://a.b">a</a> <img src="c.png"> <link rel="canonical" href="https://a.b">') == []


HELPS = {
    "train": [[name] for name in list_recipe_names()],
    "train-tokenizer": [[name] for name in list_recipe_names(tokenizers=True)],
    "tokenize-text": [["shakespeare"], ["shakespeare-partition"], ["tinystories"], ["tinystories-gpu"]],
    "train-features": [[name] for name in ("arrays", "cifar10", "digits", "folder", "hub", "mnist", "shards")],
}
"""What stands after a command whose flags depend on it."""


def read_flags(capsys, *words):
    """The names of all flags in the help of a command, without those of help itself."""
    with contextlib.suppress(SystemExit):
        main([*words, "--help"])
    heads = re.findall(r"(?m)^[│|]? {1,2}(--[a-z].*)", capsys.readouterr().out)
    return {flag for head in heads for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", head.split("  ")[0])}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_with_all_its_flags(name, site, capsys):
    text = (site / f"docs/commands/{name}.md").read_text(encoding="utf-8")
    assert describe_command(name)[1:20].replace("[", "\\[") in text
    rows = re.findall(r"^\| (`-.*?) \| (.*?) \| (.*) \|$", text, re.M)
    shown = {word.split()[0] for names, _, _ in rows for word in re.findall(r"`([^`]*)`", names)}
    assert {flag for words in HELPS.get(name, [[]]) for flag in read_flags(capsys, name, *words)} == shown
    assert all(default and len(about) > 10 for _, default, about in rows)
    assert (site / f"site/commands/{name}/index.html").is_file()


def test_choices_and_defaults_are_those_of_the_parser(site):
    text = (site / "docs/commands/sample.md").read_text(encoding="utf-8")
    assert "| `--device` | `auto` | Where to compute; auto takes a GPU if there is one. One of `auto`, `cpu`" in text
    assert "| `--seed INT` | `0` |" in text


def test_llms_txt_lists_every_page_with_a_sentence(site):
    lines = (site / "site/llms.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# unmask"
    assert lines[2].startswith("> ")
    links = [match for line in lines if (match := re.fullmatch(r"- \[.+?\]\((\S+)\): (.{15,})", line))]
    assert len(links) == sum(line.startswith("- ") for line in lines) > 50
    for match in links:
        assert (site / "site" / match[1] / "index.html").is_file(), match[0]
        assert match[2][-1] in ".?!", match[0]
    assert "## Which setting does what" in (site / "site/llms-full.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "words", "said"),
    [
        ("docs/guides/sample.md", "[a](measure.md#gone)\n", "anchor"),
        ("docs/guides/sample.md", "[a](gone.md)\n", "gone.md is not in the site"),
        ("docs/reference/use.md", "::: unmask.gone\n", "unmask.gone"),
        ("mkdocs.yml", "  - gone.md\n", "there is no page gone.md"),
        ("docs/guides/new.md", "# New\n", "no place in the navigation for guides/new.md"),
    ],
)
def test_a_broken_page_fails_the_build(page, words, said, tmp_path):
    root = copy_sources(tmp_path)
    with (root / page).open("a", encoding="utf-8") as file:
        file.write("\n" + words)
    done = build(root, root / "build")
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
