"""Published models measured, and trained on from codes."""

import json
import re
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from published_toys import NETWORK, SIZE, WHOLE, draw_photos, refused, run, tree
from safetensors.torch import load_file

import unmask
from unmask.data.sources.choice import Codes
from unmask.errors import CheckpointError
from unmask.evaluation import measuring
from unmask.experiments.base import build_start
from unmask.experiments.coded import open_coded
from unmask.experiments.finetune import adopt_network, find_start
from unmask.experiments.images import prepare_images
from unmask.pipelines.image import Pipeline
from unmask.published.opening import OpenedModel
from unmask.recipes.reading import find_recipe
from unmask.recipes.schema import Recipe
from unmask.storage.weights import have_same_weights


def test_codes_are_those_of_the_published_tokenizer(ready, coded):
    meta = open_coded(coded / "two").meta
    assert (meta.vocab_size, meta.grid, meta.classes) == (16, (4, 4), ("sand", "sea"))
    assert have_same_weights(coded / "two/tokenizer/model.safetensors", ready / "toy-32/tokenizer.safetensors")


def test_a_published_model_is_measured(ready, coded, tmp_path, capsys):
    out = tmp_path / "figures"
    words = ["evaluate", "toy-32", "--data", coded / "two", "--classifier", coded / "judge", "--samples", 12]
    run(*words, "--out", out)
    shown = re.findall(rf"^  {re.escape(str(out))}/(\S+) ", capsys.readouterr().out, re.M)
    assert {"report.json", "samples.png", "decode.gif", "inpaint.png"} <= set(shown)
    assert all((out / name).exists() for name in shown)
    report = json.loads((out / "report.json").read_text())
    assert np.isfinite([report[name] for name in ("frechet", "frechet_limit", "frechet_floor")]).all()
    assert 0 <= report["class_accuracy"] <= 1
    assert report["num_samples"] == 12
    assert report["steps"] == 3
    assert report["num_parameters"] == sum(p.numel() for p in SIZE.build().parameters())
    assert (out / "samples.png").exists()
    assert tree(ready / "toy-32") == WHOLE  # the cache is as it was
    run(*words, "--out", out, "--steps", 2)  # again, over itself
    again = json.loads((out / "report.json").read_text())
    assert again["steps"] == 2
    assert again["frechet_floor"] == report["frechet_floor"]


def test_the_model_is_in_memory_once_while_it_is_measured(ready, coded, tmp_path, monkeypatch):
    """Checking the flags loads no weights, and nothing but the pipeline that is measured is in memory."""
    networks, alive = [], []
    load, measure = Pipeline.from_pretrained, measuring.measure_run

    def loaded(*given, **named):
        pipeline = load(*given, **named)
        networks.extend(weakref.ref(part) for part in (pipeline.model, pipeline.tokenizer))
        return pipeline

    def measured(opened, **named):
        same = (opened.pipeline.model, opened.pipeline.tokenizer)
        alive.extend(ref() is part for ref, part in zip(networks, same, strict=True))
        return measure(opened, **named)

    monkeypatch.setattr(Pipeline, "from_pretrained", loaded)
    monkeypatch.setattr(measuring, "measure_run", measured)
    words = ["evaluate", "toy-32", "--data", coded / "two", "--out", tmp_path / "figures", "--steps", 2]
    run(*words, "--classifier", coded / "judge", "--samples", 8)
    assert alive == [True, True]


def test_a_row_of_tokens_is_measured_too(ready, photos, coded, tmp_path):
    """It has no places to repair or to show, and all other figures."""
    run("tokenize", "toy-row", "--data", photos, "--out", tmp_path / "codes")
    words = ["evaluate", "toy-row", "--data", tmp_path / "codes", "--classifier", coded / "judge", "--samples", 12]
    run(*words, "--out", tmp_path / "figures")
    report = json.loads((tmp_path / "figures/report.json").read_text())
    assert np.isfinite(report["frechet"])
    assert 0 <= report["class_accuracy"] <= 1
    assert "inpaint_class_accuracy" not in report
    assert (tmp_path / "figures/samples.png").exists()


def test_ways_to_sample_a_published_model_stand_side_by_side(ready, coded, tmp_path, monkeypatch, capsys):
    """The table lies in a run of the model's name, whose order, schedule and scale are its own."""
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "toy-32", "--data", coded / "two", "--classifier", coded / "judge", "--samples", 8, "--tune", 0]
    run(*words, "--steps", 2, "--orders", "random", "halton", "--temperatures", 1.0)
    assert "wrote into runs/toy-32/sweep" in capsys.readouterr().out
    table = (tmp_path / "runs/toy-32/sweep/sweep.csv").read_text()
    assert all(f"setting,{order},cosine,2," in table for order in ("random", "halton"))
    run("score", "toy-32", "--data", coded / "two", "--orders", "random", "raster", "--steps", 1, 4, "--passes", 2)
    rows = [row.split(",") for row in (tmp_path / "runs/toy-32/score/score.csv").read_text().splitlines()[1:]]
    assert [row[:2] for row in rows] == [["bound", "0"], *([o, s] for s in ("1", "4") for o in ("random", "raster"))]
    assert all(float(row[2]) > 0 for row in rows)
    assert tree(ready / "toy-32") == WHOLE


def test_holes_are_filled_and_measured_by_a_published_model(ready, coded, tmp_path, capsys):
    words = ["--classifier", coded / "judge", "--images", 4, "--steps", 3, "--schedules", "cosine", "--stops", 1]
    run("evaluate-inpaint", "toy-32", "--data", coded / "two", "--out", tmp_path / "x", *words)
    assert (tmp_path / "x/table.md").exists()


@pytest.mark.parametrize("name", ["toy-32", "toy-row"])
def test_a_published_tokenizer_is_measured(name, ready, photos, coded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("evaluate-tokenizer", name, "--data", photos, "--classifier", coded / "judge")
    assert f"next: unmask tokenize {name}" in capsys.readouterr().out
    report = json.loads((tmp_path / f"runs/{name}-tokenizer/report.json").read_text())
    assert report["num_pictures"] == 3  # about a tenth of 48 is held out
    assert np.isfinite([report["psnr"], report["ssim"], report["rfid"]]).all()
    assert report["tokens_per_image"] == (16 if name == "toy-32" else 4)
    assert (tmp_path / f"runs/{name}-tokenizer/reconstructions.png").exists()


def test_few_pictures_are_told_by_how_many_are_held_out(ready, coded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = draw_photos(tmp_path / "few", ["a", "b"])
    for place in range(10, 48):
        (few / "ab"[place % 2] / f"{place}.png").unlink()
    told = "1 of 10 images held out, and a distance takes at least 2: add images, or sort them into the sub-folders"
    measure = ["evaluate-tokenizer", "toy-32", "--data", few]
    judge = ["--classifier", coded / "judge"]
    for words in (measure, [*measure, *judge]):
        said, code = refused(capsys, *words)
        assert (code, told in said) == (3, True), said
    run("evaluate-tokenizer", "toy-32", "--data", few / "a", "--out", tmp_path / "plain")  # no classes and no distance
    assert json.loads((tmp_path / "plain/report.json").read_text())["num_pictures"] == 1
    run("tokenize", "toy-32", "--data", few, "--out", tmp_path / "codes")
    said, code = refused(capsys, "evaluate", "toy-32", "--data", tmp_path / "codes", *judge, "--samples", 8)
    assert (code, told in said) == (3, True), said
    for part, names in (("train", range(6)), ("val", range(6, 10))):
        for place in names:
            into = tmp_path / "sorted" / part / "ab"[place % 2]
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy(few / "ab"[place % 2] / f"{place}.png", into)
    run("evaluate-tokenizer", "toy-32", "--data", tmp_path / "sorted", *judge)
    assert json.loads((tmp_path / "runs/toy-32-tokenizer/report.json").read_text())["num_pictures"] == 4


@pytest.mark.parametrize("words", [
    "sample toy-32", "inpaint toy-32 {photo} --box 1 1 2 2", "export toy-32 --out {here}/x", "fetch toy-32",
    "convert {photo} --family valeoai-v1 --out {here}/x", "generate {here}/x", "infill {here}/x [MASK]",
    "tokenize-text shakespeare --data {photo} --out {here}/x",
])  # fmt: skip
def test_the_work_of_one_process_is_refused_to_several(words, toys, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    said, code = refused(capsys, *words.format(photo=photo, here=tmp_path).split())
    name = words.split()[0]
    assert (code, f"unmask {name} runs in one process, and there are 2" in said) == (2, True), said
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("words", "code", "told"), [
    ("evaluate toy-32", 2, "toy-32 is no run, so give --data CODES from unmask tokenize NAME"),
    ("evaluate toy-32 --data {coded}/three", 2, "three has 3 classes and the model 2: their numbers mean other things"),
    ("evaluate toy-32 --data {coded}/none --classifier {coded}/judge", 2, "no classes and the model 2"),
    ("evaluate toy-texts --data {coded}/none", 2, "toy-texts takes prompts, and a dataset has none"),
    ("train imagenet256 --init toy-32 --data {coded}/none", 2, "no classes"),
    ("evaluate toy-32 --data {coded}/nowhere", 3, "nowhere"),
    ("evaluate toy-row --data {coded}/two", 2, "tokenizer"),
    ("evaluate {ready}/toy-32", 2, "toy-32 is no run, so give --data CODES from unmask tokenize NAME"),
    ("evaluate {ready}/toy-32 --data {coded}/three", 2, "three has 3 classes and the model 2"),
    ("sweep toy-32", 2, "toy-32 is no run, so give --data CODES from unmask tokenize NAME"),
    ("score toy-texts", 2, "toy-texts takes prompts, and a dataset has none"),
    ("evaluate-tokenizer toy-32", 2, "measured on which images? toy-32 is no run of a tokenizer: give --data DIR"),
    ("evaluate-tokenizer toy-32 --data {coded}/nowhere", 3, "nowhere: no such folder"),
    ("train imagenet256 --init toy-32 --data {coded}/two --num-classes 3", 2, "two has 2 classes, and --num-classes"),
    ("train finetune --init toy-32 --data {coded}/two --model.depth 2", 2, "leave the flags of --model and --tok"),
    ("train finetune --data {coded}/two", 2, "which model to start from? Give --init NAME"),
    ("train imagenet256 --data {coded}/two --weights {coded}", 2, "--weights are those of the model to start from"),
    ("train imagenet256 --data {coded}/two --offline --dry-run", 2, "--offline is about the model to start"),
    ("train finetune --init {ready}/toy-32 --data {coded}/two --weights {coded}", 2, "a folder with its own weights"),
    ("train shakespeare --init toy-32 --data {coded}/two", 2, "use unmask train finetune --init toy-32"),
    ("generate toy-32", 2, "toy-32 makes images and no text: use unmask sample toy-32"),
    ("infill toy-32 [MASK]", 2, "use unmask inpaint toy-32 PHOTO"),
    ("evaluate-text toy-32", 2, "use unmask evaluate toy-32"),
    ("train imagenet256 --init toy-row --data {coded}/two", 2, "was trained with another tokenizer"),
    ("train imagenet256 --init toy-texts --data {coded}/two", 2, "such a model cannot be trained here"),
])  # fmt: skip
def test_what_does_not_go_together_is_one_line(words, code, told, ready, coded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said, found = refused(capsys, *words.format(coded=coded, ready=ready).split())
    assert told in said
    assert found == code
    assert not (tmp_path / "runs" / words.split()[1] / "config.json").exists()  # the next try finds no trace


@pytest.mark.parametrize(("words", "told"), [
    ("sweep toy-bare --data {coded}/two --scales 1 2", 'without "no class", which guidance needs'),
    ("evaluate toy-bare --data {coded}/two --scale 2", 'without "no class", which guidance needs'),
    ("evaluate-inpaint toy-bare --data {coded}/two --no-labels --classifier {coded}/judge", 'without "no class"'),
])  # fmt: skip
def test_a_model_without_no_class_is_measured_without_it(words, told, ready, coded, tmp_path, capsys):
    """Before anything is drawn; and what does not need it is measured."""
    out = tmp_path / "out"
    said, code = refused(capsys, *words.format(coded=coded).split(), "--out", out)
    assert (code, told in said) == (2, True), said
    assert not list(out.rglob("*.png"))
    run("score", "toy-bare", "--data", coded / "two", "--orders", "raster", "--steps", 2, "--passes", 2, "--out", out)
    assert (out / "score.csv").exists()


def recipe_from(name, coded):
    return replace(find_recipe("imagenet256", Recipe), init=name, data=Codes(path=str(coded)))


def test_a_training_starts_from_the_published_network_and_weights(ready, coded, tmp_path):
    theirs = load_file(ready / "toy-32/model.safetensors")
    for codes, classes in (("two", 2), ("three", 3)):
        recipe = recipe_from("toy-32", coded / codes)
        start = find_start(recipe, tmp_path / "run")
        recipe, notes = adopt_network(recipe, start)
        assert notes == [f"the network is that of toy-32: {NETWORK}"]
        assert recipe.model == NETWORK
        assert recipe.init == "toy-32"
        made, said = build_start(prepare_images(recipe), tmp_path / "run", start)
        assert said[0] == "starting from toy-32"
        assert said[1:] == ([] if classes == 2 else ["new class table of 3 classes, 2 there; the rest loaded"])
        ours = dict(made.named_parameters())
        assert ours.keys() == theirs.keys()
        same = {name for name in ours if torch.equal(ours[name], theirs[name])}
        assert same == ours.keys() - (set() if classes == 2 else {"classes.table.weight"})
        assert torch.equal(ours["classes.table.weight"][0], theirs["classes.table.weight"][0])
        assert len(ours["classes.table.weight"]) == classes + 1


def test_a_recipe_that_starts_from_nothing_or_from_our_own_keeps_its_network(ready, coded, tmp_path):
    recipe = find_recipe("imagenet256", Recipe)
    assert adopt_network(recipe, None) == (recipe, [])
    mine = replace(recipe, init="mine")
    assert adopt_network(mine, OpenedModel(name="mine", config=recipe.spec, folder=tmp_path)) == (mine, [])
    with pytest.raises(CheckpointError, match=r"two: no config\.json there"):
        find_start(replace(recipe, init=str(coded / "two")), tmp_path / "run")


def test_a_flag_that_says_what_is_plain_is_heard(ready, coded, tmp_path, capsys):
    """8 steps are the plain sampling's, and the model has 3."""
    for words, steps in ([], 3), (["--sampling.steps", 8], 8), (["--sampling.steps=8"], 8):
        run("train", "finetune", "--init", "toy-32", "--data", coded / "two", "--dry-run", *words)
        assert f'"steps": {steps},' in capsys.readouterr().out.split('"sampling"')[1]


def test_a_published_model_is_trained_on(ready, coded, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "imagenet256", "--init", "toy-32", "--data", coded / "two", "--out", out, "--training.steps", 4]
    words += ["--training.batch-size", 4, "--training.log-every", 1, "--training.evaluate-every", 2]
    words += ["--training.save-every", 2, "--training.optimizer.learning-rate", 1e-30]
    words += ["--training.optimizer.weight-decay", 0]
    run(*words)
    said = capsys.readouterr()
    text = re.sub(r"\s+", " ", said.out + said.err)
    assert "the network is that of toy-32: ValeoaiMaskGIT(dim=16" in text
    assert "starting from" in text
    assert have_same_weights(out / "model.safetensors", ready / "toy-32/model.safetensors")  # at such a rate
    assert unmask.load(out).classes == ("sand", "sea")
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(max((out / "checkpoints").glob("step-*")))  # as if it had been stopped after step 2
    run(*words)
    said = capsys.readouterr()
    assert "starting from" not in said.out + said.err
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == steps
    run("sample", out, "--labels", "sea", "--num", 2, "--out", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 32


def test_a_published_model_learns(ready, coded, tmp_path):
    """At a real rate all weights move, and the held-out loss falls."""
    out = tmp_path / "run"
    words = ["train", "imagenet256", "--init", "toy-32", "--data", coded / "two", "--out", out, "--training.steps", 30]
    words += ["--training.batch-size", 8, "--training.log-every", 10, "--training.evaluate-every", 10]
    run(*words, "--training.optimizer.learning-rate", 0.01)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert losses[-1] < losses[0]
    trained, first = (load_file(folder / "model.safetensors") for folder in (out, ready / "toy-32"))
    assert [name for name in first if torch.equal(trained[name], first[name])] == []
