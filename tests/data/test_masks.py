"""A mask belongs to the photo as viewers show it; one of the stored size is turned with the photo."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.cli.editing import InpaintFlags
from unmask.cli.holes import read_hole
from unmask.data.masks import find_turn, read_mask, read_photo
from unmask.data.pixels.decode import UPRIGHT
from unmask.errors import DataError


def save_photo(path: Path, orientation: int, size: tuple[int, int] = (24, 16)) -> np.ndarray:
    """Save a photo of `size` (width, height) that is stored turned; return it as viewers show it."""
    rng = np.random.default_rng(0)
    stored = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif)
    return np.asarray(stored if orientation == 1 else stored.transpose(UPRIGHT[orientation]))


def save_mask(path: Path, shape: tuple[int, ...], exif_from: int | None = None) -> np.ndarray:
    mask = np.zeros(shape[:2], bool)
    mask[1:5, 2:9] = True
    exif = Image.Exif()
    if exif_from is not None:
        exif[0x0112] = exif_from
    Image.fromarray(mask.astype(np.uint8) * 255).save(path, exif=exif)
    return mask


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_drawn_on_the_upright_view_applies_as_it_is(tmp_path, capsys, orientation):
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    shown = save_photo(photo, orientation)
    drawn = save_mask(mask, shown.shape)
    pixels, hole = read_hole(photo, InpaintFlags(mask=mask))
    assert np.array_equal(pixels.permute(1, 2, 0), shown)
    assert np.array_equal(hole, drawn)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_on_the_stored_pixels_is_turned_and_that_is_said(tmp_path, capsys, orientation):
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    shown = save_photo(photo, orientation)
    drawn = save_mask(mask, (16, 24))
    pixels, hole = read_hole(photo, InpaintFlags(mask=mask))
    assert np.array_equal(pixels.permute(1, 2, 0), shown)
    turned = Image.fromarray(drawn.astype(np.uint8)).transpose(UPRIGHT[orientation])
    assert np.array_equal(hole, np.asarray(turned, bool))
    assert capsys.readouterr().out == (f"{mask} has the size of the photo as stored, so it is turned upright with it\n")


def test_a_mask_with_the_same_orientation_tag_is_turned_once(tmp_path):
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    shown = save_photo(photo, 6)
    drawn = save_mask(mask, (16, 24), exif_from=6)
    assert find_turn(photo, mask) is None
    hole = read_mask(mask, shown.shape[:2])
    assert np.array_equal(hole, np.asarray(Image.fromarray(drawn.astype(np.uint8)).transpose(UPRIGHT[6]), bool))


def test_a_square_photo_leaves_no_doubt(tmp_path):
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    save_photo(photo, 6, (16, 16))
    drawn = save_mask(mask, (16, 16))
    assert find_turn(photo, mask) is None
    assert torch.equal(read_mask(mask, (16, 16)), torch.from_numpy(drawn))


def test_what_cannot_be_read_is_refused_by_the_readers(tmp_path):
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    save_photo(photo, 6)
    mask.write_bytes(b"no image")
    assert find_turn(photo, mask) is find_turn(photo, tmp_path / "none") is None
    with pytest.raises(DataError, match="not a readable image"):
        read_hole(photo, InpaintFlags(mask=mask))
    assert read_photo(photo).shape == (3, 24, 16)
