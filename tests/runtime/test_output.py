"""A training outlives its output: a reader that leaves, and a full disk, are one line on stderr."""

import io
import json
import os
import subprocess
import sys
import warnings

import pytest
import rich.console

from unmask.runtime.output import OptionalOutput, make_console, survive_lost_output
from unmask.runtime.progress import show_progress

PROGRAM = """
import sys
from unmask.runtime.output import survive_lost_output
from unmask.training.log import TrainLog
with survive_lost_output():
    print("notes", flush=True)
    with TrainLog({run}, steps=3) as log:
        for step in (1, 2, 3):
            log.say("x" * 100_000)
            log.show_progress(step, 1.0, 2.0)
            log.record(step, {{"loss": 1.0}})
            print("aside", file=sys.stderr, flush=True)
print("end")
"""


def run(tmp_path, stdout, stderr=subprocess.PIPE):
    """Return exit code, stderr and the steps of metrics.jsonl of a program that prints and records three steps."""
    program = "from pathlib import Path\n" + PROGRAM.format(run=f"Path({str(tmp_path)!r})")
    done = subprocess.run([sys.executable, "-c", program], stdout=stdout, stderr=stderr)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    return done.returncode, (done.stderr or b"").decode(), [row["step"] for row in rows]


@pytest.fixture
def unread():
    """The writing end of a pipe whose reader has left."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_a_reader_that_leaves_costs_the_output_and_not_the_training(tmp_path, unread):
    code, said, steps = run(tmp_path, unread)
    assert (code, steps) == (0, [1, 2, 3])
    lost = [line for line in said.splitlines() if line != "aside"]
    assert lost == ["standard output is lost (Broken pipe); the training continues without it"]
    assert said.count("aside") == 3


def test_both_outputs_may_be_lost(tmp_path, unread):
    code, _, steps = run(tmp_path, unread, unread)
    assert (code, steps) == (0, [1, 2, 3])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full: a device of Linux")
def test_a_full_disk_behind_the_output(tmp_path):
    with open("/dev/full", "wb") as full:
        code, said, steps = run(tmp_path, full)
    assert (code, steps) == (0, [1, 2, 3])
    assert "standard output is lost (No space left on device)" in said


def test_a_sound_output_is_not_changed(tmp_path, capsys):
    with survive_lost_output():
        print("hello", "world")
        print("aside", file=sys.stderr)
    assert capsys.readouterr() == ("hello world\n", "aside\n")
    assert OptionalOutput(io.StringIO("x"), "text").readable()


class ZMQInteractiveShell:
    """Looks like the shell of a notebook to rich."""


def test_a_notebook_gets_text_and_needs_no_widgets(monkeypatch):
    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    assert rich.console.Console().is_jupyter  # the stand-in works
    said = io.StringIO()
    make_console(said).print("step 5")
    assert said.getvalue() == "step 5\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with show_progress(shown=True) as progress:
            progress("reading", 1, 2)
