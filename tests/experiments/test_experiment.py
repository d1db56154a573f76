"""What a run folder promises: one experiment per folder, no stale judge, and no classes where there are none."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from unmask.cli import main
from unmask.data.sources.choice import Folder
from unmask.errors import CheckpointError, ConfigError
from unmask.evaluation.images import measure_run
from unmask.evaluation.reference import open_reference
from unmask.evaluation.runs import open_run
from unmask.experiments.base import run_experiment
from unmask.experiments.images import prepare_images
from unmask.method.ramps import LinearRamp
from unmask.method.sampling.priorities import Halton
from unmask.metrics.features import Classifier, hash_network, load_classifier, save_classifier
from unmask.metrics.in_domain import prepare_classifier_features
from unmask.pipelines.image import Pipeline
from unmask.recipes.reading import load_recipe, read_config
from unmask.recipes.schema import Recipe
from unmask.runtime.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
TINY = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--training.batch-size", "8"]
TINY += ["--classifier.steps", "5", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 4 steps, judged once."""
    out = tmp_path_factory.mktemp("finished") / "run"
    main(["train", "digits", "--out", str(out), *TINY, "--training.steps", "4"])
    main(["evaluate", str(out), "--samples", "20"])
    return out


def recipe_of(out):
    return read_config(out / "config.json", Recipe)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 3}, "a run of 4 steps and cannot become one of 3"),
        ({"seed": 5}, r"training\.seed 0 there, 5 here"),
        ({"ema": 0.5}, r"training\.ema"),
        ({"batch_size": 4}, r"training\.batch_size"),
    ],
)
def test_a_folder_holds_one_experiment(finished, changes, named):
    recipe = recipe_of(finished)
    before = (finished / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match=named):
        run_experiment(prepare_images(replace(recipe, training=replace(recipe.training, **changes))), finished, ALONE)
    assert (finished / "config.json").read_bytes() == before


def test_how_it_is_computed_and_watched_may_change(finished):
    recipe = recipe_of(finished)
    weights = (finished / "model.safetensors").read_bytes()
    run_experiment(
        prepare_images(replace(recipe, training=replace(recipe.training, accumulate=2, log_every=3, keep=5))),
        finished,
        ALONE,
    )
    assert (finished / "model.safetensors").read_bytes() == weights


def test_a_classifier_of_another_configuration_is_trained_anew(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    experiment, path = prepare_images(recipe_of(out)), out / "classifier.safetensors"
    config, pictures = experiment.recipe.classifier, experiment.read_pictures("train")
    first, again = (prepare_classifier_features(pictures, config, path, ALONE) for _ in range(2))
    other = prepare_classifier_features(pictures, replace(config, steps=6), path, ALONE)
    assert first.sha256 == again.sha256 != other.sha256


def test_all_runs_on_the_same_images_share_the_classifier_of_the_cache(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    experiment, said = prepare_images(recipe_of(finished)), []
    config, pictures = replace(experiment.recipe.classifier, steps=4), experiment.read_pictures("train")

    def prepare(name):
        said.clear()
        path = tmp_path / name / "classifier.safetensors"
        return prepare_classifier_features(pictures, config, path, ALONE, lambda *args: said.append(args)).sha256

    first = prepare("a")
    assert said
    assert prepare("b") == first
    assert not said
    (kept,) = (tmp_path / "cache/classifiers").glob("[!.]*.safetensors")
    kept.write_bytes(b"damaged")
    assert prepare("c") == first
    assert said
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "file"))
    assert prepare("d") == first
    assert said


def test_what_was_learned_of_other_pictures_is_made_anew(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    experiment, path = prepare_images(recipe_of(out)), out / "classifier.safetensors"
    config, pictures = experiment.recipe.classifier, experiment.read_pictures("train")
    first = prepare_classifier_features(pictures, config, path, ALONE)
    pixels = pictures.pictures.pixels.clone()
    pixels[:50] = 255 - pixels[:50]
    split = replace(experiment.split, train=replace(experiment.split.train, pixels=pixels))
    other = replace(experiment, loaded=split)
    real, theirs = (open_reference(e, first, out, ALONE) for e in (experiment, other))
    assert torch.equal(real.train[50:], theirs.train[50:])
    assert not torch.equal(real.train[:50], theirs.train[:50])
    assert (len(real.train), real.num_unread) == (1500, 0)
    kept = open_reference(experiment, first, out, ALONE)
    assert torch.equal(kept.train, real.train)
    assert torch.equal(kept.train_index, torch.arange(1500))
    with pytest.raises(ConfigError, match=r"other images \(pictures"):
        open_reference(other, first, out / real.key.file, ALONE)
    assert prepare_classifier_features(other.read_pictures("train"), config, path, ALONE).sha256 != first.sha256
    assert prepare_classifier_features(pictures, config, path, ALONE).sha256 == first.sha256


def test_a_classifier_of_before_the_digest_is_trained_anew(finished, tmp_path):
    experiment, path = prepare_images(recipe_of(finished)), tmp_path / "classifier.safetensors"
    config = replace(experiment.recipe.classifier, steps=2)
    save_classifier(Classifier(config), path)
    stale = hash_network(load_classifier(path))
    assert prepare_classifier_features(experiment.read_pictures("train"), config, path, ALONE).sha256 != stale


def test_the_tokenizer_decides_the_grid_of_a_halton_order():
    recipe = load_recipe("digits")
    wrong = replace(recipe, sampling=replace(recipe.sampling, priority=Halton((7, 7))))
    assert prepare_images(wrong).recipe.sampling.priority == Halton((4, 4))


def test_a_recipe_for_token_datasets_says_how_to_give_images():
    recipe = replace(load_recipe("finetune"), init="besnier-256", data=Folder(path="photos"))
    with pytest.raises(ConfigError, match=r"data=Codes\(path=\.\.\.\)\); with --init, that may also be a folder"):
        prepare_images(recipe)


def test_without_classes_all_works_but_the_judge(tmp_path):
    out = tmp_path / "run"
    steps = ["--training.steps", "4", "--training.evaluate-every", "2"]
    assert load_recipe("digits").sampling.scale == LinearRamp(2.0), "a guided recipe is what went wrong once"
    main(["train", "digits", "--out", str(out), *TINY, *steps, "--no-conditional"])
    main(["sample", str(out), "--out", str(tmp_path / "samples.png"), "--num", "4"])
    main(["evaluate", str(out), "--samples", "20"])
    report = json.loads((out / "report.json").read_text())
    assert "class_accuracy" not in report
    assert report["nearest_train"]["samples"] > 0
    assert (out / "inpaint.png").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(out)])
    assert stop.value.code == 2


def test_the_report_inpaints_as_it_samples(finished, monkeypatch):
    used = []
    real = Pipeline.fill

    def watched(self, *args, sampling=None, **kwargs):
        used.append(sampling)
        return real(self, *args, sampling=sampling, **kwargs)

    monkeypatch.setattr(Pipeline, "fill", watched)
    wanted = replace(recipe_of(finished).sampling, steps=2)
    measure_run(open_run(finished, ALONE), num=20, seed=0, world=ALONE, sampling=wanted)
    assert used == [wanted, wanted]


@pytest.mark.parametrize("bad", [{"steps": 0}, {"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}])
def test_sampling_that_cannot_be_is_refused_at_once(bad):
    with pytest.raises(ValueError, match="sampling"):
        replace(load_recipe("digits").sampling, **bad)


def test_inpainting_without_labels_runs_unconditionally(finished):
    pipeline = Pipeline.from_pretrained(finished)
    images = prepare_images(recipe_of(finished)).split.test.read_float(slice(0, 3))
    hole = torch.zeros(3, 8, 8, dtype=torch.bool)
    hole[:, 4:] = True
    filled = pipeline.fill(images, hole)
    assert torch.equal(filled[:, :, :4], images[:, :, :4])


def test_an_export_is_evaluated_as_its_run_is(finished, tmp_path, capsys):
    """Against data that the caller names, with all metrics but those of the training; it writes nothing beside it."""
    main(["export", str(finished), "--out", str(tmp_path / "out")])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(before) == ["README.md", "config.json", "manifest.json", "model.safetensors"]
    results = tmp_path / "results"
    words = ["--data", "digits", "--classifier", str(finished), "--out", str(results), "--samples", "20"]
    main(["evaluate", str(tmp_path / "out"), *words])
    report = json.loads((results / "report.json").read_text())
    assert report["num_samples"] == 20
    assert not {"validation_loss", "train_seconds", "train_steps"} & set(report)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("return 3", "needs a function recipe"),
        ("x = (", "SyntaxError"),
        ("import nothing_of_the_kind", "nothing_of_the"),
    ],
)
def test_a_recipe_file_that_is_none_is_named(tmp_path, text, named):
    path = tmp_path / "mine.py"
    path.write_text(text if "=" in text or "import" in text else f"def recipe():\n    {text}\n")
    with pytest.raises(ConfigError, match=named) as error:
        load_recipe(str(path))
    assert str(path) in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_where_there_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "digits", "--out", str(tmp_path / "run"), *TINY[:-1], "cuda"])
    assert stop.value.code == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_is_judged_and_swept_on_cuda(tmp_path):
    out = tmp_path / "run"
    main(["train", "digits", "--out", str(out), *TINY[:-1], "cuda", "--training.steps", "4"])
    tiny = ["--samples", "20", "--tune", "20", "--steps", "2", "--temperatures", "1.0"]
    main(["sweep", str(out), *tiny, "--orders", "confidence", "halton"])
