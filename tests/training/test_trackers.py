"""Trackers, each with its real package and offline: numbers, pictures, texts, the configuration, and resuming."""

import json
import struct
import sys

import pytest
from PIL import Image

from unmask.errors import ConfigError
from unmask.storage.layout import CONFIG, TRACKER_ID
from unmask.training.log import TrainLog

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages warn of themselves


def train_twice(run, tracker):
    """Log steps 1 to 3, stop, and resume at step 2, as after a kill between two checkpoints."""
    run.mkdir()
    (run / CONFIG).write_text(json.dumps({"seed": 7, "model": {"depth": 12}}))
    for start in (0, 2):
        with TrainLog(run, steps=4, start=start, tracker=tracker) as log:
            for step in range(start + 1, start + 4 if not start else 5):
                log.record(step, {"loss": 1 / step})
            log.save_picture(step, "samples", Image.new("L", (8, 6), 200))
            log.save_text(step, "text", "to be <or> not")


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'unmask[logging]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_twice(tmp_path / "run", "tensorboard")
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert [(event.step, round(event.value, 4)) for event in found.Scalars("loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 0.3333),
        (4, 0.25),
    ]
    (picture,) = [event for event in found.Images("samples") if event.step == 4]
    assert (picture.width, picture.height) == (8, 6)
    texts = {tag: found.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0] for tag in ("text", "config")}
    assert b"to be <or> not" in texts["text"]
    assert b'"depth": 12' in texts["config"]


def read_records(data):
    """Yield the records of a .wandb file: LevelDB's log, blocks of 32 KiB with pieces of crc, length and type."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = (1 << 15) - at % (1 << 15)
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def read_wandb(folder):
    """Return the records of an offline run: those of its history, its configuration, and its id."""
    from wandb.proto import wandb_internal_pb2

    history, config, identity = [], {}, ""
    (path,) = folder.glob("run-*.wandb")
    for data in read_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            identity = record.run.run_id
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.WhichOneof("record_type") == "history":
            row = {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            history.append(row)
    return history, config, identity


def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb: pip install 'unmask[logging]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    train_twice(run, "wandb")
    first, second = [read_wandb(folder) for folder in sorted((run / "wandb").glob("offline-run-*"))]
    assert first[2] == second[2] == (run / TRACKER_ID).read_text().strip()
    for history, config, _ in (first, second):
        assert (config["seed"], config["model"]["depth"]) == (7, 12)
        pictures = [row for row in history if "samples._type" in row]
        assert [(row["samples.width"], row["samples.height"]) for row in pictures] == [(8, 6)]
        assert [row["text._type"] for row in pictures] == ["html-file"]
    steps = [[(row["_step"], row["loss"]) for row in history if "loss" in row] for history, *_ in (first, second)]
    assert steps == [[(1, 1.0), (2, 1 / 2), (3, 1 / 3)], [(3, 1 / 3), (4, 1 / 4)]]


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="needs trackio: pip install 'unmask[logging]'")
    from trackio.sqlite_storage import SQLiteStorage

    run = tmp_path / "run"
    train_twice(run, "trackio")
    name = f"run-{(run / TRACKER_ID).read_text().strip()}"
    assert SQLiteStorage.get_runs("unmask") == [name]
    rows = SQLiteStorage.get_logs("unmask", name)
    assert {(row["step"], row["loss"]) for row in rows if "loss" in row} == {(n, 1 / n) for n in range(1, 5)}
    assert [row["text"]["_value"] for row in rows if "text" in row] == ["```\nto be <or> not\n```"] * 2
    assert all(row["samples"]["_type"] == "trackio.image" for row in rows if "samples" in row)
    config = SQLiteStorage.get_run_config("unmask", name)
    assert (config["seed"], config["model"]["depth"]) == (7, 12)


@pytest.mark.parametrize(("tracker", "module"), [("tensorboard", "tensorboard"), ("wandb", "wandb"),
                                                 ("trackio", "trackio")])  # fmt: skip
def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch, tracker, module):
    for name in [name for name in sys.modules if name.partition(".")[0] == module or ".tensorboard" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"tracker {tracker} needs .*pip install 'unmask\[logging\]'"):
        TrainLog(tmp_path, steps=1, tracker=tracker)


def test_another_run_has_another_id(tmp_path, monkeypatch):
    from unmask.training.trackers import _find_identity

    first, again, other = _find_identity(tmp_path / "a"), _find_identity(tmp_path / "a"), _find_identity(tmp_path / "b")
    assert first == again != other
