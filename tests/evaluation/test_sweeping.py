"""A sweep: what it chooses by, what it writes, that a kill costs one row at most, and that mistakes cost no minutes."""

import csv
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from unmask.cli import main
from unmask.data.sources.choice import Digits
from unmask.decoding.sampling import Sampling, ValeoaiV1
from unmask.decoding.settings import change_sampling
from unmask.errors import ConfigError
from unmask.evaluation import sweeping
from unmask.evaluation.class_shares import ClassShares
from unmask.evaluation.images import measure_run
from unmask.evaluation.plans import SweepChoices, plan_sweep
from unmask.evaluation.runs import open_run
from unmask.evaluation.sweep_table import COLUMNS, KEY, ORIGIN, SWEEP_METRICS, SweepTable
from unmask.evaluation.sweeping import SweepPlan, SweepSetting
from unmask.method.ramps import Interval, LinearRamp
from unmask.method.sampling.priorities import Confidence, Halton, Raster
from unmask.method.schedules import Arccos, Power
from unmask.metrics.features import ClassifierConfig
from unmask.metrics.in_domain import prepare_classifier_features
from unmask.pipelines.image import Pipeline
from unmask.runtime.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
TINY = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--training.batch-size", "8"]
TINY += ["--classifier.steps", "5", "--device", "cpu", "--training.steps", "2"]
SMALL = ["--samples", "40", "--tune", "20", "--orders", "confidence", "halton", "--steps", "1", "3"]
SMALL += ["--temperatures", "0.5", "1.0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "run"
    main(["train", "digits", "--out", str(out), *TINY])
    return out


@pytest.fixture(scope="module")
def swept(run):
    """The folder of a finished sweep."""
    main(["sweep", str(run), *SMALL])
    return run / "sweep"


def rows_of(folder):
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys, *arguments):
    """(exit code, message) of a command that must say one line on stderr, after those on the data it took."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    *before, error = capsys.readouterr().err.splitlines(keepends=True)
    assert error.startswith("unmask: "), error
    assert [line for line in before if " held out" not in line and not line.startswith("note: ")] == []
    return stop.value.code, error


# -- what is measured --------------------------------------------------------------------------------------------------


def test_a_row_has_the_figures_of_a_report_with_the_same_settings(run, swept, tmp_path):
    (row,) = [r for r in rows_of(swept) if (r["kind"], r["order"], r["steps"]) == ("setting", "halton", "3")]
    pipeline = Pipeline.from_pretrained(run)
    sampling = replace(
        pipeline.sampling, steps=3, priority=Halton(pipeline.model.grid), temperature=float(row["temperature"])
    )
    copy = shutil.copytree(run, tmp_path / "run")
    report = measure_run(open_run(copy, ALONE), num=40, seed=0, world=ALONE, sampling=sampling)
    names = ["frechet", "inception_score", "precision", "recall", "density", "coverage"]
    for name in [*names, "class_accuracy"]:
        assert float(row[name]) == report[name], name
    floor, limit = rows_of(swept)[:2]
    assert (floor["kind"], limit["kind"]) == ("floor", "limit")
    assert float(floor["frechet"]) == report["frechet_floor"]
    assert float(limit["frechet"]) == report["frechet_limit"]
    assert row["kid"] == ""  # too few samples


def shares_of(held_out, training):
    counts = torch.tensor(training)
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    held = torch.tensor(held_out)
    return ClassShares(names=("a", "b"), held_out=held, training=counts, rows=rows, weights=held)


def test_the_temperature_is_chosen_by_training_features_of_another_seed(monkeypatch):
    torch.manual_seed(0)
    train, test = torch.randn(50, 3).double(), torch.randn(50, 3).double() + 9
    asked = []

    def banks(pipeline, num, measures, world, *, seed, sampling, labels, progress):
        asked.append((num, seed, sampling.temperature))
        assert labels.bincount().tolist() == [10, 10]  # in the shares of the training images
        return [train + 0.1 if sampling.temperature == 0.5 else test]

    class Thing:
        dim, pipeline, world, progress = 3, None, ALONE, None

    bench = Thing()
    bench.features = bench.real = bench
    bench.rule, bench.shares = "shares", shares_of(held_out=[40, 10], training=[25, 25])
    bench.train, bench.test = train, test
    monkeypatch.setattr(sweeping, "sample_banks", banks)
    # The check of types knows no stand-ins, so ask the functions underneath.
    choose = getattr(sweeping.choose_temperature, "__wrapped__", sweeping.choose_temperature)
    measure = getattr(sweeping.measure_to_training, "__wrapped__", sweeping.measure_to_training)
    monkeypatch.setattr(sweeping, "measure_to_training", measure)
    assert choose(bench, Sampling(), (1.0, 0.5, 0.9), 20, 8) == 0.5
    assert asked == [(20, 8, 1.0), (20, 8, 0.5), (20, 8, 0.9)]
    assert choose(bench, Sampling(), (1.0,), 20, 8) == 1.0
    assert len(asked) == 3  # one temperature is no choice


def test_choosing_and_measuring_have_seeds_of_their_own(run, tmp_path, monkeypatch):
    asked = []
    real = sweeping.sample_banks

    def watched(pipeline, num, measures, world, *, seed, sampling, labels, progress):
        asked.append((num, seed, sampling.temperature))
        return real(pipeline, num, measures, world, seed=seed, sampling=sampling, labels=labels, progress=progress)

    monkeypatch.setattr(sweeping, "sample_banks", watched)
    main(["sweep", str(run), *SMALL[:4], "--orders", "random", "--steps", "2", "--temperatures", "0.5", "1",
          "--seed", "5", "--out", str(tmp_path / "out")])  # fmt: skip
    best = float(rows_of(tmp_path / "out")[2]["temperature"])
    assert asked == [(20, 6, 0.5), (20, 6, 1.0), (40, 5, best), (40, 7, best)]


def test_the_best_is_measured_again_with_a_fresh_seed(run, swept, tmp_path):
    *_, again = rows_of(swept)
    settings = [row for row in rows_of(swept) if row["kind"] == "setting"]
    best = min(settings, key=lambda row: float(row["frechet"]))
    same = ["order", "schedule", "steps", "noise", "scale", "ramp", "temperature", "samples"]
    assert [again[name] for name in same] == [best[name] for name in same]
    assert (again["kind"], again["seed"], again["tune"]) == ("again", "2", "0")
    assert again["frechet"] != best["frechet"]
    alone = ["--orders", best["order"], "--steps", best["steps"], "--temperatures", best["temperature"]]
    main(["sweep", str(run), *SMALL[:4], *alone, "--seed", "2", "--out", str(tmp_path / "alone")])
    (fresh,) = [row for row in rows_of(tmp_path / "alone") if row["kind"] == "setting"]
    assert [again[name] for name in SWEEP_METRICS] == [fresh[name] for name in SWEEP_METRICS]


def test_reveal_times_of_a_known_order(run):
    pipeline = Pipeline.from_pretrained(run)  # of 4 x 4 tokens
    sampling = Sampling(steps=16, schedule=Power(1.0), priority=Raster())
    times = sweeping.measure_reveal_times(pipeline, sampling, 0, ALONE, num=3)
    t = torch.arange(1, 17).double().reshape(4, 4) / 16
    inside = t[1:3, 1:3].mean()
    assert times["inside"] == pytest.approx(float(inside))
    assert times["border"] == pytest.approx(float((t.sum() - 4 * inside) / 12))


# -- the product -------------------------------------------------------------------------------------------------------


def test_the_product_of_all_flags(run):
    choices = SweepChoices(
        orders=("confidence", "halton"),
        noises=(0.0, 3.0),
        schedules=("linear", "valeoai-v1-arccos"),
        steps=(2, 5),
        scales=(1.0, 4.0),
        ramp="linear",
        temperatures=(0.7, 1.0),
    )
    pipeline = Pipeline.from_pretrained(run)
    plan = plan_sweep(pipeline.spec, choices, "run")
    assert len(set(plan.settings)) == len(plan.settings) == 3 * 2 * 2 * 2
    assert {s.sampling.schedule for s in plan.settings} == {Power(1.0), ValeoaiV1(shape=Arccos())}
    assert {s.sampling.priority for s in plan.settings} == {Confidence(0.0), Confidence(3.0), Halton((4, 4))}
    assert len(plan.list_choices()) == 24
    assert len(plan_sweep(pipeline.spec, replace(choices, tune=0), "run").list_choices()) == 48
    cells = sweeping.describe_row("setting", plan, *plan.list_choices()[-1], 0)
    expected = {"order": "halton", "schedule": "valeoai-v1-arccos", "steps": "5", "noise": "", "scale": "4"}
    expected |= {"ramp": "linear", "temperatures": "0.7 1", "tune": "1000", "samples": "5000", "seed": "0"}
    assert {name: cells[name] for name in expected} == expected
    assert tuple(cells) == KEY


def test_what_is_not_given_is_the_runs_own(run):
    pipeline = Pipeline.from_pretrained(run)
    plan = plan_sweep(pipeline.spec, SweepChoices(), "run")
    assert len(plan.settings) == 4 * 6
    assert {(s.schedule, s.sampling.schedule) for s in plan.settings} == {("cosine", pipeline.sampling.schedule)}
    assert {s.sampling.scale for s in plan.settings} == {pipeline.sampling.scale}
    assert plan.settings[0].sampling.priority == pipeline.sampling.priority == Confidence(4.5)


def test_a_scale_is_the_end_of_the_models_ramp_as_in_sample(run):
    spec = replace(Pipeline.from_pretrained(run).spec, sampling=Sampling(scale=LinearRamp(4.0, start=1.5)))

    def scales(**given):
        return {setting.sampling.scale for setting in plan_sweep(spec, SweepChoices(**given), "run").settings}

    for number in (2.0, 3.0):
        sampled = change_sampling(spec.sampling, spec.grid, {"guidance": number}).scale
        assert scales(scales=(number,)) == {sampled} == {LinearRamp(number, start=1.5)}
    assert scales(scales=(2.0, 3.0), ramp="constant") == {Interval(2.0), Interval(3.0)}
    assert scales(ramp="constant") == {Interval(4.0)}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--orders haltn", "did you mean halton?"),
        ("--schedules cosin", "did you mean cosine?"),
        ("--steps 4 0", "steps=0"),
        ("--steps", "0 settings"),
        ("--temperatures 1 -1", "temperature"),
        ("--temperatures", "0 temperatures"),
        ("--noises 3 --orders halton", "--noises 3"),
        ("--noises -1", "noise -1"),
        ("--scales inf", "finite"),
        ("--ramp steep", "--ramp"),
        ("--samples 1", "samples 1"),
        ("--tune 1", "tune 1"),
        ("--features incepton", "did you mean inception?"),
        ("--out table.md", "give a folder"),
    ],
)
def test_a_wrong_flag_is_one_line_before_any_work(run, flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(run.iterdir())
    code, error = refused(capsys, "sweep", run, *flags.split())
    assert code == 2
    assert words in error
    assert sorted(run.iterdir()) == before
    assert not list(tmp_path.iterdir())


def test_without_classes_another_network_has_to_measure(tmp_path, capsys):
    run = tmp_path / "run"
    main(["train", "digits", "--out", str(run), *TINY, "--no-conditional"])
    code, error = refused(capsys, "sweep", run, *SMALL)
    assert (code, "has no classes" in error) == (2, True)
    judge = tmp_path / "judge.safetensors"
    features = train_judge(run, judge)
    assert refused(capsys, "sweep", run, *SMALL, "--classifier", judge, "--scales", 2)[0] == 2
    main(["sweep", str(run), *SMALL, "--classifier", str(judge)])
    rows = rows_of(run / "sweep")
    assert {row["features"] for row in rows} == {features.sha256}
    assert {(row["judge"], row["class_accuracy"]) for row in rows} == {("", "")}
    assert len(rows) == 2 + 4 + 1


def train_judge(run, path):
    """Train a classifier on the pictures of a run, and keep it at `path`."""
    config = ClassifierConfig(channels=1, num_classes=10, steps=3, seed=7)
    return prepare_classifier_features(open_run(run, ALONE).experiment.read_pictures("train"), config, path, ALONE)


# -- what a kill leaves, and whose table it is -------------------------------------------------------------------------


def test_a_cut_table_is_continued_to_the_same_bytes(run, swept, tmp_path, monkeypatch):
    computed = []
    real = sweeping.measure_setting

    def watched(bench, sampling, num, seed):
        computed.append(seed)
        return real(bench, sampling, num, seed)

    monkeypatch.setattr(sweeping, "measure_setting", watched)
    monkeypatch.setattr(sys, "argv", ["unmask", "sweep"])  # as the page quotes it
    whole = (swept / "sweep.csv").read_bytes()
    main(["sweep", str(run), *SMALL])
    assert (swept / "sweep.csv").read_bytes() == whole
    page = (swept / "sweep.md").read_bytes()
    assert computed == []
    out = tmp_path / "out"
    out.mkdir()
    lines = whole.splitlines(keepends=True)
    (out / "sweep.csv").write_bytes(b"".join(lines[:5]) + lines[5][:37])
    main(["sweep", str(run), *SMALL, "--out", str(out)])
    assert (out / "sweep.csv").read_bytes() == whole
    assert (out / "sweep.md").read_bytes() == page
    assert computed == [0, 0, 2]  # two settings of four, and the best again


def test_a_table_cut_at_any_byte_keeps_its_whole_rows(tmp_path):
    origin = {"weights": "w", "features": "f", "judge": "", "pictures": "p", "labels": "shares"}
    cells = [{name: f'{name}, "{i}"' for name in KEY} for i in range(2)]
    figures = {name: 0.1 + i for i, name in enumerate(SWEEP_METRICS[:-1])}
    path = tmp_path / "sweep.csv"

    def complete():
        table = SweepTable(path, origin, "c")
        table.begin()
        for row in cells:
            if table.find(row) is None:
                table.add(row, figures, write=True)
        return path.read_bytes()

    whole = complete()
    ends = [place + i for place, byte in enumerate(whole) if byte == ord("\n") for i in (0, 1)]
    for cut in sorted({*range(0, len(whole), 23), *ends}):
        path.write_bytes(whole[:cut])
        table = SweepTable(path, origin, "c")
        done = [row for row in cells if table.find(row) is not None]
        assert len(done) == max(0, whole[:cut].count(b"\n") - 1)
        assert all(table.find(row) == figures for row in done)
        assert complete() == whole


def test_a_changed_figure_is_refused_and_a_table_without_checks_is_continued(tmp_path):
    origin = {name: name[0] for name in ORIGIN}
    cells = [{name: f"{name} {i}" for name in KEY} for i in range(2)]
    path = tmp_path / "sweep.csv"
    table = SweepTable(path, origin, "c")
    table.begin()
    table.add(cells[0], {"frechet": 1.25}, write=True)
    sound = path.read_text()
    path.write_text(sound.replace("1.25", "1.26"))
    with pytest.raises(ConfigError, match=r"sweep.csv is damaged .line 2 is not as it was written."):
        SweepTable(path, origin, "c")
    early = "".join(",".join(line.split(",")[:-1]) + "\n" for line in sound.splitlines())
    path.write_text(early)
    table = SweepTable(path, origin, "c")
    table.add(cells[1], {"frechet": 2.5}, write=True)
    assert path.read_text().startswith(early)
    assert [SweepTable(path, origin, "c").find(row) for row in cells] == [{"frechet": 1.25}, {"frechet": 2.5}]


def test_a_row_of_other_settings_is_not_taken(swept):
    rows = rows_of(swept)
    origin = {name: rows[0][name] for name in ORIGIN}
    table = SweepTable(swept / "sweep.csv", origin, "c")
    cells = {name: rows[2][name] for name in KEY}
    assert table.find(cells) is not None
    for name in KEY:
        assert table.find({**cells, name: cells[name] + "1"}) is None, name


def test_a_foreign_table_is_refused(run, swept, tmp_path, capsys):
    command = ["sweep", run, *SMALL]
    judge = tmp_path / "judge.safetensors"
    train_judge(run, judge)
    before = (swept / "sweep.csv").read_bytes()
    code, error = refused(capsys, *command, "--classifier", judge)
    assert (code, "other features" in error, "--out" in error) == (2, True, True)
    other = tmp_path / "other"
    main(["train", "digits", "--out", str(other), *TINY, "--training.seed", "1"])
    code, error = refused(capsys, "sweep", other, *SMALL, "--out", swept)
    assert (code, "other weights" in error) == (2, True)
    assert (swept / "sweep.csv").read_bytes() == before
    for text in ("a,b\n1,2\n", ",".join(COLUMNS) + "\n1,2\n", ",".join(COLUMNS) + "\n" + ",".join(["x"] * 32) + "\n"):
        (tmp_path / "sweep.csv").write_text(text)
        code, error = refused(capsys, *command, "--out", tmp_path)
        assert (code, "sweep.csv" in error) == (2, True)
        assert (tmp_path / "sweep.csv").read_text() == text


def test_rows_of_other_pictures_are_not_taken(run, swept, tmp_path, monkeypatch, capsys):
    """As many pictures of the same classes, but others: neither the table nor the floor may stay."""
    before = (swept / "sweep.csv").read_bytes()
    references, judge = set(run.glob("reference-*")), (run / "classifier.safetensors").read_bytes()
    load = Digits.load

    def changed(self, progress=None):
        split = load(self, progress)
        pixels = split.train.pixels.clone()
        pixels[:1000] = 255 - pixels[:1000]
        return replace(split, train=replace(split.train, pixels=pixels))

    monkeypatch.setattr(Digits, "load", changed)
    code, error = refused(capsys, "sweep", run, *SMALL)
    assert (code, "as many images, but not the same ones" in error) == (3, True)
    code, error = refused(capsys, "sweep", run, *SMALL, "--accept-data")
    assert (code, "sweep.csv is of other" in error, "--out" in error) == (2, True, True)
    assert (swept / "sweep.csv").read_bytes() == before
    copy = shutil.copytree(run, tmp_path / "run")
    main(["sweep", str(copy), *SMALL, "--accept-data", "--out", str(tmp_path / "out")])
    assert (copy / "classifier.safetensors").read_bytes() != judge
    assert len(set(copy.glob("reference-*"))) == len(references) + 1
    assert rows_of(tmp_path / "out")[0]["pictures"] != rows_of(swept)[0]["pictures"]
    assert rows_of(tmp_path / "out")[0]["frechet"] != rows_of(swept)[0]["frechet"]


def test_two_ranks_make_the_table_of_one(run, tmp_path):
    command = ["sweep", str(run), "--samples", "300", "--tune", "270", "--orders", "confidence", "--steps", "2"]
    command += ["--temperatures", "0.5", "1", "--device", "cpu", "--out"]
    main([*command, str(tmp_path / "one")])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    line = [sys.executable, "-c", "from unmask.cli import main; main()", *command, str(tmp_path / "two")]
    setting = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    setting["OMP_NUM_THREADS"] = "1"
    ranks = [
        subprocess.Popen(
            line, env=setting | {"RANK": r, "LOCAL_RANK": r}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for r in ("0", "1")
    ]
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "sweep.md" in said[0][0]
    assert [line for line in said[1][0].splitlines() if not line.startswith("[Gloo]")] == []  # of torch 2.10
    assert (tmp_path / "two/sweep.csv").read_bytes() == (tmp_path / "one/sweep.csv").read_bytes()


# -- plots -------------------------------------------------------------------------------------------------------------


def pictures(folder):
    return {path.name for path in folder.glob("*.png")}


def test_each_number_that_was_swept_over_is_plotted_and_no_other(run, swept, tmp_path, monkeypatch):
    drawn = {}

    def curves(series, path, **rest):
        drawn[path.name] = (series, rest)
        path.write_bytes(b"png")

    assert pictures(swept) == {"steps-frechet.png", "steps-inception-score.png"}
    assert min((swept / name).stat().st_size for name in pictures(swept)) > 1000
    monkeypatch.setattr("unmask.evaluation.sweep_table.figures.plot_curves", curves)
    out = ["--samples", "20", "--tune", "0", "--out", str(tmp_path / "out")]
    many = ["--steps", "1", "2", "--noises", "0", "2", "--scales", "1", "3", "--temperatures", "0.5", "1"]
    main(["sweep", str(run), *out, "--orders", "confidence", "random", *many])
    axes = ("steps", "noise", "scale", "temperature")
    assert set(drawn) == {f"{axis}-{figure}.png" for axis in axes for figure in ("frechet", "inception-score")}
    series, rest = drawn["steps-frechet.png"]
    assert len(series) == 7
    assert "the best 7 of 12" in rest["title"]
    assert all(x == [1.0, 2.0] for x, _ in series.values())
    assert len(rest["references"]) == 2
    lows = [min(y) for _, y in series.values()]
    assert lows == sorted(lows)
    rows = [row for row in rows_of(tmp_path / "out") if row["kind"] == "setting"]
    assert lows[0] == min(float(row["frechet"]) for row in rows)
    name, (_, distances) = next(iter(drawn["scale-frechet.png"][0].items()))
    words = dict(part.split(" ") for part in name.split(", ")[1:])
    order = name.split(", ")[0]
    mine = [
        float(row["frechet"])
        for row in rows
        if row["order"] == order and all(row[{"temperature": "temperatures"}.get(k, k)] == v for k, v in words.items())
    ]
    assert distances == mine
    main(["sweep", str(run), *out, "--orders", "random", "--steps", "1", "--temperatures", "1"])
    assert pictures(tmp_path / "out") == set()


def test_a_plan_without_rows_or_samples_is_refused():
    setting = SweepSetting(order="confidence", schedule="cosine", sampling=Sampling())
    SweepPlan(settings=(setting,), temperatures=(1.0,))
    for wrong in ({"settings": ()}, {"temperatures": ()}, {"samples": 1}, {"tune": 1}, {"tune": -1}):
        with pytest.raises(ConfigError):
            SweepPlan(**({"settings": (setting,), "temperatures": (1.0,)} | wrong))
    with pytest.raises(ValueError, match="temperature"):
        SweepPlan(settings=(setting,), temperatures=(-1.0,))
