"""What a command prints at its end fits a terminal, and a better result is not replaced by a worse one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from unmask.cli import evaluating, main, reports, sweeping
from unmask.cli.ending import describe_plainly
from unmask.cli.scoring import plan_score_table, show_score
from unmask.cli.tables import TABLE_WIDTH, TableColumn, fit_columns, format_cells, format_table, format_titles
from unmask.cli.tokenizers import shorten_classifiers
from unmask.decoding.names import SAMPLINGS
from unmask.decoding.rules import AnnealedConfidence
from unmask.errors import ConfigError
from unmask.evaluation.earlier import check_report, describe_replaced
from unmask.evaluation.plans import SweepChoices, plan_sweep
from unmask.evaluation.scoring import OrderScore
from unmask.evaluation.sweep_table import SweepRow
from unmask.evaluation.sweeping import describe_row
from unmask.recipes import Recipe, TokenizerRecipe
from unmask.recipes.reading import find_recipe, write_config

EARLIER = Path(__file__).parents[1] / "fixtures/earlier"
DEMO = Path(__file__).parents[2] / "docs/results/demo/report.json"
CIFAR = Path(__file__).parents[2] / "docs/results/cifar10/report.json"


@pytest.fixture
def run(tmp_path):
    shutil.copytree(EARLIER / "run", tmp_path / "run")
    return tmp_path / "run"


def refuse(capsys, *words):
    """Return the line of a command that must fail with code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1), error
    return error


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [DEMO, CIFAR], ids=["demo", "cifar10"])
def test_a_report_is_a_table_that_fits_a_terminal(path):
    numbers = json.loads(path.read_text())
    lines = reports.format_report(numbers).splitlines()
    assert max(map(len, lines)) <= TABLE_WIDTH
    assert lines[0].split() == ["metric", "value", "baseline", "meaning"]
    (accuracy,) = [line for line in lines if line.startswith("class accuracy")]
    assert accuracy.split()[2:4] == [f"{numbers[k]:.1%}" for k in ("class_accuracy", "classifier_test_accuracy")]
    (distance,) = [line for line in lines if line.startswith("Frechet distance")]
    assert distance.split()[2:4] == [f"{numbers[k]:.3f}" for k in ("frechet", "frechet_floor")]
    assert f"{numbers['num_samples']:,} samples of seed {numbers['seed']}" in "\n".join(lines)


def test_a_report_shows_what_was_measured_and_says_what_was_not():
    numbers = {"num_samples": 3, "seed": 0, "validation_loss": 1.5, "left_out": {"distances": "no classes"}}
    lines = reports.format_report(numbers).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["metric", "validation"]
    assert lines[-1] == "not measured: distances: no classes"
    assert not any(line.startswith("baseline") for line in lines)


def test_a_tokenizer_report_is_a_table_too():
    numbers = {"psnr": 20.123, "ssim": 0.5, "perplexity": 19.1, "vocab_size": 2048, "usage": 0.019, "num_pictures": 7}
    text = reports.format_tokenizer_report({**numbers, "tokens_per_image": 16})
    assert "perplexity      19.1    2,048" in text
    assert max(map(len, text.splitlines())) <= TABLE_WIDTH
    assert "{" not in text


def test_columns_that_do_not_fit_are_left_out():
    needed, others = [TableColumn("order", 60)], [TableColumn("a", 8), TableColumn("b", 30), TableColumn("c", 8)]
    columns = fit_columns(needed, others)
    assert [column.title for column in columns] == ["order", "a", "c"]
    assert len(format_cells(columns, ["x" * 60, "1", "2"])) == TABLE_WIDTH
    lines = ["name        n", "long name  10", "x           2"]
    assert format_table(["name", "n"], [["long name", "10"], ["x", "2"]]).splitlines() == lines


def plan_for(**choices):
    recipe = find_recipe("digits", Recipe)
    spec = replace(recipe, model=replace(recipe.model, num_classes=10))
    return plan_sweep(spec, SweepChoices(**choices), "digits")


def test_a_sweep_shows_what_varies_and_says_the_rest_once():
    plan = plan_for(steps=(1, 4), orders=("confidence-without-noise", "halton"), scales=(1.0, 3.0), temperatures=(0.9,))
    shared, columns = sweeping.plan_table(plan)
    titles = [column.title for column in columns]
    assert titles[:4] == ["order", "steps", "scale", "FD"]
    assert "temperature 0.9" in shared
    assert "schedule cosine" in shared
    assert len(format_titles(columns)) <= TABLE_WIDTH
    setting, several = plan.list_choices()[0]
    figures = {"frechet": 12.3456, "class_accuracy": 0.5, "temperature": 0.9}
    for kind, shown in (("setting", "confidence-without-noise"), ("again", "* confidence-without-noise")):
        row = SweepRow(cells=describe_row(kind, plan, setting, several, 0), figures=figures)
        line = sweeping.show_row(row, columns)
        assert line.startswith(shown)
        assert "12.346" in line
        assert len(line) <= TABLE_WIDTH
    _, tuned = sweeping.plan_table(plan_for(orders=("halton",), steps=(8,), temperatures=(0.8, 1.0)))
    assert [column.title for column in tuned][:3] == ["order", "temp", "FD"]


def test_a_score_fits_a_terminal():
    units = (("bits per character", 1.0),)
    columns = plan_score_table(["halton", "confidence-without-noise"], units)
    row = OrderScore(
        order="confidence-without-noise", steps=100, nats=12.3456, error=0.1, difference=-1.2, difference_error=0.1
    )
    assert len(show_score(row, units, columns, "halton")) <= TABLE_WIDTH
    assert len(format_titles(columns)) <= TABLE_WIDTH


# -- a better report stays ---------------------------------------------------------------------------------------------


def test_a_report_on_more_samples_is_kept(tmp_path):
    path = tmp_path / "report.json"
    check_report(path, "num_samples", 3, "--samples")  # none is there
    path.write_text(json.dumps({"num_samples": 1500}))
    check_report(path, "num_samples", 1500, "--samples")
    check_report(path, "num_samples", 3, "--samples", overwrite=True)
    with pytest.raises(ConfigError, match=r"report\.json is on 1,500 samples, and --samples 3 .*--overwrite") as caught:
        check_report(path, "num_samples", 3, "--samples", advice="or give another --out")
    assert str(caught.value).endswith("or give another --out")
    path.write_text("{")
    check_report(path, "num_samples", 3, "--samples")


def test_evaluate_refuses_to_replace_a_better_report(run, capsys):
    text = json.dumps({"num_samples": 1500})
    (run / "report.json").write_text(text)
    error = refuse(capsys, "evaluate", run, "--samples", 3)
    assert "--overwrite" in error
    assert "--out" not in error  # a run keeps its results
    assert (run / "report.json").read_text() == text


def test_an_equal_report_that_is_replaced_is_named():
    report = {"num_samples": 5, "seed": 0, "sampling": "x", "commit": "a"}
    assert describe_replaced({}, report) is None
    assert describe_replaced({**report, "seed": 1}, report) is None
    assert describe_replaced({**report, "commit": "b"}, report) is not None


# -- words -------------------------------------------------------------------------------------------------------------


def test_an_error_shows_no_python(capsys):
    line = "TransformerConfig(dim=30, heads=4): all must be positive"
    assert describe_plainly(line) == "dim 30, heads 4: all must be positive"
    assert describe_plainly("a (b=3): c") == "a (b=3): c"
    error = refuse(capsys, "train", "digits", "--model.dim", 30, "--dry-run")
    assert error.startswith("unmask: dim 30, depth 4, heads 4")


def test_a_published_model_is_described_in_words(capsys):
    main(["models", "besnier-256"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sampled")]
    assert not set("=") & set(line)
    assert "linear ramp (scale 4)" in line


@pytest.mark.parametrize(("command", "said"), [("sample", False), ("evaluate", False), ("train", True)])
def test_only_a_training_speaks_of_a_resumed_one(command, said, capsys):
    subject = "digits" if command == "train" else "RUN"
    with pytest.raises(SystemExit):
        main([command, subject, "--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ("a resumed training ignores them" in words) == said


@pytest.mark.parametrize("flag", ["--data", "--data.train", "--data.test"])
@pytest.mark.parametrize("command", ["evaluate", "sweep"])
def test_the_flag_of_the_data_is_named(run, command, flag, capsys):
    assert f"unmask: {flag} is for published" in refuse(capsys, command, run, flag, "x")


# -- settings ----------------------------------------------------------------------------------------------------------


def test_a_sweep_keeps_the_rules_of_a_preset():
    spec = replace(find_recipe("digits", Recipe), sampling=SAMPLINGS["besnier-256-8"])
    plan = plan_sweep(spec, SweepChoices(orders=("confidence", "halton"), steps=(8,)), "digits")
    first, second = plan.settings
    assert first.sampling.priority == spec.sampling.priority
    assert isinstance(first.sampling.priority, AnnealedConfidence)
    assert (first.order, second.order) == ("confidence (annealed)", "halton")
    assert describe_row("setting", plan, first)["noise"] == "4.5"
    noisy = plan_sweep(spec, SweepChoices(orders=("confidence",), steps=(8,), noises=(2.0,)), "digits").settings[0]
    assert noisy.sampling.priority == replace(spec.sampling.priority, noise=2.0)


def test_a_sweep_keeps_the_annealing_of_the_temperature():
    annealed = [one for one in SAMPLINGS.values() if one.annealing is not None]
    assert annealed
    for sampling in annealed:
        spec = replace(find_recipe("digits", Recipe), sampling=sampling)
        plan = plan_sweep(spec, SweepChoices(orders=("random",), steps=(8,)), "digits")
        assert plan.settings[0].sampling.annealing == sampling.annealing
        assert plan.settings[0].order == "random (annealed)"


def test_inpainting_is_measured_with_temperatures_for_its_own_steps(run, monkeypatch):
    recipe = find_recipe(str(run / "config.json"), Recipe)
    sampling = replace(recipe.sampling, steps=2, temperature=(1.0, 0.5))
    write_config(replace(recipe, sampling=sampling), run)
    (run / "manifest.json").unlink(missing_ok=True)
    seen = []
    monkeypatch.setattr(evaluating, "_measure", lambda flags, opened, sampling, *rest: seen.append(sampling))
    main(["evaluate-inpaint", str(run)])
    main(["evaluate-inpaint", str(run), "--steps", "4"])
    assert [one.steps for one in seen] == [20, 4]
    assert seen[1].temperature == (1.0, 1.0, 0.5, 0.5)


def test_a_short_training_of_a_tokenizer_has_short_classifiers(tmp_path):
    recipe = find_recipe("folder-tokenizer", TokenizerRecipe)
    short = replace(recipe, training=replace(recipe.training, steps=10))

    def shorten(one, given=()):
        found = shorten_classifiers(one, tmp_path, given)
        return found.perceptual.steps, found.classifier.steps

    assert shorten(recipe) == (recipe.perceptual.steps, recipe.classifier.steps)
    assert shorten(short) == (10, 10)
    assert shorten(short, ["perceptual"]) == (recipe.perceptual.steps, 10)
    write_config(shorten_classifiers(short, tmp_path), tmp_path)
    longer = replace(recipe, training=replace(recipe.training, steps=20))
    assert shorten(longer) == (10, 10)  # the run keeps its classifiers
