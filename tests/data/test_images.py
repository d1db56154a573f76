import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from unmask.data.image_files import MAX_PIXELS, Unreadable, read_image, try_image
from unmask.data.images import Images, to_images
from unmask.data.pictures import split
from unmask.data.sources.folders import list_files, read_folder
from unmask.errors import DataError

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"


def noise(height=24, width=32, seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(height=24, width=32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def read(tmp_path, data: bytes, size=(24, 32), channels=3) -> np.ndarray:
    path = tmp_path / "file"
    path.write_bytes(data)
    return read_image(path, size, channels).permute(1, 2, 0).numpy()


def refusal(tmp_path, data: bytes) -> str:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_image(path, (8, 8), 3)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


# -- good files, converted right --


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_lossless_formats_are_exact(tmp_path, kind, options):
    assert np.array_equal(read(tmp_path, encoded(noise(), kind, **options)), np.asarray(noise()))


def test_jpeg_and_gif_are_close(tmp_path):
    image = Image.fromarray(smooth())
    for data in (encoded(image, "JPEG", quality=95), encoded(image, "JPEG", progressive=True, quality=95)):
        assert np.abs(read(tmp_path, data).astype(int) - smooth()).mean() < 2
    assert np.abs(read(tmp_path, encoded(image, "GIF")).astype(int) - smooth()).mean() < 20


def test_cmyk_jpeg_is_converted(tmp_path):
    data = encoded(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(read(tmp_path, data).astype(int) - smooth()).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_grey_is_scaled_not_saturated(tmp_path, kind, channels):
    values = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)
    data = encoded(Image.fromarray(values), kind)
    naive = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))  # negative control: what Pillow would give
    right = np.rint(values / 257)
    assert np.abs(naive[..., 0] - right).max() > 1
    got = read(tmp_path, data, channels=channels)
    assert np.array_equal(got, np.repeat(right[..., None], channels, -1))


def test_white_is_zero_sixteen_bit_tiff_is_inverted(tmp_path):
    values = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)
    data = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    assert Image.open(io.BytesIO(data)).tag_v2[262] == 0
    assert np.array_equal(read(tmp_path, data)[..., 0], np.rint((65535 - values.astype(float)) / 257))


def test_one_bit_is_black_and_white(tmp_path):
    bits = np.arange(24 * 32).reshape(24, 32) % 3 == 0
    assert np.array_equal(read(tmp_path, encoded(Image.fromarray(bits), "PNG"))[..., 0], bits * 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (32, 24), (0,) * len(mode))
        image.paste((0,) * (len(mode) - 1) + (255,), (0, 0, 16, 24))
        data = encoded(image, "PNG")
    elif mode == "P":
        image = Image.new("P", (32, 24), 1)
        image.putpalette([0, 0, 0, 0, 0, 9])
        image.paste(0, (0, 0, 16, 24))
        data = encoded(image, "PNG", transparency=1)
    else:
        image = Image.new("RGB", (32, 24), (0, 9, 0))
        image.paste((0, 0, 0), (0, 0, 16, 24))
        data = encoded(image, "PNG", transparency=(0, 9, 0))
    got = read(tmp_path, data)
    assert (got[:, :16] == 0).all()
    assert (got[:, 16:] == 255).all()


def test_half_transparent_palette_is_blended(tmp_path):
    image = Image.new("P", (32, 24), 0)
    image.putpalette([200, 0, 0])
    got = read(tmp_path, encoded(image, "PNG", transparency=bytes([128])))
    assert np.abs(got.astype(int) - [227, 127, 127]).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_undone(tmp_path, orientation, kind):
    upright = np.asarray(noise())
    inverse = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    stored = Image.fromarray(np.ascontiguousarray(inverse(upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(read(tmp_path, encoded(stored, kind, exif=exif, **options)), upright)


def test_shrinking_averages_and_crops_the_centre(tmp_path):
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, ::2] = 255  # a skipped-pixel resize would give all black or all white
    stripes[:, :32] = stripes[:, 96:] = 0
    got = read(tmp_path, encoded(Image.fromarray(stripes), "PNG"), size=(16, 16), channels=1)
    assert got.shape == (16, 16, 1)
    assert (np.abs(got[:, 2:-2].astype(int) - 127) < 12).all()


def test_a_small_picture_grows_and_a_thin_one_survives(tmp_path):
    assert (read(tmp_path, encoded(Image.new("RGB", (2, 3), (9, 8, 7)), "PNG")) == [9, 8, 7]).all()
    assert (read(tmp_path, encoded(Image.new("RGB", (30000, 1), (9, 8, 7)), "PNG")) == [9, 8, 7]).all()


# -- bad files, refused with a reason --


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncation_is_refused_wherever_it_falls(tmp_path, kind):
    data = encoded(noise(), kind)
    for keep in (1, 8, 20, len(data) // 10, len(data) // 3, len(data) // 2, len(data) * 9 // 10, len(data) - 8):
        assert refusal(tmp_path, data[:keep])
    read(tmp_path, data)  # the control: whole, it is good


WHOLE = {
    "PNG": {},
    "WEBP": {"quality": 80},
    "WEBP lossless": {"lossless": True},
    "GIF": {},
    "BMP": {},
    **{f"TIFF {name}": {"compression": name} for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")},
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_cut_never_changes_a_pixel(tmp_path, kind):
    image = Image.fromarray(smooth(40, 60))
    data = encoded(image.convert("P") if kind == "GIF" else image, kind.split()[0], **WHOLE[kind])
    whole, refused = read(tmp_path, data, size=(40, 60)), 0
    for keep in {*range(0, len(data), len(data) // 40), *range(len(data) - 16, len(data))}:
        (tmp_path / "cut").write_bytes(data[:keep])
        found = try_image(tmp_path / "cut", (40, 60), 3)
        refused += isinstance(found, Unreadable)
        assert isinstance(found, Unreadable) or (found.permute(1, 2, 0).numpy() == whole).all()
    assert refused >= 40


def test_truncated_progressive_jpeg_is_refused(tmp_path):
    data = encoded(noise(200, 200), "JPEG", progressive=True)
    assert "truncated" in refusal(tmp_path, data[: len(data) * 3 // 4])


def test_nobody_switched_leniency_on():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_flipped_bit_in_png_pixels_is_refused(tmp_path):
    data = bytearray(encoded(Image.fromarray(smooth()), "PNG", compress_level=0))
    data[data.index(b"IDAT") + 200] ^= 1
    assert "damaged" in refusal(tmp_path, bytes(data))


def test_a_png_cut_after_its_pixels_is_refused(tmp_path):
    data = encoded(noise(), "PNG")[:-12]
    assert np.asarray(Image.open(io.BytesIO(data))).shape == (24, 32, 3)  # the control: Pillow alone takes it
    assert "damaged" in refusal(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not a readable image"),
        (b"hello\n", "not a readable image"),
        (b"\0" * 5000, "not a readable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable image"),
        (png_header(20000, 20000, 1, 0), f"more than {MAX_PIXELS} pixels"),
        (png_header(8001, 8000, 8, 2), "8001x8000 is more than"),
        (png_header(100, 100, 8, 2), "truncated"),
    ],
    ids=["empty", "html", "text", "zeros", "eps", "bomb", "just over", "no pixels"],
)
def test_refusals_say_why(tmp_path, data, said):
    assert said in refusal(tmp_path, data)


def test_the_bomb_is_refused_from_its_header_alone(tmp_path, monkeypatch):
    def never(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    refusal(tmp_path, png_header(20000, 20000, 1, 0))


@pytest.mark.parametrize("limit", [100, 500])  # 24 * 32 = 768 is an error above twice the limit, a warning above once
def test_pillows_own_bomb_alarm_is_a_refusal(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert "pixels" in refusal(tmp_path, encoded(noise(), "PNG"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_more_than_one_frame_is_refused(tmp_path, kind):
    data = encoded(noise(), kind, save_all=True, append_images=[noise(seed=1)])
    assert "2 frames" in refusal(tmp_path, data)


def test_a_phone_photo_with_a_picture_behind_it_is_good(tmp_path):
    first, second = Image.fromarray(smooth()), noise(seed=1)
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert np.abs(read(tmp_path, data).astype(int) - smooth()).mean() < 4


def test_float_and_signed_pixels_are_refused(tmp_path):
    for dtype in (np.float32, np.int32):
        assert "no agreed white" in refusal(tmp_path, encoded(Image.fromarray(np.ones((9, 9), dtype)), "TIFF"))


def test_pipes_and_folders_and_nothing_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert try_image(tmp_path / "pipe", (8, 8), 3) == Unreadable(str(tmp_path / "pipe"), "not a regular file")
    assert try_image(tmp_path, (8, 8), 3) == Unreadable(str(tmp_path), "not a regular file")
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "none", (8, 8), 3)


# -- folders --


def messy(root: Path) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """A folder with everything in it: the good files by name, and what must be said of the bad ones."""
    good = {
        "a/plain.png": noise(seed=1),
        "a/ünï cødé 猫.png": noise(seed=2),
        "a/new\nline.png": noise(seed=3),
        "a/no_suffix": noise(seed=4),
        "b/deep/er/one.png": noise(seed=5),
        "b/wrong_suffix.jpg": noise(seed=6),
    }
    jpeg, png = encoded(noise(seed=7), "JPEG"), encoded(noise(seed=8), "PNG")
    bad = {
        "a/cut.jpg": (jpeg[: len(jpeg) * 3 // 4], "truncated"),
        "a/cut.png": (png[: len(png) // 2], "damaged"),
        "a/zero.png": (b"", "empty"),
        "a/bad\nname.png": (b"x", "not a readable image"),
        "b/page.png": (b"<html></html>", "not a readable image"),
        "b/bomb.png": (png_header(20000, 20000, 1, 0), f"more than {MAX_PIXELS}"),
        "b/moves.gif": (encoded(noise(), "GIF", save_all=True, append_images=[noise(seed=1)]), "2 frames"),
        "b/deep/notes.txt": (b"notes", "not a readable image"),
        "README.md": (b"# data", "not a readable image"),
        "only_bad/zero.png": (b"", "empty"),
    }
    files = {name: encoded(image, "PNG") for name, image in good.items()} | {name: b for name, (b, _) in bad.items()}
    files |= {".hidden.png": png, "a/.DS_Store": b"x", ".cache/x.png": png}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    reasons = {name: reason for name, (_, reason) in bad.items()}
    (root / "b" / "round").symlink_to(root, target_is_directory=True)
    (root / "b" / "self").symlink_to(root / "b" / "self")
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "b" / "again.png").symlink_to(root / "a" / "plain.png")
    links = {"b/round": "loop", "b/self": "symbolic links", "b/gone.png": "No such file", "b/again.png": "same file as"}
    return good, reasons | links


def test_a_messy_folder_uses_each_good_file_once_and_names_each_bad_one(tmp_path):
    good, reasons = messy(tmp_path)
    seen = []
    images, bad, _ = read_folder(
        tmp_path, size=(24, 32), channels=3, progress=lambda what, done, total: seen.append((what, done, total))
    )
    names = sorted(good)
    assert len(images) == len(good)
    for name, pixels in zip(names, images.pixels, strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(good[name])), name
    assert images.classes == ("a", "b")
    assert images.labels.tolist() == [0 if name.startswith("a/") else 1 for name in names]
    said = {str(Path(b.path).relative_to(tmp_path)): b for b in bad}
    assert len(said) == len(bad)
    assert said.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in said[name].reason, name
        assert "\n" not in str(said[name])
    assert [done for _, done, _ in seen] == list(range(1, seen[0][2] + 1))


def test_convertible_oddities_count_as_good(tmp_path):
    (tmp_path / "cmyk.jpg").write_bytes(encoded(noise().convert("CMYK"), "JPEG"))
    (tmp_path / "deep.png").write_bytes(encoded(Image.fromarray(np.full((9, 9), 30000, np.uint16)), "PNG"))
    (tmp_path / "palette.png").write_bytes(encoded(noise().convert("P"), "PNG", transparency=0))
    images, bad, _ = read_folder(tmp_path, size=(9, 9), channels=3)
    assert (len(images), bad, images.labels, images.classes) == (3, [], None, ())
    assert (images.pixels[1] == 117).all()
    assert (images.pixels[0].float().std(0) > 1).any()  # colour stayed colour


def test_links_to_folders_elsewhere_are_followed_once(tmp_path):
    (tmp_path / "away" / "up").mkdir(parents=True)
    (tmp_path / "away" / "x.png").write_bytes(encoded(noise(), "PNG"))
    (tmp_path / "away" / "up" / "loop").symlink_to(tmp_path / "away")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "away")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "away")
    (tmp_path / "data" / "parent").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for root in (tmp_path / "data", tmp_path / "link"):
        files, bad = list_files(root)
        assert files == [str(root / "cat" / "x.png")]
        assert sorted(b.path for b in bad) == [str(root / n) for n in ("cat/up/loop", "dog", "parent")]


def test_pictures_beside_class_folders_are_used_and_the_lost_labels_are_reported(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("top.png", "a/in.png"):
        (tmp_path / name).write_bytes(encoded(noise(), "PNG"))
    images, bad, notes = read_folder(tmp_path, size=(8, 8), channels=1)
    assert (len(images), images.labels, bad) == (2, None, [])
    assert [note.startswith(f"{tmp_path}: images lie beside") and "no labels" in note for note in notes] == [True]


def test_a_folder_without_one_good_image_is_refused(tmp_path):
    with pytest.raises(DataError, match="no readable image among 0 files"):
        read_folder(tmp_path, size=(8, 8), channels=3)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"among 1 files.*x.png: empty"):
        read_folder(tmp_path, size=(8, 8), channels=3)
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "none", size=(8, 8), channels=3)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"real photos: no folder {PHOTOS.parent.name}/photos")
def test_real_photos_are_all_good():
    images, bad, _ = read_folder(PHOTOS, size=(64, 64), channels=3)
    assert bad == []
    assert images.pixels.shape == (len(list(PHOTOS.glob("*.jpg"))), 3, 64, 64)
    for path, pixels in zip(sorted(PHOTOS.glob("*.jpg")), images.pixels, strict=True):
        photo = np.asarray(Image.open(path).convert("RGB"), dtype=float)
        assert abs(pixels.float().mean() - photo.mean()) < 25
        assert pixels.float().std(0).mean() > 1 or np.ptp(photo, -1).mean() < 8


# -- arrays, splits, and the dataclass --


def test_area_averaging_is_the_mean_of_blocks():
    array = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    means = array.reshape(5, 14, 2, 14, 2).mean((2, 4))
    got = to_images(array, size=(14, 14)).pixels[:, 0].numpy()
    assert np.array_equal(got, np.rint(means))
    binary = to_images(array, size=(14, 14), binary=True).pixels[:, 0].numpy()
    assert np.array_equal(binary, np.where(np.rint(means) > 127, 255, 0))


def test_arrays_are_copied_and_colours_move_to_the_front():
    array = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    array.flags.writeable = False
    images = to_images(array, np.array([2, 0], np.uint8))
    assert np.array_equal(images.pixels.permute(0, 2, 3, 1), array)
    images.pixels.zero_()
    assert array.any()
    assert images.labels.dtype == torch.int64
    assert images.classes == ("0", "1", "2")


def test_as_float_spans_minus_one_to_one():
    images = Images(pixels=torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8), labels=None)
    whole = images.read_float(slice(None))
    assert whole.flatten().tolist() == pytest.approx([v / 127.5 - 1 for v in range(256)], abs=1e-6)
    assert (whole.min(), whole.max()) == (-1, 1)
    assert torch.equal(images.read_float(torch.tensor([3, 0])), whole[[3, 0]])


@pytest.mark.parametrize(
    ("array", "labels", "said"),
    [
        (np.zeros((2, 4, 4), np.float32), None, "float32"),
        (np.zeros((2, 3, 4, 4), np.uint8), None, r"\(2, 3, 4, 4\)"),
        (np.zeros((0, 4, 4), np.uint8), None, "no pixels"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(3, np.int64), r"\(3,\)"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0, -1]), "-1..0"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0.0, 1.0]), "float64.*whole numbers"),
        (np.zeros((2, 4, 4), np.uint8), np.array([["a", "b"]]), "give one for each"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0, 10**9]), "100000 classes"),
    ],
)
def test_wrong_arrays_are_refused(array, labels, said):
    with pytest.raises(DataError, match=said):
        to_images(array, labels)


def test_split_is_a_partition_fixed_by_the_seed():
    images = to_images(np.arange(100, dtype=np.uint8).reshape(100, 1, 1), np.arange(100))
    train, held = split(images, 30, seed=0)
    again, _ = split(images, 30, seed=0)
    other, _ = split(images, 30, seed=1)
    assert (len(train), len(held)) == (70, 30)
    assert sorted(train.labels.tolist() + held.labels.tolist()) == list(range(100))
    assert torch.equal(train.pixels.flatten().long(), train.labels)
    assert torch.equal(train.labels, again.labels)
    assert not torch.equal(train.labels, other.labels)
    for wrong in (-1, 100):
        with pytest.raises(DataError, match=f"hold out {wrong} of 100"):
            split(images, wrong, seed=0)
