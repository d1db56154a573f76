"""Check pictures pixel by pixel where their content is known, and text for legible size."""

import errno
import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image

from unmask.errors import ConfigError, DiskError, NonFiniteError
from unmask.figures import images as figures
from unmask.figures.images import (
    draw_decode_frames,
    draw_grid,
    draw_triptych,
    draw_unmasking_order,
    overlay_mask,
    plot_curves,
    write_animation,
    write_picture,
)


def noise(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pixels(picture):
    return np.asarray(picture.convert("RGB")).astype(int)


def opened(path):
    with Image.open(path) as file:
        frames, durations = [], []
        for place in range(getattr(file, "n_frames", 1)):
            file.seek(place)
            file.load()
            frames.append(pixels(file))
            durations.append(file.info.get("duration"))
    return frames, durations


@settings(max_examples=30, deadline=None)
@given(
    num=st.integers(1, 7),
    columns=st.integers(1, 9),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    channels=st.sampled_from([1, 3]),
    scale=st.integers(1, 5),
    gap=st.integers(0, 2),
)
def test_grid_holds_every_image_enlarged_and_nothing_else(num, columns, size, channels, scale, gap):
    images = noise(num, num, channels, *size)
    page = pixels(draw_grid(images, columns, scale=scale, gap=gap))
    columns = min(columns, num)
    pitch_y, pitch_x = (size[0] + gap) * scale, (size[1] + gap) * scale
    rows = -(-num // columns)
    assert page.shape == (rows * pitch_y + gap * scale, columns * pitch_x + gap * scale, 3)
    for place, image in enumerate(images):
        y, x = gap * scale + place // columns * pitch_y, gap * scale + place % columns * pitch_x
        cut = page[y : y + size[0] * scale, x : x + size[1] * scale]
        expected = ((image + 1) * 127.5).round().int().permute(1, 2, 0).expand(-1, -1, 3).numpy()
        assert (cut == expected.repeat(scale, 0).repeat(scale, 1)).all()
        page[y : y + size[0] * scale, x : x + size[1] * scale] = 255
    assert (page == 255).all()


def test_grid_clips_and_labels():
    beyond = torch.tensor([-3.0, -1.0, 1.0, 3.0]).reshape(1, 1, 1, 4)
    assert pixels(draw_grid(beyond, 1, scale=1, gap=0))[0, :, 0].tolist() == [0, 0, 255, 255]
    images = torch.ones(4, 1, 8, 8)
    plain, named = draw_grid(images, 2, scale=8), draw_grid(images, 2, scale=8, labels=["a", "b", "c", "d"])
    assert named.height > plain.height
    assert named.width == plain.width
    assert (pixels(plain) == 255).all()
    assert (pixels(named) < 100).any()


def test_long_labels_of_small_images_stay_apart():
    """There is a column without ink between two labels, and each image is above the middle of its label."""
    page = pixels(draw_grid(-torch.ones(3, 1, 8, 8), 3, scale=4, labels=["variant number 1"] * 3))
    middles = [round(page.shape[1] * (2 * i + 1) / 6) for i in range(3)]
    for left, right in pairwise(middles):
        assert (page[:, left:right] == 255).all(-1).all(0).any()
    assert all((page[4:36, middle - 14 : middle + 14] == 0).all() for middle in middles)
    assert int((page[4] == 0).all(-1).sum()) == 3 * 32


def test_grid_names_what_is_wrong():
    images = noise(0, 2, 1, 4, 4)
    with pytest.raises(ConfigError, match=r"2, 2, 4, 4"):
        draw_grid(noise(0, 2, 2, 4, 4), 1)
    with pytest.raises(ConfigError, match="columns 0"):
        draw_grid(images, 0)
    with pytest.raises(ConfigError, match="1 labels for 2 images"):
        draw_grid(images, 1, labels=["one"])
    with pytest.raises(NonFiniteError, match="32 pixels are not finite"):
        draw_grid(images * float("nan"), 1)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    cell=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_overlay_covers_masked_cells_and_leaves_the_rest(rows, columns, cell, channels, seed):
    images = noise(seed, 2, channels, rows * cell[0], columns * cell[1])
    masked = noise(seed + 1, 2, rows * columns) > 0
    before = images.clone()
    painted = overlay_mask(images, masked, (rows, columns))
    assert torch.equal(images, before)
    for n in range(2):
        for y in range(images.shape[2]):
            for x in range(images.shape[3]):
                inside = masked[n, y // cell[0] * columns + x // cell[1]]
                red, _, blue = ((painted[n, :, y, x] + 1) * 127.5).tolist()
                if inside:
                    assert blue - red > 50
                else:
                    assert torch.equal(painted[n, :, y, x], images[n, :, y, x].expand(3))


@pytest.mark.parametrize("cell", [1, 2, 8, 16])
def test_overlay_is_patterned_at_every_cell_size(cell):
    painted = overlay_mask(torch.zeros(1, 1, 4 * cell, 4 * cell), torch.ones(1, 16, dtype=torch.bool), (4, 4))
    tones, counts = painted.flatten(2)[0].T.unique(dim=0, return_counts=True)
    assert len(tones) == 2
    assert counts[0] == counts[1]
    stripe = max(1, cell // 4)
    red = painted[0, 0]
    assert (red[stripe:] != red[:-stripe]).all()
    assert (red[:, stripe:] != red[:, :-stripe]).all()
    assert torch.equal(red[1:, :-1], red[:-1, 1:])


def test_overlay_refuses_a_grid_that_does_not_fit():
    for grid_shape, tokens in [((2, 2), 6), ((3, 2), 6)]:
        with pytest.raises(ConfigError, match="fits neither"):
            overlay_mask(torch.zeros(1, 1, 8, 8), torch.ones(1, tokens, dtype=torch.bool), grid_shape)


def decode_states():
    tokens = torch.arange(16).reshape(1, 16).repeat(3, 1)
    masked = [tokens >= known for known in (0, 4, 9, 16)]
    return [tokens.masked_fill(hidden, 16) for hidden in masked], masked


def test_decode_frames_never_show_the_mask_id_to_the_tokenizer_and_end_clean():
    states, masked = decode_states()
    seen = []

    def to_images(tokens):
        seen.append(int(tokens.max()))
        return tokens.reshape(-1, 1, 4, 4) / 7.5 - 1

    frames = draw_decode_frames(states, masked, to_images, (4, 4), 3, scale=8)
    assert seen == [0, 3, 8, 15]
    assert len(frames) == 4
    assert len({frame.size for frame in frames}) == 1
    last = pixels(draw_grid(to_images(states[-1]), 3, scale=8))
    left = (frames[0].width - last.shape[1]) // 2
    assert (pixels(frames[-1])[: last.shape[0], left : left + last.shape[1]] == last).all()
    bars = [(pixels(frame)[last.shape[0] :] == (0, 114, 178)).all(2).sum() for frame in frames]
    assert bars[0] == 0
    assert bars == sorted(bars)
    assert len(set(bars)) == 4
    with pytest.raises(ConfigError, match="4 token states and 3 masks"):
        draw_decode_frames(states, masked[1:], to_images, (4, 4), 3)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animation_keeps_frames_and_holds_the_last(tmp_path, suffix):
    frames = [draw_grid(noise(seed, 2, 1, 6, 6), 2, scale=3) for seed in range(4)]
    path = tmp_path / f"decode{suffix}"
    write_animation(frames, path, milliseconds=120, hold=900)
    back, durations = opened(path)
    assert durations == [120, 120, 120, 900]
    for frame, read in zip(frames, back, strict=True):
        assert (pixels(frame) == read).all()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_palette_is_exact_up_to_256_colours_and_close_beyond():
    few = draw_grid(noise(1, 1, 3, 15, 17), 1, scale=1, gap=0)
    assert (pixels(figures._quantize(few)) == pixels(few)).all()
    many = Image.fromarray(np.indices((64, 64)).sum(0).astype(np.uint8)[..., None].repeat(3, 2) + np.uint8([0, 9, 99]))
    assert abs(pixels(figures._quantize(many)) - pixels(many)).mean() < 4


def test_animation_refuses_other_suffixes_and_no_frames(tmp_path):
    frame = draw_grid(noise(0, 1, 1, 4, 4), 1)
    with pytest.raises(ConfigError, match=r"\.gif or a \.webp"):
        write_animation([frame], tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match="0 frames"):
        write_animation([], tmp_path / "a.gif")
    with pytest.raises(ConfigError, match="5 and"):
        write_animation([frame], tmp_path / "a.gif", milliseconds=5)
    assert list(tmp_path.iterdir()) == []


def test_reveal_order_colours_each_cell_by_its_step():
    steps = torch.tensor([[0, 1, 2, 3, 4, 5]])
    page = pixels(draw_unmasking_order(steps, (2, 3), 5, 1, scale=10))
    top = (page.shape[0] - 40) // 2
    wanted = [figures.KNOWN, *(colormaps["viridis"](i / 4, bytes=True)[:3] for i in range(5))]
    for place, colour in enumerate(wanted):
        y, x = top + 10 + place // 3 * 10, 10 + place % 3 * 10
        assert (page[y : y + 10, x : x + 10] == colour).all()
    bar = page[:, 50:]
    for colour in wanted:
        assert (bar == colour).all(2).sum() > 100


def test_reveal_order_shows_the_grey_key_only_where_needed():
    without = pixels(draw_unmasking_order(torch.tensor([[1, 2, 3, 4]]), (2, 2), 4, 1))
    assert not (without == figures.KNOWN).all(2).any()
    assert (without == figures.PAPER).all(2).any()


@pytest.mark.parametrize("num_steps", [1, 2, 8, 12, 64, 256])
def test_reveal_order_draws_any_number_of_steps(num_steps):
    steps = torch.full((4, 16), num_steps)
    assert draw_unmasking_order(steps, (4, 4), num_steps, 2).width > 100


def test_reveal_order_names_what_is_wrong():
    for steps, shape in [([[1, 2, 3, 5]], (2, 2)), ([[-1, 2, 3, 4]], (2, 2)), ([[1, 2, 3, 4]], (2, 3))]:
        with pytest.raises(ConfigError, match="do not fit"):
            draw_unmasking_order(torch.tensor(steps), shape, 4, 1)


def test_triptych_sets_grey_and_colour_batches_in_titled_rows():
    original, repaired = noise(1, 3, 1, 8, 8), noise(2, 3, 1, 8, 8)
    hole = overlay_mask(original, torch.ones(3, 4, dtype=torch.bool), (2, 2))
    page = draw_triptych([original, hole, repaired], ["original", "hole", "repaired"], 4)
    body = pixels(draw_grid(torch.cat([each.expand(-1, 3, -1, -1) for each in (original, hole, repaired)]), 3, scale=4))
    assert (pixels(page)[:, -body.shape[1] :] == body).all()
    titles = pixels(page)[:, : -body.shape[1]]
    for row in range(3):
        assert (titles[4 + row * 36 : 4 + row * 36 + 36] < 100).any()
    assert (titles[:, :2] == 255).all()  # nothing touches the edge


def test_triptych_names_what_is_wrong():
    with pytest.raises(ConfigError, match="1 batches and 2 titles"):
        draw_triptych([noise(0, 1, 1, 4, 4)], ["a", "b"])
    with pytest.raises(ConfigError, match="differ"):
        draw_triptych([noise(0, 1, 1, 4, 4), noise(0, 2, 1, 4, 4)], ["a", "b"])


def test_curves_draw_every_series_and_reference(tmp_path):
    series = {"a": ([1, 10, 100], [3.0, 2.0, 1.0]), "b": ([1, 10, 100], [1.0, 2.0, 3.0])}
    words = {"xlabel": "step", "ylabel": "loss", "title": "Loss"}

    def drawn(name, chosen, **options):
        plot_curves(chosen, tmp_path / name, **words, **options)
        return opened(tmp_path / name)[0][0]

    both = drawn("both.png", series)
    blue, orange = (0, 114, 178), (213, 94, 0)
    assert (both == blue).all(2).sum() > 200
    assert (both == orange).all(2).sum() > 200
    assert not (drawn("one.png", {"a": series["a"]}) == orange).all(2).any()
    assert (drawn("reference.png", series, references={"log K": 2.5}) != both).any()
    for logx, middle in [(False, 0.09), (True, 0.5)]:
        rows, places = (drawn("line.png", {"loss": series["a"]}, logx=logx) == blue).all(2).nonzero()
        at = places[rows == (rows.min() + rows.max()) // 2].mean()
        assert (at - places.min()) / (places.max() - places.min()) == pytest.approx(middle, abs=0.03)
    with pytest.raises(ConfigError, match=r"0 curves"):
        drawn("none.png", {})
    with pytest.raises(ConfigError, match=r"\.png"):
        drawn("curve.pdf", series)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_write_is_exact_and_makes_its_folder(tmp_path, suffix):
    picture = draw_grid(noise(3, 4, 3, 9, 9), 2)
    path = tmp_path / "new" / f"picture{suffix}"
    write_picture(picture, path)
    assert (opened(path)[0][0] == pixels(picture)).all()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    with pytest.raises(ConfigError, match=r"\.xyz"):
        write_picture(picture, tmp_path / "picture.xyz")


@pytest.mark.parametrize(("width", "level"), [(1024, b"x\x9c"), (1025, b"x\x01")])
def test_a_photo_is_compressed_quickly(tmp_path, width, level):
    """The usual level takes twice as long, which are seconds for each photo of a camera."""
    picture = Image.linear_gradient("L").resize((width, 1024)).convert("RGB")
    write_picture(picture, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().partition(b"IDAT")[2][:2] == level
    assert (opened(tmp_path / "a.png")[0][0] == pixels(picture)).all()


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    write_picture(draw_grid(torch.ones(1, 1, 4, 4), 1), path)
    old = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskError, match=r"picture.png .*No space"):
        write_picture(draw_grid(-torch.ones(1, 1, 4, 4), 1), path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]
