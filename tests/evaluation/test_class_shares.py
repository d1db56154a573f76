"""Samples are measured in the class shares of the pictures that they are compared with, and a report says which."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import unmask
from unmask.cli import main
from unmask.data.sources.choice import Arrays, Digits, Split
from unmask.errors import ConfigError
from unmask.evaluation import gallery
from unmask.evaluation.class_shares import (
    ClassShares,
    choose_baseline,
    count_earlier,
    describe_shares,
    describe_unmeasured,
)
from unmask.evaluation.images import measure_run
from unmask.evaluation.runs import open_run
from unmask.pipelines.image import Pipeline
from unmask.recipes.reading import load_recipe, read_config
from unmask.recipes.schema import Recipe
from unmask.runtime.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
TINY = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--training.batch-size", "8"]
TINY += ["--classifier.steps", "5", "--device", "cpu", "--training.steps", "2"]


def real_pictures(labels, seed):
    """Grey squares with noise: dark for class 0, bright for class 1."""
    noise = torch.rand(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (labels[:, None, None, None] * 1.2 - 0.8 + 0.2 * noise).float()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A run on 95 pictures of one class to 5 of the other."""
    folder = tmp_path_factory.mktemp("uneven")
    labels = (torch.arange(2000) % 20 == 7).long()
    pixels = ((real_pictures(labels, 1) + 1) * 127.5).round().to(torch.uint8)[:, 0].numpy()
    np.savez(folder / "two.npz", images=pixels, labels=labels.numpy())
    recipe = load_recipe("digits")
    training = replace(recipe.training, steps=2, batch_size=8)
    model = replace(recipe.model, dim=16, depth=1, heads=2)
    classifier = replace(recipe.classifier, steps=30)
    data = Arrays(path=str(folder / "two.npz"), held_out=0.25)
    recipe = replace(recipe, data=data, training=training, model=model, classifier=classifier)
    return unmask.train(recipe, folder / "run", device="cpu")


@pytest.fixture
def perfect(monkeypatch):
    """A sampler that gives real pictures of the classes asked for; without labels, all classes in turn."""

    def sample_range(self, first, stop, labels=None, *, seed=0, sampling=None):
        asked = self.cycle_labels(stop)[first:] if labels is None else labels
        return real_pictures(asked, 1000 + first)

    monkeypatch.setattr(Pipeline, "sample_range", sample_range)
    monkeypatch.setattr("unmask.evaluation.images.draw_pictures", lambda *_: None)


def test_a_perfect_sampler_reaches_the_real_data_baseline(uneven, perfect):
    """With classes in turn, half of them bright, it scored 1,000 times the baseline."""
    run = open_run(uneven, ALONE)
    report = measure_run(run, num=400, seed=0, world=ALONE)
    assert report["num_floor"] == 400
    assert report["labels"] == "shares"
    assert report["frechet"] < 3 * report["frechet_floor"]
    assert report["precision"] > report["precision_floor"] - 0.1
    balanced = measure_run(run, num=400, seed=0, world=ALONE, labels="balanced")
    assert balanced["labels"] == "balanced"
    assert balanced["frechet"] > 30 * report["frechet_floor"]
    assert "class 1 is 50.0% of the samples, " in balanced["class_shares"]
    assert balanced["frechet"] < 3 * balanced["frechet_floor"]  # its training pictures have the samples' shares
    assert balanced["num_floor"] < 200  # twice the bright ones, of which there are few


def test_the_command_line_has_both(uneven, perfect, capsys):
    for rule, samples in (("shares", 40), ("balanced", 40)):
        main(["evaluate", str(uneven), "--samples", str(samples), "--labels", rule, "--device", "cpu", "--overwrite"])
        assert json.loads((uneven / "report.json").read_text())["labels"] == rule
    sweep = ["sweep", str(uneven), "--samples", "40", "--tune", "0", "--orders", "random", "--steps", "1", "--device"]
    main([*sweep, "cpu", "--temperatures", "1"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*sweep, "cpu", "--temperatures", "1", "--labels", "balanced"])
    assert "sweep.csv is of other labels, shares there and balanced here" in capsys.readouterr().err
    main([*sweep, "cpu", "--temperatures", "1", "--labels", "balanced", "--out", str(uneven / "balanced")])
    assert "class 1 is 50.0% of the samples" in (uneven / "balanced/sweep.md").read_text()


def test_pictures_of_other_classes_are_refused(uneven, perfect):
    run = open_run(uneven, ALONE)
    run.pipeline.classes = ("0", "disc")
    with pytest.raises(ConfigError, match="class 1 is disc for the model and 1 in these images"):
        measure_run(run, num=10, seed=0, world=ALONE)


# -- classes without pictures ------------------------------------------------------------------------------------------


@pytest.fixture
def gaps(monkeypatch):
    """The digits without any 3, and without a held-out 5."""
    load = Digits.load

    def changed(self, progress=None):
        split = load(self, progress)
        parts = []
        for pictures, absent in ((split.train, (3,)), (split.test, (3, 5))):
            keep = torch.tensor([label not in absent for label in pictures.labels.tolist()])
            parts.append(pictures.take(keep.nonzero()[:, 0]))
        return Split(train=parts[0], test=parts[1])

    monkeypatch.setattr(Digits, "load", changed)


def test_a_class_without_pictures_is_neither_sampled_nor_measured_nor_shown(gaps, tmp_path, monkeypatch):
    out, asked = tmp_path / "run", []
    states = Pipeline.stream_states

    def watched(self, tokens, labels, **rest):
        asked.append(labels.tolist())
        return states(self, tokens, labels, **rest)

    monkeypatch.setattr(Pipeline, "stream_states", watched)
    main(["train", "digits", "--out", str(out), *TINY])
    main(["sample", str(out), "--out", str(tmp_path / "a.png"), "--num", "20"])
    assert read_config(out / "config.json", Recipe).empty_classes == (3,)
    pipeline = Pipeline.from_pretrained(out, device="cpu")
    assert pipeline.cycle_labels(10).tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 0]
    with pytest.raises(ConfigError, match=r"class 3 \(id 3\) had no training picture"):
        pipeline.generate("3")
    drawn = {label for labels in asked for label in labels}
    assert drawn == set(range(10)) - {3}
    asked.clear()
    monkeypatch.setattr(gallery, "draw_inpainting", lambda *_: gallery.Image.new("L", (8, 8)))
    report = unmask.evaluate(out, samples=30, device="cpu")
    assert report["left_out"]["classes"].startswith("3, 5: no held-out or no training image")
    assert 3 not in {label for labels in asked for label in labels}
    measured = next(labels for labels in asked if len(labels) == 30)
    assert 5 not in measured
    export = tmp_path / "export"
    main(["export", str(out), "--out", str(export)])
    assert 3 not in Pipeline.from_pretrained(export, device="cpu").cycle_labels(100).tolist()


# -- the pictures of the baseline --------------------------------------------------------------------------------------


def counted(held_out, training, weights=None):
    counts = torch.tensor(training)
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(len(counts)).repeat_interleave(counts)[torch.randperm(int(counts.sum()), generator=generator)]
    held = torch.tensor(held_out)
    names = tuple(f"c{i}" for i in range(len(counts)))
    return ClassShares(
        names=names, held_out=held, training=counts, rows=rows, weights=held if weights is None else weights
    )


def plain(num_train, num):
    return torch.randperm(num_train, generator=torch.Generator().manual_seed(0))[:num]


def test_the_baseline_of_equal_shares_is_any_pictures():
    """As before: the figures of balanced data sets stay what they were, to the bit."""
    for shares in (None, counted([10, 10], [50, 50]), counted([3, 1], [75, 25])):
        assert torch.equal(choose_baseline(shares, 100, 40), plain(100, 40))
        assert torch.equal(choose_baseline(shares, 100, 400), plain(100, 100))


@pytest.mark.parametrize(
    ("held_out", "training", "num", "expected"),
    [
        ([50, 50], [900, 100], 100, [50, 50]),
        ([50, 50], [900, 100], 500, [101, 100]),  # as many as there are
        ([90, 10], [100, 100], 50, [45, 5]),
        ([50, 0], [90, 10], 20, [20, 0]),
        ([50, 50, 0], [90, 0, 10], 20, [20, 0, 0]),
    ],
)
def test_the_baseline_has_the_shares_of_the_samples(held_out, training, num, expected):
    shares = counted(held_out, training)
    index = choose_baseline(shares, sum(training), num)
    assert shares.rows[index].bincount(minlength=len(held_out)).tolist() == expected
    assert len(set(index.tolist())) == len(index)


def test_no_class_in_common_leaves_any_pictures():
    assert torch.equal(choose_baseline(counted([5, 0], [0, 20]), 20, 7), plain(20, 7))
    assert torch.equal(choose_baseline(counted([5, 0], [1, 20]), 21, 7), plain(21, 7))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_rank_within_class(labels):
    expected = [labels[:i].count(label) for i, label in enumerate(labels)]
    assert count_earlier(torch.tensor(labels)).tolist() == expected


def test_shares_in_words():
    shares = counted([95, 5], [500, 500])
    said = describe_shares(shares, torch.tensor([0] * 19 + [1]))
    assert said == (
        "class c0 is 95.0% of the samples, 95.0% of the held-out images and 50.0% of the training images; "
        "class c1 is 5.0% of the samples, 5.0% of the held-out images and 50.0% of the training images"
    )
    assert describe_shares(counted([95, 5], [190, 10]), torch.tensor([0] * 19 + [1])) is None
    many = counted([10] * 8, [10] * 4 + [20] * 4)
    assert describe_shares(many, torch.arange(8)).endswith("; 3 more classes differ")
    assert describe_unmeasured([f"c{i}" for i in range(9)]).startswith("c0, c1, c2, c3, c4 and 4 more: no held-out")
