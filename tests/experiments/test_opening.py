"""What a training says first, at each step, when it resumes and at its end."""

import io
import math

import pytest
import torch
from torch import nn

from unmask.cli import main
from unmask.cli.outcomes import describe_outcome, hash_if_there
from unmask.experiments import opening
from unmask.experiments.opening import describe_opening, describe_precision
from unmask.recipes.reading import find_recipe
from unmask.runtime import distributed
from unmask.runtime.distributed import World
from unmask.training.log import TrainLog
from unmask.training.steps import describe_first_loss, describe_resume

CPU = torch.device("cpu")
TINY = [
    "--model.dim",
    "16",
    "--model.depth",
    "1",
    "--model.heads",
    "2",
    "--training.batch-size",
    "8",
    "--device",
    "cpu",
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("name", "network", "commands"),
    [
        ("cifar10", "model", ("evaluate", "sample")),
        ("shakespeare", "model", ("generate", "score")),
        ("cifar10-tokenizer", "tokenizer", ("evaluate-tokenizer", "tokenize")),
    ],
)
def test_the_opening_says_what_runs_and_fits_a_terminal(name, network, commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = find_recipe(name)
    lines = describe_opening(
        recipe,
        tmp_path.relative_to(tmp_path) / "run",
        World(0, 1, CPU),
        networks={network: nn.Linear(100, 20)},
        num_rows=(50_000, 10_000),
        length=64,
        vocab_size=2048,
    )
    assert len(lines) == 7
    assert max(map(len, lines)) <= 80
    facts = {line.split("  ")[0]: line[12:] for line in lines}
    batch = recipe.training.batch_size
    assert facts["run"] == f"run: {recipe.training.steps:,} steps"
    assert facts["device"].startswith("cpu, ")
    assert facts["parameters"] == "2,020"
    assert facts["data"].replace("rows", "images") == "50,000 images for training, 10,000 held out"
    assert facts["per step"].replace("rows", "images") == f"{batch} images, {64 * batch:,} tokens of 2,048 kinds"
    assert [f"unmask {command} run" in facts["next"] for command in commands] == [True, True]


def test_the_number_type_is_given_with_its_reason(monkeypatch):
    for fast, expected in ((True, "bfloat16: this CPU has"), (False, "float32: no usable bfloat16")):
        for module in (opening, distributed):
            monkeypatch.setattr(module, "choose_dtype", lambda device, f=fast: torch.bfloat16 if f else torch.float32)
        assert describe_precision("auto", CPU).startswith(expected)
        assert describe_precision("bf16", CPU) == "bfloat16: the recipe or --training.precision says so"
        assert describe_precision("fp32", CPU) == "float32: the recipe or --training.precision says so"
    monkeypatch.undo()
    assert describe_precision("auto", torch.device("cuda")) == "bfloat16: this GPU is fast in it"


def test_a_training_opens_resumes_and_ends_with_what_is_so(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(TrainLog, "show_step", lambda self, step: shown.append(step))
    main(["train", "digits", "--out", "run", *TINY, "--training.steps", "3", "--training.precision", "fp32"])
    first = capsys.readouterr().out
    assert first.startswith("recipe      digits\n")
    assert first.index("\nrun         run: 3 steps\n") < first.index("\nloss of the first step ")
    assert first.endswith("wrote run/model.safetensors\nnext: unmask evaluate run   or   unmask sample run\n")
    assert shown == [1, 2, 3]  # and not only every log_every
    main(["train", "run"])
    again = capsys.readouterr().out
    assert "all 3 steps are done already\nup to date: run/model.safetensors\n" in again
    assert "loss of" not in again
    assert "per step" not in again
    main(["train", "run", "--training.steps", "5", "--training.precision", "bf16"])
    more = capsys.readouterr().out
    assert "precision bf16 now, fp32 before; type bfloat16 now, float32 before: " in more
    assert "the number type is another: results are not equal bit for bit" in more
    assert "loss of step 4, the first after the resume: " in more
    assert "first step" not in more
    assert "wrote run/model.safetensors" in more
    assert shown == [1, 2, 3, 4, 5]


def test_the_first_loss_is_that_of_the_step_it_belongs_to():
    assert describe_first_loss(0, 2.5, math.nan) == "loss of the first step 2.5000"
    assert describe_first_loss(0, 2.5, 2.4) == "loss of the first step 2.5000, expected 2.4000"
    assert describe_first_loss(1000, 2.5, 2.4) == "loss of step 1,001, the first after the resume: 2.5000"


def test_only_another_type_breaks_the_equality_of_bits():
    def run(**facts):
        return {"recipe": {"training": {"precision": "auto", "steps": 9}}, "environment": {"threads": 1}, **facts}

    def said(then, now):
        return " ".join(describe_resume(4, 9, then, now))

    assert "not equal bit for bit" in said(run(type="bfloat16"), run(type="float32"))
    assert "last bits" in said(run(type="bfloat16"), run(type="bfloat16", environment={"threads": 2}))
    assert "last bits" in said(run(), run(type="bfloat16", environment={"threads": 2}))  # of an early version
    fixed = {"recipe": {"training": {"precision": "fp32", "steps": 9}}}
    assert "not equal bit for bit" in said(run(), run(type="float32", **fixed))


def test_the_bar_moves_at_every_step_and_lines_fit_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    screen, file = Terminal(), io.StringIO()
    long = "step 12: " + ", ".join(f"accuracy_masked_{n} 0.1234" for n in (25, 50, 75, 100)) + ", validation_loss 3.1"
    for stream in (screen, file):
        monkeypatch.setattr("sys.stdout", stream)
        with TrainLog(tmp_path, steps=9) as log:
            for step in (1, 2):
                log.show_step(step)
                assert log._bar.tasks[0].completed == step
            log.say(long)
    lines = screen.getvalue().replace("\r", "\n").split("\n")
    start = next(i for i, line in enumerate(lines) if "accuracy_masked_25" in line)
    assert "validation_loss 3.1" not in lines[start]
    assert long in file.getvalue().splitlines()  # in a file, a message is one line


def test_a_file_that_stays_the_same_is_up_to_date(tmp_path):
    path = tmp_path / "a"
    assert hash_if_there(path) is None
    path.write_text("1")
    assert describe_outcome(path, None) == f"wrote {path}"
    before = hash_if_there(path)
    assert describe_outcome(path, before, tmp_path) == f"up to date: {tmp_path}"
    path.write_text("2")
    assert describe_outcome(path, before) == f"wrote {path}"
