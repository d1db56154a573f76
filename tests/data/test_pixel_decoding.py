"""Colour profiles, 12 bits in 16, limits of size, and bombs."""

import io
import struct
import threading

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from unmask.data.image_files import Unreadable, decode_bytes, silence_warnings, try_image
from unmask.data.masks import MAX_PHOTO, read_photo
from unmask.data.pixels import BadImage, decode
from unmask.data.pixels.colours import to_srgb
from unmask.data.pixels.decode import MAX_PIXELS, check_size, decode_image
from unmask.errors import DataError
from unmask.pipelines.pictures import to_photo

SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50, D65 = np.array([0.9642, 1.0, 0.8249]), np.array([0.3127 / 0.3290, 1.0, 0.3583 / 0.3290])


def to_xyz(primaries) -> np.ndarray:
    """Linear RGB to XYZ under D50, as a profile stores it (IEC 61966-2-1, with Bradford's adaptation)."""
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    matrix = columns * np.linalg.solve(columns, D65)
    return np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50 / (BRADFORD @ D65)) @ BRADFORD @ matrix


def make_profile(primaries, gamma: float, space: bytes = b"RGB ") -> bytes:
    """A small ICC profile (version 2): white, and three primaries or none, each with the curve of `gamma`."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)

    def xyz(values) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(v) * 65536) for v in values))

    tags = {b"wtpt": xyz(D50)}
    if space == b"RGB ":
        for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), to_xyz(primaries).T, strict=True):
            tags |= {name: xyz(column), name[:1] + b"TRC": curve}
    else:
        tags[b"kTRC"] = curve
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags[b"cprt"] = b"text" + bytes(4) + b"none\0"
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = b"test" + bytes.fromhex("02100000") + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", *(round(float(v) * 65536) for v in D50))
    return struct.pack(">I", at + len(body)) + head.ljust(124, b"\0") + table + body


def convert(levels: np.ndarray, primaries, gamma: float) -> np.ndarray:
    """What the levels look like in sRGB, from the definitions alone."""
    linear = (levels / 255.0) ** gamma
    out = linear @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T
    out = out.clip(0, 1)
    return 255 * np.where(out <= 0.0031308, 12.92 * out, 1.055 * out ** (1 / 2.4) - 0.055)


def noise(height=24, width=32, seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, **options) -> np.ndarray:
    return np.asarray(decode_image(io.BytesIO(data), **options))


# -- profiles --


@pytest.mark.parametrize(("primaries", "gamma"), [(P3, 2.2), (ADOBE, 2.2), (SRGB, 1.0)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_wide_colours_are_converted_to_srgb(primaries, gamma, kind):
    levels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(levels), kind, icc_profile=make_profile(primaries, gamma))
    right = convert(levels, primaries, gamma)
    assert np.abs(levels - right).max() > 15  # the control: to ignore the profile is wrong
    dark = levels.min(-1) < 12 if gamma == 1.0 else np.zeros((24, 32), bool)  # 8 bits of linear light are coarse there
    assert np.abs(decoded(data) - right)[~dark].max() < 3


def test_an_srgb_profile_changes_no_bit():
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode in ("RGB", "L", "P", "RGBA"):
        image = noise().convert(mode)
        assert np.array_equal(decoded(encoded(image, icc_profile=own)), decoded(encoded(image)))
    jpeg = encoded(noise(), "JPEG", icc_profile=own)
    assert np.array_equal(decoded(jpeg), np.asarray(Image.open(io.BytesIO(jpeg))))


def test_grey_profiles_and_16_bits():
    profile = make_profile((), 1.0, b"GRAY")
    grey = np.arange(256, dtype=np.uint8).reshape(8, 32)
    right = convert(np.repeat(grey[..., None], 3, -1), SRGB, 1.0)
    for stored in (grey, grey.astype(np.uint16) * 257):
        found = decoded(encoded(Image.fromarray(stored), icc_profile=profile))
        assert np.abs(found - right)[grey > 8].max() < 2


def test_transparency_survives_a_profile():
    image = noise().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image.paste((0, 255, 0, 255), (0, 0, 16, 24))
    data = encoded(image, icc_profile=make_profile(ADOBE, 2.2))
    assert (decoded(data)[:, 16:] == 255).all()
    layers = decoded(data, alpha=True)
    assert (layers[:, 16:, 3] == 0).all()
    assert np.abs(layers[:, :16, :3] - convert(np.array([0, 255, 0]), ADOBE, 2.2)).max() < 3


@pytest.mark.parametrize(
    "profile", [b"not a profile" * 20, make_profile(P3, 2.2)[:200], make_profile((), 2.2, b"GRAY")]
)
def test_a_damaged_or_foreign_profile_is_refused_in_one_line(profile):
    with silence_warnings():
        found = decode_bytes(io.BytesIO(encoded(noise(), icc_profile=profile)), "x.png")
    assert isinstance(found, Unreadable)
    assert "colour profile" in found.reason
    assert "save it as sRGB" in found.reason


def test_a_pil_image_is_converted_too():
    image = Image.open(io.BytesIO(encoded(noise(), icc_profile=make_profile(P3, 2.2))))
    assert np.array_equal(to_photo(image).permute(1, 2, 0).numpy(), np.asarray(to_srgb(image)))
    deep = Image.fromarray(np.full((4, 4), 30000, np.uint16))
    assert (to_photo(deep) == 117).all()
    with pytest.raises(DataError, match="no agreed white"):
        to_photo(Image.new("F", (4, 4)))


# -- 12 bits --


def test_twelve_bits_in_sixteen_are_refused_unless_the_file_says_so():
    values = np.linspace(0, 4095, 24 * 32).astype(np.uint16).reshape(24, 32)
    for kind in ("PNG", "TIFF"):
        with pytest.raises(BadImage, match="no value above 4095: 12 bits or fewer, or nearly black"):
            decoded(encoded(Image.fromarray(values), kind))
    said = decoded(encoded(Image.fromarray(values), "TIFF", tiffinfo={281: 4095}))
    assert np.array_equal(said[..., 0] if said.ndim == 3 else said, np.rint(values / (4095 / 255)))
    assert not decoded(encoded(Image.fromarray(0 * values))).any()  # black is black either way
    assert decoded(encoded(Image.fromarray(values + 1))).max() == 16  # 4096 takes 13 bits


def test_twelve_bits_in_sixteen_bit_colour_are_refused():
    def png(levels: np.ndarray) -> bytes:
        import zlib

        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
        head = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    levels = np.random.default_rng(0).integers(0, 4096, (8, 8, 3))
    with pytest.raises(BadImage, match="16-bit colour with no value above 4095"):
        decoded(png(levels))
    assert decoded(png(levels * 16)).max() > 200
    assert not decoded(png(levels * 0)).any()
    decoded(encoded(Image.fromarray((levels // 300).astype(np.uint8))))  # 8 bits may be dark


# -- sizes --


def test_a_large_image_is_put_on_white_strip_by_strip(monkeypatch):
    image = noise(40, 50).convert("RGBA")
    image.putalpha(noise(40, 50, 1).getchannel("R"))
    white = Image.new("RGBA", image.size, "white")
    right = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    for strip in (1, 170, 1 << 20):
        monkeypatch.setattr(decode, "STRIP", strip)
        assert np.array_equal(decoded(encoded(image)), right)
        palette = image.convert("P")
        palette.info["transparency"] = 3
        assert decoded(encoded(palette)).shape == (40, 50, 3)


def test_a_photo_to_edit_has_a_lower_cap_than_a_dataset(tmp_path, monkeypatch):
    Image.new("1", (8000, 8000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 10_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(
        DataError, match="8000x8000 is more than 16000000 pixels: shrink it first, to 4000x4000 or less"
    ):
        read_photo(tmp_path / "bomb.png")
    assert MAX_PHOTO < MAX_PIXELS


def test_a_side_is_limited_too():
    check_size((65_535, 900), MAX_PIXELS)
    with pytest.raises(BadImage, match="a side has more than 65535 pixels"):
        check_size((1, 64_000_000), MAX_PIXELS)


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(decode, "LARGE", 100)
    inside, most, lock = [0], [0], threading.Lock()
    plain = decode.flatten

    def flatten(image):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        try:
            return plain(image)
        finally:
            with lock:
                inside[0] -= 1

    monkeypatch.setattr(decode, "flatten", flatten)
    threads = [threading.Thread(target=decoded, args=(encoded(noise(300, 300)),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def make_pages(num: int) -> bytes:
    out = bytearray(b"II*\0" + struct.pack("<I", 8))
    for i in range(num):
        at = len(out)
        tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, at + 102), (277, 1), (278, 1), (279, 1)]
        out += struct.pack("<H", 9) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        out += struct.pack("<I", at + 116 if i < num - 1 else 0) + bytes(4)
    return bytes(out)


def test_twenty_thousand_pages_are_refused_without_a_count(tmp_path, monkeypatch):
    from PIL import TiffImagePlugin

    reads = []
    plain = TiffImagePlugin.ImageFileDirectory_v2.load
    monkeypatch.setattr(
        TiffImagePlugin.ImageFileDirectory_v2, "load", lambda self, file: (reads.append(1), plain(self, file))[1]
    )
    (tmp_path / "pages.tif").write_bytes(make_pages(20_000))
    found = try_image(tmp_path / "pages.tif", (8, 8), 3)
    assert isinstance(found, Unreadable)
    assert "many-paged" in found.reason
    assert len(reads) < 5
    (tmp_path / "one.tif").write_bytes(make_pages(1))
    assert not isinstance(try_image(tmp_path / "one.tif", (8, 8), 3), Unreadable)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_damage_raises_nothing_else(kind):
    data, rng = encoded(noise(), kind), np.random.default_rng(0)
    with silence_warnings():
        for _ in range(60):
            wrong = bytearray(data)
            for at in rng.integers(0, len(data), 2):
                wrong[at] = int(rng.choice([0, 1, 127, 128, 255]))
            found = decode_bytes(io.BytesIO(bytes(wrong)), "x")
            assert isinstance(found, Unreadable) or found.mode in ("L", "RGB")
