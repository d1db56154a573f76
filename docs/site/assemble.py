"""Assemble the pages of the documentation site, and the configuration that the site builder reads.

    python docs/site/assemble.py build

It writes BUILD/docs (the pages) and BUILD/mkdocs.yml (mkdocs.yml with the generated pages in its navigation). Pages
come from docs/, from the root (CHANGELOG.md and others), from the parser (commands/), and from BUILD/tutorials, where
`make tutorials` leaves executed notebooks; a tutorial that was not executed appears as its source.
"""

import importlib
import inspect
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml
from commands import write_commands

from unmask.cli import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FROM_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
"""Pages of the repository's root, and their place in the site."""
ASSETS = (".png", ".gif", ".css", ".txt")
LINK = re.compile(r"(!?\[[^\]]*\]\(\s*<?)([^)\s>]+)")
FENCE = re.compile(r"^( *)```.*?^\1```[^\n]*$", re.M | re.S)


def main(build: Path) -> None:
    """Write the pages and the configuration into the folder `build`."""
    pages = build / "docs"
    shutil.rmtree(pages, ignore_errors=True)
    places = {DOCS / name: pages / name for name in list_files()}
    places |= {ROOT / name: pages / page for name, page in FROM_ROOT.items()}
    tutorials = {path: pages / "tutorials" / path.name for path in sorted((DOCS / "tutorials").glob("[0-9]*.md"))}
    linked = {**places, **tutorials, ROOT / "README.md": pages / "index.md"}
    for source, page in places.items():
        place_file(source, page, linked)
    for source, page in tutorials.items():
        place_tutorial(source, page, build / "tutorials", linked)
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    made = {"Tutorials": list_entries(list(tutorials.values()), pages)}
    made["Commands"] = list_entries(write_commands(pages / "commands"), pages)
    config["nav"] = fill_navigation(config["nav"], made, pages)
    listed = {name for _, name in list_pages(config["nav"])}
    if unlisted := [name for path in pages.rglob("*.md") if (name := path.relative_to(pages).as_posix()) not in listed]:
        raise ValueError(f"mkdocs.yml: no place in the navigation for {', '.join(sorted(unlisted))}")
    config |= {"docs_dir": "docs", "site_dir": "site"}
    (build / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    write_llms(config, pages)


def list_files() -> list[Path]:
    """Return pages and pictures as paths below docs/, without the tutorials and the parts of pages of results."""
    found = [path.relative_to(DOCS) for path in sorted(DOCS.rglob("*")) if path.suffix in (".md", *ASSETS)]
    parts = [path for path in found if path.suffix == ".md" and path.parts[0] == "results" and len(path.parts) > 2]
    return [path for path in found if path.parts[0] != "tutorials" and path not in parts]


def place_file(source: Path, page: Path, places: dict[Path, Path]) -> None:
    """Copy a file to its place in the site; links of a page follow the files that they name."""
    page.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".md":
        text = move_links(source.read_text(encoding="utf-8"), source, page, places)
        text = mark_terms(text) if source.name == "glossary.md" else text
        page.write_text(text + list_commands(text, page), encoding="utf-8")
    else:
        shutil.copyfile(source, page)


def move_links(text: str, source: Path, page: Path, places: dict[Path, Path]) -> str:
    """Return the text of a page with each link to a file of the repository as a link within the site.

    Raises:
        ValueError: A link names a file that is not in the site.
    """

    def move(match: re.Match[str]) -> str:
        target, hash_sign, fragment = match[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        file = (source.parent / target).resolve()
        if file not in places:
            raise ValueError(f"{source.relative_to(ROOT)}: {match[2]} is not in the site")
        return f"{match[1]}{os.path.relpath(places[file], page.parent)}{hash_sign}{fragment}"

    return replace_prose(text, lambda prose: LINK.sub(move, prose))


def mark_terms(text: str) -> str:
    """Return the glossary with an anchor for each term in the first column of its tables."""

    seen: set[str] = set()

    def mark(match: re.Match[str]) -> str:
        anchor = make_anchor(match[1])
        is_new = anchor not in seen
        seen.add(anchor)
        return f"{match[0]}{{ #{anchor} }}" if is_new else match[0]

    rows = [line.partition(" | ") for line in text.splitlines()]
    return "\n".join("".join((TERM.sub(mark, head) if head.startswith("| ") else head, *rest)) for head, *rest in rows)


def make_anchor(term: str) -> str:
    """Return the fragment of a link to a term of the glossary."""
    return re.sub(r"[^\w-]+", "-", term.lower()).strip("-")


TERM = re.compile(r"\*\*([^*]+)\*\*")
"""A term of the glossary, in bold."""


def list_commands(text: str, page: Path) -> str:
    """Return the last lines of a guide: links to the reference of each command in its blocks."""
    blocks = "\n".join(fence[0] for fence in FENCE.finditer(text))
    called = dict.fromkeys(re.findall(r"(?:^|-m )unmask ([a-z][\w-]*)", blocks, re.M))
    links = [f"[`unmask {name}`](../commands/{name}.md)" for name in called if name in COMMANDS]
    return f"\n---\n\nAll flags: {', '.join(links)}.\n" if links and page.parent.name == "guides" else ""


def replace_prose(text: str, change: Any) -> str:
    """Return a text with everything outside of its fenced blocks changed."""
    pieces, end = [], 0
    for fence in FENCE.finditer(text):
        pieces += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, change(text[end:])])


def place_tutorial(source: Path, page: Path, rendered: Path, places: dict[Path, Path]) -> None:
    """Write the page of a tutorial, with its outputs and pictures if the folder `rendered` has it executed."""
    page.parent.mkdir(exist_ok=True)
    executed, pictures = rendered / source.name, rendered / source.stem
    if pictures.is_dir():
        shutil.copytree(pictures, page.with_suffix(""), dirs_exist_ok=True)
        made = [path.relative_to(pictures) for path in pictures.rglob("*")]
        places = {**places, **{source.with_suffix("") / name: page.with_suffix("") / name for name in made}}
    text = (executed if executed.exists() else source).read_text(encoding="utf-8")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)  # the header of a notebook
    page.write_text(move_links(text, source, page, places), encoding="utf-8")


def list_entries(found: list[Path], pages: Path) -> list[Any]:
    """Return the entries of pages in the navigation: an index by its path, others by their heading."""
    names = [path.relative_to(pages).as_posix() for path in found]
    return [name if name.endswith("index.md") else {read_title(pages / name): name} for name in names]


def fill_navigation(nav: list[Any], made: dict[str, list[Any]], pages: Path) -> list[Any]:
    """Return the navigation with the generated pages in their sections, without empty sections and missing pages."""
    filled: list[Any] = []
    for entry in nav:
        title, below = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
        if title in made:
            below = made[title]
        if isinstance(below, list):
            below = fill_navigation(below, {}, pages)
            filled += [{title: below}] if below else []
        elif (pages / below).exists():
            filled.append(entry)
        elif below not in TO_COME:
            raise ValueError(f"mkdocs.yml: there is no page {below}")
    return filled


TO_COME = ("guides/app.md",)
"""Pages with a place in the navigation that may be missing."""


def read_title(page: Path) -> str:
    """Return the first heading of a page."""
    found = re.search(r"^# +(.*)$", page.read_text(encoding="utf-8"), re.M)
    if found is None:
        raise ValueError(f"{page}: no heading")
    return found[1].replace("`", "")


def read_first_sentence(page: Path) -> str:
    """Return the first sentence of a page, without links."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    paragraphs = re.split(r"\n\s*\n", text[text.index("# ") :])[1:]
    prose = next((p for p in paragraphs if re.match(r"[\w`*\[\"(]", p.strip())), "")
    plain = re.sub(r"^\*\*\w+\.\*\* ", "", " ".join(prose.split()))  # a label such as **Setup.**
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain).replace("**", "").replace("\\", "")
    return re.split(r"(?<=[.!?])\s|:$", plain)[0]


def list_pages(nav: list[Any], section: str = "") -> Iterator[tuple[str, str]]:
    """Yield the top section and the path of each page of the navigation."""
    for entry in nav:
        title, below = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
        if isinstance(below, list):
            yield from list_pages(below, section or title)
        else:
            yield section or title, below


def describe_name(name: str) -> str:
    """Return the heading, the signature and the docstring of a public name, for readers of plain text."""
    module, _, last = name.rpartition(".")
    try:
        value: Any = importlib.import_module(name)
    except ModuleNotFoundError:
        value = getattr(importlib.import_module(module), last, None)
    if value is None:
        raise ValueError(f"docs/reference: there is no {name}")
    is_code = inspect.isroutine(value) or is_dataclass(value)
    signature = f"```python\n{last}{inspect.signature(value)}\n```\n\n" if is_code else ""
    return f"## {name}\n\n{signature}{inspect.getdoc(value) or ''}"


def write_llms(config: dict[str, Any], pages: Path) -> None:
    """Write llms.txt (https://llmstxt.org), a list of all pages with a sentence each, and llms-full.txt, their text."""
    lines, full, before = [f"# {config['site_name']}", "", f"> {config['site_description']}"], [], ""
    for section, name in list_pages(config["nav"]):
        if section != before:
            lines += ["", f"## {section}", ""]
        before = section
        said = read_first_sentence(pages / name)
        address = re.sub(r"(index)?\.md$", "/", name).replace("//", "/").lstrip("/") or "."
        lines.append(f"- [{read_title(pages / name)}]({address}): {said}")
        text = (pages / name).read_text(encoding="utf-8").strip()
        full.append(re.sub(r"^::: (\S+)$", lambda match: describe_name(match[1]), text, flags=re.M))
    (pages / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (pages / "llms-full.txt").write_text("\n\n".join(full) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
