"""Published models trained on from a folder of pictures, which their own tokenizers turn into codes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from published_toys import NETWORK, PIXELS, PLAIN, SIZE, WHOLE, draw_photos, refused, run, tree

import unmask
from unmask.data.sources.choice import Codes, Folder
from unmask.errors import ConfigError
from unmask.experiments.finetune import adopt_network, find_start
from unmask.recipes.reading import find_recipe, read_config, write_config
from unmask.recipes.schema import Recipe

SHORT = ["--training.steps", 2, "--training.batch-size", 4, "--training.save-every", 1, "--training.evaluate-every", 2]


@pytest.fixture
def animals(tmp_path):
    """A folder of pictures of three classes."""
    return draw_photos(tmp_path / "animals", ["ant", "bee", "cat"])


@pytest.mark.parametrize("recipe", ["finetune", "imagenet256"])
def test_a_folder_of_pictures_is_enough(recipe, ready, animals, tmp_path, monkeypatch, capsys):
    """They are tokenized once, as `unmask tokenize` does it; a continued run finds the codes, and needs no model."""
    out = tmp_path / "run"
    words = ["train", recipe, "--init", "toy-32", "--data", animals, "--num-classes", 3, "--out", out, *SHORT]
    run(*words)
    said = capsys.readouterr().out
    assert f"\ntokenizing 48 images of 3 classes in {animals} with the tokenizer of toy-32 into {out}/codes\n" in said
    assert "new class table of 3 classes, 2 there; the rest loaded" in said
    assert said.count("the network is that of toy-32") == 1
    run("tokenize", "toy-32", "--data", animals, "--out", tmp_path / "codes")
    names = [name for name in tree(tmp_path / "codes") if not name.startswith(".")]
    assert [
        name for name in names if (out / "codes" / name).read_bytes() != (tmp_path / "codes" / name).read_bytes()
    ] == []
    made = read_config(out / "config.json", Recipe)
    assert (made.data, made.init, made.tokenizer) == (Codes(path=str(out / "codes")), "toy-32", PIXELS)
    assert made.model == replace(NETWORK, num_classes=3)
    assert made.classes == ("ant", "bee", "cat")

    before = {name: (out / "codes" / name).stat().st_mtime_ns for name in names if name.endswith(".npy")}
    first = (out / "model.safetensors").read_bytes()
    for gone in (out / "model.safetensors", *(out / "checkpoints").glob("step-00000002")):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "empty"))
    run(*words)
    assert "starting from" not in capsys.readouterr().out
    assert (out / "model.safetensors").read_bytes() == first
    assert before == {name: (out / "codes" / name).stat().st_mtime_ns for name in before}
    run("sample", out, "--labels", "bee", "--num", 1, "--out", tmp_path / "x.png")

    shutil.copy(animals / "ant/0.png", animals / "ant/another.png")
    refusal, code = refused(capsys, *words)
    assert (code, "49 images now, 48 then; class ant has 17 now, 16 then" in refusal) == (3, True), refusal


def test_a_source_of_images_from_python_is_enough(ready, animals, tmp_path):
    """It keeps its own settings but for the size and the channels, which the tokenizer decides."""
    recipe = find_recipe("finetune", Recipe)
    few = replace(recipe.training, steps=2, batch_size=4, save_every=1, evaluate_every=2)
    for number, data in enumerate((Codes(path=str(animals)), Folder(path=str(animals), size=5, channels=1, seed=7))):
        recipe = replace(recipe, init="toy-32", data=data, training=few)
        unmask.train(recipe, tmp_path / str(number), device="cpu")
    plans = [json.loads((tmp_path / f"{number}/codes/plan.json").read_text()) for number in range(2)]
    named, given = (json.loads(plan["source"])["data"] for plan in plans)
    assert (named["seed"], given) == (0, named | {"seed": 7})


def test_the_sets_of_given_images_are_named_as_in_other_trainings(ready, animals, tmp_path, capsys):
    for part, first in (("mine", 0), ("theirs", 4)):
        for folder in animals.iterdir():
            (tmp_path / "sets" / part / folder.name).mkdir(parents=True)
            for path in sorted(folder.glob("*.png"))[first : first + 4]:
                shutil.copy(path, tmp_path / "sets" / part / folder.name)
    sets = ["--data.train", "mine", "--data.test", "theirs"]
    words = ["train", "finetune", "--init", "toy-32", "--out", tmp_path / "run", *SHORT]
    for _ in range(2):
        run(*words, "--data", tmp_path / "sets", *sets)
    data = json.loads((tmp_path / "run/codes/plan.json").read_text())["data"]
    assert [sum(data[part]["counts"]) for part in ("train", "test")] == [12, 12]
    said, code = refused(capsys, *words, "--data", tmp_path / "run/codes", *sets)
    assert (code, "is a token dataset, whose sets are its own: leave out --data.train" in said) == (2, True), said


def interrupted(out):
    """As if the training had been stopped after its first step; the weights that it had left."""
    before = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()
    shutil.rmtree(out / "checkpoints/step-00000002")
    return before


def test_a_training_that_goes_on_needs_the_folder_it_started_from_no_more(ready, animals, tmp_path, capsys):
    """Neither by the same command nor by its config.json; and it is the same experiment, or refused."""
    base = shutil.copytree(ready / "toy-32", tmp_path / "base")
    out = tmp_path / "rr"
    words = ["train", "finetune", "--init", base, "--data", animals, "--out", out, *SHORT]
    run(*words)
    made = read_config(out / "config.json", Recipe)
    shutil.rmtree(base)
    for again in (words, ["train", out / "config.json"]):
        first = interrupted(out)
        run(*again, "--dry-run")
        run(*again)
        assert (out / "model.safetensors").read_bytes() == first
        assert read_config(out / "config.json", Recipe) == made
        said, code = refused(capsys, *again, "--training.optimizer.learning-rate", 0.1)
        assert (code, f"{out} holds another experiment (training.optimizer.learning_rate" in said) == (4, True), said
        said, code = refused(capsys, *again, "--init", "toy-bare")
        assert (code, "holds another experiment (" in said) == (4, True), said


def test_a_training_from_our_own_network_goes_on_without_it(coded, tmp_path, capsys):
    """A network of our own is the recipe's, as it was: another one is another experiment."""
    tiny = ["--model.dim", 16, "--model.depth", 1, "--model.heads", 2]
    start = ["train", "imagenet256", "--data", coded / "two", *SHORT]
    run(*start, *tiny, "--out", tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "kept")
    for recipe, more in (("imagenet256", tiny), ("finetune", [])):
        out = tmp_path / recipe
        words = ["train", recipe, "--init", tmp_path / "base", "--data", coded / "two", "--out", out, *SHORT, *more]
        run(*words)
        shutil.rmtree(tmp_path / "base")
        first = interrupted(out)
        run(*words)
        assert (out / "model.safetensors").read_bytes() == first
        if more:
            said, code = refused(capsys, *words, "--model.depth", 2)
            assert (code, "holds another experiment (model.depth" in said) == (4, True), said
        shutil.copytree(tmp_path / "kept", tmp_path / "base")


def test_half_a_checkpoint_is_none_to_go_on_from(ready, coded, tmp_path, capsys):
    """A save that was killed leaves a temporary folder: the training starts from its model, and not from nothing."""
    out = tmp_path / "run"
    (out / "checkpoints/step-00000001.tmp-abcdefgh").mkdir(parents=True)
    run("train", "finetune", "--init", "toy-32", "--data", coded / "two", "--out", out, *SHORT)
    assert "starting from toy-32" in capsys.readouterr().out


def test_a_dry_run_says_what_it_would_tokenize_and_makes_nothing(toys, animals, tmp_path, capsys):
    """Nothing was fetched, so nothing can be."""
    before = tree(tmp_path)
    run("train", "finetune", "--init", "toy-32", "--data", animals, "--out", tmp_path / "run", "--dry-run")
    said = capsys.readouterr().out
    assert (
        f"would tokenize 48 images of 3 classes in {animals} with the tokenizer of toy-32 into {tmp_path}/run" in said
    )
    size = replace(SIZE, model=replace(NETWORK, num_classes=3))
    assert f"parameters {sum(p.numel() for p in size.build().parameters()):,}\n" in said
    assert "images     42 for training, 6 held out" in said
    assert "per step   1,024 tokens, 20,000 steps" in said
    assert tree(tmp_path) == before


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_pictures_that_do_not_fit_are_one_line_before_anything_is_made(more, toys, animals, tmp_path, capsys):
    before = tree(tmp_path)
    for words, told in (
        ([animals, "--num-classes", 12], f"{animals} has 3 classes, and --num-classes says 12: correct one"),
        ([animals / "ant", "--num-classes", 3], "ant has no classes, and --num-classes says 3"),
        ([animals / "ant"], "a published network needs classes"),
    ):
        start = ["train", "finetune", "--init", "toy-32", "--out", tmp_path / "run"]
        said, code = refused(capsys, *start, "--data", *words, *more)
        assert (code, told in said) == (2, True), said
    assert tree(tmp_path) == before


def test_pictures_do_not_go_into_a_run_of_something_else(ready, animals, coded, tmp_path, capsys):
    out = tmp_path / "run"
    run("train", "finetune", "--init", "toy-32", "--data", coded / "two", "--out", out, *SHORT)
    said, code = refused(capsys, "train", "finetune", "--init", "toy-32", "--data", animals, "--out", out, *SHORT)
    assert (code, "holds another experiment: give another --out" in said) == (4, True), said
    assert not (out / "codes").exists()


def test_a_model_without_a_tokenizer_makes_no_codes_of_pictures(animals, tmp_path, capsys):
    write_config(find_recipe("digits", Recipe), tmp_path)
    said, code = refused(capsys, "train", "imagenet256", "--init", tmp_path, "--data", animals)
    assert (code, "has no tokenizer to make one with" in said) == (2, True), said


def test_weights_at_hand_are_taken_by_every_command(toys, files, animals, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start = ["train", "finetune", "--init", "toy-32", "--data", animals, *SHORT]
    for words in (
        ["tokenize", "toy-32", "--data", animals, "--out", tmp_path / "codes"],
        start,
        ["export", "toy-32", "--out", tmp_path / "mine"],
        ["evaluate-tokenizer", "toy-32", "--data", animals],
    ):
        said, code = refused(capsys, *words, "--offline")
        assert (code, "cannot download toy/generator.pth of toy/weights" in said) == (4, True), said
    for words in (["tokenize", "toy-32", "--data", animals], start):
        run(*words, "--weights", files)
        assert tree(toys / "toy-32") == WHOLE
        shutil.rmtree(toys)
    assert (tmp_path / "runs/finetune/model.safetensors").exists()


def adopt(recipe, **flags):
    """Adopt the network of the model that the recipe names."""
    return adopt_network(recipe, find_start(recipe, Path("no-run")), **flags)


def test_a_recipe_with_a_plain_sampling_samples_as_the_model_does(ready, coded, tmp_path):
    finetune, plain = (replace(find_recipe(name, Recipe), init="toy-32") for name in ("finetune", "imagenet256"))
    assert adopt(finetune)[0].sampling == PLAIN
    assert adopt(finetune)[1][1:] == ["it is sampled as toy-32 is"]
    assert adopt(plain)[0].sampling == plain.sampling
    ours = replace(
        find_recipe("digits", Recipe), sampling=PLAIN
    )  # a network of our own, which a published one gives way to
    write_config(ours, tmp_path)
    made, _ = adopt(replace(finetune, init=str(tmp_path)))
    assert (made.model, made.sampling) == (ours.model, PLAIN)
    assert made.training == find_recipe("finetune", Recipe).training


def test_a_flag_changes_one_thing_of_the_models_sampling_and_the_network_is_not_to_be_changed(ready):
    finetune = replace(find_recipe("finetune", Recipe), init="titok-l32")
    whole, notes = adopt(finetune, written=finetune)
    fewer = replace(finetune, sampling=replace(finetune.sampling, steps=4, top_k=5))
    made, said = adopt(fewer, written=finetune)
    assert made.sampling == replace(whole.sampling, steps=4, top_k=5)
    assert made.sampling.list_temperatures(4)[0] > made.sampling.list_temperatures(4)[-1] == 0
    assert adopt(finetune, written=finetune, given=["steps"])[0].sampling.steps == finetune.sampling.steps == 8
    halton = replace(finetune, init="halton-tiny-256")
    assert adopt(halton, written=halton)[0].sampling.steps == 32
    assert adopt(halton, written=halton, given=["steps"])[0].sampling.steps == 8
    assert notes[1:] == ["it is sampled as titok-l32 is"]
    assert said[1:] == ["it is sampled as titok-l32 is, except for what flags say"]
    for other in (
        replace(finetune, model=replace(finetune.model, depth=2)),
        replace(finetune, tokenizer=replace(finetune.tokenizer, size=(128, 128))),
    ):
        with pytest.raises(ConfigError, match="are those of titok-l32: leave the flags of --model and --tokenizer out"):
            adopt(other, written=finetune)


def test_an_export_of_a_published_model_draws_the_same(ready, tmp_path):
    run("export", "toy-32", "--out", tmp_path / "mine")
    drawn = []
    for name in ("toy-32", tmp_path / "mine"):
        run("sample", name, "--classes", 0, 1, "--out", tmp_path / "x.png")
        drawn.append((tmp_path / "x.png").read_bytes())
    assert drawn[0] == drawn[1]


TWO = """
import sys
import pytest
from pathlib import Path
import published_toys

published_toys.catalogue(pytest.MonkeyPatch(), Path(sys.argv[1]))
published_toys.run(*sys.argv[2:])
"""


def test_two_processes_tokenize_and_link_once(converted, ready, animals, coded, tmp_path):
    """Under torchrun the main process does what is done once, and speaks."""
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        script,
        converted,
    ]

    def both(*words):
        done = subprocess.run(
            [str(word) for word in (*command, *words)], capture_output=True, text=True, check=False, cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = both("train", "finetune", "--init", "toy-32", "--data", animals, "--out", tmp_path / "run", *SHORT)
    assert said.count("tokenizing 48 images of 3 classes") == said.count("the network is that of toy-32") == 1
    assert (tmp_path / "run/model.safetensors").exists()
    run("score", "toy-32", "--data", coded / "two", "--out", tmp_path / "one", "--steps", 2, "--orders", "raster")
    both("score", "toy-32", "--data", coded / "two", "--out", tmp_path / "two", "--steps", 2, "--orders", "raster")
    one, two = ((tmp_path / name / "score.csv").read_text() for name in ("one", "two"))
    assert one == two
    assert (tmp_path / "two/model.safetensors").is_symlink()
