"""Progress of a command: bars on a terminal, rare lines elsewhere, separate from its output."""

import io
import sys
import time
from dataclasses import replace

import pytest
import torch

from unmask.cli import main
from unmask.pipelines.image import Pipeline
from unmask.runtime.progress import show_progress

TINY = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--training.batch-size", "8"]
TINY += ["--classifier.steps", "5", "--device", "cpu", "--training.steps", "2"]
COMMANDS = [
    ["sample", "--num", "6", "--steps", "3"],
    ["evaluate", "--samples", "20"],
    ["sweep", "--samples", "20", "--tune", "10", "--orders", "random", "--steps", "1", "--temperatures", "0.5", "1"],
]


class Terminal(io.StringIO):
    """Return what the screen shows."""

    def isatty(self):
        return True


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("progress") / "run"
    main(["train", "digits", "--out", str(out), *TINY])
    return out


def spoken(monkeypatch, run, tmp_path, words, kind):
    """(stdout, stderr) of a command, where stderr is of that kind and stdout is a file."""
    out, error = io.StringIO(), kind()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)
    main([words[0], str(run), *words[1:]])
    return out.getvalue(), error.getvalue()


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_bars_are_for_terminals_and_leave_what_is_printed_alone(run, tmp_path, monkeypatch, words):
    shown = {"sample": ["steps"], "evaluate": ["samples", "real images"], "sweep": ["samples", "rows"]}[words[0]]
    plain, silence = spoken(monkeypatch, run, tmp_path, words, io.StringIO)
    said = [] if words[0] == "sample" else ["297 held out"]  # what was read, and no bar
    assert [line.rsplit("; ")[-1] for line in silence.splitlines()] == said
    for kept in (*run.glob("reference-*"), *run.glob("sweep/*")):
        kept.unlink()
    for picture in tmp_path.glob("samples*.png"):
        picture.unlink()
    again, bars = spoken(monkeypatch, run, tmp_path, words, Terminal)
    assert all(name in bars for name in shown), bars
    assert "wrote" in plain
    if words[0] == "evaluate":  # its figures hold times
        plain, again = (text[text.index("\nwrote") :] for text in (plain, again))
    assert again == plain


def test_what_is_printed_on_the_same_terminal_stands_above_the_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    line = "| " + "a long row of a table " * 20 + "|"
    with show_progress(shown=True) as progress:
        progress("samples", 1, 3)
        print(line)
        progress("samples", 2, 5)
    assert line + "\n" in screen.getvalue()  # not cut to the width of the screen
    assert "samples" in screen.getvalue()


def test_a_bar_takes_a_new_total(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with show_progress(shown=True) as progress:
        progress("samples", 10, 10)
        progress("samples", 10, 40)
    assert "25%" in screen.getvalue()


def test_without_a_terminal_what_takes_long_says_so_now_and_then(monkeypatch):
    now, said = [0.0], io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with show_progress(shown=True) as progress:
        for step in range(1, 101):
            now[0] += 0.5
            progress("classifier", step, 4000)
    assert said.getvalue() == "classifier 40/4,000\nclassifier 80/4,000\n"
    with show_progress(shown=False) as progress:
        now[0] += 100
        progress("classifier", 1, 4000)
    assert "1/4,000" not in said.getvalue()


@pytest.mark.parametrize(("num", "batch"), [(6, 256), (6, 4), (8, 4)])
def test_generate_tells_every_step_and_changes_nothing(run, num, batch):
    pipeline = Pipeline.from_pretrained(run, device="cpu")
    sampling, told = replace(pipeline.sampling, steps=3), []
    images = pipeline.generate(
        num=num, sampling=sampling, batch=batch, progress=lambda what, done, total: told.append((what, done, total))
    )
    assert torch.equal(images, pipeline.generate(num=num, sampling=sampling, batch=batch))
    batches = -(-num // batch)
    done = [n for _, n, _ in told]
    assert {(what, total) for what, _, total in told} == {("steps", 3 * batches)}
    assert done == sorted(done)
    assert sorted({*done} | {0}) == list(range(3 * batches + 1))
