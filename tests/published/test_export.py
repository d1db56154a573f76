"""What leaves the machine tells nothing of it: no path, host or user name in any file of an export or an upload."""

import getpass
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import unmask
from unmask.cli import main
from unmask.published.opening import open_model

SECRET = "customer-acme-secret"
"""The name of a folder that no export may tell."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with a telling name that holds images of two classes, a text, a run of each, and their exports."""
    home = tmp_path_factory.mktemp("home") / SECRET
    for name in ("cat", "ship"):
        (home / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "pictures" / name / f"{i}.png")
    (home / "text.txt").write_text("the cat sat on the mat. the dog ran to the cat.\n" * 120)
    quick = [f"--training.{name}=2" for name in ("steps", "evaluate-every", "save-every")]
    small = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--device", "cpu"]
    main(["train", "folder-pixels", "--data", str(home / "pictures"), "--out", str(home / "run"), *quick, *small,
          "--classifier.steps", "2"])  # fmt: skip
    main(["train", "shakespeare", "--data", str(home / "text.txt"), "--out", str(home / "text-run"), *quick, *small])
    for run in ("run", "text-run"):
        main(["export", str(home / run), "--out", str(home / f"{run}-export")])
    return home


def contents(folder):
    """Every byte of every file in a folder, names too."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return b"\n".join(file.relative_to(folder).as_posix().encode() + b"\n" + file.read_bytes() for file in files)


def telling(places):
    words = [SECRET, str(places), socket.gethostname(), str(places.parent)]
    user = getpass.getuser()
    return [word.encode() for word in [*words, f"/{user}/", f"/home/{user}"]]


@pytest.mark.parametrize("run", ["run", "text-run"])
def test_an_export_tells_nothing_of_the_machine(places, run):
    found = contents(places / f"{run}-export")
    assert not [word for word in telling(places) if word in found]
    assert b'"data"' not in found
    assert b'"training"' not in found
    assert b"local " in found  # it says what kind of data, in words


def test_the_search_would_find_a_path(places):
    assert [word for word in telling(places) if word in contents(places / "run")]


def test_an_upload_tells_nothing_of_the_machine(places, monkeypatch):
    taken = {}
    from unmask.pipelines import base

    monkeypatch.setattr(
        base, "upload_model", lambda folder, repo, **rest: taken.setdefault("bytes", contents(folder)) and "address"
    )
    unmask.load(places / "run", device="cpu").push_to_hub("someone/model")
    assert not [word for word in telling(places) if word in taken["bytes"]]


def test_an_export_loads_and_samples(places):
    for run in ("run", "text-run"):
        assert not open_model(places / f"{run}-export").is_run
    pipe = unmask.load(places / "run-export", device="cpu")
    assert pipe.classes == ("cat", "ship")
    assert len(pipe(["cat", "ship"], steps=2)) == 2
    assert unmask.load(places / "text-run-export", device="cpu")("the", steps=2)[0].startswith("the")


def test_configurations_and_weights_are_read_once(places, tmp_path):
    """`unmask evaluate` and `sweep` of a run, counted in a process of their own."""
    code = """
import sys
from collections import Counter
from unmask.cli import main
from unmask.storage import config, weights
seen = Counter()
real_json, real_weights = config.load_json, weights.load_weights
def count_json(path, *rest, **more):
    seen[path.name] += 1
    return real_json(path, *rest, **more)
def count_weights(model, path):
    seen[path.name] += 1
    return real_weights(model, path)
for module in list(sys.modules.values()):
    if module.__name__ == "unmask.storage.manifest":
        continue  # it hashes what is there, before anything is read
    for name, new in (("load_json", count_json), ("load_weights", count_weights)):
        if getattr(module, name, None) in (real_json, real_weights):
            setattr(module, name, new)
main(sys.argv[1:])
print("SEEN", seen["config.json"], seen["model.safetensors"])
"""
    run = str(places / "run")
    for arguments in (
        ["evaluate", run, "--samples", "8", "--steps", "2", "--device", "cpu"],
        ["sweep", run, "--samples", "4", "--tune", "0", "--steps", "2", "--orders", "halton", "--temperatures", "1",
         "--device", "cpu"],
        ["score", run, "--rows", "2", "--passes", "1", "--steps", "2", "--orders", "halton", "--device", "cpu"],
    ):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "SEEN 1 1", arguments[0]


def test_inpainting_decodes_once(places, monkeypatch):
    pipe = unmask.load(places / "run", device="cpu")
    calls = []
    real = type(pipe.tokenizer).decode
    monkeypatch.setattr(type(pipe.tokenizer), "decode", lambda self, tokens: calls.append(1) or real(self, tokens))
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 9, 9))
    pipe.inpaint(Image.new("RGB", (16, 16)), mask, steps=2)
    assert len(calls) == 1
