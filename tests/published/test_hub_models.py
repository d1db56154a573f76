"""A model that was pushed to the hub comes back from it, here from a server of ours that speaks its protocol."""

import os
import subprocess
import sys

import pytest
import torch
from toy_hub import COMMIT, serving, use

from unmask.cli import main
from unmask.errors import CheckpointError, ConfigError
from unmask.pipelines.image import Pipeline
from unmask.pipelines.load import load
from unmask.published.opening import open_model

pytest.importorskip("huggingface_hub")
TINY = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--training.batch-size", "8"]
NAME = "hf-hub:me/digits"
TRAINED_ELSEWHERE = (
    "hf-hub:me/digits is no run, so give --data DIR, a folder of images (it was trained on 1,500 images of 10 classes: "
    "scikit-learn's handwritten digits)"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "run"
    main(["train", "digits", "--out", str(out), *TINY, "--device", "cpu", "--training.steps", "2"])
    return out


@pytest.fixture
def hub(run, tmp_path, monkeypatch):
    """The environment of a child process that finds the hub here, and what it asked for."""
    folder = tmp_path / "pushed"
    Pipeline.from_pretrained(run, device="cpu", dtype=torch.float32).save_pretrained(folder)
    (folder / "evil.py").write_text("raise SystemExit('run')")
    with serving({f"me/digits/{path.name}": path.read_bytes() for path in folder.iterdir()}) as made:
        use(monkeypatch, made, tmp_path / "hf/hub")
        monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield {**os.environ, "HF_ENDPOINT": made.url, "HF_HUB_OFFLINE": "0"}, made.asked


def unmask(env, *words):
    command = [sys.executable, "-m", "unmask", *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_a_pushed_model_is_loaded_by_its_name(run, hub, tmp_path):
    env, asked = hub
    code, _, error = unmask(env, "export", NAME, "--out", tmp_path / "own")
    assert (code, error) == (0, f"{NAME} is revision {COMMIT}; {NAME}@{COMMIT} pins it\n")
    own, before = (Pipeline.from_pretrained(f, device="cpu", dtype=torch.float32) for f in (tmp_path / "own", run))
    assert torch.equal(own.generate(num=4), before.generate(num=4))
    assert any(path.endswith("/model.safetensors") for path in asked)
    assert not any(path.endswith("/evil.py") for path in asked)
    assert (tmp_path / f"hf/hub/models--me--digits/snapshots/{COMMIT}/model.safetensors").is_file()
    assert not (tmp_path / "cache").exists()
    there = len(asked)
    again = load(NAME, offline=True, device="cpu", dtype=torch.float32)  # from the cache alone
    assert torch.equal(again.generate(num=4), before.generate(num=4))
    assert len(asked) == there


def test_each_command_says_which_revision_it_uses(hub, tmp_path):
    env, _ = hub
    said = f"{NAME} is revision {COMMIT}; {NAME}@{COMMIT} pins it"
    for words in (
        ["tokenize", NAME, "--out", tmp_path / "codes"],
        ["train", "digits", "--init", NAME, "--out", tmp_path / "more", "--dry-run", *TINY[:6]],
    ):
        _, _, error = unmask(env, *words)
        assert error.splitlines()[0] == said
    _, _, error = unmask(env, "tokenize", f"{NAME}@{COMMIT}", "--out", tmp_path / "codes")
    assert said not in error


def test_what_cannot_be_had_is_one_line(hub, tmp_path):
    env, _ = hub
    gone = {**env, "HF_ENDPOINT": "http://127.0.0.1:9"}
    for where, words, said in (
        (env, ["sample", "hf-hub:me/digitz"], "cannot load hf-hub:me/digitz: there is no such repository"),
        (gone, ["sample", NAME], "cannot load hf-hub:me/digits: http://127.0.0.1:9 does not answer"),
        (env, ["sample", NAME, "--offline"], "cannot load hf-hub:me/digits: it is not in the cache, and this is"),
        (env, ["generate", NAME, "--offline"], "cannot load hf-hub:me/digits: it is not in the cache, and this is"),
        ({**env, "HF_HUB_OFFLINE": "1"}, ["sample", NAME], "hf-hub:me/digits: it is not in the cache, and HF_HUB_OFF"),
        (env, ["evaluate", NAME], TRAINED_ELSEWHERE),
    ):
        code, out, error = unmask(where, *words)
        assert (code, out) == (2 if words[0] == "evaluate" else 4, ""), error
        assert said in error
        assert len([line for line in error.splitlines() if "pins it" not in line]) == 1


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:digits", "hf-hub:me/digits@", "hf-hub:/etc/passwd", "hf-hub:a/b/c"]
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ConfigError, match="give hf-hub:OWNER/NAME, or hf-hub:OWNER/NAME@REVISION"):
        open_model(name)


def test_weights_are_for_published_models(tmp_path):
    with pytest.raises(ConfigError, match="on the hub with its weights"):
        open_model(NAME, weights=[tmp_path])


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr("unmask.published.opening.download_model", None)
    with pytest.raises(CheckpointError, match=r"^me/digits: no config\.json there"):
        open_model("me/digits")
