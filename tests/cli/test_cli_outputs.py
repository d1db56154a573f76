"""What lies where a command writes stays as it was, unless unmask made it or the user insists."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import unmask
from unmask.cli import main
from unmask.data.sources.choice import Digits
from unmask.pipelines.image import Pipeline
from unmask.storage.lock import lock

TINY = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--training.batch-size", "8",
        "--device", "cpu"]  # fmt: skip
DEAD = "7fffffff"
"""No process has this id."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("outputs") / "run"
    main(["train", "digits", "--out", str(out), *TINY, "--training.steps", "2"])
    return out


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of the run, in an empty working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return shutil.copytree(trained, tmp_path / "run")


def refuse(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words)])
    said = capsys.readouterr()
    error = said.err.splitlines()[-1]  # lines before it say which data was read
    assert [line for line in said.err.splitlines() if line.startswith("unmask: ")] == [error], said.err
    return stop.value.code, error


def read_tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_replaces_nothing_of_the_user(run, tmp_path, capsys):
    project = tmp_path / "project"
    project.mkdir()
    for name in ("README.md", "config.json", "manifest.json"):
        (project / name).write_text("mine")
        code, error = refuse(capsys, "export", run, "--out", project)
        assert (code, f"holds {name}" in error, "--overwrite" in error) == (2, True, True), error
        assert read_tree(project) == {Path(name): b"mine"}
        (project / name).unlink()
    (project / "README.md").write_text("mine")
    main(["export", str(run), "--out", str(project), "--overwrite"])
    assert (project / "README.md").read_text() != "mine"
    assert not (project / ".lock").exists()


def test_an_export_never_replaces_a_run(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    before = read_tree(other)
    for out in (other, run):
        for more in ([], ["--overwrite"]):
            code, error = refuse(capsys, "export", run, "--out", out, *more)
            assert (code, "give another --out" in error, "delete" in error) == (4, True, False), error
    assert read_tree(other) == before
    with pytest.raises(unmask.errors.CheckpointError, match="is a run"):
        Pipeline.from_pretrained(run, device="cpu").save_pretrained(other)


def test_an_export_is_made_again_unless_its_card_was_edited(run, tmp_path, capsys):
    out = tmp_path / "export"
    main(["export", str(run), "--out", str(out)])
    main(["export", str(run), "--out", str(out)])
    (out / "manifest.json").unlink()  # as an earlier version left it
    main(["export", str(run), "--out", str(out)])
    (out / "README.md").write_text("my own card")
    code, error = refuse(capsys, "export", run, "--out", out)
    assert (code, "holds README.md" in error) == (2, True), error
    with lock(out):
        code, error = refuse(capsys, "export", run, "--out", out, "--overwrite")
    assert (code, "is in use by another process" in error) == (4, True), error


def test_a_killed_export_is_said_to_be_unfinished_and_made_again(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "export"
    main(["export", str(run), "--out", str(out)])
    with monkeypatch.context() as patch:
        patch.setattr("unmask.pipelines.base.write_model_card", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["export", str(run), "--out", str(out)])
    code, error = refuse(capsys, "sample", out)
    assert (code, "is unfinished: run the command that made" in error) == (4, True), error
    (out / f".model.safetensors.tmp-{DEAD}00000000").write_bytes(b"half")
    main(["export", str(run), "--out", str(out)])
    assert not [path.name for path in out.iterdir() if ".tmp-" in path.name]
    main(["sample", str(out), "--num", "2"])


def test_damaged_weights_are_refused(run, capsys):
    path = run / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-6000:-1904] = bytes(4096)
    path.write_bytes(data)
    for words in (["sample", run], ["export", run, "--out", "export"], ["evaluate", run, "--samples", "2"]):
        code, error = refuse(capsys, *words)
        assert (code, f"{path} is damaged or was changed" in error) == (4, True), error
    (run / "manifest.json").unlink()
    main(["sample", str(run), "--num", "2"])


def test_config_and_weights_are_tied(run, capsys):
    config = json.loads((run / "config.json").read_text())
    config["sampling"]["steps"] += 1
    (run / "config.json").write_text(json.dumps(config))
    code, error = refuse(capsys, "sample", run)
    assert (code, "config.json is damaged or was changed" in error) == (4, True), error


def test_weights_that_are_not_finite_are_not_exported(run, capsys):
    weights = load_file(run / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, run / "model.safetensors")
    (run / "manifest.json").unlink()
    code, error = refuse(capsys, "export", run, "--out", "export")
    assert (code, f"{name} of model.safetensors holds NaN" in error) == (5, True), error
    assert not Path("export").exists()


def test_samples_replace_no_earlier_picture(run, capsys):
    for name in ("samples.png", "samples_2.png"):
        main(["sample", str(run), "--num", "2"])
        assert f"wrote {name}" in capsys.readouterr().out
    main(["sample", str(run), "--num", "2", "--out", "samples.png"])
    Image.new("RGB", (4, 4)).save("mine.png")
    mine = Path("mine.png").read_bytes()
    for words in (["--out", "mine.png"], ["--gif", "mine.gif"], ["--out", "thesis.pdf"]):
        shutil.copy("mine.png", "mine.gif")
        code, error = refuse(capsys, "sample", "no-such-run", *words)  # before a run is even looked for
        assert (code, words[1] in error) == (2, True), error
    assert Path("mine.png").read_bytes() == mine
    main(["sample", str(run), "--num", "2", "--out", "mine.png", "--overwrite"])
    assert Path("mine.png").read_bytes() != mine


def test_inpainting_never_replaces_the_photo(run, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    shutil.copy("photo.png", "photo-1.png")
    before = Path("photo.png").read_bytes()
    box = ["--box", "2", "2", "4", "4"]
    for photo, variants in (("photo.png", "1"), ("photo-1.png", "2")):
        words = ["--variants", variants, "--out", "photo.png", "--overwrite"]
        code, error = refuse(capsys, "inpaint", run, photo, *box, *words)
        assert (code, "the input itself" in error) == (2, True), error
    assert Path("photo.png").read_bytes() == before
    for first in ("inpainted", "inpainted_2"):
        main(["inpaint", str(run), "photo.png", *box, "--variants", "2"])
        assert all(Path(f"{first}-{name}.png").exists() for name in ("1", "2", "compare"))


@pytest.mark.parametrize("command", [["generate", "no-run"], ["infill", "no-run", "a [MASK:2]"]])
def test_a_page_replaces_no_document(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("thesis.tex", "page.html"):
        Path(name).write_text("mine")
        code, error = refuse(capsys, *command, "--html", name)
        assert (code, name in error) == (2, True), error
        assert Path(name).read_text() == "mine"


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.jsonl", "samples/mine.png", "tokenizer.json"])
def test_a_training_begins_in_no_folder_with_files_of_the_user(name, tmp_path, capsys):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 200)
    for recipe in ("digits", "shakespeare"):
        more = ["--data", tmp_path / "text.txt"] if recipe == "shakespeare" else []
        code, error = refuse(capsys, "train", recipe, *more, "--out", tmp_path / "out", *TINY)
        assert (code, f"holds {name.split('/')[0]}" in error) == (2, True), error
    assert read_tree(tmp_path / "out") == {Path(name): b"mine"}


@pytest.mark.parametrize("name", ["tokenizer.json", "train.tokens.npy"])
def test_tokens_replace_no_file_of_the_user(name, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"version": "1.0", "model": {"type": "BPE"}}')
    before = read_tree(tmp_path / "out")
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 200)
    words = ["tokenize-text", "shakespeare", "--data", tmp_path / "text.txt", "--out", tmp_path / "out"]
    code, error = refuse(capsys, *words)
    assert (code, f"holds {name}" in error) == (2, True), error
    assert read_tree(tmp_path / "out") == before
    main([*map(str, words), "--overwrite"])
    main([*map(str, words)])


def test_a_run_is_resumed_and_rid_of_leftovers(run):
    left = run / f".model.safetensors.tmp-{DEAD}01234567"
    left.write_bytes(b"half")
    (run / "manifest.json").unlink()  # a run of an earlier version
    main(["train", "digits", "--out", str(run), *TINY, "--training.steps", "2"])
    assert not left.exists()
    assert (run / "manifest.json").exists()


def test_results_are_rid_of_leftovers(tmp_path):
    from unmask.storage.lock import remove_killed_writes

    (tmp_path / f".report.json.tmp-{DEAD}01234567").write_text("half")
    (tmp_path / ".report.json.tmp-00000001abcdef01").write_text("of a living process")
    (tmp_path / ".mine.tmp-x").write_text("mine")
    with lock(tmp_path, keep=False):
        (tmp_path / f".report.json.tmp-{DEAD}76543210").write_text("half")
        remove_killed_writes(tmp_path)  # another process holds it
        assert (tmp_path / f".report.json.tmp-{DEAD}76543210").exists()
    remove_killed_writes(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp-x", ".report.json.tmp-00000001abcdef01"]


def test_results_replace_no_file_of_the_user(run, tmp_path, capsys):
    out = tmp_path / "results"
    out.mkdir()
    for command, name in (("score", "score.md"), ("sweep", "sweep.md"), ("evaluate-inpaint", "table.csv")):
        (out / name).write_text("mine")
        code, error = refuse(capsys, command, run, "--out", out)
        assert (code, f"holds {name}" in error) == (2, True), error
    assert {path.read_text() for path in out.iterdir()} == {"mine"}


def test_no_message_advises_to_delete_a_folder():
    """Checkpoints may lie there."""
    source = Path(unmask.__file__).parent
    advice = ("delete the folder", "delete this one", "delete the run", "remove the folder")
    assert not [p.name for p in source.rglob("*.py") if any(words in p.read_text() for words in advice)]


@pytest.mark.parametrize("name", ["meta.json", "tokenizer/config.json"])
def test_token_datasets_replace_no_file_of_the_user(name, tmp_path):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(unmask.errors.ConfigError, match=name.split("/")[0]):
        unmask.tokenize("no-such-model", Digits(), tmp_path / "out")
    assert read_tree(tmp_path / "out") == {Path(name): b"mine"}


def test_help_says_that_a_recipe_is_code(capsys):
    for command in ("train", "train-tokenizer"):
        main([command, "--help"])
        assert "is code, and it is executed: only give one that you trust" in capsys.readouterr().out
