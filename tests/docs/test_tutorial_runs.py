"""Tutorials run: the one on published models with a toy in place of the weights, and broken ones to the error.

`make tutorials` runs all five.
"""

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_toys import NETWORK, PIXELS, PLAIN

from unmask.published.catalogue import read_imagenet_classes
from unmask.recipes.reading import write_config
from unmask.recipes.spec import ModelSpec
from unmask.storage.weights import write_weights

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"


@pytest.fixture
def runner(monkeypatch):
    """The script that runs the tutorials; a test without its packages is skipped."""
    for package in ("jupytext", "nbclient", "nbconvert", "ipykernel"):
        pytest.importorskip(package, reason="pip install 'unmask[docs]' runs the tutorials")
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("run")
    sys.modules.pop("run", None)


@pytest.fixture
def published(tmp_path):
    """A model in the format of besnier-256, with its 1,000 classes, at toy size and with random weights."""
    folder, network = tmp_path / "published", replace(NETWORK, num_classes=1000)
    folder.mkdir()
    torch.manual_seed(0)
    parts = {"model": network.build(PIXELS.vocab_size, PIXELS.grid), "tokenizer": PIXELS.build()}
    for part, module in parts.items():
        write_weights(dict(module.named_parameters()), folder / f"{part}.safetensors")
    write_config(ModelSpec(tokenizer=PIXELS, model=network, sampling=PLAIN, classes=read_imagenet_classes()), folder)
    return folder


def test_the_published_model_is_used_from_start_to_end(runner, published, tmp_path, monkeypatch):
    monkeypatch.setenv("UNMASK_TUTORIAL_MODEL", str(published))
    monkeypatch.setenv("UNMASK_TUTORIAL_STEPS", "2")
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    assert runner.main([str(tmp_path / "out"), "5_published_model"]) == 0
    text = (tmp_path / "out/5_published_model.md").read_text(encoding="utf-8")
    assert "    skipped:" not in text
    pictures = {f"5_published_model/{path.name}" for path in (tmp_path / "out/5_published_model").iterdir()}
    shown = re.findall(r"^!\[([^\]]{20,})\]\((\S+)\)", text, re.M)
    assert {name for _, name in shown} == pictures
    assert len(shown) == 5


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["a = 1", "b = a / 0"], r"failing, code cell 2 \(b = a / 0\): .*ZeroDivisionError"),
        (["while True:\n    pass"], r"code cell 1 \(while True:\): the notebook took longer than 1 second"),
        (
            ["from PIL import Image\nImage.new('L', (2, 2))"],
            r"code cell 1 \(from PIL .*\): it shows a picture and",
        ),
    ],
    ids=["error", "time", "picture"],
)
def test_a_failure_names_the_notebook_and_the_cell(runner, cells, said, tmp_path, monkeypatch, capsys):
    text = "# A title\n\n" + "".join(f"```python\n{cell}\n```\n\n" for cell in cells)
    (tmp_path / "failing.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(runner, "HERE", tmp_path)
    monkeypatch.setattr(runner, "NAMES", ("failing",))
    assert runner.main([str(tmp_path / "out"), "--seconds", "1" if "while" in cells[0] else "60"]) == 1
    assert re.search(said, capsys.readouterr().err, re.S)
    assert not (tmp_path / "out").exists()


def test_a_badge_appears_only_with_an_address(runner, monkeypatch):
    assert "colab" not in runner.read_tutorial("1_first_generator").cells[0].source
    monkeypatch.setattr(runner, "NOTEBOOKS_ON_GITHUB", "OWNER/NAME/blob/BRANCH/FOLDER")
    title, _, badge, *_ = runner.read_tutorial("1_first_generator").cells[0].source.splitlines()
    assert title.startswith("# ")
    assert badge.endswith("/github/OWNER/NAME/blob/BRANCH/FOLDER/1_first_generator.ipynb)")
