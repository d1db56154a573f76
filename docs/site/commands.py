"""Write the command reference: a page for each command, from its `--help`, its recipes and its examples."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from unmask.cli import COMMANDS, GROUPS, Command, describe_command, main
from unmask.cli.help import EXAMPLES
from unmask.cli.recipes import HEADINGS, SHORT, TRUST
from unmask.cli.tokenizers import list_sources
from unmask.recipes.listing import list_recipe_names, read_recipe_note


@dataclass
class FlagRow:
    """A flag as its help shows it."""

    names: str
    """Its names and the type of its value, such as `--labels CLASS ...`."""
    about: str
    default: str
    variants: list[str] = field(default_factory=list)
    """The recipes or sources that have it."""


def write_commands(out: Path) -> list[Path]:
    """Write one page per command and `index.md` into the folder `out`; return their paths, the index first."""
    out.mkdir(parents=True, exist_ok=True)
    pages = {"index.md": write_index(), **{f"{name}.md": write_command(name) for name in COMMANDS}}
    for name, text in pages.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in pages]


def write_index() -> str:
    """Return the page that lists all commands under the headings of `unmask --help`."""
    lines = ["# Commands", "", "Every command of `unmask`, by what you want to do. Each page is made from the parser."]
    for group in GROUPS:
        lines += ["", f"## {group.capitalize()}", "", "| command | what it does |", "|---|---|"]
        commands = [name for name, command in COMMANDS.items() if isinstance(command, Command)]
        lines += [
            f"| [`unmask {name}`]({name}.md) | {escape(make_plain(describe_command(name)))} |"
            for name in commands
            if COMMANDS[name].group == group  # type: ignore[attr-defined]
        ]
    lines += [
        "",
        "Flags may stand before or after the run. [Exit codes](../guides/errors.md#exit-codes) lists how commands end.",
    ]
    return "\n".join(lines) + "\n"


def write_command(name: str) -> str:
    """Return the page of one command: purpose, usage, examples, recipes, flags."""
    text = read_help(name)
    usage = re.match(r"usage: (.*)", text)
    lines = [f"# unmask {name}", "", f"{escape(make_plain(describe_command(name)))}.", ""]
    lines += ["```text", usage[1] if usage else f"unmask {name}", "```", ""]
    where = read_operand(text)
    lines += [f"{escape(where)}", ""] if where else []
    if name in EXAMPLES:
        lines += ["## Examples", "", "```bash", *EXAMPLES[name], "```", ""]
    variants = list_variants(name)
    if variants and name != "train-features":
        lines += [*write_recipes(list(variants)), ""]
    lines += write_flags(name, variants)
    return "\n".join(lines).rstrip("\n") + "\n"


def list_variants(name: str) -> dict[str, list[str]]:
    """Return the words after a command that its flags depend on, by recipe or source; nothing for most commands."""
    if name == "train-features":
        return {source: [source] for source in list_sources(32, 3)}
    if name == "train-tokenizer":
        return {recipe: [recipe] for recipe in list_recipe_names(tokenizers=True)}
    if name == "train":
        return {recipe: [recipe] for recipe in list_recipe_names()}
    if name == "tokenize-text":
        return {recipe: [recipe] for recipe in list_recipe_names() if read_recipe_note(recipe).kind == "TextRecipe"}
    return {}


def write_recipes(names: list[str]) -> Iterator[str]:
    """Yield the tables of recipes, by kind."""
    yield "## Recipes"
    notes = [read_recipe_note(name) for name in names]
    for kind, heading in HEADINGS.items():
        found = [note for note in notes if note.kind == kind]
        if not found:
            continue
        yield from (
            "",
            f"### Recipes for {heading}",
            "",
            "| recipe | hardware | time | what it does |",
            "|---|---|---|---|",
        )
        for note in found:
            yield f"| `{note.name}` | {note.hardware} | {escape(note.duration)} | {escape(note.about)} |"
    yield from ("", f"{SHORT} {TRUST}")


def write_flags(name: str, variants: dict[str, list[str]]) -> Iterator[str]:
    """Yield a table of flags for each group of the help."""
    tables = {variant: dict(read_boxes(read_help(name, *words))) for variant, words in variants.items()}
    tables = tables or {"": dict(read_boxes(read_help(name)))}
    titles = dict.fromkeys(title for boxes in tables.values() for title in boxes)
    for title in titles:
        rows = merge_rows({variant: boxes[title] for variant, boxes in tables.items() if title in boxes})
        if not rows:
            continue
        group = title.removesuffix("options").strip()
        yield f"## Flags: {group}" if group else "## Flags"
        yield from ("", "| flag | default | what it does |", "|---|---|---|")
        for row in rows:
            only = "" if len(row.variants) == len(tables) else f" {describe_variants(row.variants)}"
            yield f"| {show_names(row)} | {show_default(row.default)} | {escape(row.about)}{show_choices(row)}{only} |"
        yield ""


def merge_rows(tables: dict[str, list[FlagRow]]) -> list[FlagRow]:
    """Return one row for each flag; a default that differs says so."""
    found: dict[str, FlagRow] = {}
    for variant, rows in tables.items():
        for row in rows:
            if row.names.startswith("-h"):
                continue
            flag = row.names.split()[0]
            known = found.setdefault(flag, FlagRow(row.names, row.about, row.default))
            known.variants.append(variant)
            if known.default != row.default:
                known.default = "it depends"
    return list(found.values())


def describe_variants(names: list[str]) -> str:
    """Return a sentence that says which recipes or sources have a flag."""
    for kind, which in (("Recipe", "Image"), ("TextRecipe", "Text")):
        if names == [name for name in list_recipe_names() if read_recipe_note(name).kind == kind]:
            return f"{which} recipes only."
    return f"Only for {', '.join(f'`{name}`' for name in names)}."


def show_names(row: FlagRow) -> str:
    """Return the names of a flag in code."""
    head = row.names.partition("{")[0].strip()
    return " ".join(f"`{part}`" for part in re.split(r", (?=-)", head))


def show_choices(row: FlagRow) -> str:
    """Return a sentence with the words that a flag takes, or nothing."""
    choices = re.search(r"\{(.*?)\}", row.names)
    words = re.split(r",\s*", choices[1]) if choices else []
    return f" One of {', '.join(f'`{word}`' for word in words)}." if words else ""


def show_default(default: str) -> str:
    """Return a default: values in code, sentences as they are."""
    is_value = re.fullmatch(r"[\w./:'-]+( [\d.]+)*", default) and default not in ("unset", "none", "required")
    return f"`{default}`" if is_value else escape(default)


def read_help(*words: str) -> str:
    """Return the help of a command, as a terminal of 80 columns shows it."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    narrow = mock.patch.dict(os.environ, {"COLUMNS": "80"})
    with narrow, contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    output.seek(0)
    return output.read()


def read_operand(text: str) -> str:
    """Return the sentence on what a command works on, or nothing."""
    head = re.split(r"\n[╭]|\nexamples:", text)[0]
    paragraphs = [make_plain(part) for part in head.split("\n\n")]
    found = [part for part in paragraphs if re.match(r"[A-Z]{2,} is ", part)]
    return found[0] if found else ""


def read_boxes(text: str) -> Iterator[tuple[str, list[FlagRow]]]:
    """Yield the title and the flags of each box of a help text."""
    for match in re.finditer(r"^╭─ (.*?) ─+╮\n(.*?)^╰", text, re.M | re.S):
        lines = [line[1:].rstrip("│ ") for line in match[2].splitlines()]
        rule = next((place for place, line in enumerate(lines) if set(line.strip()) == {"─"}), -1)
        yield match[1], list(read_rows(lines[rule + 1 :]))


def read_rows(lines: list[str]) -> Iterator[FlagRow]:
    """Yield the flags of the lines of a box."""
    heads: list[list[str]] = []
    for line in lines:
        head, _, about = line.strip().partition("  ")
        if line.startswith(" -"):
            heads.append([head, about.strip()])
        elif heads and not line.startswith("  "):
            heads[-1][0] += f" {line.strip()}"
        elif heads:
            heads[-1][1] += f" {line.strip()}"
    for names, said in heads:
        found = re.search(r"\((?:default: (.*)|(required))\)$", said.strip())
        default = (found[1] or found[2]) if found else ""
        yield FlagRow(names, said[: found.start()].strip() if found else said.strip(), default)


def make_plain(text: str) -> str:
    """Return a text on one line, with a capital letter."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]


def escape(text: str) -> str:
    """Return a text for a cell of a table: signs of Markdown outside of code stand for themselves."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_\[\]|])", r"\\\1", part).replace("<", "&lt;") for part in parts
    )
