"""Crops and mirror images as functions of uniform noise."""

import pytest
import torch
from torch import Tensor

from unmask.data.augment import PictureSet, crop
from unmask.data.images import Images
from unmask.errors import ConfigError
from unmask.method.rand import seeded

CPU = torch.device("cpu")


def images(num: int, height: int, width: int, channels: int = 3) -> Images:
    """Every pixel of a picture is another number."""
    pixels = (
        torch.arange(channels * height * width).reshape(1, channels, height, width)
        + torch.arange(num)[:, None, None, None]
    )
    return Images(pixels=(pixels % 256).to(torch.uint8), labels=torch.arange(num), classes=tuple(map(str, range(num))))


def views(data: PictureSet, row: int, u: Tensor) -> Tensor:
    return data.read_rows(torch.full((len(u),), row), CPU, u)[0]


def test_crop_is_a_slice_per_picture():
    pixels = images(5, 7, 9).pixels
    top, left = torch.tensor([0, 3, 1, 2, 3]), torch.tensor([4, 0, 1, 4, 2])
    cut = crop(pixels, (4, 5), top, left)
    for i in range(5):
        assert torch.equal(cut[i], pixels[i, :, top[i] : top[i] + 4, left[i] : left[i] + 5])


def test_every_window_and_mirror_is_equally_likely():
    data = PictureSet(pictures=images(1, 5, 6), size=(4, 4))
    whole = images(1, 5, 6).read_float(torch.tensor([0]))[0]
    windows = [whole[:, i : i + 4, j : j + 4] for i in range(2) for j in range(3)]
    expected = torch.stack([w for window in windows for w in (window, window.flip(2))])
    count = 12 * 400
    seen = views(data, 0, (torch.arange(count) + 0.5) / count)
    matches = (seen[:, None] == expected).flatten(2).all(2)
    assert (matches.sum(1) == 1).all()
    assert (matches.sum(0) == 400).all()


def test_without_noise_it_is_the_centre_unmirrored():
    data = PictureSet(pictures=images(3, 6, 8), size=(4, 4))
    rows, labels = data.read_rows(torch.tensor([2, 0]), CPU)
    assert torch.equal(rows, images(3, 6, 8).read_float(torch.tensor([2, 0]))[:, :, 1:5, 2:6])
    assert labels.tolist() == [2, 0]


def test_without_flip_nothing_is_mirrored():
    pictures = images(1, 4, 4)
    data = PictureSet(pictures=pictures, size=(4, 4), flip=False)
    assert (views(data, 0, seeded(0, 50)("view")) == pictures.read_float(torch.tensor([0]))).all()
    flipped = views(PictureSet(pictures=pictures, size=(4, 4)), 0, seeded(0, 50)("view"))
    assert 10 < int((flipped != pictures.read_float(torch.tensor([0]))).flatten(1).any(1).sum()) < 40


def test_a_view_depends_on_its_own_number_only():
    data = PictureSet(pictures=images(8, 6, 7), size=(4, 5))
    u, index = seeded(3, 8)("view"), torch.arange(8)
    together = data.read_rows(index, CPU, u)[0]
    for i in range(8):
        assert torch.equal(data.read_rows(index[i : i + 1], CPU, u[i : i + 1])[0][0], together[i])


@pytest.mark.parametrize("edge", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_are_views_too(edge):
    data = PictureSet(pictures=images(1, 6, 7), size=(4, 5))
    assert views(data, 0, torch.tensor([edge], dtype=torch.float64)).shape == (1, 3, 4, 5)


def test_pictures_too_small_are_refused():
    with pytest.raises(ConfigError, match="the images are 4x9, smaller than 5x5"):
        PictureSet(pictures=images(1, 4, 9), size=(5, 5))
