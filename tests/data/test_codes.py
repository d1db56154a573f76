"""Codes on the disk: what is written comes back, damage is named, and a large set is read in little memory."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.shards import dataset as codes
from unmask.data.shards.dataset import (
    META,
    Meta,
    Shard,
    TokenShards,
    check_tokenizer,
    choose_token_type,
    finish_dataset,
    is_sound,
    open_token_dataset,
    write_shard,
)
from unmask.data.tokens import Batches, Tokens
from unmask.errors import ConfigError, DataError, DiskError
from unmask.storage.config import to_json, write_json

CPU = torch.device("cpu")
HASH = "0123456789abcdef" * 4


def make(folder, rows=(3, 4), test=(2,), views=("center", "flip"), grid=(2, 3), vocab_size=100, classes=5, seed=0):
    """A finished folder; also all its codes and labels, part by part, as arrays."""
    dice, arrays, shards = np.random.default_rng(seed), {}, {}
    for part, sizes in (("train", rows), ("test", test)):
        found = []
        for number, size in enumerate(sizes):
            shape = (size, len(views), int(np.prod(grid)))
            tokens = dice.integers(vocab_size, size=shape).astype(choose_token_type(vocab_size))
            labels = dice.integers(classes, size=size).astype(np.int32) if classes else None
            found.append((write_shard(folder, f"{part}-{number:05d}", tokens, labels), tokens, labels))
        shards[part] = tuple(shard for shard, _, _ in found)
        arrays[part] = (
            np.concatenate([t for _, t, _ in found]) if found else None,
            np.concatenate([x for _, _, x in found]) if found and classes else None,
        )
    names = tuple(f"class {i}" for i in range(classes))
    meta = Meta(tokenizer=HASH, vocab_size=vocab_size, grid=grid, views=views, classes=names, source="{}", **shards)
    finish_dataset(folder, meta)
    return meta, arrays


@pytest.fixture
def folder(tmp_path):
    make(tmp_path)
    return tmp_path


# -- what is written comes back ----------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(data=st.data())
def test_rows_are_what_was_written(tmp_path_factory, data):
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
    vocab_size = data.draw(st.sampled_from([1, 2, 65535, 65536, 65537, 2**31 - 1]))
    num = data.draw(st.integers(1, 3))
    folder = tmp_path_factory.mktemp("codes")
    meta, arrays = make(
        folder,
        rows=sizes,
        test=data.draw(st.sampled_from([(), (0,), (2, 1)])),
        views=("center", "flip", "crop-0")[:num],
        grid=data.draw(st.sampled_from([(1,), (2, 3), (2, 1, 2)])),
        vocab_size=vocab_size,
        classes=data.draw(st.sampled_from([0, 3])),
    )
    read, train, test = open_token_dataset(folder)
    assert read == meta
    assert isinstance(train, Tokens)
    tokens, labels = arrays["train"]
    assert len(train) == len(tokens) == sum(sizes)
    index = data.draw(st.lists(st.integers(0, len(train) - 1), max_size=12))
    view = data.draw(st.lists(st.integers(0, num - 1), min_size=len(index), max_size=len(index)))
    inside = data.draw(st.floats(0, 0.999))
    u = torch.tensor([(v + inside) / num for v in view], dtype=torch.float64)
    found, condition = train.read_rows(torch.tensor(index, dtype=torch.int64), CPU, u)
    assert found.dtype == torch.int64
    assert found.tolist() == [tokens[i, v].tolist() for i, v in zip(index, view, strict=True)]
    assert (condition is None) == (labels is None)
    if labels is not None:
        assert condition.dtype == torch.int64
        assert condition.tolist() == [labels[i] for i in index]
    if test is not None:
        assert np.array_equal(test.read_rows(torch.arange(3), CPU)[0].numpy(), arrays["test"][0][:, 0])
    else:
        assert not sum(shard.rows for shard in meta.test)


def test_without_noise_it_is_the_first_view_and_noise_just_below_one_the_last(tmp_path):
    _, arrays = make(tmp_path, views=("center", "flip", "crop-0"))
    train = open_token_dataset(tmp_path)[1]
    index = torch.arange(len(train))
    assert np.array_equal(train.read_rows(index, CPU)[0].numpy(), arrays["train"][0][:, 0])
    for u, view in ((0.0, 0), (1 / 3 - 1e-9, 0), (1 / 3 + 1e-9, 1), (1 - 2**-53, 2)):
        found = train.read_rows(index, CPU, torch.full((len(index),), u, dtype=torch.float64))[0]
        assert np.array_equal(found.numpy(), arrays["train"][0][:, view])
    # In single precision u * 3 may round up to 3.
    found = train.read_rows(index, CPU, torch.full((len(index),), 1 - 2**-24))[0]
    assert np.array_equal(found.numpy(), arrays["train"][0][:, 2])


@pytest.mark.parametrize("vocab_size", [65535, 65536, 65537])
def test_the_type_holds_every_code(vocab_size):
    assert np.iinfo(choose_token_type(vocab_size)).max >= vocab_size - 1
    assert choose_token_type(vocab_size).itemsize == (2 if vocab_size <= 65536 else 4)


def test_rows_beyond_the_end_are_refused(folder):
    train = open_token_dataset(folder)[1]
    for wrong in (-1, len(train)):
        with pytest.raises(IndexError, match=str(wrong)):
            train.read_rows(torch.tensor([0, wrong]), CPU)


def test_the_same_content_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 7
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_any_number_of_shards_holds_a_bounded_number_of_files_open(tmp_path, monkeypatch):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here: open files cannot be counted")
    monkeypatch.setattr(codes, "OPEN_MAPS", 3)
    make(tmp_path, rows=(2,) * 20, test=())
    before = len(os.listdir("/proc/self/fd"))
    train = open_token_dataset(tmp_path)[1]
    expected = np.load(tmp_path / "train-00019.tokens.npy")[1, 0].tolist()
    for _ in range(3):
        assert train.read_rows(torch.arange(40), CPU)[0][-1].tolist() == expected
    assert len(os.listdir("/proc/self/fd")) <= before + 3


# -- as batches --------------------------------------------------------------------------------------------------------


def test_the_view_does_not_depend_on_the_cut_of_the_batch(folder):
    train = open_token_dataset(folder)[1]
    for step in range(5):
        tokens, labels = Batches(train, 12, 3, CPU)(step, torch.arange(12))
        parts = [Batches(train, 12, 3, CPU)(step, torch.arange(12)[start::5]) for start in range(5)]
        for start, (some, condition) in enumerate(parts):
            assert torch.equal(some, tokens[start::5])
            assert torch.equal(condition, labels[start::5])


def test_views_are_drawn_evenly_and_anew_in_each_epoch(tmp_path):
    """Row i's view v is the code v: chi-squared of 3 views with 2 degrees of freedom below its 99.9 % point."""
    views = ("center", "flip", "crop-0")
    tokens = np.tile(np.arange(3, dtype=np.uint16)[None, :, None], (500, 1, 1))
    shard = write_shard(tmp_path, "train-00000", tokens, None)
    meta = Meta(tokenizer=HASH, vocab_size=3, grid=(1,), views=views, classes=(), source="{}", train=(shard,), test=())
    train = TokenShards(tmp_path, meta, meta.train)
    batches = Batches(train, 500, 0, CPU)
    drawn = torch.stack([batches(step, torch.arange(500))[0][:, 0] for step in range(4)])
    counts = drawn.flatten().bincount(minlength=3).double()
    assert float(((counts - 2000 / 3) ** 2 / (2000 / 3)).sum()) < 13.8
    assert len({tuple(epoch.tolist()) for epoch in drawn}) == 4
    other = torch.stack([Batches(train, 500, 1, CPU)(step, torch.arange(500))[0][:, 0] for step in range(4)])
    assert not torch.equal(drawn, other)


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_folder_without_meta_is_not_finished(folder):
    (folder / META).unlink()
    with pytest.raises(DataError, match="holds no tokens: make them"):
        open_token_dataset(folder)
    (folder / "plan.json").touch()
    with pytest.raises(DataError, match="not finished: run the same unmask tokenize command again"):
        open_token_dataset(folder)
    with pytest.raises(DataError, match="no such folder"):
        open_token_dataset(folder / "nothing")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "unmask-codes-2"}', "\x00"])
def test_a_foreign_meta_is_refused(folder, text):
    (folder / META).write_text(text)
    with pytest.raises(DataError, match=r"meta\.json is damaged or of another version"):
        open_token_dataset(folder)


def test_a_meta_of_the_next_version_is_refused(folder):
    body = json.loads((folder / META).read_text())
    write_json(folder / META, {**body, "format": "unmask-codes-2"})
    with pytest.raises(DataError, match="unmask-codes-2"):
        open_token_dataset(folder)


@pytest.mark.parametrize("file", ["train-00001.tokens.npy", "train-00000.labels.npy", "test-00000.tokens.npy"])
def test_a_shard_that_is_missing_renamed_or_cut_is_named(folder, file):
    body = (folder / file).read_bytes()
    (folder / file).rename(folder / "elsewhere.npy")
    with pytest.raises(DataError, match=f"{file} is missing"):
        open_token_dataset(folder)
    for size in range(len(body)):
        (folder / file).write_bytes(body[:size])
        with pytest.raises(DataError, match=file):
            open_token_dataset(folder)
    (folder / file).write_bytes(body + b"\0")
    with pytest.raises(DataError, match=rf"{file} has {len(body) + 1} bytes instead of {len(body)}"):
        open_token_dataset(folder)
    (folder / file).write_bytes(body)
    open_token_dataset(folder)


def test_swapped_shards_are_refused(folder):
    one, two = (folder / f"train-0000{i}.tokens.npy" for i in range(2))
    one.rename(folder / "x")
    two.rename(one)
    (folder / "x").rename(two)
    with pytest.raises(
        DataError, match=r"train-00000\.tokens\.npy is damaged or another.* not hold uint16 \(3, 2, 6\)"
    ):
        open_token_dataset(folder)


def test_a_damaged_header_is_refused_or_harmless(folder):
    path = folder / "train-00000.tokens.npy"
    sound = path.read_bytes()
    expected = open_token_dataset(folder)[1].read_rows(torch.arange(7), CPU)[0]
    tried = refused = 0
    for place in range(128):
        for byte in {0, 32, 48, 125, sound[place] ^ 1} - {sound[place]}:
            path.write_bytes(sound[:place] + bytes([byte]) + sound[place + 1 :])
            try:
                found = open_token_dataset(folder)[1].read_rows(torch.arange(7), CPU)[0]
            except DataError as error:
                refused += path.name in str(error) and "\n" not in str(error)
            else:
                assert torch.equal(found, expected)
                assert sound[place] in b" \n"  # white space of the padding, for another
                refused += 1
            tried += 1
    assert refused == tried


@pytest.mark.parametrize(("vocab_size", "wrong"), [(100, 100), (100, 65535), (70000, 70000), (70000, -1)])
def test_a_code_outside_the_vocabulary_is_refused_when_it_is_read(tmp_path, vocab_size, wrong):
    make(tmp_path, vocab_size=vocab_size)
    path = tmp_path / "train-00001.tokens.npy"
    array = np.load(path)
    array[2, 1, 3] = wrong
    np.save(path, array)
    train = open_token_dataset(tmp_path)[1]
    index = torch.arange(7)
    train.read_rows(index, CPU)  # the other view is sound
    with pytest.raises(DataError, match=rf"train-00001\.tokens\.npy is damaged.*of a vocabulary of {vocab_size}"):
        train.read_rows(index, CPU, torch.full((7,), 0.5))


@pytest.mark.parametrize("wrong", [-1, 5])
def test_a_label_without_a_class_is_refused(folder, wrong):
    path = folder / "train-00001.labels.npy"
    array = np.load(path)
    array[-1] = wrong
    np.save(path, array)
    with pytest.raises(DataError, match=r"train-00001\.labels\.npy is damaged: its labels span .* of 5 classes"):
        open_token_dataset(folder)


def test_a_flipped_bit_is_not_sound(folder):
    meta = open_token_dataset(folder)[0]
    for file in ("train-00000.tokens.npy", "train-00000.labels.npy"):
        body = (folder / file).read_bytes()
        assert is_sound(folder, meta.train[0])
        (folder / file).write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
        assert not is_sound(folder, meta.train[0])
        (folder / file).unlink()
        assert not is_sound(folder, meta.train[0])
        (folder / file).write_bytes(body)


def test_finish_refuses_what_could_not_be_opened(folder):
    meta = open_token_dataset(folder)[0]
    (folder / META).unlink()
    (folder / "test-00000.labels.npy").unlink()
    with pytest.raises(DataError, match="test-00000"):
        finish_dataset(folder, meta)
    with pytest.raises(DataError, match="no training tokens"):
        finish_dataset(folder, replace(meta, train=(), test=()))
    assert not (folder / META).exists()


def test_another_tokenizer_is_refused_by_both_names(folder):
    meta = open_token_dataset(folder)[0]
    check_tokenizer(meta, HASH)
    with pytest.raises(DataError, match=r"made by tokenizer 0123456789ab, but this one is ffffffffffff"):
        check_tokenizer(meta, "f" * 64)


SHARD = {"file": "train-00000.tokens.npy", "rows": 1, "sha256": HASH, "labels": HASH}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../train-00000.tokens.npy"}, "not the name of a shard"),
        ({"file": "train-00000.labels.npy"}, "not the name of a shard"),
        ({"rows": -1}, "-1 rows"),
        ({"sha256": "abc"}, "'abc' is not a sha256"),
        ({"labels": HASH.upper()}, "is not a sha256"),
    ],
)
def test_impossible_shards_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Shard(**{**SHARD, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "abc"}, "'abc'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": 2**31}, "vocab_size is 2147483648"),
        ({"grid": ()}, "grid"),
        ({"grid": (4, 0)}, r"\(4, 0\)"),
        ({"views": ()}, "at least one"),
        ({"views": ("a", "a")}, "each once"),
        ({"classes": ()}, "labels if, and only if"),
        ({"test": (Shard(**SHARD),)}, "twice"),
    ],
)
def test_impossible_metas_are_refused(change, message):
    good = {"vocab_size": 4, "grid": (2,), "views": ("a",), "classes": ("x",), "source": "", "test": ()}
    good |= {"tokenizer": HASH, "train": (Shard(**SHARD),)}
    assert to_json(Meta(**good))["format"] == "unmask-codes-1"
    with pytest.raises(ConfigError, match=message):
        Meta(**{**good, **change})


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_shard_that_cannot_be_written_is_not_there(tmp_path, monkeypatch, call):
    def fails(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(codes.os, call, fails)
    with pytest.raises(DiskError, match=r"train-00000.*No space left.*run the same command again"):
        write_shard(tmp_path, "train-00000", np.zeros((3, 1, 2), np.uint16), np.zeros(3, np.int32))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith("tokens.npy")] == []
    assert [path.name for path in tmp_path.iterdir() if ".tmp-" in path.name] == []


def test_a_shard_larger_than_the_disk_takes_is_not_there(tmp_path):
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from unmask.data.shards.dataset import write_shard
from unmask.errors import DiskError
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
write_shard(Path(sys.argv[1]), "train-00000", np.zeros((2, 1, 64), np.uint16), np.zeros(2, np.int32))
try:
    write_shard(Path(sys.argv[1]), "train-00001", np.zeros((200, 1, 64), np.uint16), np.zeros(200, np.int32))
except DiskError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "train-00001.tokens.npy") in done.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"train-00000.tokens.npy", "train-00000.labels.npy", "train-00001.labels.npy"}


# -- memory ------------------------------------------------------------------------------------------------------------


SHARDS, SHARD_ROWS, LENGTH = 313, 4096, 256  # 1.28 million pictures of 16 x 16 codes


def test_a_million_pictures_are_read_in_little_memory(tmp_path):
    """Sparse files of 1.3 GB, two views: 200 batches of 1,024 random rows add less than 512 MiB to the peak."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("no /proc here: the peak of resident memory cannot be read")
    shards = []
    for number in range(SHARDS):
        name = f"train-{number:05d}"
        np.lib.format.open_memmap(
            tmp_path / f"{name}.tokens.npy", mode="w+", dtype=np.uint16, shape=(SHARD_ROWS, 2, LENGTH)
        )
        np.lib.format.open_memmap(tmp_path / f"{name}.labels.npy", mode="w+", dtype=np.int32, shape=(SHARD_ROWS,))
        shards.append(Shard(file=f"{name}.tokens.npy", rows=SHARD_ROWS, sha256=HASH, labels=HASH))
    classes = tuple(str(i) for i in range(1000))
    meta = Meta(
        tokenizer=HASH,
        vocab_size=16384,
        grid=(16, 16),
        views=("center", "flip"),
        classes=classes,
        source="{}",
        train=tuple(shards),
        test=(),
    )
    write_json(tmp_path / META, meta)
    code = """
import sys, time, torch
from unmask.data.shards.dataset import open_token_dataset
from unmask.data.tokens import Batches
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
torch.set_num_threads(1)
before, began = peak(), time.perf_counter()
train = open_token_dataset(sys.argv[1])[1]
batches, rows, seen = Batches(train, 1024, 0, torch.device("cpu")), torch.arange(1024), 0
for step in range(200):
    tokens, labels = batches(step, rows)
    seen += tokens.shape[0] * (int(tokens.max()) == 0)
print(seen, before, peak(), time.perf_counter() - began)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen, before, after, seconds = map(float, done.stdout.split())
    assert seen == 200 * 1024
    assert after - before < 512, f"{before:.0f} -> {after:.0f} MiB in {seconds:.1f} s"
    assert after < 2048
