"""The table of `docs/design.md` that measures the structure says what the code says."""

import functools
import re

from test_house import ORDER, PACKAGE, ROOT, TREES, own_parts, part_of


def measure_structure() -> dict[str, int]:
    """Count modules, top-level entries, levels, arrows between entries, and arrows to a later entry."""
    arrows = {
        (part_of(name), part)
        for name in TREES
        if part_of(name) not in PACKAGE
        for part in own_parts(name) & {*ORDER}
        if part != part_of(name)
    }

    @functools.cache
    def level(entry: str) -> int:
        return 1 + max([level(used) for user, used in arrows if user == entry], default=0)

    later = sum(ORDER.index(used) > ORDER.index(user) for user, used in arrows)
    return {
        "modules": len(TREES), "entries": len(ORDER), "levels": max(map(level, ORDER)), "arrows": len(arrows),
        "later": later,
    }  # fmt: skip


def test_the_table_is_up_to_date():
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    rows = (re.search(row, text, re.M) for row in (r"^\| \| (modules .*) \|$", r"^\| now \| (.*) \|$"))
    titles, now = (row[1].split("|") for row in rows)
    said = {title.strip(): int(number) for title, number in zip(titles, now, strict=True)}
    assert said == measure_structure()
