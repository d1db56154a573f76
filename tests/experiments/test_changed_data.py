"""What lies between two commands: the data moved, was renamed, grew, or was replaced. Never without a word."""

import errno
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.cli import main
from unmask.data.fingerprint import DataPolicy
from unmask.data.sources.choice import Folder
from unmask.errors import CheckpointError, DataError, UnmaskError
from unmask.evaluation.measuring import evaluate
from unmask.evaluation.tokenizer import measure_tokenizer_run
from unmask.experiments.coded import open_coded
from unmask.experiments.training import check_run, tokenize, train, train_tokenizer
from unmask.metrics.features import ClassifierConfig
from unmask.recipes.reading import find_recipe
from unmask.recipes.schema import TokenizerRecipe
from unmask.runtime.distributed import World

CLASSIFIER = ClassifierConfig(channels=3, num_classes=2, steps=2, width=4, batch_size=8)


def write_pictures(root, num=60, start=0):
    """Discs and squares in turn, no two alike."""
    for i in range(start, start + num):
        folder = root / ("disc", "square")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i:03d}.png")
    return root


def rename_files(root):
    """Give every file another name, and the listing another order."""
    for path in sorted(root.rglob("*.png")):
        path.rename(path.with_name(f"{path.stem[::-1]}-b.png"))


def shorten(training):
    return replace(training, steps=4, batch_size=4, evaluate_every=4, save_every=2, log_every=2)


def pixel_recipe(root):
    recipe = unmask.recipe("folder-pixels")
    assert recipe.data.arrange == "content"
    return replace(
        recipe,
        data=Folder(path=str(root), size=8),
        tokenizer=replace(recipe.tokenizer, size=(8, 8), channels=3, levels=2),
        model=replace(recipe.model, dim=16, depth=1, heads=2),
        training=shorten(recipe.training),
        classifier=CLASSIFIER,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on sixty pictures; tests copy it."""
    root = tmp_path_factory.mktemp("finished")
    write_pictures(root / "pictures")
    train(pixel_recipe(root / "pictures"), root / "run")
    return root


@pytest.fixture
def place(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "place")
    return tmp_path / "place"


def test_a_run_that_a_full_disk_stopped_at_its_first_files_begins_again(tmp_path, monkeypatch):
    recipe = pixel_recipe(write_pictures(tmp_path / "pictures", 20))

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    for number, writer in enumerate(("write_config", "record_data")):
        run = tmp_path / f"run-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(f"unmask.experiments.base.{writer}", fail)
            with pytest.raises(OSError, match="No space"):
                train(recipe, run)
        check_run(run, recipe)  # what is there is known as a part of the run


def unfinish(run):
    """Leave a run as it was after step 2."""
    shutil.rmtree(run / "checkpoints/step-00000004")
    (run / "model.safetensors").unlink()


def test_the_same_data_elsewhere_under_other_names_resumes_bit_for_bit(finished, place):
    unfinish(place / "run")
    (place / "pictures").rename(place / "moved")
    rename_files(place / "moved")
    train(pixel_recipe(place / "moved"), place / "run")
    for file in ("model.safetensors", "checkpoints/step-00000004/state.safetensors"):
        assert (place / "run" / file).read_bytes() == (finished / "run" / file).read_bytes()
    assert str(place / "moved") in (place / "run/config.json").read_text()


def test_a_renamed_class_stops_a_resume(place):
    (place / "pictures/disc").rename(place / "pictures/zdisc")
    before = (place / "run/config.json").read_bytes()
    with pytest.raises(DataError, match=r"class zdisc is new; class square was number 1 and would be 0, .*--init"):
        train(pixel_recipe(place / "pictures"), place / "run", accept_data=True)
    assert (place / "run/config.json").read_bytes() == before


def test_a_renamed_class_that_keeps_its_number_may_be_accepted(place):
    unfinish(place / "run")
    (place / "pictures/disc").rename(place / "pictures/dish")
    with pytest.raises(DataError, match=r"class disc is gone; class dish is new; .*, or --accept-data to continue"):
        train(pixel_recipe(place / "pictures"), place / "run")
    train(pixel_recipe(place / "pictures"), place / "run", accept_data=True)
    assert find_recipe(str(place / "run/config.json")).classes == ("dish", "square")


def test_nothing_is_accepted_by_a_run_that_has_nothing_left_to_train(place):
    write_pictures(place / "pictures", 3, start=100)
    before = (place / "run/data.json").read_bytes()
    with pytest.raises(DataError, match="all 4 steps are done, so nothing would be trained on it"):
        train(pixel_recipe(place / "pictures"), place / "run", accept_data=True)
    assert (place / "run/data.json").read_bytes() == before


def test_an_evaluation_says_what_to_do_about_data_that_moved(place):
    recipe = pixel_recipe(place / "pictures")
    train(recipe, place / "run")
    (place / "pictures").rename(place / "moved")
    with pytest.raises(DataError, match="is not there any more: if it moved, run the same unmask train command"):
        evaluate(place / "run", samples=8, steps=1)


@pytest.mark.parametrize("what", ["pictures", "tokens", "run"])
def test_nothing_is_written_among_pictures_tokens_or_a_run(copied, what):
    before = sorted(path.name for path in (copied / what).iterdir() if path.name != ".lock")
    source = Folder(path=str(copied / "pictures"), size=8)
    pipe = unmask.load(copied / "run", device="cpu")
    work = {
        "train": lambda: train(replace(pixel_recipe(copied / "pictures")), copied / what),
        "tokenize": lambda: tokenize(copied / "tokenizer", source, copied / what, shard_size=7),
        "export": lambda: pipe.save_pretrained(copied / what),
    }
    for name, write in work.items():
        with pytest.raises(UnmaskError, match=r"holds (pictures|another|other)|is a (token|run)|the model itself"):
            write()
        assert sorted(path.name for path in (copied / what).iterdir() if path.name != ".lock") == before, name


@pytest.mark.parametrize("accept", [False, True])
def test_a_class_more_is_said_and_never_accepted(place, accept):
    write_pictures(place / "more", 6, start=700)
    (place / "more/disc").rename(place / "pictures/ball")
    with pytest.raises(DataError, match="63 images now, 60 then; class ball is new; the number of classes is 3 now"):
        train(pixel_recipe(place / "pictures"), place / "run", accept_data=accept)


def test_changed_bytes_inside_a_picture_are_tokenized_again(copied):
    for i, path in enumerate(sorted((copied / "pictures").rglob("*.png"))):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path.with_suffix(".bmp"))
        path.unlink()
    source = Folder(path=str(copied / "pictures"), size=8)
    tokenize(copied / "tokenizer", source, copied / "large", shard_size=16)
    before = read_shards(copied / "large")
    for path in (copied / "pictures").rglob("*.bmp"):
        data = bytearray(path.read_bytes())
        data[1100:1600] = bytes(500)  # between two samples of the key
        path.write_bytes(data)
    with pytest.raises(DataError, match="bytes inside some images changed"):
        tokenize(copied / "tokenizer", source, copied / "large", shard_size=16)
    tokenize(copied / "tokenizer", source, copied / "large", shard_size=16, accept_data=True)
    tokenize(copied / "tokenizer", source, copied / "fresh", shard_size=16)
    assert read_shards(copied / "large") == read_shards(copied / "fresh") != before


def test_added_pictures_stop_a_resume_unless_they_are_accepted(place, capsys):
    unfinish(place / "run")
    write_pictures(place / "pictures", 3, start=100)
    words = ["train", str(place / "run/config.json"), "--data", str(place / "pictures")]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == DataError.exit_code
    assert "63 images now, 60 then" in capsys.readouterr().err
    main([*words, "--accept-data"])
    assert "this is accepted: 63 images now, 60 then" in capsys.readouterr().out
    record = json.loads((place / "run/data.json").read_text())
    assert sum(record["data"]["train"]["counts"]) + sum(record["data"]["test"]["counts"]) == 63
    assert len(record["before"]) == 1
    main(words)  # the accepted data is now the run's


def test_another_setting_is_still_another_experiment(place):
    recipe = pixel_recipe(place / "pictures")
    with pytest.raises(CheckpointError, match=r"data.held_out 0.1 there, 0.2 here"):
        train(replace(recipe, data=replace(recipe.data, held_out=0.2)), place / "run")


def test_evaluate_notices_a_renamed_class(place):
    (place / "pictures").rename(place / "moved")
    train(pixel_recipe(place / "moved"), place / "run")  # the run learns where its data lies now
    evaluate(place / "run", samples=8, steps=1)
    (place / "moved/disc").rename(place / "moved/zdisc")
    with pytest.raises(DataError, match="class disc is gone; class zdisc is new"):
        evaluate(place / "run", samples=8, steps=1)


def test_a_tokenizer_notices_pictures_that_are_gone(tmp_path):
    root = write_pictures(tmp_path / "pictures")
    recipe = tokenizer_recipe(root)
    train_tokenizer(recipe, tmp_path / "run")
    for path in sorted((root / "disc").iterdir())[:5]:
        path.unlink()
    with pytest.raises(DataError, match="55 images now, 60 then"):
        train_tokenizer(recipe, tmp_path / "run")


def tokenizer_recipe(root):
    recipe = find_recipe("folder-tokenizer")
    return replace(
        recipe,
        data=Folder(path=str(root), size=8),
        tokenizer=replace(recipe.tokenizer, size=(8, 8), width=8, multipliers=(1, 2), groups=2, z_channels=8),
        loss=replace(recipe.loss, discriminator=replace(recipe.loss.discriminator, width=4, layers=1)),
        perceptual=None,
        classifier=CLASSIFIER,
        training=shorten(recipe.training),
    )


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """A tokenizer, a token dataset of sixty pictures, and a run on it; tests copy them."""
    root = tmp_path_factory.mktemp("tokenized")
    pictures = write_pictures(root / "pictures")
    train_tokenizer(tokenizer_recipe(pictures), root / "tokenizer")
    tokenize(root / "tokenizer", Folder(path=str(pictures), size=8), root / "tokens", shard_size=16)
    train(token_recipe(root / "tokens"), root / "run")
    return root


def token_recipe(tokens):
    recipe = unmask.recipe("folder")
    return replace(
        recipe,
        data=replace(recipe.data, path=str(tokens)),
        model=replace(recipe.model, dim=16, depth=1, heads=2),
        training=shorten(recipe.training),
        classifier=CLASSIFIER,
    )


@pytest.fixture
def copied(tokenized, tmp_path):
    shutil.copytree(tokenized, tmp_path / "place")
    return tmp_path / "place"


def read_shards(tokens):
    return {path.name: path.read_bytes() for path in sorted(tokens.glob("*.npy"))}


def test_renamed_pictures_are_recognised_and_tokenized_by_nobody(copied, monkeypatch):
    before = read_shards(copied / "tokens")
    (copied / "pictures").rename(copied / "moved")
    rename_files(copied / "moved")
    monkeypatch.setattr("unmask.data.shards.tokenizing._tokenize_shard", None)  # to call it would fail
    tokenize(copied / "tokenizer", Folder(path=str(copied / "moved"), size=8), copied / "tokens", shard_size=16)
    assert read_shards(copied / "tokens") == before
    assert open_coded(copied / "tokens").source.path == str(copied / "moved")
    evaluate_tokens(copied)  # and the pictures held out are those that were


def evaluate_tokens(root):
    recipe = find_recipe(str(root / "run/config.json"))
    train(replace(recipe, data=replace(recipe.data, path=str(root / "tokens"))), root / "run")
    return evaluate(root / "run", samples=8, steps=1)


def forget_whole(path):
    """Take the digests of all bytes out of a record, as of a set that was read on demand."""
    record = json.loads(path.read_text())
    for part in ("train", "test"):
        assert record["data"][part].pop("whole")
    path.write_text(json.dumps(record))


def test_each_command_says_that_it_had_nothing_to_verify_with(copied, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.evaluation.tokenizer.measure_tokenizer", lambda *given, **more: {})
    pixels, first = shutil.copytree(finished, tmp_path / "pixels"), "no digest of all bytes was recorded before"
    source = Folder(path=str(copied / "pictures"), size=8)
    recipe = find_recipe(str(copied / "tokenizer/config.json"), TokenizerRecipe)
    pixel = pixel_recipe(pixels / "pictures")
    world = World(0, 1, torch.device("cpu"))
    for record in (copied / "tokens/plan.json", copied / "tokenizer/data.json", pixels / "run" / "data.json"):
        forget_whole(record)

    def listen(command, *arguments, **options):
        said = []
        command(*arguments, **options, say=said.append)
        return [line for line in said if first in line]

    measure = {"samples": 8, "steps": 1, "verify_data": True}
    verify = DataPolicy(verify=True)
    (line,) = listen(evaluate, pixels / "run", **measure)
    assert "train or tokenize records it" in line
    (line,) = listen(measure_tokenizer_run, copied / "tokenizer", world=world, policy=verify)
    assert "train or tokenize records it" in line
    train(token_recipe(copied / "tokens"), copied / "run")  # which remembers the place
    (line,) = listen(evaluate, copied / "run", **measure)
    assert "train or tokenize records it" in line
    (line,) = listen(tokenize, copied / "tokenizer", source, copied / "tokens", shard_size=16, verify_data=True)
    assert "it is recorded now" in line
    assert listen(tokenize, copied / "tokenizer", source, copied / "tokens", shard_size=16, verify_data=True) == []
    assert listen(evaluate, copied / "run", **measure) == []
    train(pixel, pixels / "run", verify_data=True)
    train_tokenizer(recipe, copied / "tokenizer", verify_data=True)
    assert listen(evaluate, pixels / "run", **measure) == []
    assert listen(measure_tokenizer_run, copied / "tokenizer", world=world, policy=verify) == []


def test_replaced_pictures_are_noticed_and_tokenized_again_when_accepted(copied):
    before = read_shards(copied / "tokens")
    for path in (copied / "pictures").rglob("*.png"):
        Image.new("RGB", (8, 8), (255, 255, int(path.stem))).save(path)
    source = Folder(path=str(copied / "pictures"), size=8)
    with pytest.raises(DataError, match=r"images changed since .*tokens was made: .*--accept-data"):
        tokenize(copied / "tokenizer", source, copied / "tokens", shard_size=16)
    assert read_shards(copied / "tokens") == before
    tokenize(copied / "tokenizer", source, copied / "tokens", shard_size=16, accept_data=True)
    fresh = tokenize(copied / "tokenizer", source, copied / "fresh", shard_size=16)
    names = {shard.file for shard in (*fresh.train, *fresh.test)}
    after = read_shards(copied / "tokens")
    assert {name: after[name] for name in names} == {name: read_shards(copied / "fresh")[name] for name in names}
    with pytest.raises(DataError, match=r"data of .*run changed"):  # which was trained on the tokens of before
        train(token_recipe(copied / "tokens"), copied / "run")


def test_one_new_picture_leaves_the_shards_of_other_pictures(copied):
    write_pictures(copied / "pictures", 1, start=500)
    source = Folder(path=str(copied / "pictures"), size=8)
    kept = {path.name: path.stat().st_mtime_ns for path in (copied / "tokens").glob("*.tokens.npy")}
    tokenize(copied / "tokenizer", source, copied / "tokens", shard_size=16, accept_data=True)
    now = {path.name: path.stat().st_mtime_ns for path in (copied / "tokens").glob("*.tokens.npy")}
    assert any(now[name] == kept[name] for name in kept)
    assert any(now[name] != kept[name] for name in kept)


def test_tokens_whose_pictures_changed_are_not_measured(copied):
    pictures = copied / "pictures"
    moved = copied / "elsewhere"
    pictures.rename(moved)
    tokenize(copied / "tokenizer", Folder(path=str(moved), size=8), copied / "tokens", shard_size=16)
    (moved / "disc").rename(moved / "zdisc")
    with pytest.raises(DataError, match="changed since they were tokenized: class disc is gone; class zdisc is new"):
        evaluate_tokens(copied)


@pytest.mark.parametrize("kind", ["flip", "zero", "swap", "label"])
def test_damaged_shards_are_named_before_training(copied, kind):
    first, second = sorted((copied / "tokens").glob("train-*.tokens.npy"))[:2]
    labels = copied / "tokens/train-00000.labels.npy"
    if kind == "swap":
        data = first.read_bytes(), second.read_bytes()
        first.write_bytes(data[1])
        second.write_bytes(data[0])
    else:
        path = labels if kind == "label" else first
        data = bytearray(path.read_bytes())
        if kind == "label":
            data[-4] ^= 1  # another class, that exists
        elif kind == "flip":
            data[-2] ^= 1  # another token of the vocabulary
        else:
            data[-64:] = bytes(64)
        path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00000.tokens.npy: its tokens or labels are not those written; .*again"):
        train(token_recipe(copied / "tokens"), copied / "run")
