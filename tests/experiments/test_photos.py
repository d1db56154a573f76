"""From a folder of photos of different sizes to a tokenizer, codes, a generator, repairs and figures, as users go."""

import contextlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.cli import main
from unmask.data.augment import PictureSet
from unmask.data.sources.folders import read_folder
from unmask.errors import DataError
from unmask.evaluation.reference import embed_real
from unmask.experiments.coded import open_coded
from unmask.metrics.embedders import ClassifierFeatures
from unmask.metrics.features import Classifier, ClassifierConfig
from unmask.pipelines.image import Pipeline
from unmask.pretrained.lone_tokenizer import read_lone_tokenizer
from unmask.runtime.distributed import World

SMALL = ["--tokenizer.width", "8", "--tokenizer.groups", "2", "--tokenizer.z-channels", "8"]
SMALL += ["--loss.discriminator.width", "4"]
QUICK = ["--training.steps", "4", "--training.batch-size", "4", "--training.evaluate-every", "4"]
QUICK += ["--training.log-every", "2"]
JUDGE = ["--classifier.steps", "4", "--classifier.width", "4", "--classifier.batch-size", "8"]
MODEL = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2"]


def run(*words) -> None:
    main([str(word) for word in words])


def read(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Sixty pictures of two classes, no two sizes alike; one file is no picture."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    rand = np.random.default_rng(0)
    for place in range(60):
        folder = root / ("sea" if place % 2 else "sand")
        folder.mkdir(parents=True, exist_ok=True)
        shape = (int(rand.integers(40, 90)), int(rand.integers(40, 90)), 3)
        colour = np.array([40, 80, 200] if place % 2 else [220, 190, 120])
        pixels = (colour + rand.normal(0, 30, shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.{'png' if place % 3 else 'jpg'}")
    (root / "sea" / "broken.png").write_bytes(b"not a picture")
    return root


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """All that the commands of the README make, in order: tokenizer, codes, run."""
    root = tmp_path_factory.mktemp("made")
    tokenizer, codes, generator = root / "tokenizer", root / "codes", root / "run"
    small = [*SMALL, *QUICK, *JUDGE, "--perceptual.steps", "2", "--perceptual.width", "4"]
    said = {}
    for name, *words in (
        ("train-tokenizer", "folder-tokenizer", "--data", photos, "--out", tokenizer, *small),
        ("evaluate-tokenizer", tokenizer),
        ("tokenize", tokenizer, "--out", codes, "--crops", 1, "--shard-size", 16),
        ("train", "folder", "--data", codes, "--out", generator, *MODEL, *QUICK, *JUDGE),
        ("evaluate", generator, "--samples", 40),
    ):
        both = io.StringIO()
        with contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):
            run(name, *words)
        said[name] = both.getvalue().splitlines()
    (root / "said.json").write_text(json.dumps(said))
    return root


def test_what_is_trained_before_the_tokenizer_is_said(made):
    lines = json.loads((made / "said.json").read_text())["train-tokenizer"]
    (first,) = [line for line in lines if "classifier" in line]
    assert "2 steps (--perceptual.steps)" in first


def test_every_command_that_reads_pictures_says_once_what_it_took(made):
    said = json.loads((made / "said.json").read_text())
    summary = re.compile(r"dataset     sand 30, sea 30; \d+ held out; 1 left out \(broken\.png\)")
    times = {name: sum(summary.fullmatch(line) is not None for line in lines) for name, lines in said.items()}
    assert times == {"train-tokenizer": 1, "evaluate-tokenizer": 1, "tokenize": 1, "train": 0, "evaluate": 1}


def test_the_tokenizer_is_measured(made):
    report = json.loads((made / "tokenizer" / "report.json").read_text())
    assert report["rfid"] > 0
    assert 0 < report["usage"] <= 1
    assert report["bits_per_image"] == 64 * 11
    assert 5 < report["psnr"] < 60
    with Image.open(made / "tokenizer" / "reconstructions.png") as picture:
        assert picture.width > 300


def test_the_codes_are_those_of_the_tokenizer(made, photos):
    coded = open_coded(made / "codes")
    assert coded.meta.views == ("center", "flip", "crop0", "crop0-flip")
    assert coded.meta.classes == ("sand", "sea")
    assert len(coded.train) + len(coded.test) == 60
    pictures = coded.source.load().train
    model = read_lone_tokenizer(made / "codes" / "tokenizer")
    index = torch.arange(5)
    cut = pictures.read(index)[:, :, 4:68, 4:68].float() / 127.5 - 1
    found, labels = coded.train.read_rows(index, torch.device("cpu"))
    agree = (found == model.encode(cut)).float().mean()  # the codes may have been made in bfloat16
    assert agree > 0.95
    assert labels.tolist() == pictures.labels[:5].tolist()


def test_two_processes_make_the_same_codes(made, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "unmask"]
    words = ["tokenize", made / "tokenizer", "--out", tmp_path / "codes", "--crops", "1", "--shard-size", "16"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *map(str, words)], check=True, capture_output=True, env=environment, timeout=200)
    ours, theirs = open_coded(tmp_path / "codes"), open_coded(made / "codes")
    assert ours.meta == theirs.meta  # which holds the sha256 of every shard


def test_the_run_is_measured_beside_real_pictures(made):
    report = json.loads((made / "run" / "report.json").read_text())
    for name in (
        "frechet",
        "frechet_floor",
        "frechet_limit",
        "frechet_tokenizer",
        "precision",
        "coverage",
        "inception_score",
    ):
        assert np.isfinite(report[name]), name
    assert report["frechet_floor"] <= report["frechet_limit"]
    assert "1000" in report["left_out"]["kid"]
    assert 0 <= report["class_accuracy"] <= 1
    assert {"nearest_train", "judge", "features", "commit", "command"} <= set(report)


def test_a_run_needs_the_codes_no_more(made, tmp_path):
    alone = shutil.copytree(made / "run", tmp_path / "alone")
    pipeline = Pipeline.from_pretrained(alone)
    assert pipeline.generate(num=3).shape == (3, 3, 64, 64)
    run("export", alone, "--out", tmp_path / "export")
    again = Pipeline.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(again.generate(num=3), pipeline.generate(num=3), atol=0, rtol=0)


def test_classes_have_names(made, tmp_path, capsys):
    for label in ("sea", "1"):
        run("sample", made / "run", "--labels", label, "--num", 4, "--out", tmp_path / f"{label}.png")
    assert (tmp_path / "sea.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    with pytest.raises(SystemExit) as stop:
        run("sample", made / "run", "--labels", "see", "--out", tmp_path / "no.png")
    assert stop.value.code == 2
    assert "no class see: did you mean sea?" in capsys.readouterr().err


def test_a_photo_is_repaired_and_its_other_pixels_stay(made, photos, tmp_path):
    photo = next(iter(sorted((photos / "sea").glob("*.png"))[1:]))
    before = read(photo)
    run(
        "inpaint",
        made / "run",
        photo,
        "--box",
        5,
        6,
        12,
        10,
        "--label",
        "sand",
        "--variants",
        2,
        "--out",
        tmp_path / "a.png",
    )
    one, two = (read(tmp_path / f"a-{v}.png") for v in (1, 2))
    hole = np.zeros(before.shape[:2], dtype=bool)
    hole[6:16, 5:17] = True
    for after in (one, two):
        assert (after[~hole] == before[~hole]).all()
    assert (one[hole] != two[hole]).any()


def test_repairs_are_compared(made, capsys):
    run("evaluate-inpaint", made / "run", "--images", 6, "--steps", 3, "--stops", 1, "--schedules", "cosine", "square")
    table = (made / "run" / "inpainting" / "table.md").read_text()
    printed = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n\n")[0].splitlines()[2:]]
    assert printed[1 : len(rows) + 1] == rows
    assert json.loads((made / "run" / "inpainting" / "report.json").read_text())["num_pictures"] == 6
    assert re.findall(r"^\| (\w+(?: fill)?) \| (\d) \| (\d) \|", table, re.M) == [
        ("smooth fill", "0", "0"),
        ("tokenizer", "0", "0"),
        ("cosine", "3", "1"),
        ("cosine", "3", "3"),
        ("square", "3", "1"),
        ("square", "3", "3"),
    ]
    assert (made / "run" / "inpainting" / "repaired.png").exists()


def test_a_picture_that_cannot_be_read_is_left_out_and_said(made, photos, tmp_path, monkeypatch, capsys):
    """Of pictures that are only listed, what tokenize leaves out stops neither evaluate nor sweep half way."""
    monkeypatch.setattr("unmask.data.sources.folders.MAX_IN_MEMORY", 0)
    monkeypatch.setattr("unmask.runtime.progress.SECONDS_BETWEEN_LINES", math.inf)  # a slow machine prints lines, too
    ours = shutil.copytree(photos, tmp_path / "photos")
    for place in range(0, 60, 9):
        next(iter(ours.glob(f"*/{place}.*"))).write_bytes(b"cut short")
    run("tokenize", made / "tokenizer", "--data", ours, "--out", tmp_path / "codes")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert len(said) == 7 + 1
    out = tmp_path / "run"
    run("train", "folder", "--data", tmp_path / "codes", "--out", out, *MODEL, *QUICK, *JUDGE)
    capsys.readouterr()
    for _ in range(2):  # from pictures, then from what is kept of them
        run("evaluate", out, "--samples", 40)
        first, *rest = capsys.readouterr().err.splitlines()
        assert first.startswith("dataset     sand 30, sea 31;")  # listed, so the bad count too
        assert sorted(rest) == sorted(said)
        report = json.loads((out / "report.json").read_text())
        assert sorted(f"left out {one}" for one in report["unreadable"]) == sorted(said)
        assert np.isfinite([report[name] for name in ("frechet", "frechet_limit", "classifier_test_accuracy")]).all()
    run("sweep", out, "--samples", 20, "--tune", 0, "--orders", "random", "--steps", 1, "--temperatures", 1)
    assert "8 images could not be read and are left out" in (out / "sweep/sweep.md").read_text()


def test_where_no_picture_can_be_read_one_line_says_so(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.data.sources.folders.MAX_IN_MEMORY", 0)
    ours = shutil.copytree(photos, tmp_path / "photos")
    pictures, _, _ = read_folder(ours, size=(16, 16), channels=3)
    for path in ours.glob("*/*"):
        path.write_bytes(b"cut short")
    config = ClassifierConfig(channels=3, num_classes=2, width=4)
    features, data = ClassifierFeatures(Classifier(config)), PictureSet(pictures=pictures, size=(16, 16))
    with pytest.raises(DataError, match=r"sand/0\.jpg: not a readable image.*any other of 3 pictures"):
        embed_real(data, features, torch.arange(3), World(0, 1, torch.device("cpu")))


def test_a_features_folder_serves_every_run(made, photos, tmp_path):
    folder = tmp_path / "features"
    run("train-features", "folder", "--data", photos, "--data.size", 64, "--out", folder, *JUDGE)
    assert 0 <= json.loads((folder / "report.json").read_text())["test_accuracy"] <= 1
    run("evaluate-tokenizer", made / "tokenizer", "--classifier", folder)
    report = json.loads((made / "tokenizer" / "report.json").read_text())
    assert json.loads((folder / "report.json").read_text())["sha256"][:12] in report["features"]


MISTAKES = [
    ("train folder", 2, "Give --data DIR"),
    ("train folder-tokenizer", 2, "use unmask train-tokenizer"),
    ("train-tokenizer folder", 2, "use unmask train"),
    ("train folder --data {photos}", 3, "make them from images with unmask train-tokenizer"),
    ("tokenize {made}/run", 2, "Give --data DIR"),
    ("tokenize {made}/nowhere", 4, "no config.json"),
    ("tokenize {made}/tokenizer --source foldr", 2, "did you mean folder?"),
    ("tokenize {made}/tokenizer --out {made}/codes --crops 1 --shard-size 8", 3, "holds other tokens (shard_size"),
    ("tokenize {made}/tokenizer --crops -1 --out {made}/x", 2, "--crops -1"),
    ("evaluate-tokenizer {made}/tokenizer --pictures 1", 2, "--pictures 1"),
    ("evaluate-tokenizer {made}/tokenizer --weights {photos}", 2, "--weights is for a published model"),
    ("evaluate {made}/run --features incepton", 2, "did you mean inception?"),
    ("evaluate-inpaint {made}/run --schedules cosin", 2, "did you mean cosine?"),
    ("inpaint {made}/run {photos}/sea/1.png --label sea", 2, "--mask"),
    ("train-features foldr --data {photos}", 2, "did you mean folder?"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "told"), MISTAKES)
def test_a_mistake_is_one_line(words, code, told, made, photos, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.format(made=made, photos=photos).split())
    error = capsys.readouterr().err
    assert stop.value.code == code, error
    assert told in error
    assert error.count("\n") == 1
