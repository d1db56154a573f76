"""An argument of a wrong type is one clear line of our own, not an error from deep inside."""

import contextlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import unmask
from unmask.decoding.sampling import Sampling
from unmask.decoding.settings import change_sampling, check_settings
from unmask.errors import ConfigError, check_type, check_whole_numbers, replace_flags

EARLIER = Path(__file__).parents[1] / "fixtures/earlier"
CALLS = """
import sys
from PIL import Image
import unmask

def fails(call, words):
    try:
        call()
    except unmask.errors.ConfigError as error:
        assert "\\n" not in str(error), error
        assert words in str(error), error
    else:
        raise AssertionError(words)

image, text = (unmask.load(path, device="cpu") for path in sys.argv[1:])
photo = Image.new("RGB", (8, 8))
fails(lambda: image(steps="8"), "steps='8' is of type str: give a whole number")
fails(lambda: image(steps=2.5), "steps=2.5 is of type float")
fails(lambda: image(temperature="1"), "temperature='1' is of type str: give a number")
fails(lambda: image(order=3), "order=3 is of type int: give a text")
fails(lambda: image(num="3"), "num='3' is of type str")
fails(lambda: image(num=True), "num=True is of type bool")
fails(lambda: image(seed=None or "0"), "seed='0' is of type str")
fails(lambda: image(3.5), "labels 3.5 of type float")
fails(lambda: image.generate(batch="2"), "batch='2'")
fails(lambda: next(image.stream(num=1.0)), "num=1.0 is of type float")
fails(lambda: image.inpaint("photo.png", photo), "the photo is of type str: give a PIL image")
fails(lambda: image.inpaint(photo, None), "the mask is of type NoneType")
fails(lambda: image.inpaint(photo, photo, variants="2"), "variants='2'")
fails(lambda: image.inpaint(photo, photo, context="half"), "context='half' is of type str: give a number")
fails(lambda: text(3), "prompt=3 is of type int: give a text")
fails(lambda: text(num="3"), "num='3'")
fails(lambda: text.generate(length="3"), "length='3'")
fails(lambda: text.infill(["a"]), "text=['a'] is of type list")
fails(lambda: next(text.stream(7)), "prompt=7")
"""

NAMES = """
from pathlib import Path
import unmask
from unmask.data.sources.choice import Folder

def fails(call, words):
    try:
        call()
    except unmask.errors.UnmaskError as error:
        assert "--" not in str(error), error
        assert words in str(error), error
    else:
        raise AssertionError(words)

for name in (None, 3, ""):
    fails(lambda: unmask.load(name), f"{name!r} is no name of a model: give a run")
Path("runs/digits").mkdir(parents=True)
Path("runs/digits/config.json").write_text("{}")
fails(lambda: unmask.load("runs/digts"), "runs/digts: no such folder: did you mean runs/digits?")
fails(lambda: unmask.load("runs/photos"), "runs/photos: no config.json there; give a run")
fails(lambda: unmask.evaluate(None), "None is no name of a model")
fails(lambda: unmask.recipe(3), "3 is no name of a recipe: give one of cifar10")
assert unmask.recipe(Path("digits")) == unmask.recipe("digits")
digits = unmask.recipe("digits")
fails(lambda: unmask.train("digits", "run"), "'digits' is the name of a recipe: give unmask.recipe('digits')")
fails(lambda: unmask.train(None, "run"), "a recipe of type NoneType: give what unmask.recipe(NAME) returns")
fails(lambda: unmask.train(unmask.recipe("folder-tokenizer"), "run"), "the recipe of a tokenizer: use unmask train-tok")
fails(lambda: unmask.train_tokenizer(digits, "run"), "the recipe of an image model: use unmask train")
fails(lambda: unmask.train_tokenizer("digits", "run"), "give unmask.recipe('digits')")
fails(lambda: unmask.train(unmask.recipe("folder"), "run"), "Give `data` DIR")
fails(lambda: unmask.train(unmask.recipe("finetune"), "run"), "Give `init` NAME")
Path("there/checkpoints").mkdir(parents=True)
fails(lambda: unmask.train(digits, "there", resume="never"), "give another `out`, or let `resume` auto continue it")
fails(lambda: unmask.tokenize("run", Folder(path="x"), "there"), "give another `out`")
"""


def test_calls_of_functions(tmp_path):
    """They name arguments and not flags, in a process of its own, where no other check of types runs."""
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ("raise --data.held-out, or (--out) another", "raise `data.held_out`, or (`out`) another"),
        (
            "run unmask fetch X --weights DIR, then add --offline",
            "run unmask fetch X --weights DIR, then add `offline`",
        ),
        ("torchrun --nproc-per-node 2, or drop it", "torchrun --nproc-per-node 2, or drop it"),
        ("/tmp/a--b/--c is there -- and 5 --", "/tmp/a--b/--c is there -- and 5 --"),
    ],
)
def test_flags_become_arguments(flags, arguments):
    assert replace_flags(flags) == arguments


def test_calls_of_pipelines():
    """In a process of its own, where no other check of types runs."""
    models = [str(EARLIER / name) for name in ("export", "text_export")]
    done = subprocess.run([sys.executable, "-c", CALLS, *models], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "settings", [{"steps": "8"}, {"top_k": 1.5}, {"guidance": "2"}, {"preset": 3}, {"steps": True}]
)
def test_a_setting_of_a_wrong_type(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}=.* is of type"):
        change_sampling(Sampling(), (4, 4), settings)


def test_numbers_of_numpy_are_numbers():
    check_settings({"steps": np.int64(3), "temperature": np.float32(0.5), "guidance": 2, "order": None})
    check_whole_numbers({"num": np.int32(4), "seed": None})
    check_type("context", 1, float)


def test_a_training_can_be_quiet(tmp_path, capfd):
    recipe = unmask.recipe("digits")
    recipe = replace(recipe, model=replace(recipe.model, dim=16, depth=1, heads=2))
    for steps, shown in (1, True), (2, False):
        few = replace(recipe.training, steps=steps, batch_size=4, evaluate_every=steps)
        with contextlib.nullcontext() if shown else contextlib.redirect_stdout(None):
            unmask.train(replace(recipe, training=few), tmp_path / str(steps), device="cpu")
        assert bool(capfd.readouterr().out) == shown
