"""A page with no run: it says so, makes the demo in a child process that can be stopped, and shows downloads."""

import os
import subprocess
import sys
import threading
import time

import pytest
from toy_page import IMAGE, Page, copy_models, open_page, read_end, tell

from unmask.app.starting import stop_child, stream_lines
from unmask.errors import ConfigError

SCRIPT = [sys.executable, "-u", "-c"]
DEMO = """
from unmask.app import starting
starting.DEMO_FLAGS = ("--steps", "2", "--classifier-steps", "2", "--samples", "100")
from unmask.published import opening
from unmask.published.catalogue import MODELS
fetch = opening.OpenedModel.fetch
def fetch_slowly(found, progress=None, world=None):
    if found.name not in MODELS:
        return fetch(found, progress, world)
    for done in range(200):
        progress("weights.safetensors", done, 200)
        time.sleep(0.05)
opening.OpenedModel.fetch = fetch_slowly
"""


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A page that offers published models and no run; its downloads are slow."""
    with open_page(tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("log"), DEMO, published=True) as served:
        yield served


def test_a_page_without_any_model_says_so(tmp_path):
    with open_page(tmp_path / "none", tmp_path / "log") as served, Page(served.address) as page:
        said = tell(page.run("model", {"model": None}, "change"))[-1]
        assert said == "there is no model yet: press Run the demo, which learns to draw digits in a few minutes"
        assert page.parts[page.ids["demo"]]["props"]["visible"] is True
        assert read_end(page.run("generate-start", {"model": None})).startswith("there is no model yet")
        copy_models(tmp_path / "none")
        chosen = page.run("model-refresh")[-2]["output"]["data"]
        assert IMAGE in chosen[1]["value"] or "letters" in chosen[1]["value"]
        assert chosen[2]["visible"] is False


def test_a_page_with_a_run_offers_no_demo(page):
    assert page.parts[page.ids["demo"]]["props"]["visible"] is False


def test_the_demo_can_be_stopped(empty):
    with Page(empty.address) as page:
        page.join("demo-start")
        with page.listen() as messages:
            seen = []
            for message in messages:
                seen.append(message)
                if "the demo runs" in str(message):
                    page.press_stop("demo-stop")
        assert read_end(seen) == "stopped: run the demo again to resume it"
        assert find_children(empty) == []


def test_a_page_that_was_killed_ends_its_demo(empty):
    with Page(empty.address) as page:
        page.join("demo-start")
        with page.client.stream("GET", f"/gradio_api/heartbeat/{page.name}"), page.listen() as messages:
            next(message for message in messages if "the demo runs" in str(message))
            assert wait_for(lambda: find_children(empty))
    assert wait_for(lambda: not find_children(empty))


@pytest.mark.skipif(not os.path.exists("/proc"), reason="looks for child processes in /proc")
def test_the_demo_runs_and_its_model_comes_into_the_list(empty):
    pytest.importorskip("sklearn", reason="the demo's digits need scikit-learn")
    with Page(empty.address) as page:
        messages = page.run("demo-start")
        assert read_end(messages) == "the demo is done"
        assert "recipe      digits" in str(messages)
        end = messages[-2]["output"]["data"]
        name = end[2]["value"]
        assert name.endswith("/demo")
        assert end[3]["visible"] is False
        assert read_end(page.run("generate-start", {"model": name})).startswith("done: step")


def test_a_download_is_shown_and_can_be_stopped(empty):
    with Page(empty.address) as page:
        name = next(value for _, value in page.parts[page.ids["model"]]["props"]["choices"] if "/" not in value)
        page.join("generate-start", {"model": name})
        shown = []
        with page.listen() as messages:
            seen = []
            for message in messages:
                seen.append(message)
                if message["msg"] == "progress":
                    shown.append(message["progress_data"][0])
                if len(shown) == 5:
                    page.press_stop("generate-stop")
        assert shown[0]["desc"] == "weights.safetensors"
        assert shown[0]["length"] == 200
        assert read_end(seen) == "stopped"
        assert len(shown) < 150


def find_children(served) -> list[str]:
    """The processes that the server started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(served.process.pid)], capture_output=True, text=True)
    return found.stdout.split()


def wait_for(condition, seconds: float = 15) -> bool:
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.1)
    return bool(condition())


def test_lines_come_as_they_are_printed():
    program = "import sys, time\nprint('one'); print('two', file=sys.stderr); time.sleep(0.3); print('three')"
    assert [*stream_lines([*SCRIPT, program], threading.Event())] == ["one", "two", "three"]


def test_a_failed_command_is_told_with_its_last_line():
    program = "import sys; print('no disk'); sys.exit(6)"
    with pytest.raises(ConfigError, match="exit code 6: no disk"):
        [*stream_lines([*SCRIPT, program], threading.Event())]


def test_a_command_that_ignores_its_end_is_ended(monkeypatch):
    monkeypatch.setattr("unmask.app.starting.SECONDS_TO_END", 0.5)
    program = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up')\ntime.sleep(60)"
    lines = stream_lines([*SCRIPT, program], threading.Event())
    assert next(lines) == "up"
    started = time.monotonic()
    lines.close()
    assert time.monotonic() - started < 10


def test_a_process_that_ended_is_left_alone():
    child = subprocess.Popen([*SCRIPT, ""])
    child.wait()
    stop_child(child)
    assert child.returncode == 0
