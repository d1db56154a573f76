"""CIFAR-10, data sets of the hub's format, and folders with a test set of their own."""

import io
import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.data.images import Images
from unmask.data.pictures import Files, read_all
from unmask.data.sources import cifar, folders
from unmask.data.sources.choice import Cifar10, Folder, HubImages, Shards
from unmask.data.sources.cifar import CIFAR_CLASSES
from unmask.errors import ConfigError, DataError
from unmask.storage.config import from_json, to_json

REAL = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_configs_are_plain_json():
    for config in (Cifar10(), HubImages(name="x", label=None), Shards(path="x")):
        assert type(config)(**json.loads(json.dumps(asdict(config)))) == config
        assert from_json(type(config), to_json(config)) == config


@pytest.mark.parametrize(
    "make",
    [
        lambda: HubImages(name="x", size=0),
        lambda: HubImages(name="x", held_out=1.0),
        lambda: Shards(path="x", channels=4),
        lambda: Shards(path="x", size=5000),
        lambda: Shards(path="x", held_out=-0.5),
    ],
)
def test_impossible_configs_are_refused(make):
    with pytest.raises(ConfigError, match=r"\d"):
        make()


# -- CIFAR-10 --


def write_batches(root: Path, each: int = 4) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The binary version, byte by byte as its page describes it; (images, labels) of both parts."""
    root.mkdir(parents=True, exist_ok=True)
    parts = {}
    for part, names in (("train", [f"data_batch_{i}.bin" for i in range(1, 6)]), ("test", ["test_batch.bin"])):
        images, labels = noise(each * len(names), 32, 32, 3), RNG.integers(0, 10, each * len(names)).astype(np.uint8)
        parts[part] = images, labels
        for k, name in enumerate(names):
            body = b""
            for i in range(k * each, (k + 1) * each):
                body += bytes([labels[i]])
                for channel in range(3):
                    body += bytes(int(images[i, y, x, channel]) for y in range(32) for x in range(32))
            (root / name).write_bytes(body)
    return parts


def write_pages(root: Path, pages: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    parts = {}
    for part, count in pages.items():
        images, labels = noise(count, 40, 25, 32, 32, 3), RNG.integers(0, 10, (count, 1000)).astype(np.uint8)
        parts[part] = images.reshape(-1, 32, 32, 3), labels.reshape(-1)
        for p in range(count):
            page = Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in images[p]]))
            page.save(root / f"{part}_{p:02d}.webp", lossless=True, quality=0, method=0)
    labels = {part: found[1].reshape(-1, 1000) for part, found in parts.items()}
    np.savez(root / "labels.npz", classes=np.array(CIFAR_CLASSES), **labels)
    return parts


def check(split, parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for part, (images, labels) in parts.items():
        loaded = getattr(split, part)
        assert np.array_equal(loaded.pixels.permute(0, 2, 3, 1), images)
        assert loaded.labels.tolist() == labels.tolist()
        assert loaded.classes == CIFAR_CLASSES


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar_from_the_binary_version(tmp_path, inner):
    parts = write_batches(tmp_path / inner)
    check(Cifar10(path=str(tmp_path)).load(), parts)


def test_cifar_from_pages(tmp_path):
    parts = write_pages(tmp_path, {"train": 2, "test": 1})
    seen = []
    check(
        Cifar10(path=str(tmp_path)).load(lambda what, done, total: seen.append((Path(what).name, done, total))), parts
    )
    assert seen == [("train_00.webp", 1, 2), ("train_01.webp", 2, 2), ("test_00.webp", 1, 1)]


def test_damaged_cifar_is_refused_by_name(tmp_path):
    write_batches(tmp_path / "a")
    whole = (tmp_path / "a" / "data_batch_3.bin").read_bytes()
    for body, said in ((whole[:-1], "not records of 3073"), (b"", "0 bytes"), (b"\x0a" + whole[1:], r"\d\.\.10")):
        (tmp_path / "a" / "data_batch_3.bin").write_bytes(body)
        with pytest.raises(DataError, match=said):
            Cifar10(path=str(tmp_path / "a")).load()
    (tmp_path / "a" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin: No such file"):
        Cifar10(path=str(tmp_path / "a")).load()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "data_batch_1").write_bytes(b"\x80\x04")  # the Python version is a pickle
    with pytest.raises(DataError, match="binary version, unpacked"):
        Cifar10(path=str(tmp_path / "b")).load()


def test_damaged_pages_are_refused_by_name(tmp_path):
    write_pages(tmp_path, {"train": 1, "test": 1})
    page = (tmp_path / "test_00.webp").read_bytes()

    def refusal() -> str:
        with pytest.raises(DataError) as caught:
            Cifar10(path=str(tmp_path)).load()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "test_00.webp").write_bytes(page[: len(page) // 2])
    assert "test_00.webp" in refusal()
    Image.fromarray(noise(800, 1280, 3)).save(tmp_path / "test_00.webp", lossless=True)
    assert "1280x800 pixels, not 800x1280" in refusal()
    (tmp_path / "test_00.webp").unlink()
    assert "test_00.webp: No such file" in refusal()
    (tmp_path / "test_00.webp").write_bytes(page)
    good = np.zeros((1, 1000), np.uint8)
    np.savez(tmp_path / "labels.npz", train=good[:, :9], test=good)
    assert "(1, 9)" in refusal()
    np.savez(tmp_path / "labels.npz", train=good)
    assert "no array 'test'" in refusal()
    np.savez(tmp_path / "labels.npz", train=good, test=good, classes=np.array(CIFAR_CLASSES[::-1]))
    assert "not CIFAR-10's" in refusal()
    np.savez(tmp_path / "labels.npz", train=good + 10, test=good)
    assert "labels span 10..10" in refusal()


@pytest.mark.skipif(not REAL.is_dir(), reason="real CIFAR-10: no folder shared/data/cifar10")
def test_real_cifar_has_the_published_means_and_takes_seconds():
    begin = time.process_time()
    split = Cifar10(path=str(REAL)).load()
    assert time.process_time() - begin < 20  # 2.5 s on an idle core
    assert (len(split.train), len(split.test)) == (50_000, 10_000)
    assert split.train.labels.bincount().tolist() == [5000] * 10
    assert split.test.labels.bincount().tolist() == [1000] * 10
    mean = (split.train.pixels.view(50_000, 3, -1).sum((0, 2)) / (50_000 * 1024 * 255)).tolist()
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)


# -- the hub --


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A data set on disk: 20 pictures for training, 6 for testing; and the pixels of all."""
    datasets = pytest.importorskip("datasets", reason="data sets: pip install 'unmask[data]'")
    root, pixels = tmp_path_factory.mktemp("saved"), noise(26, 9, 7, 3)
    kinds = {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["dog", "ant", "cat"])}
    kinds |= {"n": datasets.Value("int8"), "raw": datasets.Value("binary"), "text": datasets.Value("string")}

    def part(index: range):
        data = [png(pixels[i]) for i in index]
        cells = {"img": [{"bytes": d, "path": None} for d in data], "kind": [i % 3 for i in index]}
        cells |= {"n": [i % 2 for i in index], "raw": data, "text": ["x" for _ in index]}
        return datasets.Dataset.from_dict(cells, features=datasets.Features(kinds))

    both = datasets.DatasetDict({"train": part(range(20)), "test": part(range(20, 26))})
    both.save_to_disk(root / "both")
    both["train"].save_to_disk(root / "one")
    return root, pixels


@pytest.fixture
def offline(monkeypatch, tmp_path):
    pytest.importorskip("datasets", reason="data sets: pip install 'unmask[data]'")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("image", ["img", "raw"])
def test_a_saved_data_set_with_its_own_test_part(saved, image):
    root, pixels = saved
    split = HubImages(name=str(root / "both"), image=image, label="kind", size=7, arrange="position").load()
    assert (len(split.train), len(split.test)) == (20, 6)
    assert split.train.classes == split.test.classes == ("dog", "ant", "cat")
    assert split.test.labels.tolist() == [i % 3 for i in range(20, 26)]
    assert np.array_equal(split.test.read(torch.tensor([5])), pixels[25:26, 1:8].transpose(0, 3, 1, 2))  # the middle


def test_without_a_test_part_a_share_is_held_out(saved):
    root, pixels = saved
    source = HubImages(name=str(root / "one"), image="img", label="n", size=7, held_out=0.25, arrange="position")
    split = source.load()
    assert (len(split.train), len(split.test)) == (15, 5)
    assert split.train.classes == ("0", "1")
    both = torch.cat([read_all(split.train).pixels, read_all(split.test).pixels])
    assert sorted(both.flatten(1).tolist()) == sorted(pixels[:20, 1:8].transpose(0, 3, 1, 2).reshape(20, -1).tolist())
    bare = HubImages(name=str(root / "one"), image="img", label=None, size=7, channels=1).load()
    assert (bare.train.labels, bare.train.classes, bare.train.shape) == (None, (), (1, 7, 7))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": "image"}, "no column 'image' of images, but img, raw"),
        ({"image": "text"}, "no column 'text' of images"),
        ({"label": "label"}, "no column 'label', but img, kind, n, raw, text"),
        ({"label": "text"}, "'text' has string, not whole numbers"),
        ({"train": "training"}, "no split 'training', but train, test"),
        ({"name": ""}, "which dataset"),
    ],
)
def test_wrong_columns_and_splits_are_named(saved, change, said):
    with pytest.raises((ConfigError, DataError), match=said) as caught:
        HubImages(**({"name": str(saved[0] / "both"), "image": "img", "label": "kind"} | change)).load()
    assert "\n" not in str(caught.value)


def test_hidden_labels_foreign_classes_and_bad_rows(tmp_path):
    datasets = pytest.importorskip("datasets", reason="data sets: pip install 'unmask[data]'")
    data = [png(noise(4, 4, 3)), b"<html>", None, png(noise(4, 4, 3))[:50]]
    cells = [None if d is None else {"bytes": d, "path": None} for d in data]

    def part(labels: list, kind) -> "datasets.Dataset":
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        return datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)

    def save(**parts) -> HubImages:
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "x")
        return HubImages(name=str(tmp_path / "x"), size=4, arrange="position")

    ab, ba = datasets.ClassLabel(names=["a", "b"]), datasets.ClassLabel(names=["b", "a"])
    number = datasets.Value("int64")
    with pytest.raises(DataError, match=r"test: labels span -1\.\.-1 .*another split"):
        save(train=part([0, 1, 0, 1], ab), test=part([-1] * 4, ab)).load()
    with pytest.raises(DataError, match="not those of the training set"):
        save(train=part([0, 1, 0, 1], ab), test=part([0] * 4, ba)).load()
    with pytest.raises(DataError, match="2 empty cells"):
        save(train=part([0, None, 0, None], number)).load()
    with pytest.raises(DataError, match="test: no image of the training set has the label 3"):
        save(train=part([0, 1, 0, 1], number), test=part([3, 0, 0, 0], number)).load()
    split = save(train=part([0, 1, 2, 1], number), test=part([0, 1, 0, 1], number)).load()
    assert split.test.classes == ("0", "1", "2")
    _, good, bad = split.train.try_read(torch.arange(4))
    assert good.tolist() == [0]
    for b, name, reason in zip(bad, ("row 1", "row 2", "row 3"), ("readable", "no picture", "damaged"), strict=True):
        assert name in b.path
        assert reason in b.reason
    with pytest.raises(DataError, match="row 1: not a readable image"):
        split.train.read(torch.arange(4))


def test_rows_may_hold_paths(tmp_path):
    datasets = pytest.importorskip("datasets", reason="data sets: pip install 'unmask[data]'")
    from unmask.data.sources.hub import to_rows

    fill(tmp_path, "a.png")
    cells = {"image": [str(tmp_path / "a.png"), str(tmp_path / "none.png")]}
    made = datasets.Dataset.from_dict(cells, features=datasets.Features({"image": datasets.Image()}))
    pixels, good, bad = to_rows(made, "x", "image", None, (9, 13), 3)[0].try_read(torch.tensor([1, 0]))
    assert (good.tolist(), [Path(b.path).name for b in bad]) == ([1], ["none.png"])
    assert np.array_equal(pixels[0].permute(1, 2, 0), np.asarray(Image.open(tmp_path / "a.png")))


def test_a_data_set_that_cannot_be_had_is_one_line(offline, tmp_path, saved):
    for source in (HubImages(name="no/such"), Cifar10()):
        with pytest.raises(ConfigError, match=r"cannot load .*check name and network") as caught:
            source.load()
        assert "\n" not in str(caught.value)
    shutil.copytree(saved[0] / "one", tmp_path / "one")
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:40])
    with pytest.raises(DataError, match="one: ") as caught:
        HubImages(name=str(tmp_path / "one"), image="img", label="kind").load()
    assert "\n" not in str(caught.value)


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in (HubImages(name="x"), Cifar10()):
        with pytest.raises(ConfigError, match=r"unmask\[data\]"):
            source.load()


def test_cifar_from_the_hub_is_read_into_memory(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets", reason="data sets: pip install 'unmask[data]'")
    pixels = noise(30, 32, 32, 3)

    def made(names: tuple[str, ...]) -> str:
        kinds = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
        cells = {"img": [{"bytes": png(p), "path": None} for p in pixels], "label": [i % 10 for i in range(30)]}
        whole = datasets.Dataset.from_dict(cells, features=kinds)
        datasets.DatasetDict({"train": whole, "test": whole.select(range(5))}).save_to_disk(tmp_path / names[0])
        return str(tmp_path / names[0])

    monkeypatch.setattr(cifar, "CIFAR_HUB", made(CIFAR_CLASSES))
    labels = np.arange(30) % 10
    check(Cifar10().load(), {"train": (pixels, labels), "test": (pixels[:5], labels[:5])})
    monkeypatch.setattr(cifar, "CIFAR_HUB", made(CIFAR_CLASSES[::-1]))
    with pytest.raises(DataError, match="has the classes truck"):
        Cifar10().load()


# -- folders --


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(noise(9, 13, 3)))


@pytest.mark.parametrize("other", ["val", "test"])
@pytest.mark.parametrize("limit", [0, 2**31])
def test_a_folder_may_bring_its_test_set(tmp_path, monkeypatch, other, limit):
    monkeypatch.setattr(folders, "MAX_IN_MEMORY", limit)
    fill(
        tmp_path, "train/b/1.png", "train/a/2.png", "train/c/3.png", f"{other}/b/4.png", f"{other}/c/5.png", ".x/6.png"
    )
    (tmp_path / other / "b" / "bad.txt").write_bytes(b"x")
    split = Folder(path=str(tmp_path), size=8, arrange="position").load()
    kind = Files if limit == 0 else Images
    assert isinstance(split.train, kind)
    assert isinstance(split.test, kind)
    assert split.train.classes == split.test.classes == ("a", "b", "c")
    assert (split.train.labels.tolist(), split.test.labels.tolist()) == ([0, 1, 2], [1, 2])
    assert [Path(b.path).name for b in split.bad] == ["bad.txt"]


def test_only_a_training_and_a_held_out_folder_are_a_pair(tmp_path):
    fill(tmp_path, *(f"{part}/{i}.png" for part in ("train", "test") for i in range(4)))
    flat = Folder(path=str(tmp_path), size=8).load()
    assert (len(flat.train), len(flat.test), flat.train.classes, flat.test.labels) == (4, 4, (), None)
    fill(tmp_path, "beside.png")
    assert [str(b) for b in Folder(path=str(tmp_path), size=8).load().bad] == [
        f"{tmp_path}/beside.png: beside the folders that are used"
    ]


def test_a_test_set_of_other_classes_is_refused(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/z/1.png")
    with pytest.raises(DataError, match="val: no class z in train"):
        Folder(path=str(tmp_path), size=8).load()
    shutil.rmtree(tmp_path / "val")
    fill(tmp_path, "val/1.png")
    with pytest.raises(DataError, match="val: not all images lie in class folders"):
        Folder(path=str(tmp_path), size=8).load()


def test_a_large_folder_is_held_out_from_the_list(tmp_path, monkeypatch):
    fill(tmp_path, *(f"{kind}/{i}.png" for kind in "ab" for i in range(10)))
    eager = Folder(path=str(tmp_path), size=8, held_out=0.3, seed=4).load()
    monkeypatch.setattr(folders, "MAX_IN_MEMORY", 100)
    lazy = Folder(path=str(tmp_path), size=8, held_out=0.3, seed=4).load()
    for mine, theirs in ((lazy.train, eager.train), (lazy.test, eager.test)):
        assert isinstance(mine, Files)
        assert torch.equal(read_all(mine).pixels, theirs.pixels)
        assert torch.equal(mine.labels, theirs.labels)
