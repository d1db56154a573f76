"""Every Python block of the documentation runs, in order, where its commands have made small runs; pictures have texts.

A block that cannot run here stands after a line `<!-- not run: REASON -->`.
"""

import re
from pathlib import Path

import pytest

from unmask.recipes.schema import Recipe, TextRecipe, TokenizerRecipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/guides").glob("*.md")])
BLOCK = re.compile(r"(?:<!-- not run: ([^\n]+) -->\n\n?)?```(?:python|py)\n(.*?)^```", re.M | re.S)


def find_blocks(text: str) -> list[tuple[str, str]]:
    """Return why a block is not run, or nothing, and its code."""
    return [(match[1] or "", match[2]) for match in BLOCK.finditer(text)]


BLOCKS = {page.relative_to(ROOT).as_posix(): found for page in PAGES if (found := find_blocks(page.read_text("utf-8")))}


@pytest.mark.slow
@pytest.mark.parametrize("page", BLOCKS)
def test_the_python_blocks_of_a_page_run(page, home_of_photos, monkeypatch, capsys):
    monkeypatch.chdir(home_of_photos)
    for reason, code in BLOCKS[page]:
        if reason:
            continue
        names: dict[str, object] = {"__name__": "block"}
        exec(compile(code, page, "exec"), names)  # noqa: S102  (the page is ours)
        if callable(names.get("recipe")):
            assert isinstance(names["recipe"](), Recipe | TextRecipe | TokenizerRecipe)


def test_blocks_and_marks_are_found():
    text = "```python\na = 1\n```\n<!-- not run: needs a GPU -->\n```python\nb = 2\n```\n```bash\nc\n```\n"
    assert find_blocks(text) == [("", "a = 1\n"), ("needs a GPU", "b = 2\n")]
    assert len(BLOCKS) > 5


@pytest.mark.parametrize("page", [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"], ids=lambda p: p.stem)
def test_every_picture_has_a_text_that_says_what_it_shows(page):
    for text, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", page.read_text(encoding="utf-8")):
        assert len(text) > 3, target
