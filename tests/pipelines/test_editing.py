"""Editing with random weights: only holes change, nothing in them is looked at, and every choice does what it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from PIL import Image
from torch import nn

from unmask.data.holes import Cells, compute_ramp, fill_smoothly, mask_tokens, paste
from unmask.data.masks import make_rectangle, read_cutout, read_mask, read_photo
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError, DataError
from unmask.evaluation import inpainting as lab
from unmask.figures import images as figures
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.ramps import CosineRamp
from unmask.metrics.frechet import compute_frechet_distance, fit_gaussian
from unmask.pipelines.editing import (
    choose_window,
    edit_photo,
    extend_canvas,
    inpaint_images,
    stream_inpainting,
    view_window,
)
from unmask.pipelines.image import Pipeline
from unmask.tokenizers.pixels import Pixels

EXACT = Pixels(size=(8, 12), patch=2, levels=3)
REFUSED = (ConfigError, TypeCheckError)  # with shapes checked as types, as the tests run, the type comes first
COLOUR = Pixels(size=(8, 8), channels=3, patch=1, levels=4)


class Smeared:
    """A tokenizer that sees far: each token is a level of brightness of the picture blurred over seven pixels."""

    vocab_size, grid, size, channels = 9, (4, 6), (8, 12), 1

    def encode(self, images):
        wide = F.avg_pool2d(images.mean(1, keepdim=True), 7, 1, 3)
        return (F.avg_pool2d(wide, 2) * 4 + 4).round().long().clamp(0, 8).flatten(1)

    def decode(self, tokens):
        small = tokens.view(-1, 1, *self.grid).float() / 4 - 1
        return F.interpolate(small, (8, 12), mode="bilinear")


def pipeline_for(tokenizer, **config):
    """Random weights, the zero ones too, so that samples depend on class and neighbours."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wanted = TransformerConfig(**{"dim": 16, "depth": 1, "heads": 2, "num_classes": 5, **config})
        model = MaskedTransformer(wanted, tokenizer.vocab_size, tokenizer.grid)
        for p in model.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.3)
    return Pipeline(model.eval(), tokenizer, Sampling(steps=5))


PIPELINE, WIDE, RGB = pipeline_for(EXACT), pipeline_for(Smeared()), pipeline_for(COLOUR)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def pictures(num, seed=3):
    return torch.rand(num, 1, 8, 12, generator=generator(seed)) * 2 - 1


def photo(channels, height, width, seed=0):
    return torch.randint(0, 256, (channels, height, width), generator=generator(seed)).to(torch.uint8)


def some_holes():
    """Nothing, one pixel, a half, a ragged shape, everything."""
    hole = torch.zeros(5, 8, 12, dtype=torch.bool)
    hole[1, 3, 5] = True
    hole[2, :, 6:] = True
    hole[3] = torch.rand(8, 12, generator=generator(0)) < 0.3
    hole[4] = True
    return hole


def one_box(height, width, seed):
    """Some rectangle that is not everything."""
    y0, y1 = sorted(torch.randint(0, height + 1, (2,), generator=generator(seed)).tolist())
    x0, x1 = sorted(torch.randint(0, width + 1, (2,), generator=generator(seed + 1)).tolist())
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    hole[min(y0, height - 1), min(x0, width - 1)] = True
    hole[0 if y0 else -1, 0 if x0 else -1] = False
    return hole


# -- which tokens a hole hides -----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    cell=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    share=st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0]),
    dilate=st.integers(0, 3),
    seed=st.integers(0, 99),
    density=st.sampled_from([0.02, 0.3, 0.8]),
)
def test_cells_follow_their_policy(grid, cell, share, dilate, seed, density):
    height, width = grid[0] * cell[0], grid[1] * cell[1]
    hole = torch.rand(3, height, width, generator=generator(seed)) < density
    hidden = np.zeros((3, *grid), dtype=bool)
    for b, i, j in np.ndindex(3, *grid):
        part = hole[b, i * cell[0] : (i + 1) * cell[0], j * cell[1] : (j + 1) * cell[1]].numpy()
        hidden[b, i, j] = part.any() and (part.sum() >= share * part.size - 1e-9)
    expected = np.zeros_like(hidden)
    for b, i, j in np.ndindex(3, *grid):
        near = hidden[b, max(0, i - dilate) : i + dilate + 1, max(0, j - dilate) : j + dilate + 1]
        expected[b, i, j] = near.any()
    lost = [i for i in range(3) if hole[i].any() and not hidden[i].any()]
    if lost:
        with pytest.raises(ConfigError, match=f"mask of image {lost[0]} has .* share={share}"):
            mask_tokens(hole, grid, Cells(share=share, dilate=dilate))
    else:
        assert (mask_tokens(hole, grid, Cells(share=share, dilate=dilate)).view(3, *grid).numpy() == expected).all()


def test_cells_refuse_what_cannot_be():
    for share, dilate in ((-0.1, 0), (1.1, 0), (0.5, -1), (float("nan"), 0)):
        with pytest.raises(ConfigError, match=f"share {share} .* dilate {dilate}"):
            Cells(share=share, dilate=dilate)
    with pytest.raises(ConfigError, match="9x12 pixels are not a multiple of 4x6 tokens"):
        mask_tokens(torch.ones(1, 9, 12, dtype=torch.bool), (4, 6))
    assert mask_tokens(torch.ones(1, 8, 12, dtype=torch.bool), (4, 6), Cells(dilate=10**9)).all()


# -- the smooth fill ---------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(1, 33), st.integers(1, 33), st.integers(0, 99), st.sampled_from([0.01, 0.5, 0.99, 1.0]))
def test_the_fill_sees_only_the_visible(height, width, seed, density):
    images = torch.rand(2, 3, height, width, generator=generator(seed)) * 2 - 1
    hole = torch.rand(2, height, width, generator=generator(seed + 1)) < density
    filled = fill_smoothly(images, hole)
    other = torch.where(hole[:, None], torch.nan, images)
    assert torch.equal(filled, fill_smoothly(other, hole))
    assert torch.equal(filled[~hole[:, None].expand_as(filled)], images[~hole[:, None].expand_as(filled)])
    for i in range(2):
        seen = images[i][:, ~hole[i]]
        low, high = (seen.amin(1), seen.amax(1)) if seen.numel() else (torch.zeros(3), torch.zeros(3))
        assert (filled[i] >= low[:, None, None] - 1e-5).all()
        assert (filled[i] <= high[:, None, None] + 1e-5).all()


def test_the_fill_continues_what_surrounds_it():
    x = torch.linspace(-1, 1, 32).expand(32, 32)
    images = torch.stack([x, 0 * x + 0.3])[:, None]
    hole = torch.zeros(2, 32, 32, dtype=torch.bool)
    hole[:, 10:20, 8:24] = True
    filled = fill_smoothly(images, hole)
    assert float((filled - images)[1].abs().max()) < 1e-6  # a flat picture stays flat
    assert float((filled - images)[0].abs().max()) < 0.35  # a slope roughly goes on: from -0.5 to 0.5 in the hole
    assert (fill_smoothly(images, torch.ones_like(hole)) == 0).all()


# -- at the model's own size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", [PIPELINE, WIDE])
@pytest.mark.parametrize("labels", [None, torch.arange(5)])
def test_only_the_holes_change_and_inputs_are_left_alone(pipeline, labels):
    images, hole = pictures(5), some_holes()
    before = images.clone(), hole.clone()
    repaired = inpaint_images(pipeline, images, hole, labels, seed=4, variants=3, feather=1, cells=Cells(dilate=1))
    assert repaired.shape == (5, 3, 1, 8, 12)
    outside = ~hole[:, None, None].expand_as(repaired)
    assert torch.equal(repaired[outside], images[:, None].expand_as(repaired)[outside])
    assert not torch.equal(repaired[3, 0], images[3])
    assert torch.equal(images, before[0])
    assert torch.equal(hole, before[1])


@pytest.mark.parametrize("cells", [Cells(), Cells(share=0.3, dilate=1)])
@pytest.mark.parametrize("pipeline", [PIPELINE, WIDE])
def test_what_lies_in_a_hole_has_no_influence(pipeline, cells):
    images, hole = pictures(3), some_holes()[2:]
    repaired = inpaint_images(pipeline, images, hole, feather=2, cells=cells)
    for other in (pictures(3, seed=8), -images, torch.full_like(images, torch.nan)):
        changed = torch.where(hole[:, None], other, images)
        assert torch.equal(inpaint_images(pipeline, changed, hole, feather=2, cells=cells), repaired)
    if pipeline is WIDE:  # the tokenizer does look beyond its cells: without the fill, the content would shine through
        changed = torch.where(hole[:, None], 1.0, images)
        known = ~mask_tokens(hole, (4, 6))
        assert (WIDE.tokenizer.encode(changed) != WIDE.tokenizer.encode(images))[known].any()


def test_each_image_is_repaired_as_if_it_were_alone_whatever_the_batch():
    images, hole, labels = pictures(5), some_holes(), torch.arange(5)
    together = inpaint_images(PIPELINE, images, hole, labels, seed=4, variants=2)
    for batch in (1, 3, 4, 7):
        assert torch.equal(inpaint_images(PIPELINE, images, hole, labels, seed=4, variants=2, batch=batch), together)
    for i in range(5):
        one = slice(i, i + 1)
        alone = inpaint_images(PIPELINE, images[one], hole[one], labels[one], seed=4, variants=2, first=i)
        assert torch.equal(alone, together[one])
    assert torch.equal(
        inpaint_images(PIPELINE, images, hole, labels, seed=4), together[:, :1]
    )  # variant 0 stays variant 0


def test_once_the_hole_is_blank_it_is_the_pipelines_own_repair():
    images, hole = pictures(5), some_holes()
    ours = inpaint_images(PIPELINE, images, hole, torch.arange(5), seed=6)[:, 0]
    assert torch.equal(ours, PIPELINE.fill(fill_smoothly(images, hole), hole, torch.arange(5), seed=6))
    whole = torch.ones(2, 8, 12, dtype=torch.bool)
    labels = torch.tensor([3, 1])
    assert torch.equal(
        inpaint_images(PIPELINE, images[:2], whole, labels, seed=9)[:, 0], PIPELINE.generate(labels, seed=9)
    )
    closed = torch.zeros(2, 8, 12, dtype=torch.bool)
    assert torch.equal(inpaint_images(PIPELINE, images[:2], closed)[:, 0], images[:2])


def test_variants_seeds_labels_and_options_give_other_fillings():
    images, hole = pictures(2), some_holes()[[4, 4]]
    repaired = inpaint_images(PIPELINE, images, hole, torch.tensor([0, 0]), variants=4)
    assert len({v.numpy().tobytes() for v in repaired.flatten(0, 1)}) == 8
    base = repaired[:, :1]
    labels = torch.tensor([0, 0])
    assert not torch.equal(base, inpaint_images(PIPELINE, images, hole, labels, seed=1))
    assert not torch.equal(base, inpaint_images(PIPELINE, images, hole, labels + 1))
    assert not torch.equal(
        base, inpaint_images(PIPELINE, images, hole, labels, sampling=Sampling(steps=5, temperature=0.3))
    )
    part = some_holes()[[3, 3]]
    assert not torch.equal(
        inpaint_images(PIPELINE, images, part, labels), inpaint_images(PIPELINE, images, part, labels, feather=1)
    )
    few, many = (next(stream_inpainting(PIPELINE, images, part, labels, cells=Cells(dilate=d))).tokens for d in (0, 1))
    assert (few == EXACT.vocab_size).sum() < (many == EXACT.vocab_size).sum()


@pytest.mark.parametrize("stop", [1, 2, 4, 6])
def test_an_early_stop_is_the_full_run_up_to_its_last_pass(stop):
    sampling = Sampling(steps=6, scale=CosineRamp(4.0), temperature=(1.0, 0.9, 0.8, 0.7, 0.6, 0.5))
    images, hole, labels = pictures(3), torch.ones(3, 8, 12, dtype=torch.bool), torch.arange(3)
    full = list(stream_inpainting(PIPELINE, images, hole, labels, sampling=sampling))
    cut = list(stream_inpainting(PIPELINE, images, hole, labels, sampling=sampling, stop=stop))
    assert [s.step for s in cut] == list(range(stop + 1))
    assert [s.step for s in full] == list(range(7))
    for ours, theirs in zip(cut[:stop], full[:stop], strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
    assert (cut[-1].tokens < EXACT.vocab_size).all()
    both = cut[-1].tokens, full[-1].tokens
    assert torch.equal(*both) == (stop == 6)
    last = full[stop].revealed  # the stop-th pass predicts and draws the same for what both reveal
    assert torch.equal(both[0][last], full[stop].tokens[last])
    plain = list(PIPELINE.stream_states(PIPELINE.make_canvas(3), labels, sampling=sampling))
    assert torch.equal(plain[-1].tokens, full[-1].tokens)


def test_feather_grows_out_of_the_surroundings_and_inside_only():
    hole = torch.zeros(1, 9, 9, dtype=torch.bool)
    hole[:, 1:8, 1:8] = True
    weight = compute_ramp(hole, 2)[0]
    ring = torch.minimum(torch.arange(9), torch.arange(8, -1, -1))
    depth = torch.minimum(ring[:, None], ring)
    assert torch.allclose(weight, depth.clamp(max=3) / 3)
    assert torch.equal(compute_ramp(torch.ones_like(hole), 5), torch.ones(1, 9, 9))  # the picture's rim is no border
    assert torch.equal(compute_ramp(hole, 0), hole.float())
    images, filled = torch.zeros(1, 1, 9, 9), torch.ones(1, 2, 1, 9, 9)
    assert torch.allclose(paste(images, filled, hole, 2)[0, 1, 0], weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": 0}, "variants 0 must be at least 1"),
        ({"stop": 0}, r"stop 0 lie in 1\.\.5"),
        ({"stop": 6}, r"stop 6 lie in 1\.\.5"),
        ({"feather": -1}, "feather -1"),
        ({"batch": 0}, "batch 0"),
        ({"labels": torch.tensor([5])}, "no class 5: this model's labels go from 0 to 4"),
        ({"cells": Cells(share=1.0)}, "1 pixels, but covers share=1.0 of no token"),
    ],
)
def test_repairs_refuse_in_a_line(options, message):
    hole = some_holes()[1:2]
    with pytest.raises(ConfigError, match=message) as caught:
        inpaint_images(PIPELINE, pictures(1), hole, **options)
    assert "\n" not in str(caught.value)


def test_a_mask_of_another_size_and_a_label_without_classes_are_refused():
    with pytest.raises(REFUSED):
        inpaint_images(PIPELINE, pictures(5), some_holes(), torch.tensor([1, 2]))
    with pytest.raises(REFUSED):
        inpaint_images(PIPELINE, pictures(2), some_holes()[:1])
    plain = pipeline_for(EXACT, num_classes=0)
    assert inpaint_images(plain, pictures(5), some_holes()).shape == (5, 1, 1, 8, 12)
    with pytest.raises(ConfigError, match="unconditional"):
        inpaint_images(plain, pictures(5), some_holes(), torch.arange(5))


# -- photos of any size ------------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from([0.0, 0.3, 0.5, 2.0]),
    st.integers(0, 999),
)
def test_the_window_holds_the_hole_and_stays_inside_where_it_can(shape, size, context, seed):
    hole = one_box(*shape, seed) if min(shape) > 1 else torch.ones(shape, dtype=torch.bool)
    rows, columns = hole.any(1).nonzero().flatten().tolist(), hole.any(0).nonzero().flatten().tolist()
    w = choose_window(hole, size, context)
    assert w.top <= rows[0] < rows[-1] + 1 <= w.top + w.height
    assert w.left <= columns[0] < columns[-1] + 1 <= w.left + w.width
    assert abs(w.height * size[1] - w.width * size[0]) < max(size) + 1  # the model's proportions, to a pixel
    box = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    cover = max(shape[0] / size[0], shape[1] / size[1])
    assert w.height <= cover * size[0] + 1
    wanted = max(box[0] / size[0], box[1] / size[1]) * (1 + 2 * context)
    if max(wanted, 1) <= min(shape[0] / size[0], shape[1] / size[1]):
        assert 0 <= w.top <= w.top + w.height <= shape[0]
        assert 0 <= w.left <= w.left + w.width <= shape[1]
        assert w.height >= size[0]
        assert w.height >= int(wanted * size[0])


def test_windows_by_hand():
    def window(shape, box, size, context=0.5):
        hole = make_rectangle(shape, *box)
        w = choose_window(hole, size, context)
        return w.top, w.left, w.height, w.width

    assert window((100, 100), (40, 40, 10, 10), (8, 8)) == (35, 35, 20, 20)  # half a hole on each side
    assert window((100, 100), (40, 40, 10, 10), (32, 32)) == (29, 29, 32, 32)  # at least the model's size
    assert window((100, 100), (0, 90, 10, 10), (8, 8)) == (80, 0, 20, 20)  # pushed back into the photo
    assert window((48, 64), (10, 10, 30, 30), (8, 8)) == (0, 1, 48, 48)  # as large as fits inside
    assert window((64, 128), (64, 0, 64, 64), (64, 64)) == (-32, 0, 128, 128)  # inside there were nothing to go by
    assert window((4, 4), (1, 1, 2, 2), (8, 8)) == (0, 0, 4, 4)  # a tiny photo is enlarged
    assert window((10, 100), (0, 0, 90, 2), (8, 8)) == (-45, 0, 100, 100)  # a wide hole in a strip


@settings(max_examples=25)
@given(
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
    st.sampled_from([1, 3]),
    st.sampled_from([PIPELINE, RGB]),
    st.integers(0, 3),
    st.integers(0, 999),
)
def test_photos_keep_every_byte_outside_the_hole_and_none_inside_matters(shape, channels, pipeline, feather, seed):
    picture, hole = photo(channels, *shape, seed), one_box(*shape, seed)
    before = picture.clone()
    edited = edit_photo(pipeline, picture, hole, 2, seed=seed, variants=2, feather=feather)
    assert edited.shape == (2, channels, *shape)
    assert edited.dtype == torch.uint8
    assert torch.equal(edited[:, :, ~hole], picture[:, ~hole].expand(2, -1, -1))
    assert torch.equal(picture, before)
    changed = torch.where(hole, 255 - picture, picture)
    assert torch.equal(edit_photo(pipeline, changed, hole, 2, seed=seed, variants=2, feather=feather), edited)
    if len(edited[0]) == 3 and pipeline is PIPELINE and not feather:  # a grey model fills in grey
        inside = edited[0][:, hole].int()
        assert (inside.amax(0) == inside.amin(0)).all()


def test_a_photo_of_the_models_size_is_repaired_as_its_images_are():
    picture, hole = photo(3, 8, 8), one_box(8, 8, 5)
    images = picture[None].float() / 127.5 - 1
    expected = inpaint_images(RGB, images, hole[None], torch.tensor([1]), seed=2, variants=3, feather=1)[0]
    assert torch.equal(edit_photo(RGB, picture, hole, 1, seed=2, variants=3, feather=1), bytes_of(expected))


def bytes_of(images):
    return ((images + 1) * 127.5).round().to(torch.uint8)


def test_the_model_sees_the_window_shrunk_and_visible_pixels_only():
    picture = torch.full((3, 64, 64), 200, dtype=torch.uint8)
    hole = make_rectangle((64, 64), 17, 15, 30, 31)
    picture[:, hole] = 0
    window = choose_window(hole, (8, 8), 0.5)
    images, hidden = view_window(RGB, picture, hole, window)
    assert images.shape == (1, 3, 8, 8)
    assert torch.allclose(images[~hidden[:, None].expand_as(images)], torch.tensor(200 / 127.5 - 1), atol=1e-5)
    assert torch.allclose(images[images != 0], torch.tensor(200 / 127.5 - 1), atol=1e-5)  # no black shines through
    assert 0 < hidden.sum() < 64
    cut = window.cut(hole).numpy()
    for i, j in np.ndindex(8, 8):
        rows = slice(i * cut.shape[0] // 8, -(-(i + 1) * cut.shape[0] // 8))
        columns = slice(j * cut.shape[1] // 8, -(-(j + 1) * cut.shape[1] // 8))
        assert bool(hidden[0, i, j]) == cut[rows, columns].any()


def test_a_huge_photo_is_edited_where_the_hole_is():
    picture = photo(3, 1500, 2000)
    hole = make_rectangle((1500, 2000), 1900, 1400, 100, 100)
    edited = edit_photo(RGB, picture, hole)
    assert torch.equal(edited[0][:, ~hole], picture[:, ~hole])
    assert not torch.equal(edited[0], picture)


def test_extending_the_canvas_keeps_the_photo():
    picture = photo(3, 6, 9)
    larger, hole = extend_canvas(picture, 1, 2, 3, 4)
    assert larger.shape == (3, 12, 13)
    assert torch.equal(larger[:, 2:8, 1:10], picture)
    assert not hole[2:8, 1:10].any()
    assert int((~hole).sum()) == 54
    edited = edit_photo(RGB, larger, hole, 1)
    assert torch.equal(edited[0, :, 2:8, 1:10], picture)
    for sides in ((0, 0, 0, 0), (-1, 2, 0, 0), (10**5, 0, 0, 10**5)):
        with pytest.raises(ConfigError, match=f"left {sides[0]}, top {sides[1]}"):
            extend_canvas(picture, *sides)


def test_photos_refuse_holes_that_are_nothing_or_everything():
    picture = photo(3, 10, 10)
    for hole, message in ((torch.zeros, "nothing to fill"), (torch.ones, "use unmask sample")):
        with pytest.raises(ConfigError, match=message):
            edit_photo(RGB, picture, hole(10, 10, dtype=torch.bool))
    with pytest.raises(REFUSED):
        edit_photo(RGB, picture, one_box(9, 10, 0))
    for context in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="context"):
            edit_photo(RGB, picture, one_box(10, 10, 0), context=context)


# -- masks from files --------------------------------------------------------------------------------------------------


def test_masks_are_white_and_as_large_as_the_photo(tmp_path):
    levels = torch.randint(0, 256, (7, 9), generator=generator(0)).to(torch.uint8)
    path = tmp_path / "mask.png"
    Image.fromarray(levels.numpy()).save(path)
    assert torch.equal(read_mask(path, (7, 9)), levels >= 128)
    with pytest.raises(DataError, match=r"mask\.png: the mask is 9x7, the photo 7x9"):
        read_mask(path, (9, 7))
    for value, message in ((0, "empty"), (255, "use unmask sample")):
        Image.fromarray((levels * 0 + value).numpy()).save(path)
        with pytest.raises(ConfigError, match=rf"mask\.png: .*{message}"):
            read_mask(path, (7, 9))
    Image.fromarray(np.dstack([levels.numpy()] * 4), "RGBA").save(path)
    with pytest.raises(DataError, match="transparent parts"):
        read_mask(path, (7, 9))
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="not a readable image"):
        read_mask(path, (7, 9))


def test_the_photos_own_transparency_is_the_hole_and_its_colours_stay(tmp_path):
    rgba = photo(4, 7, 9).permute(1, 2, 0)
    path = tmp_path / "cut.png"
    Image.fromarray(rgba.numpy(), "RGBA").save(path)
    colours, hole = read_cutout(path)
    assert torch.equal(colours, rgba[..., :3].permute(2, 0, 1))
    assert torch.equal(hole, rgba[..., 3] < 128)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba.numpy(), "RGBA").save(path, exif=exif)
    turned, hole = read_cutout(path)
    assert torch.equal(turned, rgba[..., :3].permute(2, 0, 1).rot90(-1, (1, 2)))
    assert torch.equal(hole, (rgba[..., 3] < 128).rot90(-1))
    assert read_photo(path).shape == (3, 9, 7)
    Image.fromarray(rgba[..., :3].contiguous().numpy()).save(path)
    with pytest.raises(ConfigError, match=r"cut\.png, by its transparency: the mask is empty"):
        read_cutout(path)
    Image.fromarray(rgba[..., 0].contiguous().numpy().astype(np.uint16) * 257).save(path)  # 16-bit grey, no alpha
    with pytest.raises(ConfigError, match="the mask is empty"):
        read_cutout(path)


def test_rectangles_lie_inside():
    assert make_rectangle((5, 7), 2, 1, 3, 2).nonzero().tolist() == [[y, x] for y in (1, 2) for x in (2, 3, 4)]
    for box in ((5, 0, 3, 1), (0, 4, 1, 2), (-1, 0, 2, 2), (0, 0, 0, 2)):
        with pytest.raises(ConfigError, match=f"x={box[0]} y={box[1]} .* photo of 7x5"):
            make_rectangle((5, 7), *box)
    with pytest.raises(ConfigError, match="whole image"):
        make_rectangle((5, 7), 0, 0, 7, 5)


# -- the comparison ----------------------------------------------------------------------------------------------------


def test_schedules_and_stops_are_compared_by_the_callers_measure():
    images, hole, labels = EXACT.decode(EXACT.encode(pictures(6))), torch.zeros(6, 8, 12, dtype=torch.bool), None
    hole[:, 2:6, 3:9] = True
    seen = []

    def measure(repaired, truth, mask):
        assert torch.equal(truth, images)
        assert torch.equal(mask, hole)
        assert torch.equal(repaired[~hole[:, None]], images[~hole[:, None]])
        seen.append(repaired)
        return {"l1": float((repaired - truth).abs().mean())}

    rows = list(lab.compare_schedules(PIPELINE, images, hole, labels, measure=measure, steps=6, stops=(1, 6), seed=3))
    assert [(r.schedule, r.steps, r.stop) for r in rows[:2]] == [("smooth fill", 0, 0), ("tokenizer", 0, 0)]
    assert [(r.schedule, r.steps, r.stop) for r in rows[2:]] == [
        (name, 6, stop) for name in ("cosine", "linear", "square") for stop in (1, 6)
    ]
    assert rows[1].figures["l1"] == 0  # this tokenizer is exact
    assert torch.equal(seen[0], fill_smoothly(images, hole))
    for i, name in enumerate(lab.SHAPES):
        sampling = replace(PIPELINE.sampling, steps=6, schedule=lab.SHAPES[name])
        expected = inpaint_images(PIPELINE, images, hole, seed=3, sampling=sampling)[:, 0]
        assert torch.equal(seen[3 + 2 * i], expected)
    assert not torch.equal(seen[3], seen[5])
    with pytest.raises(ConfigError, match=r"stops \[7\]: each must be one of the 6 steps"):
        list(lab.compare_schedules(PIPELINE, images, hole, measure=measure, steps=6, stops=(7,)))


def test_measures_of_holes_see_holes_only():
    truth, hole = pictures(40), torch.zeros(40, 8, 12, dtype=torch.bool)
    hole[:, :, :4] = True
    repaired = torch.where(hole[:, None], pictures(40, seed=5), truth)
    measure = lab.measure_with(lambda x: x.flatten(1)[:, ::3], lambda x: 0.25)
    figures = measure(repaired, truth, hole)
    assert list(figures) == ["frechet", "frechet_holes", "l1_holes", "class_accuracy"]
    inside = (repaired - truth)[hole[:, None]]
    assert figures["l1_holes"] == pytest.approx(float(inside.abs().mean()), rel=1e-5)
    a, b = (torch.where(hole[:, None], x, 0.0).flatten(1)[:, ::3] for x in (repaired, truth))
    assert figures["frechet_holes"] == pytest.approx(compute_frechet_distance(fit_gaussian(a), fit_gaussian(b)))
    assert measure(truth, truth, hole)["frechet_holes"] == pytest.approx(0, abs=1e-6)
    elsewhere = torch.where(hole[:, None], repaired, 0.5)
    assert measure(elsewhere, truth, hole)["frechet_holes"] == figures["frechet_holes"]
    assert measure(elsewhere, truth, hole)["frechet"] != figures["frechet"]


def test_tables_and_the_picture():
    rows = [
        lab.InpaintingRow(schedule=n, steps=20, stop=s, figures={"frechet": 1.234567, "l1": s})
        for n, s in (("a", 1), ("b", 2))
    ]
    assert lab.format_markdown(rows).splitlines() == [
        "| schedule | steps | stop | frechet | l1 |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a | 20 | 1 | 1.2346 | 1 |",
        "| b | 20 | 2 | 1.2346 | 2 |",
    ]
    assert lab.format_csv(rows) == "schedule,steps,stop,frechet,l1\na,20,1,1.2346,1\nb,20,2,1.2346,2\n"
    for bad in ([], [*rows, lab.InpaintingRow(schedule="c", steps=1, stop=1, figures={"l1": 0.0})]):
        with pytest.raises(ConfigError, match=f"{len(bad)} rows"):
            lab.format_markdown(bad)
    images, hole = pictures(3), some_holes()[1:4]
    page = lab.draw_comparison(images, hole, -images)
    scale = figures.choose_scale(images)
    assert page.height == (3 * (images.shape[2] + 1) + 1) * scale
    assert page.width > (3 * (images.shape[3] + 1) + 1) * scale
