"""A file of a model that changed after it was written is refused in one line, at the cost of reading it once."""

import json

import pytest
import torch

from unmask.errors import CheckpointError
from unmask.storage import manifest
from unmask.storage.files import hash_file
from unmask.storage.manifest import (
    begin_files,
    list_unchanged,
    read_records,
    record_files,
    update_record,
    verify_recorded,
)
from unmask.storage.weights import read_sealed, write_sealed


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (tmp_path / "config.json").write_text('{"kind": "image-recipe", "model": {"dim": 16}, "data": {"path": "a"}}')
    record_files(tmp_path, ["model.safetensors", "config.json"])
    return tmp_path


def refuse(folder, name):
    with pytest.raises(CheckpointError) as caught:
        verify_recorded(folder, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_zeroed_page_is_refused_and_the_file_is_named(folder):
    verify_recorded(folder, "model.safetensors")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[4096:8192] = bytes(4096)
    (folder / "model.safetensors").write_bytes(data)
    said = refuse(folder, "model.safetensors")
    assert str(folder / "model.safetensors") in said
    assert "delete manifest.json to accept" in said
    (folder / "manifest.json").unlink()
    verify_recorded(folder, "model.safetensors")


@pytest.mark.parametrize("at", [0, 1, 5000, 16383])
def test_each_flipped_bit_is_found(folder, at):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[at] ^= 8
    (folder / "model.safetensors").write_bytes(data)
    refuse(folder, "model.safetensors")


def test_a_file_is_hashed_once_in_a_process(folder, monkeypatch):
    hashed = []
    monkeypatch.setattr(manifest, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    for _ in range(3):
        verify_recorded(folder, "model.safetensors")
    assert len(hashed) == 1


def test_config_and_weights_are_tied_but_data_may_move(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "data": {"path": "elsewhere"}}, indent=4))
    verify_recorded(folder, "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "model": {"dim": 17}}))
    assert "config.json" in refuse(folder, "config.json")
    update_record(folder, "config.json")
    verify_recorded(folder, "config.json")
    (folder / "config.json").write_text("{")
    refuse(folder, "config.json")


def test_an_unfinished_folder_is_said_to_be_so(folder):
    begin_files(folder, ["model.safetensors"])
    assert "unfinished" in refuse(folder, "model.safetensors")
    assert list_unchanged(folder) == {"model.safetensors"}
    begin_files(folder, ["model.safetensors"], finished=["config.json"])
    refuse(folder, "model.safetensors")
    verify_recorded(folder, "config.json")


def test_a_folder_of_an_earlier_version_is_read_without_verification(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"any")
    verify_recorded(tmp_path, "model.safetensors")
    update_record(tmp_path, "model.safetensors")
    assert read_records(tmp_path) is None
    assert list_unchanged(tmp_path) == set()


@pytest.mark.parametrize(("old", "new"), [('"bytes": 16384', '"bytes": 16385'), ("{", "["), ('"format"', '"formal"')])
def test_a_damaged_manifest_is_refused(folder, old, new):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace(old, new))
    assert str(path) in refuse(folder, "model.safetensors")


def test_a_link_is_verified_where_it_leads(folder, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    (results / "model.safetensors").symlink_to(folder / "model.safetensors")
    verify_recorded(results, "model.safetensors")
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(100)
        file.write(b"xxxx")
    refuse(results, "model.safetensors")


def test_every_flip_in_sealed_statistics_is_found(tmp_path):
    path = tmp_path / "reference.safetensors"
    tensors = {"train": torch.arange(12.0, dtype=torch.float64).view(3, 4), "index": torch.arange(3)}
    write_sealed(tensors, path, {"key": '{"a": 1}'})
    found, facts = read_sealed(path)
    assert facts == {"key": '{"a": 1}'}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    whole = path.read_bytes()
    silent = []
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            found, facts = read_sealed(path)
        except CheckpointError:
            continue
        same = facts.get("key") == '{"a": 1}' and all(torch.equal(found[n], tensors[n]) for n in tensors if n in found)
        silent += [] if same and found.keys() == tensors.keys() else [at]
    assert silent == []
