import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.errors import ConfigError
from unmask.tokenizers.base import Tokenizer
from unmask.tokenizers.pixels import Pixels

SMALL = [
    {"size": (14, 14)},
    {"size": (2, 6), "patch": 1, "levels": 256},
    {"size": (4, 6), "channels": 3, "patch": 1, "levels": 8},
    {"size": (6, 4), "channels": 3, "patch": 2, "levels": 2},
    {"size": (4, 4), "patch": 2, "levels": 16},
    {"size": (3, 9), "patch": 3, "levels": 3},
    {"size": (1, 1), "patch": 1, "levels": 65536},
]


def by_hand(pixels: Pixels, image: torch.Tensor) -> list[int]:
    """The definition, one pixel at a time."""
    tokens = []
    for top in range(0, pixels.size[0], pixels.patch):
        for left in range(0, pixels.size[1], pixels.patch):
            token = 0
            for c in range(pixels.channels):
                for y in range(pixels.patch):
                    for x in range(pixels.patch):
                        value = float(image[c, top + y, left + x])
                        level = min(pixels.levels - 1, max(0, round((value + 1) / 2 * (pixels.levels - 1))))
                        token = token * pixels.levels + level
            tokens.append(token)
    return tokens


@pytest.mark.parametrize("config", SMALL, ids=str)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_encode_inverts_decode(config, seed):
    pixels = Pixels(**config)
    rand = torch.Generator().manual_seed(seed)
    tokens = torch.randint(pixels.vocab_size, (3, pixels.grid[0] * pixels.grid[1]), generator=rand)
    images = pixels.decode(tokens)
    assert images.min() >= -1
    assert images.max() <= 1
    assert torch.equal(pixels.encode(images), tokens)


def test_every_token_of_the_widest_vocabulary_survives():
    for config in ({"patch": 4, "levels": 2}, {"patch": 2, "levels": 16}, {"patch": 1, "levels": 65536}):
        pixels = Pixels(size=(config["patch"] * 256, config["patch"] * 256), **config)
        assert pixels.vocab_size == 65536
        tokens = torch.arange(65536)[None]
        assert torch.equal(pixels.encode(pixels.decode(tokens)), tokens)


@pytest.mark.parametrize("config", SMALL[:-1], ids=str)
def test_encode_is_the_definition(config):
    pixels = Pixels(**config)
    images = torch.rand(2, pixels.channels, *pixels.size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert pixels.encode(images).tolist() == [by_hand(pixels, image) for image in images]


@pytest.mark.parametrize("levels", [2, 3, 16, 256])
def test_decode_of_encode_is_the_nearest_level(levels):
    pixels = Pixels(size=(8, 8), patch=1, levels=levels)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    centres = torch.linspace(-1, 1, levels)
    nearest = centres[(images[..., None] - centres).abs().argmin(-1)]
    torch.testing.assert_close(pixels.decode(pixels.encode(images)), nearest, atol=1e-6, rtol=0)


def test_binary_two_by_two_has_the_first_pixel_leading():
    pixels = Pixels(size=(2, 4))
    assert pixels.vocab_size == 16
    assert pixels.grid == (1, 2)
    image = torch.tensor([[[[1.0, -1, -1, -1], [-1, -1, 1, 1]]]])
    assert pixels.encode(image).tolist() == [[8, 3]]


def test_first_channel_leads():
    pixels = Pixels(size=(1, 1), channels=3, patch=1, levels=4)
    assert pixels.encode(torch.tensor([1.0, -1, -1]).reshape(1, 3, 1, 1)).item() == 3 * 16


def test_grid_is_rows_then_columns():
    pixels = Pixels(size=(2, 6))
    assert pixels.grid == (1, 3)
    assert pixels.decode(torch.zeros(5, 3, dtype=torch.int64)).shape == (5, 1, 2, 6)
    assert pixels.decode(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 1, 2, 6)


def test_it_is_a_tokenizer():
    tokenizer: Tokenizer = Pixels(size=(14, 14))
    assert tokenizer.vocab_size == 16
    assert tokenizer.grid == (7, 7)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"size": (14, 15)}, r"\(14, 15\).*patch 2"),
        ({"size": (14, 14), "levels": 1}, "levels 1"),
        ({"size": (8, 8), "patch": 4, "levels": 3}, "3 levels .* 65536.*lower patch"),
        ({"size": (10**6, 10**6), "patch": 10**6}, "65536"),
        ({"size": (0, 14)}, "at least 1"),
        ({"size": (14, 14), "patch": 0}, "at least 1"),
    ],
)
def test_impossible_configs_are_refused(config, said):
    with pytest.raises(ConfigError, match=said):
        Pixels(**config)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(1, 1, 14, 12), r"\(1, 14, 12\).*\(1, 14, 14\)"),
        (torch.zeros(1, 3, 14, 14), r"\(3, 14, 14\)"),
        (torch.full((1, 1, 14, 14), 1.5), r"\[1.5, 1.5\]"),
        (torch.full((1, 1, 14, 14), 255.0), r"255"),
        (torch.full((1, 1, 14, 14), torch.nan), "nan"),
        (torch.full((1, 1, 14, 14), -torch.inf), "-inf"),
    ],
)
def test_wrong_images_are_refused(images, said):
    with pytest.raises(ValueError, match=said):
        Pixels(size=(14, 14)).encode(images)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (torch.full((1, 49), 16), "16..16.*mask"),
        (torch.full((1, 49), -1), "-1..-1"),
        (torch.zeros(1, 48, dtype=torch.int64), "48 tokens.*49"),
    ],
)
def test_wrong_tokens_are_refused(tokens, said):
    with pytest.raises(ValueError, match=said):
        Pixels(size=(14, 14)).decode(tokens)
