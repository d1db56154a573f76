"""A run knows its data: the same set elsewhere is the same, and any other one is named."""

import unicodedata
from dataclasses import replace

import pytest
import torch
from PIL import Image

from unmask.data.fingerprint import (
    DataPolicy,
    check_data,
    compute_fingerprint,
    describe_changes,
    describe_unverified,
    forget_place,
    match_arrangement,
    read_record,
    record_data,
)
from unmask.data.sources.choice import Arrays, Codes, Digits, Folder, HubImages, fill_arrangement
from unmask.errors import ConfigError, DataError


def write_set(root, classes=("disc", "square"), num=30, start=0):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(start, start + num):
            Image.new("RGB", (8, 8), (i, number * 40, 7)).save(root / name / f"{i:03d}.png")
    return root


def load(root, **fields):
    return compute_fingerprint(Folder(path=str(root), size=8, **fields).load())


def test_the_same_pictures_elsewhere_under_other_names_are_the_same_data(tmp_path):
    first = load(write_set(tmp_path / "here"))
    write_set(tmp_path / "there")
    for path in sorted((tmp_path / "there").rglob("*.png")):
        path.rename(path.with_name("x" + path.name[::-1].replace("gnp.", "") + ".png"))
    assert describe_changes(first, load(tmp_path / "there")) is None
    assert load(tmp_path / "there").digest == first.digest


@pytest.mark.parametrize("on_demand", [False, True])
def test_what_changed_is_said_in_words(tmp_path, monkeypatch, on_demand):
    if on_demand:
        monkeypatch.setattr("unmask.data.sources.folders.MAX_IN_MEMORY", 0)
    root = write_set(tmp_path)
    then = load(root)
    (root / "disc").rename(root / "zdisc")
    assert describe_changes(then, load(root)) == "class disc is gone; class zdisc is new"
    (root / "zdisc").rename(root / "disc")
    write_set(root, ("disc",), 3, start=100)
    said = describe_changes(then, load(root))
    assert "class disc has 33 now, 30 then" in said
    assert "63 images now, 60 then" in said
    for i in range(100, 103):
        (root / "disc" / f"{i:03d}.png").unlink()
    assert describe_changes(then, load(root)) is None
    for value in range(200, 255):  # a replaced picture on the same side of the split: the counts are equal
        Image.new("RGB", (8, 8), (value, 0, 7)).save(root / "disc" / "000.png")
        now = load(root)
        if now.train.counts == then.train.counts:
            break
    assert describe_changes(then, now) == "as many images, but not the same ones"


def test_bytes_inside_a_large_file_are_seen_when_all_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.data.sources.folders.MAX_IN_MEMORY", 0)
    for i in range(4):
        noise = torch.randint(0, 256, (80, 80, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / f"{i}.bmp")
    source = Folder(path=str(tmp_path), size=8, held_out=0.3)
    sampled, whole = (compute_fingerprint(source.load(), verify=verify) for verify in (False, True))
    assert sampled.train.whole is None
    assert describe_changes(sampled, whole) is None
    for path in tmp_path.glob("*.bmp"):
        data = bytearray(path.read_bytes())
        data[2000] ^= 1  # between two samples
        path.write_bytes(data)
    assert describe_changes(sampled, compute_fingerprint(source.load())) is None  # as the documentation says
    assert (
        describe_changes(whole, compute_fingerprint(source.load(), verify=True)) == "bytes inside some images changed"
    )


def test_a_record_refuses_accepts_and_remembers(tmp_path):
    first, second = load(write_set(tmp_path / "a")), load(write_set(tmp_path / "b", num=31))
    run = tmp_path / "run"
    run.mkdir()
    assert read_record(run) is None
    assert check_data(run, first, DataPolicy(), "do this", "go on") is None  # a run of an early version has no record
    record_data(run, first)
    assert check_data(run, first, DataPolicy(), "do this", "go on") is None
    with pytest.raises(
        DataError, match=r"data of .*run changed: .*images now, .* then.*; do this, or --accept-data to go on"
    ) as caught:
        check_data(run, second, DataPolicy(), "do this", "go on")
    assert "\n" not in str(caught.value)
    assert "images now" in check_data(run, second, DataPolicy(accept=True), "do this", "go on")
    record_data(run, second)
    record_data(run, second)
    assert read_record(run).data == second
    assert read_record(run).before == (first,)
    (run / "data.json").write_text("{")
    with pytest.raises(ConfigError, match=r"data\.json"):
        read_record(run)


def test_digests_over_all_bytes_are_kept_once_known(tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.data.sources.folders.MAX_IN_MEMORY", 0)
    split = Folder(path=str(write_set(tmp_path / "a")), size=8).load()
    for verify in (True, False):
        record_data(tmp_path, compute_fingerprint(split, verify=verify))
        assert read_record(tmp_path).data == compute_fingerprint(split, verify=True)


def test_the_place_is_forgotten_and_nothing_else():
    folder = Folder(path="here", size=64, held_out=0.2, seed=3, arrange="position")
    assert forget_place(folder) == replace(folder, path="")
    assert forget_place(Codes(path="x")) == forget_place(Codes(path="y"))
    assert forget_place(Digits()) == Digits()
    assert forget_place(HubImages(name="a", train="x")).size == HubImages(name="").size


def test_sources_of_early_versions_keep_their_arrangement():
    assert fill_arrangement({"type": "Folder", "path": "x"})["arrange"] == "position"
    assert fill_arrangement({"type": "Folder", "path": "x", "arrange": "content"})["arrange"] == "content"
    assert "arrange" not in fill_arrangement({"type": "Digits"})
    assert fill_arrangement(None) is None
    earlier = Arrays(path="y", arrange="position")
    assert match_arrangement(Folder(path="x"), earlier).arrange == "position"
    assert match_arrangement(Digits(), earlier) == Digits()
    assert match_arrangement(Folder(path="x"), None).arrange == "content"


def test_a_class_name_in_another_unicode_form_is_the_same_class(tmp_path):
    composed, split_up = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    assert composed != split_up
    first = load(write_set(tmp_path / "a", (composed, "square")))
    assert describe_changes(first, load(write_set(tmp_path / "b", (split_up, "square")))) is None


def test_class_numbers_that_a_model_learned_are_never_given_away(tmp_path):
    """Acceptance cannot help: the model would take a square for a disc."""
    root = write_set(tmp_path / "a")
    run = tmp_path / "run"
    run.mkdir()
    record_data(run, load(root))
    (root / "disc").rename(root / "zdisc")  # so "square" becomes number 0
    with pytest.raises(DataError, match=r"class square was number 1 and would be 0, .*; do this$"):
        check_data(run, load(root), DataPolicy(accept=True), "do this", "go on")
    (root / "zdisc").rename(root / "dish")  # the numbers stay
    with pytest.raises(DataError, match="class disc is gone; class dish is new; do this, or --accept-data to go on"):
        check_data(run, load(root), DataPolicy(), "do this", "go on")
    assert check_data(run, load(root), DataPolicy(accept=True), "do this", "go on") is not None
    write_set(root, ("extra",), num=4)
    with pytest.raises(DataError, match=r"number of classes is 3 now, 2 then, and is fixed in the model; do this$"):
        check_data(run, load(root), DataPolicy(accept=True), "do this", "go on")


def test_a_verification_without_an_earlier_digest_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.data.sources.folders.MAX_IN_MEMORY", 0)
    sampled = load(write_set(tmp_path))
    begin, end = "no digest of all bytes was recorded before: ", " there was nothing to compare it with"
    assert describe_unverified(sampled, DataPolicy(verify=True), recorded=True) == [
        f"{begin}it is recorded now, and{end}"
    ]
    (note,) = describe_unverified(None, DataPolicy(verify=True), recorded=False)
    assert note.startswith(begin)
    assert note.endswith(end)
    assert "recorded now" not in note
    assert describe_unverified(sampled, DataPolicy(), recorded=True) == []
    whole = compute_fingerprint(Folder(path=str(tmp_path), size=8).load(), verify=True)
    assert describe_unverified(whole, DataPolicy(verify=True), recorded=True) == []
