"""Pictures that are read when asked for, against Pillow alone and against the same pictures in memory."""

import contextlib
import io
import json
import pickle
import tarfile
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from unmask.data.augment import PictureSet
from unmask.data.image_files import Unreadable
from unmask.data.images import Images
from unmask.data.pictures import Files, Pictures, hash_pictures, read_all, split
from unmask.data.sources import folders
from unmask.data.sources import webdataset as shards
from unmask.data.sources.folders import list_files, read_folder
from unmask.data.sources.webdataset import Members, Shards, read_shards
from unmask.errors import ConfigError, DataError

SIZE = (12, 10)


def encoded(seed: int, kind: str = "PNG", size: tuple[int, int] = (23, 17), frames: int = 1) -> bytes:
    array = np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    first, *rest = [Image.fromarray(frame) for frame in array]
    buffer = io.BytesIO()
    first.save(buffer, kind, **({"save_all": True, "append_images": rest} if rest else {}))
    return buffer.getvalue()


def by_pillow(data: bytes, size: tuple[int, int] = SIZE) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)).transpose(2, 0, 1)


def write_files(root: Path, contents: list[bytes]) -> Files:
    for i, data in enumerate(contents):
        (root / f"{i:03d}.png").write_bytes(data)
    paths = tuple(str(root / f"{i:03d}.png") for i in range(len(contents)))
    labels = torch.arange(len(contents)) % 2
    return Files(paths=paths, labels=labels, classes=("even", "odd"), size=SIZE, channels=3)


def write_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read_tar(path: Path, size: tuple[int, int] = SIZE) -> tuple[Members, dict[str, str]]:
    pictures, bad, _ = read_shards([str(path)], size, 3)
    said = {b.path.removeprefix(f"{path}, ") if b.path != str(path) else "": b.reason for b in bad}
    assert len(said) == len(bad)
    return pictures, said


# -- what all of them do --


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> tuple[list[bytes], dict[str, Pictures]]:
    """Thirty pictures as files, as members of two shards, as rows, and in memory."""
    datasets = pytest.importorskip("datasets", reason="rows of a data set: pip install 'unmask[data]'")
    from unmask.data.sources.hub import to_rows

    root = tmp_path_factory.mktemp("kinds")
    data = [encoded(i, size=(11 + i, 40 - i)) for i in range(30)]
    files = write_files(root, data)
    tars = []
    for k in range(2):
        members: dict[str, bytes | tarfile.TarInfo] = {}
        for i in range(15 * k, 15 * k + 15):
            members |= {f"{i:03d}.png": data[i], f"{i:03d}.cls": str(i % 2).encode()}
        tars.append(str(write_tar(root / f"{k}.tar", members)))
    inside, bad, _ = read_shards(tars, SIZE, 3)
    assert bad == []
    features = datasets.Features({"pic": datasets.Image(), "kind": datasets.ClassLabel(names=["even", "odd"])})
    cells = {"pic": [{"bytes": d, "path": None} for d in data], "kind": [i % 2 for i in range(30)]}
    rows = to_rows(datasets.Dataset.from_dict(cells, features=features), "made up", "pic", "kind", SIZE, 3)[0]
    return data, {"files": files, "members": inside, "rows": rows, "memory": read_all(files)}


@pytest.mark.parametrize("kind", ["files", "members", "rows", "memory"])
def test_each_gives_what_pillow_gives_in_any_order(kinds, kind):
    data, pictures = kinds[0], kinds[1][kind]
    assert isinstance(pictures, Pictures)
    assert (len(pictures), pictures.shape) == (30, (3, *SIZE))
    index = torch.tensor([29, 0, 7, 7, 14, 15])
    expected = np.stack([by_pillow(data[i]) for i in index.tolist()])
    assert np.array_equal(pictures.read(index), expected)
    assert pictures.labels.tolist() == [i % 2 for i in range(30)]
    pixels, good, bad = pictures.try_read(index)
    assert np.array_equal(pixels, expected)
    assert (good.tolist(), bad) == (list(range(6)), [])
    assert torch.equal(pictures.read_float(index), pictures.read(index).float() / 127.5 - 1)
    assert torch.equal(pictures.read_float(slice(2, 5)), pictures.read_float(torch.arange(2, 5)))
    assert pictures.read(index[:0]).shape == (0, 3, *SIZE)


@pytest.mark.parametrize("kind", ["files", "members", "rows", "memory"])
def test_a_part_of_a_part_is_the_composed_index(kinds, kind):
    whole = kinds[1][kind]
    first = torch.arange(29, -1, -2)
    second = torch.tensor([3, 3, 0, 14])
    part = whole.take(first).take(second)
    assert len(part) == 4
    assert torch.equal(part.read(torch.arange(4)), whole.read(first[second]))
    assert torch.equal(part.labels, whole.labels[first[second]])
    assert part.classes == whole.classes
    assert len(whole) == 30  # untouched


@pytest.mark.parametrize("kind", ["files", "members", "rows"])
def test_a_split_is_that_of_the_same_pictures_in_memory(kinds, kind):
    lazy, eager = kinds[1][kind], kinds[1]["memory"]
    for mine, theirs in zip(split(lazy, 7, seed=3), split(eager, 7, seed=3), strict=True):
        assert torch.equal(read_all(mine).pixels, theirs.pixels)
        assert torch.equal(mine.labels, theirs.labels)
    with pytest.raises(DataError, match="hold out 30 of 30"):
        split(lazy, 30, seed=0)


@pytest.mark.parametrize("kind", ["files", "members", "rows"])
def test_they_travel_to_another_process(kinds, kind):
    pictures = kinds[1][kind]
    there = pickle.loads(pickle.dumps(pictures))  # noqa: S301 -- our own bytes
    assert torch.equal(there.read(torch.arange(5)), pictures.read(torch.arange(5)))


def test_labels_and_classes_must_agree(tmp_path):
    files = write_files(tmp_path, [b"", b""])
    with pytest.raises(DataError, match=r"int64 \(2,\)"):
        replace(files, labels=torch.arange(3))
    with pytest.raises(DataError, match=r"span 0\.\.1 but there are 1 classes"):
        replace(files, classes=("one",))
    with pytest.raises(DataError, match="no labels"):
        replace(files, labels=None)
    assert replace(files, labels=None, classes=()).take(torch.tensor([1])).labels is None


# -- the bad ones --


def test_bad_pictures_are_left_out_by_position_or_refused_by_name(tmp_path):
    good = [encoded(i) for i in range(3)]
    files = write_files(tmp_path, [good[0], good[1][:60], good[1], encoded(9, "WEBP", frames=2), b"", good[2]])
    pixels, places, bad = files.try_read(torch.tensor([5, 4, 3, 2, 1, 0, 5]))
    assert places.tolist() == [0, 3, 5, 6]
    assert np.array_equal(pixels, np.stack([by_pillow(good[i]) for i in (2, 1, 0, 2)]))
    assert [b.path for b in bad] == [files.paths[i] for i in (4, 3, 1)]
    for b, reason in zip(bad, ("empty", "2 frames", "damaged"), strict=True):
        assert reason in b.reason
    with pytest.raises(DataError, match=r"004\.png: empty.*unmask tokenize") as caught:
        files.read(torch.tensor([0, 4, 3]))
    assert "\n" not in str(caught.value)
    assert torch.equal(files.read(torch.tensor([5, 2])), pixels[:2])


@given(damaged=st.sets(st.integers(0, 599), max_size=40), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_good_and_bad_are_a_partition_beyond_one_round_of_threads(tmp_path_factory, damaged, seed):
    root = tmp_path_factory.mktemp("many")
    (root / "x.png").write_bytes(encoded(0, size=(4, 4)))
    paths = tuple(str(root / ("none.png" if i in damaged else "x.png")) for i in range(600))
    files = Files(paths=paths, labels=None, classes=(), size=(2, 2), channels=1)
    index = torch.randperm(600, generator=torch.Generator().manual_seed(seed))
    pixels, good, bad = files.try_read(index)
    assert good.tolist() == [i for i, row in enumerate(index.tolist()) if row not in damaged]
    assert (len(pixels), len(bad)) == (600 - len(damaged), len(damaged))


def test_reading_in_many_threads_leaves_the_warning_filters_alone(tmp_path):
    odd = encoded(1, "TIFF")[:-4]  # Pillow warns of metadata that is cut short
    files = write_files(tmp_path, [encoded(0), odd] * 8)
    before = list(warnings.filters)
    caught: list[str] = []

    def work() -> None:
        for _ in range(5):
            files.try_read(torch.arange(16))
            caught.extend(str(f) for f in warnings.filters if f[0] == "never")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


# -- folders that are only listed --


def test_a_large_folder_is_listed_with_the_same_labels_and_pixels(tmp_path, monkeypatch):
    for name in ("b/2.png", "b/1.JPG", "a/x.png", "a b/y.png", "a/deep/er.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(len(name)))
    (tmp_path / "b" / "twin.png").symlink_to(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "notes.txt").write_bytes(b"notes")
    eager, said, _ = read_folder(tmp_path, size=SIZE, channels=3)
    monkeypatch.setattr(folders, "MAX_IN_MEMORY", 6 * 3 * 12 * 10 - 1)
    lazy, bad, _ = read_folder(tmp_path, size=SIZE, channels=3)
    assert isinstance(eager, Images)
    assert isinstance(lazy, Files)
    assert lazy.classes == eager.classes == ("a", "a b", "b")
    assert lazy.labels.tolist() == eager.labels.tolist() == [0, 0, 1, 2, 2]
    assert torch.equal(read_all(lazy).pixels, eager.pixels)
    assert [b.path for b in bad] == [b.path for b in said]
    assert "ends in none of" in bad[1].reason
    monkeypatch.setattr(folders, "MAX_IN_MEMORY", 6 * 3 * 12 * 10)
    assert isinstance(read_folder(tmp_path, size=SIZE, channels=3)[0], Images)


@given(names=st.sets(st.text("ab .-/é", min_size=1, max_size=6), max_size=12))
@settings(max_examples=40, deadline=None)
def test_files_are_listed_in_the_order_of_their_paths(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("order")
    for name in names:
        parts = [part for part in name.split("/") if part and not part.startswith(".")]
        place = root.joinpath(*parts, "x.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    expected = sorted(root.rglob("x.png"), key=lambda path: path.parts)
    assert list_files(root) == ([str(path) for path in expected], [])


# -- members of archives --


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_found_by_their_offsets_in_every_kind_of_tar(tmp_path, kind):
    long = "d/" * 40 + "k"
    data = {name: encoded(i, form) for i, (name, form) in enumerate(
        [("a.jpg", "JPEG"), ("b.jpeg", "JPEG"), ("c.PNG", "PNG"), ("d.webp", "WEBP"), (f"{long}.png", "PNG")]
    )}  # fmt: skip
    pictures, said = read_tar(write_tar(tmp_path / "x.tar", data, kind))
    assert said == {}
    assert (pictures.labels, pictures.classes) == (None, ())
    assert pictures.names == tuple(data)
    assert np.array_equal(pictures.read(torch.arange(5)), np.stack([by_pillow(d) for d in data.values()]))
    for (_, offset, length), content in zip(pictures.places.tolist(), data.values(), strict=True):
        assert (tmp_path / "x.tar").read_bytes()[offset : offset + length] == content


def test_labels_come_from_cls_or_json_and_bad_ones_are_named(tmp_path):
    png = encoded(0)
    deep = b"[" * 100_000
    members = {
        "a.png": png, "a.cls": b"3\n", "b.cls": b" 0", "b.png": png,
        "c.png": png, "c.json": json.dumps({"label": 2, "text": "é"}).encode(),
        "d.png": png, "d.cls": b"1", "d.json": b"{",
        "e.png": png,
        "f.png": png, "f.cls": b"cat",
        "g.png": png, "g.cls": b"-1",
        "h.png": png, "h.json": b'{"label": true}',
        "i.png": png, "i.json": b"{",
        "j.png": png, "j.json": deep,
        "k.png": png, "k.cls": b"1" * 65,
        "l.png": png, "l.cls": b"100000",
        "m.cls": b"1", "m.txt": b"x",
        "n.png": png, "n.jpg": png, "n.cls": b"1",
        "o.png": png, "o.json": b'{"caption": "x"}',
        "p.png": png, "p.json": b'"label"',
    }  # fmt: skip
    pictures, said = read_tar(write_tar(tmp_path / "x.tar", members))
    assert dict(zip(pictures.names, pictures.labels.tolist(), strict=True)) == {
        "a.png": 3, "b.png": 0, "c.png": 2, "d.png": 1,
    }  # fmt: skip
    assert pictures.classes == ("0", "1", "2", "3")
    reasons = {
        "e.png": "no .cls", "f": "b'cat', not a whole number", "g": "b'-1', not a whole", "h": "'True', not a whole",
        "i": "not valid JSON", "j": "not valid JSON", "k": "65 bytes", "l": "100000 classes", "m": "no picture",
        "n": "2 pictures, n.png, n.jpg", "o.png": "no .cls", "p.png": "no .cls",
    }  # fmt: skip
    assert said.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in said[name], name


def test_nothing_is_extracted_and_only_regular_members_count(tmp_path, monkeypatch):
    png = encoded(0)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    odd: dict[str, bytes | tarfile.TarInfo] = {}
    for name, kind in (("folder", tarfile.DIRTYPE), ("s.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE),
                       ("pipe.png", tarfile.FIFOTYPE), ("dev", tarfile.CHRTYPE)):  # fmt: skip
        odd[name] = tarfile.TarInfo(name)
        odd[name].type = kind
        odd[name].linkname = "/etc/passwd"
    outside = str(tmp_path / "outside.png")
    members = odd | {outside: png, "../up.png": png, "._a.png": b"mac", "a.png": png, "a.b.png": png, "README": b"x"}
    path = write_tar(tmp_path / "x.tar", members)
    pictures, said = read_tar(path)
    assert pictures.names == (outside, "../up.png", "a.png")
    assert (pictures.read(torch.arange(3)) == pictures.read(torch.tensor([0, 0, 0]))).all()
    assert said.keys() == {"s.png", "h.png", "pipe.png"}
    assert all("store it whole" in reason for reason in said.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["work", "x.tar"]
    assert list(work.iterdir()) == []


def test_a_tar_cut_anywhere_gives_its_whole_members_and_says_so(tmp_path):
    members = {f"{i}.png": encoded(i, size=(9, 9)) for i in range(4)}
    path = write_tar(tmp_path / "x.tar", members)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = [m.offset_data + m.size for m in tar]
    places = sorted(
        {*range(0, ends[-1] + 1024, 211), *ends, *(e - 1 for e in ends), *(-(-e // 512) * 512 for e in ends)}
    )
    for cut in places:
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends)
        if complete == 0:
            with pytest.raises(DataError, match="no readable image in 1 shards"):
                read_tar(path)
            continue
        pictures, said = read_tar(path)
        assert len(pictures) == complete, cut
        assert np.array_equal(read_all(pictures).pixels[-1], by_pillow(members[f"{complete - 1}.png"]))
        if cut < -(-ends[-1] // 512) * 512 + 512:
            assert "" in said, cut


def test_a_damaged_header_is_not_the_end_in_silence(tmp_path):
    path = write_tar(tmp_path / "x.tar", {f"{i}.png": encoded(i) for i in range(3)})
    with tarfile.open(path) as tar:
        place = tar.getmembers()[1].offset
    data = bytearray(path.read_bytes())
    data[place + 10] ^= 0xFF
    path.write_bytes(data)
    pictures, said = read_tar(path)
    assert pictures.names == ("0.png",)
    assert f"byte {place}" in said[""]


def test_random_damage_to_headers_never_escapes(tmp_path):
    path = write_tar(tmp_path / "x.tar", {f"{i}.png": encoded(i, size=(3, 3)) for i in range(3)}, tarfile.GNU_FORMAT)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    with tarfile.open(path) as tar:
        heads = [m.offset for m in tar]
    for _ in range(300):
        data, head = bytearray(whole), heads[rng.integers(3)]
        field = data[head : head + 512]
        for place in rng.integers(0, 500, rng.integers(1, 4)):
            field[place] = rng.integers(256)
        if rng.random() < 0.3:
            field[124] = 0xFF  # a negative size
        field[148:156] = b" " * 8
        field[148:156] = b"%06o\0 " % sum(field)  # with a right checksum, so that it is believed
        data[head : head + 512] = field
        path.write_bytes(data)
        with contextlib.suppress(DataError):  # and nothing but it
            pictures, _ = read_tar(path)
            pictures.try_read(torch.arange(len(pictures)))


def test_what_changed_since_the_scan_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"0.png": encoded(0), "1.png": encoded(1)[:50]})
    pictures, _ = read_tar(path)
    with pytest.raises(DataError, match=r"x\.tar, 1\.png: damaged"):
        pictures.read(torch.arange(2))
    path.write_bytes(path.read_bytes()[:700])
    _, good, bad = pictures.try_read(torch.arange(2))
    assert (len(good), len(bad)) == (0, 2)
    assert "has changed" in bad[0].reason
    path.unlink()
    assert pictures.try_read(torch.arange(1))[2] == [Unreadable(f"{path}, 0.png", "No such file or directory")]


def test_too_large_members_are_refused_from_their_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_PICTURE_BYTES", 200)
    path = write_tar(tmp_path / "x.tar", {"0.png": encoded(0, size=(40, 40)), "1.png": encoded(1, size=(3, 3))})
    pictures, said = read_tar(path)
    assert pictures.names == ("1.png",)
    assert "more than 200" in said["0.png"]


def test_shards_are_found_in_a_folder_by_a_pattern_or_by_name(tmp_path):
    for k in range(3):
        part = {f"{i}.png": encoded(10 * k + i) for i in range(4)} | {f"{i}.cls": b"%d" % (i % 2) for i in range(4)}
        write_tar(tmp_path / f"train-{k}.tar", part)
    write_tar(tmp_path / "other.tar", {"x.png": encoded(0), "x.cls": b"0"})
    (tmp_path / "notes.txt").write_bytes(b"x")
    for path, count in ((tmp_path, 13), (tmp_path / "train-*.tar", 12), (tmp_path / "other.tar", 1)):
        done = []
        loaded = Shards(path=str(path), size=8, held_out=0.0).load(lambda what, i, n, seen=done: seen.append((i, n)))
        assert (len(loaded.train), len(loaded.test), loaded.bad) == (count, 0, ())
        assert done == [(i + 1, len(done)) for i in range(len(done))]
    loaded = Shards(path=str(tmp_path / "train-*.tar"), size=8, held_out=0.25, seed=1).load()
    assert (len(loaded.train), len(loaded.test)) == (9, 3)
    assert loaded.train.classes == ("0", "1")
    for path in (tmp_path / "none", tmp_path / "none-*.tar"):
        with pytest.raises(DataError, match=r"no \.tar file"):
            Shards(path=str(path)).load()
    with pytest.raises(ConfigError, match="which shards"):
        Shards(path="").load()


def test_one_broken_shard_is_named_and_the_others_are_used(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.png": encoded(0)})
    (tmp_path / "b.tar").write_bytes(b"\x1f\x8b" + b"x" * 2000)
    (tmp_path / "c.tar").write_bytes(b"")
    loaded = Shards(path=str(tmp_path), size=8, held_out=0.0).load()
    assert len(loaded.train) == 1
    assert [Path(b.path).name for b in loaded.bad] == ["b.tar", "c.tar"]
    assert all("\n" not in str(b) for b in loaded.bad)


# -- telling sets apart --


def test_a_digest_is_of_contents_classes_and_order(tmp_path):
    files = write_files(tmp_path, [encoded(i) for i in range(6)])
    memory = read_all(files)
    first = hash_pictures(files)
    assert hash_pictures(files) == first == hash_pictures(memory)
    names = replace(memory, classes=("odd", "even"))
    labels = replace(memory, labels=1 - memory.labels)
    turned = memory.take(torch.arange(5, -1, -1))
    others = [
        hash_pictures(x) for x in (names, labels, turned, files.take(torch.arange(5)), replace(files, size=(10, 12)))
    ]
    assert len({first, *others}) == 6
    assert hash_pictures(files, memory) != hash_pictures(memory.take(torch.arange(3)), memory)
    (tmp_path / "003.png").write_bytes(encoded(99))
    assert hash_pictures(files) != first
    (tmp_path / "003.png").write_bytes(b"no picture")
    assert hash_pictures(files) not in (first, hash_pictures(memory))


def test_the_digest_notices_any_replaced_file_and_no_new_name(tmp_path):
    files = write_files(tmp_path, [encoded(i) for i in range(9)])
    memory, first = read_all(files), hash_pictures(files)
    for place in range(9):
        old = (tmp_path / f"{place:03d}.png").read_bytes()
        (tmp_path / f"{place:03d}.png").write_bytes(encoded(99))
        assert hash_pictures(files) != first, place
        assert hash_pictures(read_all(files)) != hash_pictures(memory)
        (tmp_path / f"{place:03d}.png").write_bytes(old)
    (tmp_path / "000.png").rename(tmp_path / "zzz.png")
    assert hash_pictures(replace(files, paths=(str(tmp_path / "zzz.png"), *files.paths[1:]))) == first


def test_a_set_gives_its_readable_pictures_cut_from_the_centre(tmp_path):
    files = write_files(tmp_path, [encoded(i) for i in range(5)])
    (tmp_path / "001.png").write_bytes(b"no picture")
    data = PictureSet(pictures=files, size=(6, 6), flip=False)
    images, places = data.read_good(torch.tensor([4, 1, 0]), torch.device("cpu"))
    assert places.tolist() == [0, 2]
    assert torch.equal(images, data.read_rows(torch.tensor([4, 0]), torch.device("cpu"))[0])
    assert len(data.read_good(torch.tensor([1]), torch.device("cpu"))[0]) == 0
    with pytest.raises(DataError, match=r"001\.png.*repair or remove"):
        data.read_rows(torch.tensor([4, 1]), torch.device("cpu"))
