"""What may change between two commands on one run directory, from the command line: each row of docs/reliability.md."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask import load
from unmask.cli import main
from unmask.data.shuffle import LARGEST_SORTED
from unmask.errors import CheckpointError
from unmask.experiments import base, resuming
from unmask.experiments.resuming import keep_shuffle
from unmask.training import runfolder
from unmask.training.runfolder import list_checkpoints, read_meta

TINY = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--device", "cpu"]
TINY += ["--training.batch-size", "8", "--training.log-every", "1", "--training.evaluate-every", "1000000"]


def train(run, steps, *more):
    main(["train", "digits", "--out", str(run), *TINY, "--training.steps", str(steps), *more])


def refuse(capsys, run, steps, *more):
    """Return the one line of a training that is refused with exit code 4."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train(run, steps, *more)
    line = capsys.readouterr().err
    assert (stop.value.code, line.count("\n")) == (4, 1), line
    return line


def steps_of(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    train(run, 4, "--training.save-every", "2", "--classifier.steps", "2")
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A finished run of four steps, at another place than where it was trained."""
    return shutil.copytree(finished, tmp_path / "moved")


def test_a_moved_run_grows_and_says_from_where(run, capsys):
    before = (run / "model.safetensors").read_bytes()
    train(run, 6)
    said = capsys.readouterr().out
    assert "continuing after step 4 (of 4 before) to 6; the learning rate follows the schedule of 6 steps" in said
    assert set(steps_of(run)) == {1, 2, 3, 4, 5, 6}
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == 6
    assert (run / "model.safetensors").read_bytes() != before
    train(run, 6)
    assert "all 6 steps are done already" in capsys.readouterr().out


def test_a_grown_run_that_is_killed_at_its_end_is_unfinished_and_grows_again(run, capsys, monkeypatch):
    """The new weights are there, and their hash is not."""
    with monkeypatch.context() as patch:
        patch.setattr(base, "record_files", lambda folder, names: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            train(run, 6)
    with pytest.raises(CheckpointError, match="unfinished: run the command that made"):
        load(run)
    train(run, 6)
    load(run)


def test_a_run_does_not_shrink(run, capsys):
    line = refuse(capsys, run, 3)
    assert f"{run} is a run of 4 steps and cannot become one of 3: give --training.steps 4 or more" in line
    train(run, 6)
    assert "is a run of 6 steps" in refuse(capsys, run, 4)


@pytest.mark.parametrize(
    "change", [["--training.seed", "5"], ["--model.depth", "2"], ["--training.learning-rate.warmup", "9"]]
)
def test_a_checkpoint_of_another_experiment_is_refused_by_name(run, tmp_path, capsys, change):
    other = tmp_path / "other"
    train(other, 6, *change)
    shutil.copytree(other / "checkpoints/step-00000006", run / "checkpoints/step-00000006")
    line = refuse(capsys, run, 8)
    assert f"{run / 'checkpoints/step-00000006'} is of another experiment (" in line
    assert change[0].removeprefix("--").replace("-", "_") in line
    assert "move it out" in line
    assert (run / "checkpoints/step-00000006").is_dir()
    shutil.rmtree(run / "checkpoints/step-00000006")
    train(run, 8)


def test_a_checkpoint_of_other_data_is_refused(run, monkeypatch, capsys):
    real = runfolder.read_meta
    monkeypatch.setattr(resuming, "read_meta", lambda path: {**real(path), "data": "0" * 64})
    assert "was trained on other data" in refuse(capsys, run, 8)


def test_a_checkpoint_of_a_tokenizer_is_refused(run, monkeypatch, capsys):
    real, recipe = runfolder.read_meta, json.loads((run / "config.json").read_text())
    monkeypatch.setattr(
        resuming, "read_meta", lambda path: {**real(path), "recipe": {**recipe, "kind": "tokenizer-recipe"}}
    )
    assert "is of another kind of experiment" in refuse(capsys, run, 8)


def test_how_it_computes_logs_and_saves_may_change(run, capsys):
    train(run, 6, "--training.accumulate", "2", "--training.save-every", "1", "--training.keep", "3")
    assert "accumulate 2 now, 1 before: data, masks and noise stay the same" in capsys.readouterr().out


def test_a_checkpoint_of_an_early_version_has_no_recipe_and_is_used(run, monkeypatch, capsys):
    real = runfolder.read_meta
    monkeypatch.setattr(resuming, "read_meta", lambda path: {k: v for k, v in real(path).items() if k == "environment"})
    train(run, 6)
    assert "continuing after step 4" in capsys.readouterr().out


def test_a_run_keeps_its_way_of_shuffling(run, tmp_path, monkeypatch):
    root = run / "checkpoints"
    assert read_meta(list_checkpoints(root)[0])["shuffle"] == "sorted"
    large = LARGEST_SORTED + 1
    assert keep_shuffle(tmp_path / "new", large) == "feistel"
    assert keep_shuffle(root, large) == "sorted"
    monkeypatch.setattr(resuming, "read_meta", lambda path: {})  # of an early version
    assert keep_shuffle(root, large) == "sorted"
    monkeypatch.setattr(resuming, "read_meta", lambda path: {"shuffle": "feistel"})
    assert keep_shuffle(root, 10) == "feistel"


def test_the_way_of_shuffling_is_saved_and_kept(tmp_path, monkeypatch):
    """A set that counts as large gets the order that needs no memory; the run keeps it when the limit changes."""
    monkeypatch.setattr("unmask.data.shuffle.LARGEST_SORTED", 100)
    train(tmp_path / "run", 2)
    monkeypatch.undo()
    train(tmp_path / "run", 4)
    assert {read_meta(path)["shuffle"] for path in list_checkpoints(tmp_path / "run/checkpoints")} == {"feistel"}


def test_a_run_that_an_earlier_version_began_ends_as_there(tmp_path, capsys):
    """The fixture was stopped after step 4 of 6 at commit 304f5a8, which then ended it with these weights."""
    run = shutil.copytree(Path(__file__).parents[1] / "fixtures/earlier/stopped_run", tmp_path / "run")
    main(["train", str(run / "config.json")])
    said = capsys.readouterr().out
    assert "continuing after step 4\n" in said
    assert ", 304f5a8ce5df5d6541bfa55e7b39be43fbc9bea7 before" in said
    expected, found = (load_file(run / name) for name in ("at-the-end.safetensors", "model.safetensors"))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


# -- what is measured and sampled --


def test_a_damaged_line_of_the_curve_is_named_by_evaluate_and_costs_nothing_else(run, capsys):
    path = run / "metrics.jsonl"
    before = path.read_bytes()
    path.write_bytes(b"\xff" + before)
    capsys.readouterr()
    main(["evaluate", str(run), "--samples", "20"])
    shown = capsys.readouterr()
    assert shown.err.count(f"{path} is damaged in line 1") == 1
    report = json.loads((run / "report.json").read_text())
    assert report["train_steps"] == 4
    assert "damaged in line 1" in report["curve_note"]
    assert (run / "loss.png").is_file()
    path.write_bytes(before.replace(b'"loss": ', b'"loss": 1'))
    main(["evaluate", str(run), "--samples", "20"])
    assert "not as the training left it" in json.loads((run / "report.json").read_text())["curve_note"]
    path.unlink()
    main(["evaluate", str(run), "--samples", "20"])
    assert f"{path} is missing" in json.loads((run / "report.json").read_text())["curve_note"]


def test_evaluate_says_that_it_cannot_keep_its_results_before_the_work(run, monkeypatch, capsys):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != run and real(path, mode))
    monkeypatch.setattr("unmask.evaluation.images.sample_banks", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(run), "--samples", "20"])
    assert stop.value.code == 6
    assert f"{run} cannot be written" in capsys.readouterr().err


def test_a_read_only_run_is_sampled_from(run, tmp_path, monkeypatch):
    for place in (run, *run.rglob("*")):
        place.chmod(0o555 if place.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    main(["sample", str(run), "--num", "4", "--out", str(tmp_path / "x.png")])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_damaged_weights_end_sampling_with_the_code_of_nan(run, tmp_path, capsys):
    tensors = load_file(run / "model.safetensors")
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name].fill_(torch.nan)
    save_file(tensors, run / "model.safetensors")
    (run / "manifest.json").unlink()  # else the change would be refused before
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(run), "--num", "4", "--out", str(tmp_path / "x.png")])
    assert stop.value.code == 5
    assert "NaN" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
