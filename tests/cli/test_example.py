"""The front door keeps its promises: `examples/minimal.py`, run as a reader runs it, shows what it says."""

import ast
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal.py"


@pytest.fixture(scope="module")
def output() -> str:
    """What the example prints, on one thread; its validity figures are then those of the docs, up to rounding."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE)], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def shares(output: str, name: str) -> dict[int, float]:
    """steps -> share of valid samples, from the printed table."""
    steps = re.search(r"^  steps +(.*)$", output, re.M)
    row = re.search(rf"^  {name} +(.*)$", output, re.M)
    assert steps is not None
    assert row is not None
    percent = [float(cell.rstrip("%")) / 100 for cell in row[1].split()]
    return dict(zip(map(int, steps[1].split()), percent, strict=True))


def strip(output: str, title: str) -> list[list[str]]:
    """The canvases printed side by side below `title`, each as its 16 cells."""
    lines = output.split(title)[1].splitlines()[1:5]
    rows = [[cell.split() for cell in line.strip().split("    ")] for line in lines]
    return [[cell for row in rows for cell in row[i]] for i in range(len(rows[0]))]


def test_fits_on_a_page_and_needs_the_method_only() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) < 90
    imported = [node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.module]
    assert imported
    for module in imported:
        assert module.startswith("unmask.method."), module


def test_learns(output: str) -> None:
    losses = [float(x) for x in re.findall(r"loss (\d\.\d+) nats", output)]
    assert losses[0] == pytest.approx(2.079, abs=5e-4)  # log 8: the head starts at zero
    assert losses[-1] < 1.45  # measured 1.23; what the mirror does not tell costs about that much


@pytest.mark.parametrize("name", ["random order", "surest first"])
def test_one_step_fails_and_many_work(output: str, name: str) -> None:
    share = shares(output, name)
    assert list(share) == [1, 2, 4, 8, 16]
    assert share[1] < 0.01  # 8^-12 in truth
    assert share[1] <= share[2] < share[4] < share[8] < share[16]
    assert share[8] > 0.5  # measured 0.65 and 0.85
    assert share[16] > 0.9  # measured 0.95 and 0.997


def test_the_surest_first_beats_random_order(output: str) -> None:
    assert shares(output, "surest first")[8] > shares(output, "random order")[8] + 0.05  # measured 0.85 and 0.65


def test_the_canvas_fills_in_and_no_letter_is_taken_back(output: str) -> None:
    canvases = strip(output, "One canvas filling in")
    assert set(canvases[0]) == {"·"}
    assert set(canvases[-1]) <= set("ABCDEFGH")
    assert len(canvases) == 9
    for before, after in pairwise(canvases):
        assert before.count("·") > after.count("·")
        assert all(b in ("·", a) for b, a in zip(before, after, strict=True))


def test_inpainting_keeps_what_is_known(output: str) -> None:
    whole, holed, filled = strip(output, "A word, a hole in it")
    known = [i for i, cell in enumerate(holed) if cell != "·"]
    assert 0 < len(known) < 16
    assert all(whole[i] == holed[i] == filled[i] for i in known)
    assert "·" not in filled
    assert "known tokens kept: True; a word again: True" in output
    grid = [filled[4 * r : 4 * r + 4] for r in range(4)]
    assert grid == grid[::-1]
    assert all(row == row[::-1] for row in grid)
