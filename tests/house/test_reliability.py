"""docs/results/reliability.md is made from its JSON, and states what was tried; the campaigns hold together."""

import importlib
import json
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "reliability.json"


@pytest.fixture(scope="module")
def campaign():
    """Import the modules of tests/campaign by name."""
    sys.path.insert(0, str(ROOT / "tests" / "campaign"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "tests" / "campaign"))


def test_the_page_is_made_from_its_results(campaign):
    page = campaign("page")
    assert RESULTS.with_suffix(".md").read_text() == page.make_page(json.loads(RESULTS.read_text()))


def test_a_row_adds_up_and_says_how_it_was_made():
    for row in json.loads(RESULTS.read_text())["campaigns"].values():
        assert row["tried"] == row["survived"] + row["lost"] + row["silent"] == sum(row["how"].values()) > 0
        assert row["lost"] + row["silent"] == 0 or row["notes"], row["name"]
        assert all(row[key] for key in ("command", "commit", "hardware", "torch"))
        assert not row["commit"].endswith("+"), "made from changed code: commit first, then attack"


def test_every_campaign_has_a_section_and_a_name_of_its_own(campaign):
    attacks, page = campaign("attacks"), campaign("page")
    names = [one.name for one in attacks.CAMPAIGNS]
    assert len(set(names)) == len(names)
    assert {name.split("-")[0] for name in names} == set(page.SECTIONS)


def test_another_result_without_a_word_is_silent(campaign):
    corruptions, children = campaign("corruptions"), campaign("children")

    def judge(other, text="", code=0, errors=""):
        ending = children.Ending(code, text + errors, errors, 0.0, 0)
        whole = children.Ending(0, "loss 1.5\n", "", 0.0, 0)
        return corruptions.judge(corruptions.READERS[0], ending, whole, other, "x").fate

    assert judge("other s.png", "loss 2.5\n") == "silent"
    assert judge("other s.png", "loss 2.5\ns.png is damaged\n") == "survived"
    assert judge("", "loss 1.5\n") == "survived"
    assert judge("", code=4, errors="unmask: damaged\n") == "survived"
    assert judge("", code=1, errors="Traceback (most recent call last)\nKeyError\n") == "lost"
    assert judge("", code=-9) == "lost"


def test_a_change_is_a_function_of_its_seed_and_changes_something(campaign):
    change = campaign("corruptions").change_bytes
    for kind in ("flip", "zeros", "cut", "longer", "empty", "digit"):
        data = bytes(range(256)) * 20
        first, second = (change(data, kind, random.Random(3)) for _ in range(2))
        assert first == second
        assert first[0] != data
