"""The figures in README.md and docs/results are those of the committed reports, and each names how it was made."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("collect", ROOT / "docs" / "results" / "collect.py")
collect = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(collect)
REPORTS = collect.reports()
HERE = ROOT / "docs" / "results"


def test_there_are_results():
    assert {"demo", "mnist"} <= set(REPORTS)


def test_the_readme_shows_the_reports():
    text = (ROOT / "README.md").read_text()
    assert collect.results_table() in text.split(collect.START)[1].split(collect.END)[0]


def test_the_readme_shows_what_the_peers_took():
    text = (ROOT / "README.md").read_text()
    assert collect.speed_table() in text.split(collect.SPEED)[1].split(collect.SPEED_END)[0]
    assert collect.speed_table().count("unmask") >= 4, "a table without rows would pass"


@pytest.mark.parametrize("name", sorted({*REPORTS, *(p.parent.parent.name for p in HERE.glob("*/parts/parts.json"))}))
def test_a_page_is_made_from_its_report(name):
    assert (ROOT / "docs" / "results" / f"{name}.md").read_text() == collect.page(name)


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_says_how_it_was_made(name):
    report = REPORTS[name]
    assert all(report[key] not in ("", None) for key in ("made_by", "command", "commit", "hardware", "threads", "seed"))
    assert not report["commit"].endswith("+"), "made from changed code: commit first, then measure"
