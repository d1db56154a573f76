"""Foreign weight files are read exactly as `torch.load(weights_only=True)` and safetensors read them."""

import json
import random
import struct
import tempfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import hostile_pickles as pickles
import numpy as np
import pytest
import torch
from hostile_files import DATA, archive, flax_file, legacy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from unmask.errors import CheckpointError, DiskError
from unmask.storage.foreign import reader as foreign
from unmask.storage.foreign.reader import open_foreign, read_foreign
from unmask.storage.foreign.unpacking.archives import open_torch
from unmask.storage.foreign.unpacking.tables import find_table, plan, write_tensors

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WHOLES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
both_formats = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


def save(held: object, path: Path, is_zip: bool = True) -> Path:
    torch.save(held, path, _use_new_zipfile_serialization=is_zip)
    return path


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@st.composite
def tables(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors of any type, some permuted, cut out in rows, shared, or parameters."""
    made: dict[str, torch.Tensor] = {}
    for i in range(draw(st.integers(1, 6))):
        shape = draw(st.lists(st.integers(1, 5), max_size=4))
        dtype = draw(st.sampled_from(FLOATS + WHOLES))
        tensor = torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(dtype)
        tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
        kind = draw(st.sampled_from(["plain", "rows", "shared", "parameter"]))
        if kind == "rows" and tensor.ndim and tensor.is_contiguous():
            tensor = tensor[draw(st.integers(0, len(tensor) - 1)) :]
        if kind == "shared" and made:
            tensor = next(iter(made.values()))
        if kind == "parameter" and dtype in FLOATS:
            tensor = nn.Parameter(tensor)
        made[draw(st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1)) + f".{i}"] = tensor
    return made


@settings(max_examples=100)
@given(tables(), st.booleans(), st.booleans())
def test_any_table_is_read_as_torch_reads_it(made, is_zip, ordered):
    """Compare the reader of the child, run in this process, with torch's own."""
    with tempfile.TemporaryDirectory() as folder:
        path = save({"model": OrderedDict(made) if ordered else made, "epoch": 3}, Path(folder) / "x", is_zip)
        with open(path, "rb") as file, open(Path(folder) / "out", "wb") as out:
            root, parts = open_torch(file, path.stat().st_size)
            copies = plan(find_table(root, None).tensors, parts, 1 << 40)
            write_tensors(file, copies, out)
        wanted, stored = torch.load(path, weights_only=True)["model"], load_file(Path(folder) / "out")
    found = {c.name: stored[c.name].permute([c.order.index(axis) for axis in range(len(c.order))]) for c in copies}
    assert_same(found, wanted)


@both_formats
def test_a_training_checkpoint_is_opened_and_its_optimizer_left_out(tmp_path, is_zip):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    beside = {"iter": 5, "args": Namespace(lr=1e-4, out=Path("/x")), "best": np.float64(0.5)}
    held = {**beside, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    found = read_foreign(save(held, tmp_path / "é x.pth", is_zip))
    assert_same(found.tensors, model.state_dict())
    assert found.opened == ("model_state_dict",)
    assert found.left_out == ("iter", "args", "best", "optimizer_state_dict")
    found.tensors["0.bias"].add_(1)
    assert_same(open_foreign(tmp_path / "é x.pth"), model.state_dict())


@both_formats
def test_states_of_random_generators_beside_the_weights_are_left_out(tmp_path, is_zip):
    """Trainers keep Python's, NumPy's (an array, and generator objects) and torch's, to resume exactly."""
    model = {"a": torch.arange(4.0)}
    states = {
        "python": random.getstate(),
        "numpy": np.random.RandomState(0).get_state(),
        "generator": np.random.default_rng(0),
        "torch": torch.get_rng_state(),
        "losses": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "names": np.array(["x", None], dtype=object),
    }
    found = read_foreign(save({"model": model, "rng": states, **states}, tmp_path / "x.pth", is_zip))
    assert_same(found.tensors, model)
    assert found.left_out == ("rng", *states)


def test_an_array_among_the_weights_is_refused(tmp_path):
    path = save({"model": {"a": torch.ones(2), "b": np.ones(2)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="'b' among the tensors in model"):
        open_foreign(path)


def save_shards(folder: Path, parts: dict[str, dict[str, torch.Tensor]], **changed: str) -> Path:
    """Write safetensors files with their index."""
    for name, tensors in parts.items():
        save_file(tensors, folder / name)
    table = {name: part for part, tensors in parts.items() for name in tensors} | changed
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 40}, "weight_map": table}, indent=2))
    return path


SHARDS = {
    "model-00001-of-00002.safetensors": {"module.a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.bfloat16)},
    "model-00002-of-00002.safetensors": {"c": torch.arange(6).view(2, 3)},
}


def test_a_model_in_several_files_is_read_through_its_index(tmp_path):
    found = open_foreign(save_shards(tmp_path, SHARDS))
    assert_same(
        found, {"a": torch.arange(4.0), **{n: t for part in SHARDS.values() for n, t in part.items() if n in "bc"}}
    )


@pytest.mark.parametrize(("changed", "said"), [
    ({"c": "../model-00002-of-00002.safetensors"}, "give an index of files beside it"),
    ({"c": "/etc/x.safetensors"}, "give an index of files beside it"),
    ({"c": "weights.bin"}, "give an index of files beside it"),
    ({"d": "model-00003-of-00003.safetensors"}, "its part model-00003-of-00003.safetensors is not beside it"),
    ({"d": "model-00002-of-00002.safetensors"}, "1 tensors of model-00002-of-00002.safetensors differ, first d"),
    ({"b": "model-00002-of-00002.safetensors"}, "1 tensors of model-00001-of-00002.safetensors differ, first b"),
])  # fmt: skip
def test_an_index_that_does_not_fit_is_one_line(tmp_path, changed, said):
    with pytest.raises(CheckpointError, match=said) as refused:
        open_foreign(save_shards(tmp_path, SHARDS, **changed))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ['{"weight_map": {}}', '{"weight_map": 3}', '{"a": 1, "a": 2}', "{" * 100_000, "{      "]
)
def test_other_json_is_no_index(tmp_path, text):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text + " " * 9)
    with pytest.raises(CheckpointError, match=r"weight_map|no index"):
        open_foreign(path)


def test_what_lightning_saves_is_opened(tmp_path):
    """The file names callback classes, which `weights_only=True` refuses; the published VQGAN does so too."""
    callback = pickles.name_of("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    callbacks = b"}" + callback + pickles.table(best=pickles.whole(3)) + b"s"
    body = pickles.table(epoch=pickles.whole(1), callbacks=callbacks, state_dict=pickles.table(a=pickles.tensor()))
    for form in (archive, legacy):
        (tmp_path / "last.ckpt").write_bytes(form(body))
        with pytest.raises(Exception, match="ModelCheckpoint"):
            torch.load(tmp_path / "last.ckpt", weights_only=True)
        found = read_foreign(tmp_path / "last.ckpt")
        assert (found.opened, found.left_out) == (("state_dict",), ("epoch", "callbacks"))
        assert_same(found.tensors, {"a": torch.arange(4.0)})


def test_a_container_is_chosen_by_the_caller_where_there_are_several(tmp_path):
    one, two = {"a": torch.zeros(2)}, {"a": torch.ones(2)}
    path = save({"model": one, "ema": two, "x": {"y": {"a": torch.full((2,), 2.0)}}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"model and ema: choose one, container='model'"):
        open_foreign(path)
    assert_same(open_foreign(path, container="ema"), two)
    assert_same(open_foreign(path, container="x/y"), {"a": torch.full((2,), 2.0)})
    with pytest.raises(CheckpointError, match=r"no 'average', but model, ema, x"):
        open_foreign(path, container="average")
    assert_same(open_foreign(save(two, tmp_path / "plain.pt"), container="model"), two)
    save_file(two, tmp_path / "plain.safetensors")
    assert_same(open_foreign(tmp_path / "plain.safetensors", container="model"), two)


def test_prefixes_of_wrappers_are_left_out(tmp_path):
    named = {"module._orig_mod.a": torch.zeros(2), "_orig_mod.module.b": torch.ones(1), "c.module.d": torch.ones(3)}
    assert set(open_foreign(save({"model": {"state_dict": named}}, tmp_path / "x.pt"))) == {"a", "b", "c.module.d"}
    save_file(named, tmp_path / "x.safetensors")
    assert set(open_foreign(tmp_path / "x.safetensors")) == {"a", "b", "c.module.d"}


def test_a_file_is_what_its_bytes_say_and_not_its_name(tmp_path):
    weights = {"a": torch.arange(4.0)}
    save(weights, tmp_path / "x.safetensors")
    save_file(weights, tmp_path / "x.pth")
    save(weights, tmp_path / "x.msgpack", False)
    (tmp_path / "x.ckpt").write_bytes(flax_file())
    for name in ("x.safetensors", "x.pth", "x.msgpack"):
        assert_same(open_foreign(tmp_path / name), weights)
    assert_same(open_foreign(tmp_path / "x.ckpt"), {"a": torch.arange(4.0), "b": torch.arange(4.0)})


def test_a_header_that_begins_as_a_pickle_is_one_of_safetensors(tmp_path):
    raw = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode().ljust(0x0280)
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(raw)) + raw + DATA)
    assert (tmp_path / "x").read_bytes()[:2] == b"\x80\x02"
    assert_same(open_foreign(tmp_path / "x"), {"a": torch.arange(4.0)})


def test_checksums_are_verified_unless_there_are_none(tmp_path):
    weights = {"a": torch.arange(1000.0), "rows": torch.arange(1000.0)[10:]}
    save(weights, tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    at = whole.index(weights["a"].numpy().tobytes())
    for offset in range(0, 4000, 397):
        (tmp_path / "y.pth").write_bytes(whole[: at + offset] + b"\x55" + whole[at + offset + 1 :])
        with pytest.raises(CheckpointError, match="holds a damaged: its checksum differs"):
            open_foreign(tmp_path / "y.pth")
    torch.serialization.set_crc32_options(False)
    try:
        save(weights, tmp_path / "z.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(open_foreign(tmp_path / "z.pth"), weights)


def test_a_member_marked_as_a_folder_is_read_from_the_file(tmp_path):
    """For such a one `torch.load` returns, without a word, what happened to be in memory."""
    marked = bytearray(archive(pickles.table(a=pickles.tensor())))
    entry = marked.index(b"x/data/0", marked.index(b"PK\1\2")) - 46
    marked[entry + 38] |= 0x10
    (tmp_path / "x.pth").write_bytes(marked)
    assert_same(open_foreign(tmp_path / "x.pth"), {"a": torch.arange(4.0)})


def test_a_file_of_more_than_4_gib_has_its_places_in_wide_fields(tmp_path):
    """Return the directory of a sparse archive whose numbers begin beyond 4 GiB."""

    body = pickles.pickled(pickles.table(a=pickles.tensor()))

    def member(name: bytes, data: bytes, header: int) -> tuple[bytes, bytes]:
        local = b"PK\3\4" + struct.pack("<5H3I2H", 45, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name + data
        extra = struct.pack("<2HQ", 1, 8, header)
        sizes = struct.pack("<3I", 0, len(data), len(data))
        fixed = b"PK\1\2" + struct.pack("<6H", 45, 45, 0, 0, 0, 0) + sizes
        return local, fixed + struct.pack("<5H2I", len(name), len(extra), 0, 0, 0, 0, 0xFFFFFFFF) + name + extra

    first, listed = member(b"x/data.pkl", body, 0)
    place = len(first) + (5 << 30)
    second, listed2 = member(b"x/data/0", DATA, place)
    directory, start = listed + listed2, place + len(second)
    end = start + len(directory)
    record = b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 2, 2, len(directory), start)
    tail = record + b"PK\6\7" + struct.pack("<IQI", 0, end, 1) + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 2, 2, 0, 0, 0)
    with open(tmp_path / "wide", "w+b") as file:  # with a hole of 5 GiB, which takes no room
        file.write(first)
        file.seek(place)
        file.write(second + directory + tail)
        size = file.tell()
        root, parts = open_torch(file, size)
        assert (parts["0"].start, parts["0"].size) == (place + 38, 16)
    assert plan(root, parts, size)[0].part == parts["0"]
    assert_same(open_foreign(tmp_path / "wide"), {"a": torch.arange(4.0)})


@pytest.mark.parametrize(
    ("program", "patience", "error", "said"),
    [
        ("import time; time.sleep(60)", 0.3, CheckpointError, "could not be read in 0 s; get the file again"),
        ("import os; os.abort()", 60, CheckpointError, r"ended with status -6"),
        ("raise SystemExit('why')", 60, CheckpointError, r"ended with status 1: why"),
        ("pass", 60, CheckpointError, r"ended with status 0: nothing"),
        (
            'import sys; open(sys.argv[4], \'w\').write(\'{"refused": "No space left on device", "errno": 28}\')',
            60,
            DiskError,
            r"No space left on device; free room for a copy, or set TMPDIR",
        ),
    ],
)
def test_a_child_that_hangs_dies_or_has_no_room_is_one_line(tmp_path, monkeypatch, program, patience, error, said):
    path = save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    monkeypatch.setattr(foreign, "PROGRAM", program)
    monkeypatch.setattr(foreign, "PATIENCE", patience)
    with pytest.raises(error, match=said) as caught:
        open_foreign(path)
    assert "\n" not in str(caught.value)


def test_the_child_is_told_no_secrets_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "private"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("HF_TOKEN", "secret")
    (tmp_path / "private").mkdir()
    path = save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    kept = open_foreign(path)
    assert list((tmp_path / "private").iterdir()) == []
    assert_same(kept, {"a": torch.zeros(1)})
    monkeypatch.setattr(foreign, "PROGRAM", "import os, sys; sys.exit(' '.join(os.environ))")
    with pytest.raises(CheckpointError) as caught:
        open_foreign(path)
    assert "HF_TOKEN" not in str(caught.value)
