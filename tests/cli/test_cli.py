"""The command line end to end: what each command leaves, and that every mistake is one line and an exit code."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from PIL import Image

from unmask.cli import COMMANDS, main
from unmask.cli.demo import suggest_next
from unmask.decoding import counts
from unmask.method.schedules import Arccos, Cosine, Exp, Log, Power, Sigmoid

TINY = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--device", "cpu"]
TINY += ["--training.batch-size", "8", "--training.log-every", "1", "--training.evaluate-every", "1000000"]


def train(run, steps, *more):
    return ["train", "digits", "--out", str(run), *TINY, "--training.steps", str(steps), *more]


def refused(capsys, *arguments):
    """(exit code, message) of a command that must say one line and nothing else on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    error = capsys.readouterr().err
    assert error.startswith("unmask: "), error
    assert error.count("\n") == 1, error
    return stop.value.code, error


@contextmanager
def started(arguments):
    """The command in a process of its own, which does not outlive the test."""
    line = [sys.executable, "-c", "from unmask.cli import main; main()", *arguments]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def steps_done(run):
    path = run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition, process):
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    run = tmp_path_factory.mktemp("demo") / "run"
    main(["demo", "--out", str(run), "--steps", "20", "--classifier-steps", "20", "--samples", "40"])
    return run


# -- demo, evaluate, sample, sweep, export -----------------------------------------------------------------------------


def test_the_demo_leaves_every_file(demo):
    files = ["config.json", "metrics.jsonl", "model.safetensors", "samples.png", "decode.gif", "order.png"]
    files += ["inpaint.png", "loss.png", "report.json"]
    for name in files:
        assert (demo / name).stat().st_size > 100, name
    assert sorted(p.name for p in (demo / "checkpoints").iterdir()) == ["step-00000016", "step-00000020"]
    for name in ("samples.png", "order.png", "inpaint.png", "loss.png", "decode.gif"):
        with Image.open(demo / name) as picture:
            picture.load()
            assert min(picture.size) > 50, name
    with Image.open(demo / "samples.png") as picture:
        assert picture.width == picture.height  # 10 x 10 square digits
    with Image.open(demo / "decode.gif") as picture:
        assert picture.n_frames >= 9


@pytest.mark.parametrize("run", ["runs/demo", "q", "runs/a-longer-name-of-a-folder"])
def test_the_commands_to_try_next_stand_in_two_columns(run):
    lines = suggest_next(run).splitlines()[2:]
    assert len({len(line) - len(line.split("   ", 1)[1].lstrip()) for line in map(str.strip, lines)}) == 1, lines


def test_the_report_has_its_figures(demo):
    report = json.loads((demo / "report.json").read_text())
    keys = ["class_accuracy", "classifier_test_accuracy", "frechet", "frechet_floor", "nearest_train", "train_seconds"]
    assert {*keys, "num_parameters", "steps", "seed", "commit"} <= report.keys()
    assert 0 <= report["class_accuracy"] <= 1
    assert 0 <= report["frechet_floor"] < report["frechet"]
    assert report["num_samples"] == 40
    assert report["train_steps"] == 20
    assert report["train_seconds"] > 0


def test_the_config_of_a_run_repeats_it_bit_for_bit(demo, tmp_path):
    quick = ["--training.evaluate-every", "1000"]  # the weights do not depend on it
    main(["train", str(demo / "config.json"), "--out", str(tmp_path / "again"), *quick])
    assert (tmp_path / "again/model.safetensors").read_bytes() == (demo / "model.safetensors").read_bytes()


def test_a_run_directory_repeats_or_continues_its_run(demo, tmp_path, monkeypatch, capsys):
    shutil.copytree(demo, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    quick = ["--training.evaluate-every", "1000"]
    main(["train", "run", "--out", "again", *quick])
    assert (tmp_path / "again/model.safetensors").read_bytes() == (demo / "model.safetensors").read_bytes()
    main(["train", "run/", "--training.steps", "22", *quick])
    assert "continuing after step 20 (of 20 before) to 22" in capsys.readouterr().out.replace("\n  ", " ")
    assert json.loads((tmp_path / "run/config.json").read_text())["training"]["steps"] == 22
    assert not (tmp_path / "runs").exists()
    (tmp_path / "digits").mkdir()  # a recipe's name comes first
    main(["train", "digits", "--dry-run", *TINY])
    (tmp_path / "plain").mkdir()
    assert refused(capsys, "train", "plain") == (
        2,
        "unmask: plain has no config.json: give the directory of a run, or a recipe\n",
    )
    code, line = refused(capsys, "train-tokenizer", "run")
    assert (code, "run/config.json is the recipe of an image model: use unmask train" in line) == (2, True)


def test_evaluate_obeys_its_flags_and_repeats_the_rest(demo, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(demo, run)
    main(["evaluate", str(run), "--samples", "40", "--order", "halton", "--steps", "3", "--temperature", "0.7"])
    out = capsys.readouterr().out
    assert str(run / "report.json") in out.splitlines()[-1]
    assert "{" not in out
    assert max(len(line) for line in out.split("\nwrote\n")[0].splitlines()) <= 80
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (demo, run))
    assert second["steps"] == 3
    assert "Halton" in second["sampling"]
    assert second["frechet"] != first["frechet"]
    same = ["classifier_test_accuracy", "frechet_floor", "features", "train_seconds"]
    assert first["inpaint_class_accuracy"] != second["inpaint_class_accuracy"]
    assert [first[key] for key in same] == [second[key] for key in same]


def test_sample_writes_pictures(demo, tmp_path, capsys):
    out, gif = tmp_path / "a.png", tmp_path / "a.gif"
    main(
        [
            "sample",
            str(demo),
            "--num",
            "7",
            "--columns",
            "4",
            "--labels",
            "3",
            "5",
            "--out",
            str(out),
            "--gif",
            str(gif),
        ]
    )
    assert capsys.readouterr().out.splitlines() == [f"wrote {out}", f"wrote {gif}"]
    with Image.open(out) as picture:
        assert picture.width > picture.height
    with Image.open(gif) as picture:
        assert picture.n_frames >= 9


def test_every_sampling_flag_changes_the_picture(demo, tmp_path):
    def drawn(*flags):
        out = tmp_path / "x.png"
        main(["sample", str(demo), "--num", "10", "--out", str(out), *flags])
        return out.read_bytes()

    base = drawn()
    assert drawn() == base
    changes = ["--steps 2", "--order random", "--noise 0", "--schedule pow3", "--temperature 0.5", "--scale 3"]
    for change in [*changes, "--top-k 2", "--top-p 0.3", "--seed 1", "--labels 7"]:
        assert drawn(*change.split()) != base, change
    orders = ["confidence-without-noise", "halton", "random", "margin", "entropy", "max-logit", "raster"]
    assert drawn("--order", "confidence") == base
    assert base not in [drawn("--order", order) for order in orders]


def test_an_export_samples_as_the_run_does(demo, tmp_path):
    main(["export", str(demo), "--out", str(tmp_path / "export")])
    for folder in (demo, tmp_path / "export"):
        main(["sample", str(folder), "--num", "10", "--out", str(tmp_path / f"{folder.name}.png")])
    assert (tmp_path / "run.png").read_bytes() == (tmp_path / "export.png").read_bytes()


def test_sweep_prints_a_table(demo, tmp_path, capsys):
    tiny = ["--samples", "30", "--tune", "20", "--steps", "1", "4", "--temperatures", "0.8", "1.0"]
    main(["sweep", str(demo), *tiny, "--orders", "confidence", "halton", "--out", str(tmp_path / "table")])
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown[:-1])) <= 80  # the last one names a folder
    assert shown[0] == "schedule cosine, noise 4.5, scale 2, ramp linear, 30 samples a row"
    assert shown[1].split()[:4] == ["order", "steps", "temp", "FD"]
    assert [line.split()[0] for line in shown[2:8]] == [
        "real",
        "tokenizer",
        "confidence",
        "confidence",
        "halton",
        "halton",
    ]
    lines = [line for line in (tmp_path / "table/sweep.md").read_text().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {18}
    cells = [[line.split("|")[i].strip() for i in (1, 3)] for line in lines[2:]]
    frame = [["real training images (floor)", "–"], ["these through the tokenizer (limit)", "–"]]
    settings = [["confidence", "1"], ["confidence", "4"], ["halton", "1"], ["halton", "4"]]
    assert cells[:-1] == [*frame, *settings]
    assert cells[-1] in [[f"best, again with a fresh seed: {order}", steps] for order, steps in settings]


# -- train -------------------------------------------------------------------------------------------------------------


def test_dry_run_prints_the_configuration_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main([*train(tmp_path / "run", 3), "--dry-run"])
    out = capsys.readouterr().out
    config = json.loads(out[: out.rindex("}") + 1])
    assert config["training"]["steps"] == 3
    assert config["model"]["dim"] == 16
    assert config["model"]["num_classes"] == 10
    assert "1,500 for training, 297 held out" in out
    assert not list(tmp_path.iterdir())


def test_the_same_command_again_is_a_finished_run_and_resume_never_refuses_it(tmp_path, capsys):
    run = tmp_path / "run"
    main(train(run, 2))
    before = (run / "model.safetensors").read_bytes()
    main(train(run, 2))
    assert (run / "model.safetensors").read_bytes() == before
    code, error = refused(capsys, *train(run, 2, "--resume", "never"))
    assert code == 4
    assert str(run) in error
    main(train(tmp_path / "fresh", 2, "--resume", "never"))
    assert (tmp_path / "fresh/model.safetensors").read_bytes() == before


def test_another_experiment_in_the_run_folder_is_refused_by_field(tmp_path, capsys):
    run = tmp_path / "run"
    main(train(run, 2))
    before = (run / "config.json").read_bytes()
    for flags, field in [(["--model.dim", "24"], "model.dim"), (["--objective.drop", "0.5"], "objective.drop")]:
        code, error = refused(capsys, *train(run, 2, *flags))
        assert (code, field in error) == (4, True), error
    assert (run / "config.json").read_bytes() == before


def test_a_signal_saves_exits_with_85_and_the_same_command_continues(tmp_path, capsys):
    run, last = tmp_path / "run", 0
    for attempt in range(2):
        with started(train(run, 100_000)) as process:
            wait_for(lambda: (steps_done(run) or [0])[-1] > last + 3, process)  # noqa: B023
            if attempt == 0:
                code, error = refused(capsys, *train(run, 100_000))
                assert code == 4
                assert f"in use by another process (pid {process.pid})" in error
            process.send_signal(signal.SIGTERM)
            out, error = process.communicate(timeout=60)
        assert process.returncode == 85, error
        assert error.count("\n") == 1
        saved = int(error.split("after step ")[1].split(";")[0])
        assert (run / f"checkpoints/step-{saved:08d}").is_dir()
        assert (f"continuing after step {last}" in out) == (attempt == 1)
        assert saved > last
        last = saved
    assert steps_done(run) == list(range(1, last + 1))
    assert refused(capsys, "sample", run)[0] == 4  # not finished: there are no averaged weights yet


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("trian digits", 2, "did you mean train?"),
        ("train", 2, "one of cifar10, cifar10-gpu, cifar10-partition, digits, "),
        ("train digts", 2, "did you mean digits?"),
        ("train digits --training.stepz 3", 2, "did you mean --training.steps?"),
        ("train digits --training.steps 0", 2, "unmask: training.steps = 0: must be at least 1"),
        ("train digits --training.steps many", 2, "--training.steps 'many': give a whole number"),
        ("train digits --training.clip much", 2, "--training.clip 'much': give a number"),
        ("train digits --data photos", 2, "--data: digits has its own data"),
        ("train folder-pixels --data https://host/a.tar", 2, "https://host/a.tar: a folder of images must lie on"),
        ("train folder-pixels --data s3://bucket/{0..1}.tar", 2, "unmask tokenize MODEL --source shards"),
        ("sample runs/demo --label 3", 2, "did you mean --labels?"),
        ("evaluate runs/demo --guidence 3", 2, "did you mean --guidance?"),
        ("train digits --model.dim 15", 2, "dim 15"),
        ("train digits --training.batch-size 10 --training.accumulate 4", 2, "multiple of accumulate 4"),
        ("train digits --training.strategy fsdp", 2, "torchrun"),
        ("train digits --tokenizer.patch 3", 2, "patch 3"),
        ("train digits --tokenizer.size 16 16", 2, "--tokenizer.size"),
        ("train digits --device abacus", 2, "--device"),
        ("train missing.py", 2, "missing.py"),
        ("train missing.json", 2, "missing.json"),
        ("train mnist --data missing-folder", 3, "missing-folder"),
        ("sample missing", 4, "missing: no such run"),
        ("evaluate missing", 4, "missing: no such run"),
        ("sweep missing", 4, "missing: no such run"),
        ("export missing --out there", 4, "missing: no such run"),
        ("export missing", 2, "--out"),
        ("schedule --style gogle", 2, "did you mean google?"),
        ("schedule --shape cosin", 2, "did you mean cosine?"),
        ("schedule --style llada --shape cosine", 2, "linear"),
        ("schedule --steps 0", 2, "steps=0"),
        ("schedule --steps 1e9", 2, "--steps '1e9': give a whole number"),
        ("demo --stepz 3", 2, "did you mean --steps?"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(line, code, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found, error = refused(capsys, *line.split())
    assert found == code
    assert words in error
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name not in (".lock", "config.json")]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("--order haltn", 2, "did you mean halton?"),
        ("--schedule cosin", 2, "did you mean cosine?"),
        ("--order halton --noise 1", 2, "--noise"),
        ("--labels 10", 2, "no class 10: this model's labels go from 0 to 9"),
        ("--num 0", 2, "--num 0"),
        ("--steps 0", 2, "steps=0"),
        ("--temperature -1", 2, "temperature"),
        ("--top-k 0", 2, "top_k=0"),
        ("--top-p 2", 2, "top_p=2"),
        ("--out a.txt", 2, "a.txt"),
    ],
)
def test_a_wrong_sampling_flag_is_one_line(demo, flags, code, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found, error = refused(capsys, "sample", demo, *flags.split())
    assert found == code
    assert words in error
    assert not list(tmp_path.iterdir())


def test_a_run_folder_that_cannot_be_written_is_a_disk_error(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    code, error = refused(capsys, *train(tmp_path / "file", 2))
    assert code == 6
    assert str(tmp_path / "file") in error
    code, error = refused(capsys, *train(tmp_path / "file/run", 2))
    assert code == 6
    if os.geteuid() != 0:
        (tmp_path / "sealed").mkdir(mode=0o500)
        assert refused(capsys, *train(tmp_path / "sealed/run", 2))[0] == 6


def test_a_damaged_export_is_one_line(demo, tmp_path, capsys):
    shutil.copytree(demo, tmp_path / "run")
    (tmp_path / "run/model.safetensors").write_bytes(b"nonsense")
    assert refused(capsys, "sample", tmp_path / "run")[0] == 4
    (tmp_path / "run/config.json").write_text("{")
    assert refused(capsys, "sample", tmp_path / "run")[0] == 4
    (tmp_path / "run/manifest.json").unlink()
    assert refused(capsys, "sample", tmp_path / "run")[0] == 4


def test_help_tells_every_command_and_its_flags(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)
    for name in ("demo", "schedule"):
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert not stop.value.code
    assert "--steps" in capsys.readouterr().out


# -- schedule ----------------------------------------------------------------------------------------------------------

SHAPES = {
    "uniform": Power(1.0),
    "linear": Power(1.0),
    "pow2": Power(2.0),
    "square": Power(2.0),
    "pow3": Power(3.0),
    "pow0.5": Power(0.5),
    "root": Power(0.5),
    "cosine": Cosine(),
    "arccos": Arccos(),
    "log": Log(49),
    "exp": Exp(49),
    "sigmoid": Sigmoid(),
}
SHAPED = {
    "google": counts.count_google,
    "valeoai-v1": counts.count_valeoai_v1,
    "halton-confidence": counts.count_halton_confidence,
    "x-transformers": counts.count_x_transformers,
    "muse": counts.count_muse,
}
FIXED = {
    "halton": counts.count_halton,
    "nanofm": counts.count_nanofm,
    "llada": counts.count_llada,
    "4m": counts.count_fourm,
    "amused": counts.count_amused,
    "titok": counts.count_titok,
}


def listed(capsys, *flags):
    main(["schedule", "--tokens", "49", "--steps", "7", "--json", *flags])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("style", SHAPED)
def test_schedule_prints_what_the_functions_count(style, capsys):
    for shape, function in SHAPES.items():
        assert listed(capsys, "--style", style, "--shape", shape) == SHAPED[style](49, 7, function), shape
    assert listed(capsys, "--style", style) == SHAPED[style](49, 7, Cosine())


@pytest.mark.parametrize("style", FIXED)
def test_schedule_of_one_shape(style, capsys):
    assert listed(capsys, "--style", style) == FIXED[style](49, 7)


def test_schedule_draws_a_line_per_step(capsys):
    main(["schedule", "--tokens", "16", "--steps", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[-4:]] == [
        [str(i), str(n)] for i, n in enumerate(counts.count_google(16, 4, Cosine()), 1)
    ]
    assert "100.0 %" in lines[-1]
