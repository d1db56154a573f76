"""The tab Edit: pixels outside the region stay, the lines to copy give the same, and mistakes are a sentence."""

import io
import shlex
from pathlib import Path

import gradio as gr
import numpy as np
import PIL.Image
import pytest
import torch
from PIL import Image
from toy_studio import REQUEST, click, find_block, list_defaults, make_studio, open_tab, write_image_run, write_text_run

from unmask.app.editing import (
    LARGEST_VIEW,
    Edit,
    Region,
    choose_view_size,
    draw_region,
    draw_view,
    make_edit_folder,
    open_photo,
    prepare_edit,
    read_strokes,
    write_edit_downloads,
    write_edit_lines,
    write_variants,
)
from unmask.app.studio import choose_settings
from unmask.app.tabs.edit import make_edit_tab
from unmask.app.tabs.regions import NoBlobs, read_layer
from unmask.cli.editing import run_inpaint
from unmask.errors import ConfigError, DataError, ShortageError
from unmask.pipelines.image import Pipeline

ODD = (217, 333)
BOX = (40, 30, 120, 90)
PAINT = Region(kind="paint")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_image_run(tmp_path_factory.mktemp("edit") / "run")


@pytest.fixture(scope="module")
def pipeline(run):
    return Pipeline.from_pretrained(run, device="cpu")


def draw_photo(size=ODD, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def encode(pixels, kind="PNG", **options):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return data.getvalue()


def paint(size=ODD, box=BOX, colour=(255, 45, 149)):
    """The layer of a brush, as a browser sends it: transparent but for a rectangle."""
    layer = np.zeros((*size, 4), dtype=np.uint8)
    x, y, width, height = box
    layer[y : y + height, x : x + width] = (*colour, 255)
    return encode(layer)


def cover(size=ODD, box=BOX):
    hole = np.zeros(size, dtype=bool)
    x, y, width, height = box
    hole[y : y + height, x : x + width] = True
    return hole


def read_pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).copy()


# -- the photo and the brush -------------------------------------------------------------------------------------------


def test_an_upload_is_decoded_in_another_process(monkeypatch):
    pixels = draw_photo()
    data = encode(pixels)

    def fail(*_, **__):
        raise AssertionError("an image was opened in this process")

    monkeypatch.setattr(PIL.Image, "open", fail)
    assert torch.equal(open_photo(data).permute(1, 2, 0), torch.from_numpy(pixels))


@pytest.mark.parametrize("data", [b"", b"no image", encode(draw_photo())[:900], b"GIF89a" + bytes(50)])
def test_a_corrupt_upload_is_one_sentence(data):
    with pytest.raises(DataError, match=r"^the photo: ") as told:
        open_photo(data)
    assert "\n" not in str(told.value)


def test_a_large_upload_is_refused():
    data = encode(np.zeros((4100, 4000, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="photo"):
        open_photo(data)


def test_a_photo_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_photo(encode(draw_photo((20, 30)), "JPEG", exif=exif)).shape == (3, 30, 20)


@pytest.mark.parametrize("size", [ODD, (8, 8), (1, 1), (3000, 41), (1600, 1600), (5, 3999)])
def test_strokes_on_the_view_are_strokes_on_the_photo(size):
    """The left half is painted on the view; so it is masked in the photo, to a pixel of the coarser one."""
    height, width = choose_view_size(size)
    assert max(height, width) <= LARGEST_VIEW
    assert draw_view(torch.zeros(3, *size, dtype=torch.uint8)).size == (width, height)
    half = max(1, width // 2)
    if width == 1 or size == (1, 1):
        with pytest.raises(ConfigError, match="everything"):
            read_strokes(paint((height, width), (0, 0, width, height)), size)
        return
    hole = read_strokes(paint((height, width), (0, 0, half, height)), size)
    coarse = max(1, size[1] / width)
    assert abs(hole.float().mean() * size[1] - size[1] / 2) <= coarse
    assert hole[:, 0].all()
    assert not hole[:, -1].any()


def test_a_photo_of_a_usual_size_is_painted_on_pixel_by_pixel():
    assert choose_view_size(ODD) == ODD
    assert torch.equal(read_strokes(paint(), ODD), torch.from_numpy(cover()))


def test_the_editor_shows_the_photo_as_it_is(tmp_path, monkeypatch):
    """Through gradio's own code: the file that the browser gets has the photo's size and bytes."""
    blocks, _ = open_tab(make_studio(tmp_path), make_edit_tab)
    editor = find_block(blocks, "edit-editor")
    monkeypatch.setattr(editor, "GRADIO_CACHE", str(tmp_path))
    pixels = draw_photo()
    view = draw_view(open_photo(encode(pixels)))
    sent = editor.postprocess({"background": view, "layers": [], "composite": None})
    assert np.array_equal(read_pixels(sent.background.path), pixels)


def test_only_uploads_are_read(tmp_path):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "layer.png").write_bytes(b"layer")
    (tmp_path / "secret").write_bytes(b"secret")
    (uploads / "link").symlink_to(tmp_path / "secret")
    assert read_layer(str(uploads / "layer.png"), uploads) == b"layer"
    for path in (
        "",
        str(tmp_path / "secret"),
        str(uploads / "../secret"),
        str(uploads / "link"),
        str(uploads),
        "layer",
    ):
        assert read_layer(path, uploads) is None


def test_the_server_never_opens_what_the_editor_sends(tmp_path):
    """No event of the server takes the editor, whose own code would open its files; and it keeps no blobs."""
    blocks, _ = open_tab(make_studio(tmp_path), make_edit_tab)
    editor = find_block(blocks, "edit-editor")
    takers = [f for f in blocks.fns.values() if editor in f.inputs]
    assert len(takers) == 1
    assert takers[0].js
    assert not takers[0].preprocess or takers[0].fn is None
    blobs = NoBlobs()
    blobs["id"] = object()
    assert not blobs
    assert isinstance(editor.blob_storage, NoBlobs)


# -- the edit ----------------------------------------------------------------------------------------------------------

REGIONS = [
    Region(kind="paint", strokes=paint()),
    Region(kind="box", box=BOX),
    Region(kind="extend", extend=(20, 0, 31, 7)),
]


def finish(pipeline, pixels, region, edit, settings):
    sampling = choose_settings(pipeline.sampling, pipeline.model.grid, settings)
    photo = open_photo(encode(pixels))
    job = prepare_edit(pipeline, photo, region, edit)
    recording, steps = job.stream(sampling)
    for _ in steps:
        pass
    return photo, job, recording, sampling


@pytest.mark.parametrize("region", REGIONS, ids=lambda region: region.kind)
@pytest.mark.parametrize("feather", [0, 5])
def test_pixels_outside_the_region_stay_identical(pipeline, region, feather):
    pixels = draw_photo()
    _, job, recording, _ = finish(pipeline, pixels, region, Edit(label="2", feather=feather), {})
    variants = [np.asarray(one) for one in job.finish(recording)]
    assert len(variants) == 4
    assert len({one.tobytes() for one in variants}) == 4
    if region.kind == "extend":
        left, top, right, bottom = region.extend
        inside = (slice(top, top + ODD[0]), slice(left, left + ODD[1]))
        assert all(one.shape[:2] == (ODD[0] + top + bottom, ODD[1] + left + right) for one in variants)
        assert all(np.array_equal(one[inside], pixels) for one in variants)
        return
    hole = cover()
    assert all(np.array_equal(one[~hole], pixels[~hole]) for one in variants)
    assert all((one[hole] != pixels[hole]).any() for one in variants)


@pytest.mark.parametrize("region", REGIONS, ids=lambda region: region.kind)
@pytest.mark.parametrize(
    ("edit", "settings"),
    [
        (Edit(variants=3, seed=5), {}),
        (Edit(label="3", variants=1, feather=4), {"steps": 2, "order": "halton", "temperature": 0.7, "guidance": 2.0}),
    ],
)
def test_command_and_python_give_the_variants_of_the_page(run, pipeline, tmp_path, monkeypatch, region, edit, settings):
    photo, job, recording, sampling = finish(pipeline, draw_photo(), region, edit, settings)
    shown = write_variants(make_edit_folder(tmp_path), job.finish(recording))
    assert len(shown) == edit.variants
    write_edit_downloads(tmp_path, photo, job, recording, {}, sampling)
    command, python = write_edit_lines(str(run), pipeline, region, edit, settings)

    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    assert words[:2] == ["unmask", "inpaint"]
    run_inpaint([*words[2:], "--device", "cpu"])
    assert [Path(path).read_bytes() for path in shown] == [(tmp_path / Path(p).name).read_bytes() for p in shown]

    space: dict = {}
    exec(python.replace(")\nimages", ', device="cpu")\nimages'), space)  # noqa: S102 - the line is what is tested
    assert [np.asarray(image).tobytes() for image in space["images"]] == [read_pixels(p).tobytes() for p in shown]


def test_new_variants_have_new_addresses(tmp_path):
    first = make_edit_folder(tmp_path)
    second = make_edit_folder(tmp_path)
    assert first != second
    assert not first.exists()


@pytest.mark.parametrize(
    ("region", "edit", "told"),
    [
        (PAINT, Edit(), "nothing is painted: paint over"),
        (Region(strokes=paint(box=(0, 0, 0, 0))), Edit(), "nothing is painted"),
        (Region(strokes=paint(box=(0, 0, 333, 217))), Edit(), "everything is painted over"),
        (Region(strokes=b"no image"), Edit(), "the painted mask: "),
        (Region(kind="box", box=(300, 0, 34, 5)), Edit(), "does not lie in the photo"),
        (Region(kind="box", box=(0, 0, 333, 217)), Edit(), "covers the whole image"),
        (Region(kind="extend"), Edit(), "one of them more"),
        (Region(kind="extend", extend=(0, 0, 10**6, 0)), Edit(), "at most 16000000 pixels"),
        (Region(kind="box", box=BOX), Edit(label="cat"), "no class cat"),
        (Region(kind="box", box=BOX), Edit(label="4"), "no class 4"),
        (Region(kind="box", box=BOX), Edit(variants=9), "9 variants: take 1 to 8"),
        (Region(kind="box", box=BOX), Edit(feather=-1), "feather -1"),
    ],
)
def test_what_cannot_be_is_one_sentence(pipeline, region, edit, told):
    with pytest.raises((ConfigError, DataError), match=told) as error:
        finish(pipeline, draw_photo(), region, edit, {})
    assert "\n" not in str(error.value)


def test_too_large_a_photo_for_the_memory_is_refused(pipeline, monkeypatch):
    monkeypatch.setattr("unmask.runtime.shortage.measure_free_memory", lambda: 1 << 20)
    with pytest.raises(ShortageError, match=r"take a smaller photo|take fewer"):
        finish(pipeline, draw_photo(), REGIONS[1], Edit(), {})


def test_the_region_is_drawn(pipeline):
    photo = open_photo(encode(draw_photo()))
    plain = np.asarray(draw_view(photo))
    drawn = np.asarray(draw_region(photo, REGIONS[1]))
    assert drawn.shape == plain.shape
    assert np.array_equal((drawn != plain).any(-1), cover())


# -- the tab -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tab(run, tmp_path):
    studio = make_studio(tmp_path, image=run, text=write_text_run(tmp_path / "text"))
    blocks, parts = open_tab(studio, make_edit_tab)
    find_block(blocks, "edit-editor").GRADIO_CACHE = str(tmp_path)
    return studio, blocks, parts


def press(tab, name, kind="box", layer="", label="", numbers=(*BOX, 0, 0, 0, 0), **options):
    _, blocks, parts = tab
    return click(
        blocks, "edit_region", str(name), layer, kind, *numbers, label, "", 2, 0, 0, *list_defaults(parts.settings),
        **options,
    )  # fmt: skip


def test_upload_paint_and_fill_in(run, tab, tmp_path):
    _, blocks, _ = tab
    pixels = draw_photo()
    shown = click(blocks, "receive", encode(pixels), "paint")
    assert "333x217" in shown["edit-status"]
    assert np.array_equal(np.asarray(shown["edit-editor"]["background"]), pixels)
    (tmp_path / "layer.png").write_bytes(paint())
    said: list = []
    shown = press(
        tab, run, "paint", str(tmp_path / "layer.png"), "1", before_step=lambda s: said.append(s["edit-status"])
    )
    assert [line for line in said if "step 0 of" in line]
    assert [line for line in said if "step 8 of 8" in line]
    assert "done" in shown["edit-status"]
    assert [caption for _, caption in shown["edit-gallery"]] == ["variant 1", "variant 2"]
    for path, _ in shown["edit-gallery"]:
        assert np.array_equal(read_pixels(path)[~cover()], pixels[~cover()])
    assert "--mask mask.png --label 1" in shown["edit-command"]


def test_a_numbers_region_is_shown_and_changes(run, tab):
    _, blocks, _ = tab
    click(blocks, "receive", encode(draw_photo()), "paint")
    shown = click(blocks, "choose_kind", "box", *BOX, 0, 0, 0, 0)
    assert shown["edit-preview"].size == (333, 217)
    moved = click(blocks, "preview", "box", 0, 0, 5, 5, 0, 0, 0, 0)
    assert moved["edit-preview"].tobytes() != shown["edit-preview"].tobytes()
    wrong = click(blocks, "preview", "box", 330, 0, 5, 5, 0, 0, 0, 0)
    assert 'role="alert"' in wrong["edit-status"]
    assert click(blocks, "choose_kind", "extend", *BOX, 9, 0, 0, 0)["edit-preview"].size == (342, 217)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "paint"}, "nothing is painted"),
        ({"kind": "paint", "layer": "elsewhere.png"}, "nothing is painted"),
        ({"label": "cat"}, "no class cat"),
        ({"numbers": (0, 0, 999, 5, 0, 0, 0, 0)}, "does not lie in the photo"),
    ],
)
def test_a_mistake_is_a_sentence_in_the_status(run, tab, options, told):
    click(tab[1], "receive", encode(draw_photo()), "paint")
    shown = press(tab, run, **options)
    assert 'role="alert"' in shown["edit-status"]
    assert told in shown["edit-status"]
    assert not shown["edit-gallery"]
    assert "done" in press(tab, run)["edit-status"]  # and the page goes on


def test_a_corrupt_upload_leaves_no_photo(run, tab):
    _, blocks, _ = tab
    click(blocks, "receive", encode(draw_photo()), "box")
    shown = click(blocks, "receive", b"no image", "box")
    assert "the photo: " in shown["edit-status"]
    assert shown["edit-editor"] is None
    assert "upload a photo first" in press(tab, run)["edit-status"]


def test_a_text_model_edits_no_photo(tab, tmp_path):
    click(tab[1], "receive", encode(draw_photo()), "box")
    assert "this is a text model" in press(tab, tmp_path / "text")["edit-status"]


def test_a_stopped_edit_has_no_variants(run, tab):
    studio, blocks, _ = tab
    click(blocks, "receive", encode(draw_photo()), "box")

    def stop(shown):
        if "step 1 of" in shown["edit-status"]:
            studio.sessions.find(REQUEST.session_hash).stop.set()

    shown = press(tab, run, before_step=stop)
    assert "stopped after step 1" in shown["edit-status"]
    assert shown["edit-gallery"] == []


def test_every_control_has_a_label(tab):
    for block in tab[1].blocks.values():
        if isinstance(block, gr.components.Component) and not isinstance(
            block, gr.HTML | gr.Button | gr.DownloadButton
        ):
            assert block.label, block
