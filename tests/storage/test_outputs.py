"""No file that unmask did not make is replaced, unless the user insists; inputs never are."""

import numpy as np
import pytest
from PIL import Image

from unmask.errors import ConfigError, DiskError
from unmask.figures.images import find_image_format, write_animation, write_picture
from unmask.storage.outputs import check_file, check_folder, check_results, choose_free, is_marked

PICTURE = Image.new("RGB", (8, 8), (200, 10, 10))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".tiff"])
def test_each_picture_is_known_again(tmp_path, suffix):
    ours, theirs = tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
    write_picture(PICTURE, ours)
    PICTURE.save(theirs)
    assert is_marked(ours)
    check_file(ours)
    with pytest.raises(ConfigError, match=r"theirs.*unmask did not make it.*--overwrite"):
        check_file(theirs)
    check_file(theirs, overwrite=True)
    with Image.open(ours) as one, Image.open(theirs) as other:
        apart = np.subtract(one.convert("RGB"), other.convert("RGB"), dtype=np.int64)
        assert np.abs(apart).max() <= 1  # Pillow's own default for WebP loses a little


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_each_animation_is_known_again(tmp_path, suffix):
    path = tmp_path / f"moving{suffix}"
    write_animation([PICTURE, Image.new("RGB", (8, 8))], path)
    assert is_marked(path)
    with Image.open(path) as picture:
        assert picture.n_frames == 2


def test_an_input_is_never_replaced(tmp_path):
    photo, link = tmp_path / "photo.png", tmp_path / "link.png"
    write_picture(PICTURE, photo)
    link.symlink_to(photo)
    for out in (photo, link):
        with pytest.raises(ConfigError, match="never replaced"):
            check_file(out, overwrite=True, inputs=[photo])


def test_a_document_is_no_picture():
    for name in ("thesis.pdf", "figure.eps", "notes.txt", "thesis"):
        with pytest.raises(ConfigError, match=name):
            find_image_format(name)


def test_a_default_name_counts_up(tmp_path):
    path = tmp_path / "samples.png"
    assert choose_free(path) == path
    path.write_bytes(b"")
    assert choose_free(path).name == "samples_2.png"
    (tmp_path / "samples_2.png").write_bytes(b"")
    assert choose_free(path).name == "samples_3.png"


def test_a_folder_is_checked_by_the_names_to_write(tmp_path):
    check_folder(tmp_path / "new", ["README.md"])
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "empty.md").write_text("")
    (tmp_path / "samples").mkdir()
    check_folder(tmp_path, ["config.json", "empty.md", "samples"])
    with pytest.raises(ConfigError, match=r"README.md.*another folder"):
        check_folder(tmp_path, ["README.md", "config.json"])
    check_folder(tmp_path, ["README.md"], ours=["README.md"])
    check_folder(tmp_path, ["README.md"], overwrite=True)
    with pytest.raises(DiskError, match="is a file"):
        check_folder(tmp_path / "README.md", [])
    assert (tmp_path / "README.md").read_text() == "mine"


def test_results_are_known_by_their_report(tmp_path):
    names = ("report.json", "table.md")
    (tmp_path / "table.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"table.md"):
        check_results(tmp_path, names)
    (tmp_path / "report.json").write_text('{"commit": "of another program"}')
    with pytest.raises(ConfigError, match=r"report.json and 1 more"):
        check_results(tmp_path, names)
    (tmp_path / "report.json").write_text('{"command": "", "commit": "", "hardware": "", "threads": 1}')
    check_results(tmp_path, names)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    for check in (lambda: check_file(tmp_path / "file/x.png"), lambda: check_folder(tmp_path / "file/x", [])):
        with pytest.raises(DiskError, match="is not a folder"):
            check()
