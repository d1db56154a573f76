"""A model that was pushed to the hub comes back from it, here from a server of ours that speaks its protocol."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from unmask.cli import main
from unmask.errors import CheckpointError, ConfigError
from unmask.pipelines.image import Pipeline
from unmask.pipelines.load import load
from unmask.published.opening import open_model

pytest.importorskip("huggingface_hub")
TINY = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--training.batch-size", "8"]
COMMIT = "a" * 40
NAME = "hf-hub:me/digits"
TRAINED_ELSEWHERE = (
    "hf-hub:me/digits is no run, so give --data DIR, a folder of images (it was trained on 1,500 images of 10 classes: "
    "scikit-learn's handwritten digits)"
)


class Hub(BaseHTTPRequestHandler):
    """The repository me/digits: its files are those of `folder`."""

    def __init__(self, folder, asked, *rest):
        self.folder, self.asked = folder, asked
        super().__init__(*rest)

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def log_message(self, *_):
        pass

    def answer(self):
        path = self.path.split("?")[0]
        self.asked.append(path)
        names = sorted(path.name for path in self.folder.iterdir())
        data, more = None, {}
        if path == "/api/models/me/digits/revision/main":
            data = json.dumps(
                {"id": "me/digits", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            ).encode()
        elif path == f"/api/models/me/digits/tree/{COMMIT}":
            rows = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": ""} for n in names]
            data = json.dumps(rows).encode()
        elif path.startswith(f"/me/digits/resolve/{COMMIT}/") and path.rsplit("/")[-1] in names:
            data = (self.folder / path.rsplit("/")[-1]).read_bytes()
            more = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        self.send_response(200 if data is not None else 404)
        for name, value in (more if data is not None else {"X-Error-Code": "RepoNotFound"}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if data is not None and self.command == "GET":
            self.wfile.write(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "run"
    main(["train", "digits", "--out", str(out), *TINY, "--device", "cpu", "--training.steps", "2"])
    return out


@pytest.fixture
def hub(run, tmp_path, monkeypatch):
    """The environment of a child process that finds the hub here, and what it asked for."""
    folder, asked = tmp_path / "pushed", []
    Pipeline.from_pretrained(run, device="cpu", dtype=torch.float32).save_pretrained(folder)
    (folder / "evil.py").write_text("raise SystemExit('run')")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder, asked))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}, asked
    server.shutdown()
    server.server_close()
    thread.join()


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
    there = len(asked)
    again = load(NAME, offline=True, device="cpu", dtype=torch.float32)  # from the cache alone
    assert torch.equal(again.generate(num=4), before.generate(num=4))
    assert len(asked) == there


def test_what_cannot_be_had_is_one_line(hub, tmp_path):
    env, _ = hub
    gone = {**env, "HF_ENDPOINT": "http://127.0.0.1:9"}
    for where, words, said in (
        (env, ["sample", "hf-hub:me/digitz"], "cannot load hf-hub:me/digitz: Repository Not Found"),
        (gone, ["sample", NAME], "cannot load hf-hub:me/digits: "),
        (env, ["sample", NAME, "--offline"], "cannot load hf-hub:me/digits: "),
        (env, ["evaluate", NAME], TRAINED_ELSEWHERE),
    ):
        code, out, error = unmask(where, *words)
        assert (code, out) == (2, ""), error
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
