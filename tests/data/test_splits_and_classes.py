"""What a set of files means: which part is trained on, which is held out, and which labels and folders are classes."""

import io
import json
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.data.images import Images
from unmask.data.labels import number_labels, report_classes
from unmask.data.pictures import Split
from unmask.data.sources.choice import (
    Arrays,
    Folder,
    HubImages,
    Shards,
    fill_arrangement,
    resolve_paths,
    write_source,
)
from unmask.data.sources.folder_parts import find_named_parts
from unmask.data.summary import describe_split
from unmask.errors import ConfigError, DataError
from unmask.storage.config import from_json, to_json

CASES = Path(__file__).parents[3] / "shared" / "cases" / "sets"
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
NUMBER = iter(range(10**6))


def png() -> bytes:
    """A picture like no other."""
    rng, buffer = np.random.default_rng(next(NUMBER)), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root: Path, *folders: str, num: int = 4) -> None:
    """Write pictures into folders; a name that ends in a file is that file."""
    for folder in folders:
        names = [folder] if "." in Path(folder).name else [f"{folder}/{i}.png" for i in range(num)]
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(png())


def load(root: Path | str, **fields) -> Split:
    return Folder(path=str(root), size=8, **fields).load()


def shape(split: Split) -> tuple[tuple[str, ...], int, int]:
    return split.train.classes, len(split.train), len(split.test)


def names(split: Split) -> list[str]:
    return sorted(Path(one.path).name for one in split.bad)


# -- folders of splits --


@pytest.mark.parametrize("held", ["val", "valid", "validation", "dev", "test", "Val", "TEST"])
@pytest.mark.parametrize("train", ["train", "training", "Train"])
def test_splits_have_many_names(tmp_path, train, held):
    fill(tmp_path, f"{train}/disc", f"{train}/square", f"{held}/disc", f"{held}/square", num=2)
    split = load(tmp_path)
    assert shape(split) == (("disc", "square"), 4, 4)
    assert split.notes == ()


def test_the_third_split_is_named_and_left_for_the_end(tmp_path):
    fill(tmp_path, *(f"{part}/{kind}" for part in ("train", "val", "test") for kind in ("disc", "square")), num=3)
    split = load(tmp_path)
    assert shape(split) == (("disc", "square"), 6, 6)
    assert len(split.notes) == 1
    assert split.notes[0].startswith("test: not used, so kept for a final test; --data.test test")
    other = load(tmp_path, test="test")
    assert other.notes[0].startswith("val: not used")
    files = {part: {p.read_bytes() for p in (tmp_path / part).rglob("*.png")} for part in ("val", "test")}
    pixels = {
        part: {np.asarray(Image.open(io.BytesIO(data))).tobytes() for data in found} for part, found in files.items()
    }
    for part, loaded in (("val", split), ("test", other)):
        seen = {image.permute(1, 2, 0).numpy().tobytes() for image in loaded.test.read(torch.arange(6))}
        assert seen == pixels[part]


def test_files_hidden_folders_and_what_a_mac_adds_change_nothing(tmp_path):
    fill(tmp_path, "train/disc", "train/square", "val/disc", "val/square", ".cache/disc", "loose.png")
    fill(tmp_path, "__MACOSX/train/disc/._0.png", "train/__MACOSX/x.png", ".DS_Store")
    (tmp_path / "README.txt").write_text("about")
    split = load(tmp_path)
    assert shape(split) == (("disc", "square"), 8, 8)
    assert names(split) == ["README.txt", "loose.png"]
    assert {one.reason for one in split.bad} == {"beside the folders that are used"}
    assert describe_split(split) == ["dataset     disc 8, square 8; 8 held out; 2 left out (README.txt, loose.png)"]


def test_flags_name_the_splits(tmp_path):
    fill(tmp_path / "a", "mine/disc", "mine/square", "other/disc", "other/square", "rest/disc", num=2)
    fill(tmp_path / "b", "disc", "square", num=3)
    split = load(tmp_path / "a", train="mine", test="other")
    assert shape(split) == (("disc", "square"), 4, 4)
    assert split.notes == ("rest: not used, neither to train on nor held out",)
    for path, train, test in (("", tmp_path / "a" / "mine", tmp_path / "b"), (tmp_path / "a", "mine", tmp_path / "b")):
        assert shape(load(path, train=str(train), test=str(test))) == (("disc", "square"), 4, 6)
    elsewhere = load(tmp_path / "a", train=str(tmp_path / "b"), held_out=0.5)
    assert f"{tmp_path}/a: not used, as --data.train and --data.test lie elsewhere" in elsewhere.notes
    whole = load("", train=str(tmp_path / "b"), held_out=0.5)
    assert len(whole.train) + len(whole.test) == 6
    fill(tmp_path / "c", "disc", "square", "away/disc", "away/square", num=2)
    assert shape(load(tmp_path / "c", test="away")) == (("disc", "square"), 4, 4)
    fill(tmp_path / "d", "train/disc", "train/square", "away/disc", "val/disc", num=2)
    assert shape(load(tmp_path / "d", test="away")) == (("disc", "square"), 4, 2)
    assert shape(load(tmp_path / "d", train="train")) == (("disc", "square"), 4, 2)  # val, by its name


def test_flags_that_cannot_be_are_one_line(tmp_path):
    fill(tmp_path, "disc", "square")
    for fields, said in (
        ({"train": "disc", "test": "disc"}, "to train on and to hold out"),
        ({"test": "none"}, "none: no such folder"),
        ({"train": "none"}, "none: no such folder"),
    ):
        with pytest.raises((ConfigError, DataError), match=said) as caught:
            load(tmp_path, **fields)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="which folder"):
        load("")


def test_a_class_with_the_name_of_a_split_is_a_class(tmp_path):
    fill(tmp_path, "disc", "square", "test")
    split = load(tmp_path)
    assert split.train.classes == ("disc", "square", "test")
    assert split.notes == ("test: taken for a class, as disc, square lies beside; if not, give --data.test test",)
    fill(tmp_path, "train")  # as in a set of vehicles; no folder of these holds classes
    split = load(tmp_path)
    assert split.train.classes == ("disc", "square", "test", "train")
    assert "--data.train train and --data.test test" in split.notes[0]


def test_splits_that_hold_classes_are_splits_whatever_lies_beside(tmp_path):
    fill(tmp_path, "train/disc", "train/square", "val/disc", "val/square", "disc", "square")
    split = load(tmp_path)
    assert shape(split) == (("disc", "square"), 8, 8)
    assert split.notes == ("disc, square: not used, neither to train on nor held out",)


def test_held_out_folders_alone_are_refused(tmp_path):
    fill(tmp_path, "val/disc", "test/disc")
    with pytest.raises(DataError, match=r"holds test and val but no train: name what to train on with --data\.train"):
        load(tmp_path)
    fill(tmp_path, "train/disc", "training/disc")
    with pytest.raises(DataError, match="train and training are both names to train on"):
        load(tmp_path)


def test_a_set_that_cannot_be_read_finds_no_parts(tmp_path):
    assert find_named_parts(tmp_path / "none").train == tmp_path / "none"


# -- wrappers and classes --


def test_a_folder_alone_is_looked_into(tmp_path):
    fill(
        tmp_path, "a/pictures/disc", "a/pictures/square", "b/all/train/x/disc", "b/all/train/x/square", "b/all/val/disc"
    )
    (tmp_path / "a" / "notes.txt").write_text("x")
    split = load(tmp_path / "a")
    assert split.train.classes == ("disc", "square")
    assert split.notes == (f"{tmp_path}/a/pictures is the only folder in {tmp_path}/a, so its content is used",)
    assert names(split) == ["notes.txt"]
    split = load(tmp_path / "b")
    assert shape(split) == (("disc", "square"), 8, 4)
    assert [note.split(" is the only")[0].removeprefix(f"{tmp_path}/b/") for note in split.notes] == [
        "all",
        "all/train/x",
    ]
    (tmp_path / "c" / "deep").mkdir(parents=True)
    (tmp_path / "c" / "deep" / "round").symlink_to(tmp_path / "c")
    with pytest.raises(DataError, match="no readable image"):
        load(tmp_path / "c")


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_a_split_alone_is_no_class(tmp_path, name):
    fill(tmp_path, name, num=12)
    split = load(tmp_path, held_out=0.3)
    assert split.train.classes == ()
    assert len(split.train) + len(split.test) == 12


def test_one_class_is_said(tmp_path):
    fill(tmp_path, "disc", num=12)
    (note,) = load(tmp_path, held_out=0.3).notes
    assert note.startswith("all images are of one class, disc")


def test_a_folder_per_picture_is_one_warning(tmp_path):
    fill(tmp_path, *(f"id{i:02}" for i in range(20)), num=1)
    (note,) = load(tmp_path, held_out=0.2).notes
    assert note == ("20 of 20 classes have a single image: if these are no classes, put all images into one folder")


def test_an_empty_class_is_named_and_is_no_class(tmp_path):
    fill(tmp_path, "disc", "square", num=8)
    (tmp_path / "blob").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.png").write_bytes(b"")
    split = load(tmp_path, held_out=0.3)
    assert split.train.classes == ("disc", "square")
    assert split.notes == (f"{tmp_path}: no image in bad, blob, so they are no classes",)


@pytest.mark.parametrize("forms", [(NFD, NFC), (NFC, NFD)])
def test_one_name_in_two_unicode_forms_is_one_class(tmp_path, forms):
    fill(tmp_path, f"train/{forms[0]}", "train/tea", f"val/{forms[1]}", "val/tea")
    split = load(tmp_path, arrange="position")
    assert split.train.classes == split.test.classes == (forms[0], "tea")
    assert split.test.labels.tolist() == [0] * 4 + [1] * 4
    assert split.notes == ()
    fill(tmp_path, f"train/{forms[1]}")
    split = load(tmp_path)
    assert shape(split) == ((NFD, "tea"), 12, 8)
    assert "two Unicode forms are one class" in split.notes[0]


def test_classes_that_differ_by_case_are_one_warning_or_a_clear_refusal(tmp_path):
    fill(tmp_path, "train/Disc", "train/disc", "train/tea", "val/disc")
    (note,) = load(tmp_path).notes
    assert note == "classes that differ only by case are different ones: Disc, disc; rename them if not"
    fill(tmp_path, "val/TEA")
    with pytest.raises(DataError, match="val: no class TEA in train; rename it to tea if it is that class"):
        load(tmp_path)


def test_classes_without_a_training_picture_are_named():
    assert report_classes(("a", "b", "c"), (2, 0, 0), (0, 3, 0)) == (
        "1 of 3 classes have no image: c",
        "no image to train on, only held-out ones: b",
    )


# -- labels --


@pytest.mark.parametrize(
    ("labels", "classes", "ids"),
    [
        ([0, 1, 2, 1], ("0", "1", "2"), [0, 1, 2, 1]),
        ([1, 3, 2, 1], ("1", "2", "3"), [0, 2, 1, 0]),
        ([7, 999, 42], ("7", "42", "999"), [0, 2, 1]),
        ([254, 255, 0], ("0", "254", "255"), [1, 2, 0]),
    ],
)
@pytest.mark.parametrize("kind", [np.int64, np.uint16])
def test_labels_are_numbered_from_0_with_a_word(tmp_path, labels, classes, ids, kind):
    found, names, notes = number_labels(np.array(labels, kind))
    assert (found.tolist(), names) == (ids, classes)
    assert len(notes) == (labels != ids)
    np.savez(tmp_path / "x.npz", images=np.zeros((len(labels), 4, 4), np.uint8), labels=np.array(labels, kind))
    split = Arrays(path=str(tmp_path / "x.npz"), held_out=0.0, arrange="position").load()
    assert sorted(split.train.labels.tolist()) == sorted(ids)
    assert split.train.classes == classes
    if notes:
        assert split.notes[0] == notes[0]
        assert all(name in notes[0] for name in classes)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([*range(21), 255, 255], "2 labels are 255 beside 0 to 20, which often means no class: take these images"),
        ([0, 1, -1], "1 label is -1, which often means no class"),
        ([-100, 0, 1], "1 label is -100"),
        ([0, 65535], "65535 beside 0 to 0"),
        (list(range(100_001)), "100001 different labels"),
    ],
)
def test_labels_that_may_mean_no_class_are_refused(tmp_path, labels, said):
    np.savez(tmp_path / "x.npz", images=np.zeros((len(labels), 1, 1), np.uint8), labels=np.array(labels))
    with pytest.raises(DataError, match=said) as caught:
        Arrays(path=str(tmp_path / "x.npz")).load()
    assert str(caught.value).startswith(f"{tmp_path}/x.npz: ")
    assert "\n" not in str(caught.value)


# -- shards --


def write_tar(path: Path, labels: list[int | None], key: str = "{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, label in enumerate(labels):
            members = {f"{key.format(i)}.png": png()}
            members |= {} if label is None else {f"{key.format(i)}.cls": str(label).encode()}
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def open_shards(path: Path | str, **fields) -> Split:
    return Shards(path=str(path), size=8, **fields).load()


@pytest.mark.parametrize("place", ["{}-000.tar", "cc-{}_000.tar", "{}000.tar", "{}/000.tar"])
def test_shards_are_split_by_their_names(tmp_path, place):
    for part, num in (("train", 6), ("val", 2), ("test", 3)):
        write_tar(tmp_path / place.format(part), [i % 2 for i in range(num)])
    split = open_shards(tmp_path)
    assert shape(split) == (("0", "1"), 6, 2)
    assert "not used" in split.notes[0]
    if "/" not in place:
        assert shape(open_shards(tmp_path / "*.tar")) == shape(split)
        train, test = place.format("train"), place.format("test")
        assert shape(open_shards(tmp_path, test=test)) == (("0", "1"), 6, 3)
        assert shape(open_shards("", train=str(tmp_path / train), test=str(tmp_path / test))) == (("0", "1"), 6, 3)
        assert len(open_shards(tmp_path / place.format("v*"), held_out=0.0).train) == 2
        (tmp_path / train).unlink()
        with pytest.raises(DataError, match="holds test and val but no train"):
            open_shards(tmp_path)


def test_plain_shards_beside_a_test_set_are_trained_on(tmp_path):
    write_tar(tmp_path / "000.tar", [0, 1])
    write_tar(tmp_path / "001.tar", [0, 1])
    write_tar(tmp_path / "test-000.tar", [1, 0])
    assert shape(open_shards(tmp_path)) == (("0", "1"), 4, 2)
    write_tar(tmp_path / "train-000.tar", [1, 0])
    split = open_shards(tmp_path)
    assert shape(split) == (("0", "1"), 2, 2)
    assert "000.tar, 001.tar: not used" in split.notes[0]


def test_labels_of_shards_are_numbered_together(tmp_path):
    write_tar(tmp_path / "train-0.tar", [7, 42, 7])
    write_tar(tmp_path / "val-0.tar", [999, 7])
    split = open_shards(tmp_path, arrange="position")
    assert split.train.classes == split.test.classes == ("7", "42", "999")
    assert (split.train.labels.tolist(), split.test.labels.tolist()) == ([0, 1, 0], [2, 0])
    assert split.notes[1] == "no image to train on, only held-out ones: 999"
    write_tar(tmp_path / "train-0.tar", [0, 1, 255])
    write_tar(tmp_path / "val-0.tar", [0, 1])
    with pytest.raises(DataError, match="255 beside 0 to 1"):
        open_shards(tmp_path)


def test_a_dot_in_the_key_is_one_short_line(tmp_path):
    write_tar(tmp_path / "bad.tar", [0, 1] * 15, key="img_v1.{:03}")
    with pytest.raises(
        DataError, match=r"30 pictures with a dot in the key, such as img_v1\.000\.png: rename"
    ) as caught:
        open_shards(tmp_path)
    assert len(str(caught.value)) < 250 + 2 * len(str(tmp_path))
    write_tar(tmp_path / "good.tar", [0, 1] * 5)
    split = open_shards(tmp_path, held_out=0.0)
    assert len(split.train) == 10
    assert names(split) == ["bad.tar"]


# -- the hub --


@pytest.fixture
def save(tmp_path):
    datasets = pytest.importorskip("datasets", reason="data sets: pip install 'unmask[data]'")

    def write(kind=None, **parts: list[int]) -> HubImages:
        made = {}
        for part, labels in parts.items():
            features = datasets.Features({"image": datasets.Image(), "label": kind or datasets.Value("int64")})
            cells = {"image": [{"bytes": png(), "path": None} for _ in labels], "label": labels}
            made[part] = datasets.Dataset.from_dict(cells, features=features)
        folder = tmp_path / str(next(NUMBER))
        datasets.DatasetDict(made).save_to_disk(folder)
        return HubImages(name=str(folder), size=8, arrange="position")

    return write


@pytest.mark.parametrize("held", ["validation", "val", "valid", "dev"])
def test_the_hub_has_other_names_for_the_test_set(save, held):
    split = save(train=[0, 1, 0], **{held: [1]}).load()
    assert shape(split) == (("0", "1"), 3, 1)
    assert split.notes == ()


def test_splits_of_the_hub_that_are_not_used_are_named(save):
    split = save(train=[0, 1], validation=[0], test=[1, 0], extra=[0]).load()
    assert shape(split) == (("0", "1"), 2, 2)
    assert [note.split(",")[0] for note in split.notes] == ["validation: not used", "extra: not used"]
    with pytest.raises(ConfigError, match=r"no split 'tset', but train, test: set --data\.test"):
        HubImages(name=save(train=[0], test=[0]).name, test="tset").load()
    alone = save(train=[0, 1] * 9, validation=[0, 1])
    both = HubImages(name=alone.name, train="validation", held_out=0.5, size=8).load()
    assert both.train.name.endswith("validation")
    assert shape(save(training=[0, 1, 1], test=[0]).load()) == (("0", "1"), 3, 1)


def test_labels_of_the_hub_keep_their_numbers_as_names(save):
    import datasets

    split = save(train=[1, 3, 3], test=[3]).load()
    assert split.train.classes == split.test.classes == ("1", "3")
    assert (split.train.labels.tolist(), split.test.labels.tolist()) == ([0, 1, 1], [1])
    with pytest.raises(DataError, match="train: 1 label is -1"):
        save(train=[0, -1], test=[0]).load()
    with pytest.raises(DataError, match="test: no image of the training set has the label 2"):
        save(train=[1, 3], test=[2]).load()
    named = save(datasets.ClassLabel(names=["ant", "bee", "cat", "dog"]), train=[0, 2, 2], test=[1]).load()
    assert named.train.classes == ("ant", "bee", "cat", "dog")
    assert named.notes == ("1 of 4 classes have no image: dog", "no image to train on, only held-out ones: bee")


# -- what is said --


def test_many_classes_are_summarised():
    labels = torch.arange(30) % 13
    images = Images(
        pixels=torch.zeros(30, 1, 2, 2, dtype=torch.uint8), labels=labels, classes=tuple(f"c{i}" for i in range(13))
    )
    one = Images(pixels=images.pixels[:1], labels=None)
    assert describe_split(Split(train=images, test=images.take(torch.arange(13)))) == [
        "dataset     43 images of 13 classes, 3 to 4 each; 13 held out"
    ]
    assert describe_split(Split(train=one, test=one, notes=("a word",))) == [
        "dataset     2 images without classes; 1 held out",
        "note: a word",
    ]
    few = Images(pixels=images.pixels[:4], labels=torch.tensor([0, 0, 0, 1]), classes=("7", "42"))
    assert describe_split(Split(train=few, test=few.take(torch.arange(2)))) == ["dataset     7: 5, 42: 1; 2 held out"]


# -- configurations of earlier versions --


@pytest.mark.parametrize("source", [Folder(path="x"), Shards(path="x"), Arrays(path="x"), HubImages(name="x")])
def test_earlier_configurations_load_and_are_written_as_before(source):
    early = {name: value for name, value in to_json(source).items() if name != "arrange"}
    if isinstance(source, Folder | Shards):
        assert early.pop("train") is early.pop("test") is None
    again = from_json(type(source), {k: v for k, v in fill_arrangement({"type": type(source).__name__, **early}).items()
                                     if k != "type"})  # fmt: skip
    assert again.arrange == "position"
    assert json.dumps(write_source(again)) == json.dumps(early)
    assert from_json(type(source), to_json(source)) == source


def test_paths_of_splits_become_absolute_only_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_paths(Folder(path="a", train="b")) == Folder(path=str(tmp_path / "a"), train="b")
    assert resolve_paths(Folder(path="", train="b")) == Folder(path="", train=str(tmp_path / "b"))
    assert resolve_paths(Shards(path="", train="b", test="c")).test == str(tmp_path / "c")


# -- the cases that were wrong --

here = pytest.mark.skipif(not CASES.is_dir(), reason="no folder shared/cases")


@here
@pytest.mark.parametrize(
    ("case", "classes", "train", "test"),
    [
        ("split_three", ("disc", "square"), 24, 6),
        ("split_and_readme", ("disc", "square"), 24, 6),
        ("nfd", (NFD, "tea"), 24, 6),
        ("macosx", ("disc", "square"), None, None),
        ("wrapper", ("disc", "square"), None, None),
    ],
)
def test_the_cases_mean_what_people_mean(case, classes, train, test):
    split = load(CASES / case)
    assert split.train.classes == classes
    assert len(split.train) + len(split.test) == (24 if train is None else train + test)
    assert train is None or (len(split.train), len(split.test)) == (train, test)
    said = "\n".join(describe_split(split))
    for name, word in (
        ("split_three", "test: not used"),
        ("split_and_readme", "README.txt"),
        ("wrapper", "only folder"),
    ):
        assert (word in said) == (case == name)


@here
def test_the_cases_of_classes_are_said():
    (note,) = load(CASES / "folder_per_picture").notes
    assert "40 of 40 classes have a single image" in note
    labels = CASES / "labels_from_1"
    for name, classes in (("one_based", ("1", "2", "3")), ("sparse", ("7", "42", "999"))):
        split = Arrays(path=str(labels / f"{name}.npz")).load()
        assert split.train.classes == classes
        assert "each class keeps its label as its name" in split.notes[0]
    with pytest.raises(DataError, match="3 labels are 255 beside 0 to 2"):
        Arrays(path=str(labels / "ignore255.npz")).load()
    assert shape(open_shards(CASES / "shards" / "train_and_val")) == (("0", "1"), 30, 6)
    with pytest.raises(DataError, match="a dot in the key"):
        open_shards(CASES / "shards" / "dotted")
