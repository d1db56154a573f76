"""A survey counts what there is, and finds what should not be there."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.data.sources.choice import Arrays, Cifar10, Digits, Folder, HubImages, Mnist, Shards
from unmask.data.sources.detection import identify_source
from unmask.data.survey import TILE, choose_tiles, classify_flatness, describe_survey, open_unsplit, survey_source
from unmask.errors import ConfigError, DataError
from unmask.figures.sheets import draw_sheet

RNG = np.random.default_rng(0)


def noise(width: int = 8, height: int = 8, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def save(root: Path, **pictures: Image.Image | bytes) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        if isinstance(picture, bytes):
            (root / name).with_suffix(".png").write_bytes(picture)
        else:
            picture.save((root / name).with_suffix(".png"))


@pytest.fixture
def messy(tmp_path) -> Path:
    """Two sets of two classes, with one of each fault."""
    root = tmp_path / "messy"
    twin, traitor = noise(), noise(30, 20)
    save(
        root / "train" / "disc",
        a=twin,
        b=twin,
        c=noise(100, 50),
        d=traitor,
        cut=b"\x89PNG\r\n",
        flat=Image.new("L", (9, 9)),
    )
    save(root / "train" / "square", a=noise(mode="L"), b=noise(mode="RGBA"), white=Image.new("RGB", (9, 9), "white"))
    save(root / "train" / "broken", a=b"x")
    save(root / "val" / "disc", x=traitor.convert("RGB"), y=noise())
    save(root / "val" / "square", blue=Image.new("RGB", (9, 9), "blue"))
    (root / "notes.txt").write_text("about")
    # The same pixels in another format are a copy too.
    twin.save(root / "train" / "disc" / "e.bmp")
    return root


def test_equal_pictures_of_two_classes_are_named(tmp_path):
    pictures = [noise() for _ in range(5)]
    for i, one in enumerate(pictures):
        save(tmp_path / "train" / "cat", **{f"a{i}": one, f"b{i}": one, f"own{i}": noise()})
        save(tmp_path / ("val" if i % 2 else "train") / "dog", **{f"c{i}": one, f"own{i}": noise()})
    save(tmp_path / "val" / "cat", x=noise())
    source = Folder(path=str(tmp_path), size=8)
    lines = describe_survey(survey_source(source), 8)
    at = lines.index("labels      5 images have copies of another class, so one of the labels is wrong")
    shown = [line.replace(f"{tmp_path}/", "") for line in lines[at + 1 : at + 4]]
    assert shown == [f"  train/cat/a{i}.png (cat) = {'val' if i % 2 else 'train'}/dog/c{i}.png (dog)" for i in range(3)]
    assert "=" not in lines[at + 4]
    for i in range(1, 5):
        (tmp_path / ("val" if i % 2 else "train") / "dog" / f"c{i}.png").unlink()
    assert any("1 image has copies" in line for line in describe_survey(survey_source(source), 8))
    (tmp_path / "train" / "dog" / "c0.png").unlink()
    assert not any(line.startswith("labels") for line in describe_survey(survey_source(source), 8))


def test_everything_is_found(messy):
    survey = survey_source(Folder(path=str(messy)))
    assert survey.split.train.classes == ("disc", "square")
    assert survey.split.train.labels.bincount().tolist() == [6, 3]
    assert [[Path(name).name for name in group] for group in survey.copies] == [["a.png", "b.png", "e.bmp"]]
    assert [[str(Path(name).relative_to(messy)) for name in group] for group in survey.shared] == [
        ["train/disc/d.png", "val/disc/x.png"]
    ]
    assert sorted(Path(one.path).name for one in survey.split.bad) == ["a.png", "cut.png", "notes.txt"]
    lines = describe_survey(survey, 16)
    assert lines[0] == "dataset     disc 8, square 4; 3 held out; 3 left out (notes.txt, a.png, cut.png)"
    text = "\n".join(lines)
    for line in (
        "train       disc 6, square 3",
        "held out    disc 2, square 1",
        "sizes       smallest 8x8, median 9x9, largest 100x50; 9 smaller than 16",
        "modes       colour 9, grey 2, colour with transparency 1",
        "copies      3 images are equal to another of the same set, in 1 group",
        "in both     2 images are both trained on and held out, in 1 group",
        "near-black  1: ",
        "near-white  1: ",
        "one colour  1: ",
        "left out    3",
    ):
        assert line in text, line
    assert "cut.png: not a readable image" in text
    assert lines[1] == "note: no readable image in broken, so it is no class"


def test_a_clean_set_says_so_and_numbers_are_those_of_a_training(tmp_path):
    for kind in ("disc", "square"):
        save(tmp_path / kind, **{f"p{i}": noise() for i in range(20)})
    source = Folder(path=str(tmp_path), size=8, held_out=0.2)
    survey, split = survey_source(source), source.load()
    assert torch.equal(survey.split.test.read(torch.arange(len(split.test))), split.test.pixels)
    text = "\n".join(describe_survey(survey, 8))
    assert text.startswith(f"dataset     disc 20, square 20; {len(split.test)} held out")
    for line in ("copies      no image is", "flat        none is", "left out    none", "; 0 smaller than 8"):
        assert line in text
    assert "in both" not in text


def test_too_few_pictures_are_surveyed_and_none_are_refused(tmp_path):
    save(tmp_path, a=noise(), b=b"cut")
    lines = describe_survey(survey_source(Folder(path=str(tmp_path))), 8)
    assert lines[0] == "dataset     1 image without classes; 0 held out; 1 left out (b.png)"
    assert "1 of 1 images would be held out" in lines[1]
    save(tmp_path, a=b"cut")
    with pytest.raises(DataError, match=r"no readable image to train on; the first: .*a\.png"):
        survey_source(Folder(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.new("L", (20, 20), 3), "near-black"),
        (Image.new("RGB", (20, 20), (250, 255, 255)), "near-white"),
        (Image.new("RGB", (20, 20), (9, 90, 3)), "one colour"),
        (noise(), ""),
        (Image.fromarray(RNG.integers(0, 8, (40, 40), dtype=np.uint8)), "near-black"),
        (Image.fromarray((np.indices((40, 40)).sum(0) * 3).astype(np.uint8)), ""),
    ],
)
def test_flat_pictures_are_told_apart(image, kind):
    assert classify_flatness(image) == kind


def test_a_few_stray_pixels_do_not_hide_a_black_picture():
    image = Image.new("L", (40, 40))
    image.putpixel((3, 3), 255)
    assert classify_flatness(image) == "near-black"
    image.paste(255, (0, 0, 10, 10))
    assert classify_flatness(image) == ""


def test_every_kind_of_source_is_surveyed(tmp_path):
    images = RNG.integers(0, 256, (20, 6, 5), dtype=np.uint8)
    images[7] = images[3]
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(20) % 2 + 1)
    survey = survey_source(identify_source(str(tmp_path / "x.npz")))
    assert (survey.copies, survey.parts[0].modes) == ([["picture 3", "picture 7"]], {"L": 20})
    assert survey.parts[0].sizes.tolist() == [[5, 6]] * 20
    (tmp_path / "tars").mkdir()
    for part in ("train", "val"):
        with tarfile.open(tmp_path / "tars" / f"{part}-0.tar", "w") as tar:
            for i in range(3):
                buffer = io.BytesIO()
                noise(4, 9, "L").save(buffer, "PNG")
                info = tarfile.TarInfo(f"{i}.png")
                info.size = len(buffer.getvalue())
                buffer.seek(0)
                tar.addfile(info, buffer)
    survey = survey_source(identify_source(str(tmp_path / "tars")))
    assert [(part.name, part.modes, part.sizes.tolist()) for part in survey.parts] == [
        ("train", {"L": 3}, [[4, 9]] * 3),
        ("held out", {"L": 3}, [[4, 9]] * 3),
    ]
    digits = open_unsplit(Digits())
    assert (len(digits.train), len(digits.test)) == (1500, 297)


def test_a_saved_data_set_is_surveyed(tmp_path):
    datasets = pytest.importorskip("datasets", reason="data sets: pip install 'unmask[data]'")
    buffer = io.BytesIO()
    noise(4, 9).save(buffer, "PNG")
    cells = {
        "image": [{"bytes": buffer.getvalue(), "path": None}] * 3 + [{"bytes": b"x", "path": None}],
        "label": [5] * 4,
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(cells, features=features)}).save_to_disk(tmp_path / "x")
    source = identify_source(str(tmp_path / "x"))
    assert isinstance(source, HubImages)
    survey = survey_source(source)
    assert survey.copies == [[f"{tmp_path}/x, train, row {i}" for i in range(3)]]
    assert [one.path for one in survey.split.bad] == [f"{tmp_path}/x, train, row 3"]
    assert survey.parts[0].modes == {"RGB": 3}


def test_sources_are_detected(tmp_path):
    assert identify_source("digits") == Digits()
    assert isinstance(identify_source("mnist"), Mnist)
    assert isinstance(identify_source("cifar10"), Cifar10)
    save(tmp_path / "a" / "disc", a=noise())
    assert identify_source(str(tmp_path / "a")) == Folder(path=str(tmp_path / "a"))
    (tmp_path / "b" / "train").mkdir(parents=True)
    (tmp_path / "b" / "train" / "0.tar").write_bytes(b"")
    assert isinstance(identify_source(str(tmp_path / "b")), Shards)
    assert isinstance(identify_source(f"{tmp_path}/*.tar"), Shards)
    (tmp_path / "c" / "data").mkdir(parents=True)
    (tmp_path / "c" / "data" / "train-0.parquet").write_bytes(b"")
    assert isinstance(identify_source(str(tmp_path / "c")), HubImages)
    np.savez(tmp_path / "x.npz", images=np.zeros(3))
    assert isinstance(identify_source(str(tmp_path / "x.npz")), Arrays)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "meta.json").write_text("{}")
    (tmp_path / "text.txt").write_text("x")
    for name, said in (("none", "no such file"), ("d", "a token dataset"), ("text.txt", "not a dataset of images")):
        with pytest.raises(DataError if name == "none" else ConfigError, match=said) as caught:
            identify_source(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_the_sheet_shows_each_class_and_what_is_held_out(messy):
    rows = choose_tiles(survey_source(Folder(path=str(messy))))
    assert [(title, tuple(tiles.shape)) for title, tiles in rows] == [
        ("disc, 6 to train on", (6, 3, TILE, TILE)),
        ("square, 3 to train on", (3, 3, TILE, TILE)),
        ("held out, 3", (3, 3, TILE, TILE)),
    ]
    page = draw_sheet(rows)
    found = np.asarray(page)
    for row, (_, tiles) in enumerate(rows):  # each tile is on the page as it is
        tile = tiles[0].permute(1, 2, 0).numpy()
        tops = [y for y in range(page.height - TILE + 1) if np.array_equal(found[y : y + TILE, 4 : 4 + TILE], tile)]
        assert tops, row  # two rows hold the picture that is in both sets
    many = [(f"{i}" * 500, tiles) for i, (_, tiles) in enumerate(rows)]
    assert draw_sheet(many).size == page.size
