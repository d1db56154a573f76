"""Models of which no pictures are known, measured: exports of published ones, converted folders, models of the hub."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from published_toys import FILES, PLAIN, SIZE, refused, run, tree
from safetensors.torch import load_file

import unmask
from unmask.errors import CheckpointError
from unmask.published.opening import open_model
from unmask.recipes.reading import write_config
from unmask.recipes.spec import ModelSpec
from unmask.storage.weights import write_weights

HUB = "hf-hub:me/toy"
TINY = ["--model.dim", 16, "--model.depth", 1, "--model.heads", 2, "--training.batch-size", 8, "--device", "cpu"]
SCORED = ["--orders", "raster", "--steps", 2, "--passes", 2]


def make(how, files, here):
    """A folder with toy-32 in it."""
    folder = here / how
    if how == "export":
        run("export", "toy-32", "--out", folder)
    elif how == "save":
        unmask.load("toy-32", device="cpu", dtype=torch.bfloat16).save_pretrained(folder, licence="MIT")
    else:
        for family, name in FILES.items():
            run("convert", files / name, "--family", family, "--out", folder)
    return folder


def held(folder):
    """All that a folder holds, to the byte."""
    return {name: (folder / name).read_bytes() for name in tree(folder)}


@pytest.fixture
def downloads(monkeypatch):
    """What the hub has, by name; nothing is asked for."""
    there = {}
    monkeypatch.setattr("unmask.published.opening.download_model", lambda name, offline=False: there[name])
    return there


@pytest.mark.parametrize("how", ["export", "save", "convert", "hub"])
def test_a_model_without_pictures_is_measured_beside_itself(
    how, ready, files, photos, coded, downloads, tmp_path, monkeypatch, capsys
):
    """By every command, into a run of the folder's name; in the folder itself nothing is written."""
    monkeypatch.chdir(tmp_path)
    folder = make("export" if how == "hub" else how, files, tmp_path)
    downloads[HUB] = folder
    name, out = (HUB, tmp_path / "runs/me--toy") if how == "hub" else (folder.name, tmp_path / "runs" / how)
    codes = coded / "two"
    if how == "save":  # its tokenizer was rounded, so it makes codes of its own
        run("tokenize", name, "--data", photos, "--out", tmp_path / "codes")
        codes = tmp_path / "codes"
    before = held(folder)
    said, code = refused(capsys, "score", name)
    assert (code, "give --data CODES from unmask tokenize NAME" in said) == (2, True), said
    data, judge = ["--data", codes], ["--classifier", coded / "judge"]
    run("score", name, *data, *SCORED)
    assert (out / "score/score.csv").exists()
    run("evaluate", name, *data, *judge, "--samples", 8)
    assert json.loads((out / "report.json").read_text())["num_samples"] == 8
    run("sweep", name, *data, *judge, "--samples", 8, "--tune", 0, "--steps", 2, "--orders", "random")
    assert (out / "sweep/sweep.csv").exists()
    fills = ["--images", 4, "--steps", 3, "--schedules", "cosine", "--stops", 1]
    run("evaluate-inpaint", name, *data, *judge, *fills)
    assert (out / "inpainting/table.md").exists()
    run("score", name, *data, *SCORED, "--out", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere/score.csv").exists()
    assert held(folder) == before


def test_no_figures_go_into_the_model_or_a_run_of_another(ready, files, coded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/mine"
    run("export", "toy-32", "--out", folder)
    before, data = held(folder), ["--data", coded / "two"]
    for words in ([folder], ["runs/mine"], ["toy-32", "--out", folder]):
        said, code = refused(capsys, "score", *words, *data, *SCORED)
        assert (code, "give another --out" in said) == (4 if "--out" in words else 2, True), said
    assert held(folder) == before
    run("score", "toy-32", *data, *SCORED)
    other = tmp_path / "toy-32-other/toy-32"
    shutil.copytree(ready / "toy-32", other)
    run("score", other, *data, *SCORED)  # the same weights, which lie elsewhere
    third = shutil.copytree(other, tmp_path / "third/toy-32")
    weights = load_file(other / "model.safetensors")
    write_weights({name: value + 1 for name, value in weights.items()}, third / "model.safetensors")
    said, code = refused(capsys, "score", third, *data, *SCORED)
    assert (code, "runs/toy-32 is of another model: give another --out" in said) == (4, True), said


def test_what_is_missing_is_one_line(ready, files, coded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("convert", files / FILES["valeoai-v1"], "--family", "valeoai-v1", "--out", "half")
    said, code = refused(capsys, "score", "half", "--data", coded / "two")
    assert (code, "no tokenizer.safetensors there; unmask convert" in said) == (4, True), said
    run("convert", files / FILES["taming-vqgan"], "--family", "taming-vqgan", "--out", "alone")
    said, code = refused(capsys, "score", "alone", "--data", coded / "two")
    assert (code, "alone is a tokenizer" in said) == (2, True), said
    assert not (tmp_path / "runs").exists()


def test_an_export_of_ones_own_run_is_measured_against_given_pictures(tmp_path, downloads, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("train", "digits", "--out", "run", *TINY, "--training.steps", 2)
    run("train-features", "digits", "--out", "judge", "--classifier.steps", 2, "--classifier.width", 4)
    run("export", "run", "--out", "mine")
    before = held(tmp_path / "mine")
    for name, out in (("mine", "runs/mine"), (HUB, "runs/me--toy")):
        downloads[HUB] = tmp_path / "mine"
        for command in ("evaluate", "sweep", "score", "evaluate-inpaint"):
            said, code = refused(capsys, command, name)
            assert (code, f"{name} is no run, so give --data DIR, a folder of images" in said) == (2, True), said
        assert not (tmp_path / out).exists()
        run("evaluate", name, "--data", "digits", "--samples", 4, "--classifier", "judge")
        report = json.loads((tmp_path / out / "report.json").read_text())
        assert report["num_samples"] == 4
        assert "train_steps" not in report  # an export does not hold it
        run("score", name, "--data", "digits", *SCORED)
        assert (tmp_path / out / "score/score.csv").exists()
    assert held(tmp_path / "mine") == before
    for part, num in (("part1", 6), ("part2", 4)):
        (tmp_path / "sets" / part).mkdir(parents=True)
        for i in range(num):
            pixels = np.random.default_rng(100 * num + i).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "sets" / part / f"{i}.png")
    capsys.readouterr()
    sets = ["--data", "sets", "--data.train", "part1", "--data.test", "part2"]
    run("score", "mine", *sets, "--out", "runs/sets", *SCORED)
    said = capsys.readouterr()
    assert "10 images without classes; 4 held out" in said.out + said.err


def test_an_early_export_of_a_run_is_measured_where_its_pictures_are(tmp_path, downloads, monkeypatch, capsys):
    """Early versions copied the recipe of the run, with its data, into an export."""
    monkeypatch.chdir(tmp_path)
    judge = ["--classifier.steps", 2, "--classifier.width", 4]
    run("train", "digits", "--out", "run", *TINY, *judge, "--training.steps", 2)
    (tmp_path / "mine").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "run" / name, tmp_path / "mine")
    config = json.loads((tmp_path / "mine/config.json").read_text())
    del config["kind"]
    (tmp_path / "mine/config.json").write_text(json.dumps(config))
    run("evaluate", "mine", "--samples", 4)
    report = json.loads((tmp_path / "mine/report.json").read_text())
    assert report["num_samples"] == 4
    assert "train_steps" not in report  # an export does not hold it
    run("score", "mine", *SCORED)
    assert (tmp_path / "mine/score/score.csv").exists()
    for word, words in (("--data", "--data is for published and exported models: a run k"), ("--out", "--out is for")):
        said, code = refused(capsys, "evaluate", "mine", word, tmp_path / "x")
        assert (code, words in said) == (2, True), said
    (tmp_path / "run/metrics.jsonl").write_text("")
    said, code = refused(capsys, "evaluate", "run", "--samples", 4)
    assert (code, "tells of no validation" in said) == (4, True), said
    downloads[HUB] = tmp_path / "mine"
    for command in ("evaluate", "sweep", "score", "evaluate-inpaint"):
        said, code = refused(capsys, command, HUB)
        assert (code, f"{HUB} is no run, so give --data DIR, a folder of images" in said) == (2, True), said


def test_a_run_whose_tokens_are_gone_is_one_line(ready, coded, tmp_path, capsys):
    codes = shutil.copytree(coded / "two", tmp_path / "codes")
    few = ["--training.steps", 2, "--training.batch-size", 4]
    run("train", "finetune", "--init", "toy-32", "--data", codes, "--out", tmp_path / "run", *few)
    run("score", tmp_path / "run", *SCORED)
    shutil.rmtree(codes)
    said, code = refused(capsys, "evaluate", tmp_path / "run", "--samples", 4)
    assert (code, str(codes) in said) == (3, True), said


def test_which_folders_are_of_a_training_elsewhere(ready, tmp_path):
    write_config(ModelSpec(tokenizer=SIZE.tokenizer, model=SIZE.model, sampling=PLAIN), tmp_path)
    assert not open_model(tmp_path).is_run
    assert not open_model(ready / "toy-32").is_run
    run("train", "digits", "--out", tmp_path / "run", *TINY, "--training.steps", 1)
    assert open_model(tmp_path / "run").is_run
    with pytest.raises(CheckpointError, match=r"no config\.json there"):
        open_model(tmp_path / "nowhere")
