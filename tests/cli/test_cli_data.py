"""`unmask data` prints what there is, and every command that reads images says what it took."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.cli import main
from unmask.cli.tokenizers import choose_source
from unmask.data.sources.choice import Folder
from unmask.errors import DataError
from unmask.experiments.training import prepare_data, prepare_tokenizer_data
from unmask.recipes import reading
from unmask.recipes.schema import Recipe, TokenizerRecipe

RNG = np.random.default_rng(0)


@pytest.fixture
def pictures(tmp_path) -> Path:
    root = tmp_path / "pictures"
    for part, num in (("train", 12), ("val", 3), ("test", 2)):
        for kind in ("disc", "square"):
            (root / part / kind).mkdir(parents=True)
            for i in range(num):
                image = Image.fromarray(RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8))
                image.save(root / part / kind / f"{i}.png")
    (root / "README.txt").write_text("about")
    return root


FIRST = "dataset     disc 15, square 15; 6 held out; 1 left out (README.txt)"
NOTE = "note: test: not used, so kept for a final test; --data.test test holds it out instead"


def test_data_prints_what_there_is_and_draws_a_sheet(pictures, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    main(["data", str(pictures), "--size", "32", "--sheet", str(sheet)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [FIRST, NOTE, "train       disc 12, square 12", "held out    disc 3, square 3"]
    assert "sizes       smallest 20x20, median 20x20, largest 20x20; 30 smaller than 32" in lines
    assert lines[-1] == f"wrote {sheet}"
    with Image.open(sheet) as page:
        assert page.width > 1000
    before = sheet.read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["data", str(pictures), "--sheet", str(sheet)])
    assert stop.value.code == 2
    assert f"{sheet}: there is a file already" in capsys.readouterr().err
    assert sheet.read_bytes() == before
    main(["data", str(pictures), "--data.test", "test"])
    assert capsys.readouterr().out.startswith("dataset     disc 14, square 14; 4 held out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none"], "none: no such file or folder"),
        (["."], "no readable image"),
        ([], "usage: unmask data DIR"),
        ([".", "--size", "0"], "size 0: use 1 to 4096 pixels"),
        ([".", "--sheet", "x.exe"], "x.exe: .exe is no image format"),
    ],
)
def test_mistakes_are_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["data", *words])
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_training_says_what_it_took(pictures, tmp_path):
    for kind, prepare, name in (
        (Recipe, lambda recipe, say: prepare_data(recipe, tmp_path, shown=True, say=say), "folder-pixels"),
        (TokenizerRecipe, lambda recipe, say: prepare_tokenizer_data(recipe, shown=True, say=say), "folder-tokenizer"),
    ):
        recipe, said = reading.find_recipe(name, kind), []
        prepare(replace(recipe, data=replace(recipe.data, path=str(pictures))), said.append)
        assert said == [FIRST, NOTE, f"left out {pictures}/README.txt: beside the folders that are used"]


def test_a_dry_run_prints_it_once(pictures, capfd):
    main(["train", "folder-pixels", "--data", str(pictures), "--dry-run"])
    out, err = capfd.readouterr()
    assert out.startswith("{")
    assert [err.splitlines().count(line) for line in (FIRST, NOTE)] == [1, 1]


def test_other_data_does_not_keep_the_sets_of_the_tokenizers_data():
    config = reading.find_recipe("folder-tokenizer", TokenizerRecipe).tokenizer
    own = Folder(path="", train="/a/train", test="held")
    assert choose_source(own, config, ["--out", "x"])[0] == own
    data, rest = choose_source(own, config, ["--data", "other"])
    assert (data, rest) == (Folder(path="", test="held"), ["--data.path", "other"])


def test_a_class_that_is_only_held_out_is_reported_and_then_refused(pictures, capsys):
    (pictures / "val" / "square").rename(pictures / "val" / "fog")
    with pytest.raises(SystemExit) as stop:
        main(["data", str(pictures)])
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("dataset     disc 15, square 12, fog 3; 6 held out")
    assert "held out    disc 3, square 0, fog 3" in lines
    assert "modes       colour 30" in lines
    assert (stop.value.code, err.count("\n")) == (3, 1)
    assert "no class fog in train" in err
    with pytest.raises(DataError, match="no class fog in train"):
        Folder(path=str(pictures)).load()


def test_the_edge_has_one_flag(pictures, capsys):
    for words in (["--size", "16"], ["--data.size", "16"]):
        main(["data", str(pictures), *words])
        assert "0 smaller than 16" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["data", str(pictures), "--help"])
    assert not re.search(r" --size INT", capsys.readouterr().out)
