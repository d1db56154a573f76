"""A run and exports written at commit 304f5a8 still load, and give the same tokens and text."""

import shutil
from pathlib import Path

import torch

import unmask
from unmask.published.opening import open_model
from unmask.recipes.schema import Recipe, TextRecipe

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"
"""Made with `unmask train` and `unmask export` of that commit: digits and a small text, 20 and 5 steps of AdamW."""
TOKENS = [
    [168, 0, 9, 0, 0, 0, 239, 0, 0, 0, 0, 0, 55, 0, 0, 1],
    [254, 77, 191, 0, 17, 0, 0, 17, 0, 0, 0, 0, 64, 239, 0, 0],
]
"""Of classes 3 and 7 with seed 1 in float32, as that commit printed them."""
TEXT = " atn nt cata\nthd"
"""What `unmask generate text_export --num 1 --steps 4 --seed 3` of that commit printed."""


def test_a_run_and_an_export_give_the_same_tokens():
    for name in ("run", "export"):
        opened = open_model(EARLIER / name)
        assert isinstance(opened.config, Recipe)
        pipe = unmask.load(EARLIER / name, device="cpu", dtype=torch.float32)
        assert pipe.generate([3, 7], seed=1, output="tokens").tolist() == TOKENS


def test_an_export_of_text_gives_the_same_text():
    assert isinstance(open_model(EARLIER / "text_export").config, TextRecipe)
    pipe = unmask.load(EARLIER / "text_export", device="cpu", dtype=torch.float32)
    assert pipe.generate(num=1, steps=4, seed=3) == [TEXT]


def test_an_earlier_run_can_be_exported_and_resumed(tmp_path, capsys):
    from unmask.cli import main

    run = tmp_path / "run"
    shutil.copytree(EARLIER / "run", run)
    main(["export", str(run), "--out", str(tmp_path / "out")])
    assert (
        unmask.load(tmp_path / "out", device="cpu", dtype=torch.float32)
        .generate([3, 7], seed=1, output="tokens")
        .tolist()
        == TOKENS
    )
    assert "scikit-learn's handwritten digits" in (tmp_path / "out/README.md").read_text()
