"""A set of pictures is known by its content: order and split survive new names, new places and new pictures."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unmask.data.identity import (
    KEY_BYTES,
    SAMPLED_BYTES,
    SAMPLES,
    choose_held_out,
    hash_encoded,
    hash_picture_file,
    hash_pixels,
    join_keys,
    sort_keys,
)
from unmask.data.pictures import split_share
from unmask.data.sources.folders import Folder


def make_keys(num: int, start: int = 0) -> np.ndarray:
    return join_keys([hash_encoded(str(i).encode()) for i in range(start, start + num)])


@pytest.mark.parametrize("length", [0, 1, SAMPLES * SAMPLED_BYTES, SAMPLES * SAMPLED_BYTES + 1, 50_000])
@pytest.mark.parametrize("whole", [False, True])
def test_a_file_a_part_of_a_file_and_bytes_have_one_key(tmp_path, length, whole):
    data = np.random.default_rng(length).bytes(length)
    (tmp_path / "alone").write_bytes(data)
    (tmp_path / "inside").write_bytes(b"before" + data + b"behind")
    keys = {
        hash_encoded(data, whole=whole),
        hash_encoded(memoryview(data), whole=whole),
        hash_picture_file(tmp_path / "alone", whole=whole),
        hash_picture_file(tmp_path / "inside", 6, length, whole=whole),
    }
    assert len(keys) == 1
    assert len(keys.pop()) == KEY_BYTES


def test_a_key_sees_eight_places_and_the_length_and_a_whole_hash_every_byte():
    data = bytes(30_000)
    for place, seen in ((0, True), (SAMPLED_BYTES - 1, True), (2_000, False), (16_800, True), (29_999, True)):
        other = bytearray(data)
        other[place] = 1
        assert (hash_encoded(bytes(other)) != hash_encoded(data)) == seen, place
        assert hash_encoded(bytes(other), whole=True) != hash_encoded(data, whole=True)
    assert hash_encoded(data[:-1]) != hash_encoded(data)


def test_pixels_of_another_shape_are_another_picture():
    pixels = torch.arange(48, dtype=torch.uint8)
    assert not (hash_pixels(pixels.reshape(1, 3, 4, 4)) == hash_pixels(pixels.reshape(1, 3, 2, 8))).all()


@given(st.lists(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES), max_size=30))
def test_keys_sort_as_bytes_do(keys):
    order = sort_keys(join_keys(keys))
    assert [keys[i] for i in order.tolist()] == sorted(keys)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 0.9), st.integers(0, 5))
def test_more_pictures_move_none(first, more, share, seed):
    before, after = (
        choose_held_out(make_keys(first), share, seed),
        choose_held_out(make_keys(first + more), share, seed),
    )
    moved_out = ~before & after[:first]
    assert not moved_out.any()  # no picture that was trained on is held out later
    if before.sum() > 1:
        assert torch.equal(before, after[:first])


def test_the_share_is_kept_on_average_and_the_seed_chooses():
    keys = make_keys(20_000)
    first, second = choose_held_out(keys, 0.1, 0), choose_held_out(keys, 0.1, 1)
    for held in (first, second):
        assert abs(held.double().mean() - 0.1) < 4 * (0.09 / 20_000) ** 0.5
    assert abs((first & second).double().mean() - 0.01) < 0.005
    assert choose_held_out(keys[:3], 0.0, 0).sum() == 0
    assert all(choose_held_out(keys[i : i + 3], 0.001, 0).sum() == 1 for i in range(20))


def draw(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(value).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.mark.parametrize("on_demand", [False, True])
def test_a_set_under_other_names_elsewhere_is_the_same_set(tmp_path, monkeypatch, on_demand):
    if on_demand:
        monkeypatch.setattr("unmask.data.sources.folders.MAX_IN_MEMORY", 0)
    for i in range(40):
        draw(tmp_path / "here" / f"class{i % 2}" / f"{i:03d}.png", i)
        draw(tmp_path / "there" / f"class{i % 2}" / f"other-{(i * 7) % 40:03d}.png", i)
    here, there = (Folder(path=str(tmp_path / name), size=8).load() for name in ("here", "there"))
    for mine, theirs in ((here.train, there.train), (here.test, there.test)):
        every = torch.arange(len(mine))
        assert torch.equal(mine.read(every), theirs.read(every))
        assert torch.equal(mine.labels, theirs.labels)


def test_pictures_that_are_added_leave_the_held_out_ones_held_out(tmp_path):
    for i in range(60):
        draw(tmp_path / f"{i:03d}.png", i)
    before = Folder(path=str(tmp_path), size=8).load()
    for i in range(60, 90):
        draw(tmp_path / f"a{i:03d}.png", i)  # these come first in the listing
    after = Folder(path=str(tmp_path), size=8).load()
    trained = {image.numpy().tobytes() for image in before.train.pixels}
    held_out = {image.numpy().tobytes() for image in after.test.pixels}
    assert not trained & held_out
    assert {image.numpy().tobytes() for image in before.test.pixels} <= held_out


def test_memory_and_disk_give_the_same_split(tmp_path, monkeypatch):
    for i in range(30):
        draw(tmp_path / f"{i:03d}.png", i)
    memory = Folder(path=str(tmp_path), size=8).load()
    monkeypatch.setattr("unmask.data.sources.folders.MAX_IN_MEMORY", 0)
    disk = Folder(path=str(tmp_path), size=8).load()
    assert torch.equal(memory.test.pixels, disk.test.read(torch.arange(len(disk.test))))
    assert np.array_equal(memory.train.compute_whole_keys(), disk.train.compute_whole_keys())


def test_the_position_still_decides_where_a_run_says_so(tmp_path):
    for i in range(20):
        draw(tmp_path / f"{i:03d}.png", i)
    folder = Folder(path=str(tmp_path), size=8, held_out=0.25, arrange="position")
    loaded = folder.load()
    assert (len(loaded.train), len(loaded.test)) == (15, 5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    listed = torch.cat([loaded.test.pixels, loaded.train.pixels])[order.argsort()]
    whole, _ = split_share(Folder(path=str(tmp_path), size=8, held_out=0.0).load().train, 0.0, 0, "", "position")
    assert sorted(x.numpy().tobytes() for x in listed) == sorted(x.numpy().tobytes() for x in whole.pixels)
    assert np.array_equal(listed[3].permute(1, 2, 0).numpy(), np.asarray(Image.open(tmp_path / "003.png")))


@pytest.mark.parametrize("suffix", ["bmp", "tiff", "png"])
def test_pictures_with_a_plain_border_have_keys_of_their_own(tmp_path, suffix):
    for i in range(60):
        page = np.full((128, 128, 3), 255, np.uint8)
        page[40:88, 40:88] = np.random.default_rng(i).integers(0, 256, (48, 48, 3))
        Image.fromarray(page).save(tmp_path / f"{i:03d}.{suffix}")
    keys = {hash_picture_file(path) for path in tmp_path.iterdir()}
    assert len(keys) == 60
