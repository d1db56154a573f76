"""What the server remembers of pages is bounded: in number, in time, and in bytes; also on the disk."""

import os
import time
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs gradio (the extra app)")

import torch

from unmask.app.sessions import Sessions, measure_bytes
from unmask.app.studio import prune_folder
from unmask.app.watching import MOST_FRAMES, Recording, check_batch
from unmask.errors import ConfigError, ShortageError


def test_the_page_that_was_idle_longest_is_forgotten(tmp_path):
    sessions = Sessions(most=2)
    first, _ = sessions.find("a"), sessions.find("b")
    first.results["generate"] = 1
    first.folder = tmp_path / "a"
    first.folder.mkdir()
    sessions.find("a")
    sessions.find("c")
    assert sessions.find("a") is first
    sessions.find("d")
    sessions.find("e")
    assert first.stop.is_set()
    assert first.results == {}
    assert not (tmp_path / "a").exists()
    assert sessions.find("a") is not first


def test_a_page_is_forgotten_after_an_idle_time():
    sessions = Sessions(idle=0.05)
    first = sessions.find("a")
    assert sessions.find("a") is first
    time.sleep(0.1)
    sessions.find("b")
    assert first.stop.is_set()


def test_a_page_whose_job_runs_is_not_idle():
    sessions = Sessions(idle=0.01)
    first = sessions.find("a")
    with first.run_job():
        time.sleep(0.05)
        sessions.find("b")
        assert not first.stop.is_set()
    sessions.find("b")
    assert first.stop.is_set()


def test_results_are_bounded_in_bytes():
    sessions = Sessions(kept=100)
    for name in "abc":
        sessions.find(name).results["generate"] = SimpleNamespace(num_bytes=40)
    kept = sessions.find("c")
    assert [bool(sessions.find(name).results) for name in "abc"] == [False, True, True]
    assert kept.results


def test_bytes_of_a_recording_are_those_of_its_images_and_tensors():
    recording = Recording(grid=(2, 2), has_cells=True, columns=1)
    assert recording.num_bytes == 0
    recording.frames.append(Image.new("RGB", (10, 20)))
    recording.tokens.append(torch.zeros(1, 4, dtype=torch.int64))
    recording.masked.append(torch.zeros(1, 4, dtype=torch.bool))
    assert recording.num_bytes == 10 * 20 * 3 + 4 * 8 + 4
    assert measure_bytes({"a": [recording, (recording,)], "b": "text"}) == 2 * recording.num_bytes


def pipeline(side: int):
    model = SimpleNamespace(length=4, vocab_size=4)
    return SimpleNamespace(model=model, device=torch.device("cpu"), tokenizer=SimpleNamespace(size=(side, side)))


def test_the_canvases_of_one_sampling_are_bounded():
    check = getattr(check_batch, "__wrapped__", check_batch)  # a stand-in is no Pipeline
    for num in range(1, 17):
        check(pipeline(8), num, 256)
    check(pipeline(512), 4, 64)
    with pytest.raises(ShortageError, match=r"256 steps of 16 images take .* take fewer steps or images"):
        check(pipeline(512), 16, 256)
    assert Sessions()._kept > MOST_FRAMES


def test_one_job_a_page():
    session = Sessions().find("a")
    with session.run_job(), pytest.raises(ConfigError, match="already runs a job"), session.run_job():
        pass
    with session.run_job():
        pass


def test_the_oldest_files_go(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        path = tmp_path / name
        path.write_bytes(bytes(100))
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "link").symlink_to(tmp_path / "old")
    prune_folder(tmp_path, 250)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"new", "middle"}
    prune_folder(tmp_path, 0)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
