"""Published models as users take them: listed, fetched, converted, drawn with and repaired with.

Tiny networks in the published layout stand for the weights; the true sizes are in tests/machinery.
"""

import errno
import hashlib
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from published_toys import (
    FILES,
    NETWORK,
    PIXELS,
    PLAIN,
    SIZE,
    WHOLE,
    WIDER,
    generator_shapes,
    random,
    refused,
    run,
    tokenizer_shapes,
    tree,
    write,
)
from toy_hub import serving, use

import unmask
from unmask.errors import CheckpointError, ConfigError
from unmask.method.ramps import CosineRamp, Interval, LinearRamp
from unmask.pipelines.image import Pipeline
from unmask.pipelines.labels import resolve_labels
from unmask.pretrained.lone_tokenizer import read_lone_tokenizer
from unmask.published.catalogue import MODELS, read_imagenet_classes
from unmask.recipes.reading import read_config
from unmask.recipes.spec import ModelSpec
from unmask.storage.weights import have_same_weights

# -- listed and fetched ------------------------------------------------------------------------------------------------


def test_the_models_are_listed(toys, capsys):
    run("models")
    said = capsys.readouterr().out
    blocks = dict(zip(MODELS, said.split("\n\n"), strict=False))
    published = [name for name in MODELS if not name.startswith("toy-")]
    assert len(published) == 15
    for name in published:
        how = '--prompt "a cat"' if name.startswith("amused") else '--labels "golden retriever"'
        kind = "text conditional" if name.startswith("amused") else "class conditional"
        first, second, third = blocks[name].split("\n")
        assert (first, second) == (f"{name}: {MODELS[name].about}", f"  one command  unmask sample {name} {how}")
        assert third.startswith(f"  {kind}, ")
        assert third.endswith(", not on the disk")
    assert "174 + 72 M parameters, 3.0 GB to download, MIT, FID 6.80 (arXiv 2310.14400" in blocks["besnier-256"]
    assert "openrail++, no score on ImageNet" in blocks["amused-256"]
    assert not toys.exists()


@pytest.mark.parametrize("name", [name for name in MODELS if "tiny" in name or name.endswith(("512", "l32", "s128"))])
def test_the_listed_parameters_are_those_of_the_networks(name):
    with torch.device("meta"):
        parts = (MODELS[name].size.build(), MODELS[name].size.tokenizer.build())
    assert MODELS[name].parameters == tuple(sum(p.numel() for p in part.parameters()) for part in parts)


def test_every_class_of_imagenet_has_a_name_of_its_own():
    names = read_imagenet_classes()
    assert (len(names), len(set(names)), names.index("cardigan"), names.index("Cardigan")) == (1000, 1000, 474, 264)
    assert (names[0], names[207], names[282], names[999]) == ("tench", "golden retriever", "tiger cat", "toilet tissue")
    with_classes = [name for name, model in MODELS.items() if model.spec.classes]
    assert with_classes == [name for name in MODELS if not name.startswith(("amused", "toy"))]
    assert resolve_labels(["Golden Retriever", 7, "cardigan", "Cardigan"], names).tolist() == [207, 7, 474, 264]
    with pytest.raises(ConfigError, match=r"no class golden retreiver: did you mean golden retriever\?"):
        resolve_labels(["golden retreiver"], names)


def test_a_mistyped_class_is_found_before_a_download(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("unmask.cli.sampling.fetch_model", None)
    monkeypatch.setattr("unmask.cli.editing.fetch_model", None)
    photo, typo = tmp_path / "photo.png", "golden retreiver"
    Image.new("RGB", (8, 8)).save(photo)
    said = "unmask: no class golden retreiver: did you mean golden retriever?\n"
    assert refused(capsys, "sample", "besnier-256", "--labels", typo) == (said, 2)
    assert refused(capsys, "inpaint", "besnier-256", photo, "--box", 0, 0, 4, 4, "--label", typo) == (said, 2)


def test_a_model_is_told_of(toys, capsys):
    run("models", "toy-32")
    said = capsys.readouterr().out
    assert "parameters  1,000 and 2,000 of the tokenizer" in said
    assert "published   fid 12.5 (a toy's page)" in said
    assert re.search(r"^sampled +steps 3", said, re.M)
    assert "toy/generator.pth of https://huggingface.co/toy/weights (sha256 is pinned at the first use)" in said
    run("models", "titok-s128")
    said = capsys.readouterr().out
    assert "generator_titok_s128.bin of https://huggingface.co/fun-research/TiTok (sha256 is pinned" in said
    assert re.search(r"steps 64.*annealed logit \(noise 2\.8\)", said)  # the rule, and not 64 numbers
    run("models", "besnier-256")
    assert "MaskGIT_ImageNet_256.pth of https://huggingface.co/llvictorll/Maskgit-pytorch (sha256 74b38fa1... is" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(("words", "code", "told"), [
    ("models beznier-256", 2, "no published model beznier-256: did you mean besnier-256?"),
    ("fetch toy-33", 2, "no published model toy-33: did you mean toy-32?"),
    ("sample besnier256", 4, "no such run, and no published model: did you mean the published besnier-256?"),
    ("sample nothing-like-it-at-all", 4, "unmask models lists the published ones"),
    ("inpaint toy_32 {photo} --box 1 1 2 2", 4, "did you mean the published toy-32?"),
    ("evaluate toy_32", 4, "did you mean the published toy-32?"),
    ("tokenize toy_32 --data x", 4, "did you mean the published toy-32?"),
    ("train imagenet256 --init toy_32", 4, "did you mean the published toy-32?"),
    ("fetch toy-32", 4, "cannot download toy/generator.pth of toy/weights: it is not in the cache, and HF_HUB_OFFLINE"),
    ("fetch toy-32 --offline", 4, "it is not in the cache, and this is offline: run it once without --offline"),
    ("fetch toy-32 --weights {here}/nowhere", 4, "nowhere: no such file or folder"),
    ("fetch toy-32 --weights {here}", 4, "toy/generator.pth"),
    ("sample {here} --weights {here}", 2, "--weights is for a published model"),
    ("convert {photo} --family valeoai-v2 --out {here}/o", 2, "no family valeoai-v2: did you mean valeoai-v1?"),
    ("convert {here}/nowhere.pth --family valeoai-v1 --out {here}/o", 4, "nowhere.pth: cannot be read"),
    ("convert {photo} --family valeoai-v1 --out {here}/o", 4, "photo.png: byte "),
    ("convert {photo} --family valeoai-v1 --out {here}/o", 4, "(wanted: the weights of valeoai-v1)"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(words, code, told, toys, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(photo)
    said, found = refused(capsys, *words.format(here=tmp_path, photo=photo).split())
    assert found == code, said
    assert told in said
    assert tree(tmp_path) == ["photo.png"]


def test_a_model_is_fetched_from_a_folder_and_needs_the_files_once(toys, files, tmp_path, capsys):
    mine = shutil.copytree(files, tmp_path / "mine")
    run("fetch", "toy-32", "--weights", mine)
    assert f"wrote {toys / 'toy-32'}; next: unmask sample toy-32" in capsys.readouterr().out
    assert tree(toys / "toy-32") == WHOLE
    stamps = {name: (toys / "toy-32" / name).stat().st_mtime_ns for name in WHOLE}
    shutil.rmtree(mine)
    for words in (["fetch", "toy-32"], ["fetch", "toy-32", "--offline"]):
        run(*words)
    assert stamps == {name: (toys / "toy-32" / name).stat().st_mtime_ns for name in WHOLE}
    report = (toys / "toy-32/model-conversion.txt").read_text()
    assert "tok_emb.weight -> embedding.weight, classes.table.weight" in report
    assert "not needed: 1\n  loss.logvar" in (toys / "toy-32/tokenizer-conversion.txt").read_text()


def test_files_may_be_named_one_by_one_or_lie_flat(toys, files, tmp_path):
    run("fetch", "toy-32", "--weights", *(files / name for name in FILES.values()))
    shutil.rmtree(toys)
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in FILES.values():
        shutil.copy(files / name, flat)
    run("fetch", "toy-32", "--weights", flat)
    assert tree(toys / "toy-32") == WHOLE


def test_one_file_that_is_missing_is_named_and_the_other_is_not_converted(toys, files, capsys):
    said, code = refused(capsys, "fetch", "toy-32", "--weights", files / FILES["taming-vqgan"])
    assert code == 4
    assert "cannot download toy/generator.pth of toy/weights" in said
    assert "--weights" in said
    assert not toys.exists()


@pytest.fixture
def hub(toys, files, monkeypatch):
    """A Hub that has the files of toy-32."""
    with serving({f"toy/weights/{name}": (files / name).read_bytes() for name in FILES.values()}) as made:
        use(monkeypatch, made, toys.parent / "hub")
        yield made


def test_a_model_is_downloaded_converted_and_sampled_in_one_command(hub, toys, tmp_path, capsys):
    run("sample", "toy-32", "--out", tmp_path / "a.png")
    said = capsys.readouterr()
    assert tree(toys / "toy-32") == WHOLE
    notes = said.err.splitlines()
    assert [note.split(":")[:2] for note in notes] == [["note", f" toy/weights/{name}"] for name in FILES.values()]
    assert all("pinned in" in note for note in notes)
    there = len(hub.asked)
    run("sample", "toy-32", "--offline", "--out", tmp_path / "b.png")
    assert len(hub.asked) == there
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    run("models", "toy-32")
    assert re.search(r"on the disk\n.*sha256 \w{12}\.\.\. pinned at the first use", capsys.readouterr().out, re.S)
    shutil.rmtree(toys)
    unmask.load("toy-32", device="cpu")
    assert len(hub.asked) == there
    assert Pipeline.from_pretrained("toy-32", offline=True).num_classes == 2


def test_a_model_that_changed_on_the_hub_stops(hub, toys, capsys):
    run("fetch", "toy-32")
    shutil.rmtree(toys)
    shutil.rmtree(toys.parent / "hub")
    hub.files["toy/weights/toy/generator.pth"] += b"x"
    said, code = refused(capsys, "sample", "toy-32")
    assert code == 4
    assert re.search(
        "toy/generator.pth of toy/weights changed: .* of the first use .* delete its entry in .*pins", said
    )
    assert not toys.exists()


def test_a_model_that_cannot_be_had_is_one_line(hub, toys, capsys):
    hub.refused["toy/weights"] = (403, "GatedRepo")
    said, code = refused(capsys, "sample", "toy-32")
    assert (code, "accept the terms" in said, "or name a copy of it with --weights" in said) == (4, True, True)
    assert not toys.exists()


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda body: body[:-5], r"is [\d,]+ bytes and not the published [\d,]+"),
    (lambda body: body[:-1] + b"x", r"is of sha256 \w{12} and not the published \w{8}"),
])  # fmt: skip
def test_another_file_than_the_published_is_not_taken(spoil, says, toys, files, tmp_path, capsys, monkeypatch):
    mine = shutil.copytree(files, tmp_path / "mine")
    path = mine / FILES["valeoai-v1"]
    body = path.read_bytes()
    known = replace(MODELS["toy-32"].model, size=len(body), sha256=hashlib.sha256(body).hexdigest()[:8])
    monkeypatch.setitem(MODELS, "toy-32", replace(MODELS["toy-32"], model=known))
    path.write_bytes(spoil(body))
    said, code = refused(capsys, "fetch", "toy-32", "--weights", mine)
    assert code == 4
    assert str(path) in said
    assert re.search(says, said)
    assert not toys.exists()


def test_a_file_of_another_family_is_told_by_its_names(toys, files, tmp_path, capsys):
    """The tokenizer under the generator's name: what fits is said, and the model is not there afterwards."""
    mine = shutil.copytree(files, tmp_path / "mine")
    torch.save({"model_state_dict": random(tokenizer_shapes(PIXELS))}, mine / FILES["valeoai-v1"])
    names = {"taming-vqgan": ("encoder.mid.attn_1.q.weight", "quant_conv.weight"), "valeoai-v1": ("tok_emb.weight",)}
    with pytest.MonkeyPatch.context() as patch:  # the true ones are of five levels
        patch.setattr("unmask.pretrained.families.list_known_names", lambda: names)
        said, code = refused(capsys, "fetch", "toy-32", "--weights", mine)
    assert code == 4
    assert "does not fit valeoai-v1" in said
    assert "its tensors are those of taming-vqgan: convert it as that" in said
    assert not (toys / "toy-32/config.json").exists()
    run("fetch", "toy-32", "--weights", files)  # and the right one is taken afterwards
    assert tree(toys / "toy-32") == WHOLE


def test_a_folder_that_is_not_whole_is_made_again(toys, files, capsys):
    folder = toys / "toy-32"
    run("fetch", "toy-32", "--weights", files)
    sound = shutil.copytree(folder, toys / "sound")
    (folder / "config.json").unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    said, code = refused(capsys, "sample", "toy-32")
    assert code == 4
    assert "cannot download toy/generator.pth of toy/weights" in said
    run("fetch", "toy-32", "--weights", files)
    assert tree(folder) == WHOLE
    values = [name for name in WHOLE if name != "manifest.json"]  # safetensors writes its metadata in any order
    assert all(have_same_weights(folder / name, sound / name) for name in values)


# -- converted by hand -------------------------------------------------------------------------------------------------


def test_a_generator_and_then_its_tokenizer_are_a_model(toys, files, tmp_path, capsys):
    generator, tokenizer, out = *(files / name for name in FILES.values()), tmp_path / "mine"
    run("convert", generator, "--family", "valeoai-v1", "--out", out)
    said = capsys.readouterr().out
    count = sum(p.numel() for p in SIZE.build().parameters())
    renamed = len(generator_shapes(NETWORK, 16, 16)) - 2 - 1
    split = "2 split, 0 not needed, none missing or unknown"
    assert f"0 tensors kept their names, {renamed + 1} were renamed, {split}: {count:,} parameters\nwrote {out}" in said
    assert tree(out) == ["config.json", "manifest.json", "model-conversion.txt", "model.safetensors"]
    refusal, code = refused(capsys, "sample", out)
    assert code == 4
    assert "tokenizer.safetensors" in refusal
    run("convert", tokenizer, "--family", "taming-vqgan", "--out", out)
    assert ", 1 not needed, none missing or unknown: " in capsys.readouterr().out
    assert tree(out) == WHOLE
    report = (out / "model-conversion.txt").read_text()
    assert f"source: {generator.name}\nparameters: {count:,} as float32\nkept under their names: 0\n" in report
    assert "\n  last_layer.4.bias -> last.3.bias\n" in report
    assert "\n  pos_emb -> position, class_position\n" in report
    spec = read_config(out / "config.json", ModelSpec)
    assert (spec.model, spec.tokenizer) == (NETWORK, PIXELS)  # and not the taller size, which is listed first
    assert spec.sampling == PLAIN
    picture = tmp_path / "x.png"
    run("sample", out, "--labels", 0, 1, "--num", 4, "--out", picture)
    assert picture.exists()
    run("fetch", "toy-32", "--weights", files)
    assert (out / "config.json").read_bytes() == (toys / "toy-32/config.json").read_bytes()
    assert all(have_same_weights(out / name, toys / "toy-32" / name) for name in WHOLE if name.endswith(".safetensors"))
    here, there = Pipeline.from_pretrained(out), Pipeline.from_pretrained(toys / "toy-32")
    assert torch.equal(here.generate(num=3), there.generate(num=3))


def test_a_folder_with_a_model_is_not_overwritten(ready, files, tmp_path, capsys):
    generator, tokenizer = (files / name for name in FILES.values())
    mine = shutil.copytree(ready / "toy-32", tmp_path / "mine")
    before = {name: (mine / name).read_bytes() for name in tree(mine)}
    said, code = refused(capsys, "convert", generator, "--family", "valeoai-v1", "--out", mine)
    assert (code, "holds a model already: give another --out" in said) == (4, True)
    assert before == {name: (mine / name).read_bytes() for name in tree(mine)}
    said, code = refused(capsys, "convert", tokenizer, "--family", "taming-vqgan", "--out", mine)
    assert (code, "holds a model already: give another --out" in said) == (4, True)
    assert before == {name: (mine / name).read_bytes() for name in tree(mine)}
    row = shutil.copytree(ready / "toy-row", tmp_path / "row")
    (row / "tokenizer.safetensors").unlink()
    said, code = refused(capsys, "convert", tokenizer, "--family", "taming-vqgan", "--out", row)
    assert (code, "another kind of tokenizer" in said) == (4, True)
    alone = tmp_path / "alone"
    run("convert", tokenizer, "--family", "taming-vqgan", "--out", alone)
    training = tmp_path / "training"  # whose weights are written at its end
    training.mkdir()
    shutil.copy(mine / "config.json", training)
    for path, family in ((tokenizer, "taming-vqgan"), (generator, "valeoai-v1")):
        for out in (alone, training):
            said, code = refused(capsys, "convert", path, "--family", family, "--out", out)
            assert (code, "holds a model already: give another --out" in said) == (4, True), said
    assert tree(training) == ["config.json"]


def test_a_conversion_that_was_cut_short_is_done_again(toys, files, tmp_path, capsys, monkeypatch):
    steps = [(files / FILES[family], family) for family in FILES]

    def convert(out, path, family):
        run("convert", path, "--family", family, "--out", out)

    for step in steps:
        convert(tmp_path / "whole", *step)
    for number, step in enumerate(steps):
        out = tmp_path / f"cut-{number}"
        for earlier in steps[:number]:
            convert(out, *earlier)
        with monkeypatch.context() as patch:
            patch.setattr("unmask.published.store.record_files", fail_to_write)
            _, code = refused(capsys, "convert", step[0], "--family", step[1], "--out", out)
            assert code == 6
        for later in steps[number:]:
            convert(out, *later)
        assert tree(out) == tree(tmp_path / "whole")
        assert all(have_same_weights(out / n, tmp_path / "whole" / n) for n in WHOLE if n.endswith(".safetensors"))
        assert Pipeline.from_pretrained(out).spec == Pipeline.from_pretrained(tmp_path / "whole").spec


def fail_to_write(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_of_another_family_says_which(toys, files, tmp_path, capsys):
    said, code = refused(
        capsys, "convert", files / FILES["valeoai-v1"], "--family", "titok-bert", "--out", tmp_path / "x"
    )
    assert code == 4
    assert "does not fit titok-bert" in said
    assert "its tensors are those of valeoai-v1: convert it as that" in said
    assert not (tmp_path / "x").exists()


def test_a_file_of_another_size_is_refused(toys, tmp_path, capsys):
    """One class more than the model of this family has."""
    path = write("valeoai-v1", random(generator_shapes(replace(NETWORK, num_classes=3), 16, 16)), tmp_path)
    said, code = refused(capsys, "convert", path, "--family", "valeoai-v1", "--out", tmp_path / "x")
    assert code == 4
    assert "of another shape or type" in said
    assert not (tmp_path / "x").exists()


def test_the_sizes_of_a_family_are_told_apart(toys, tmp_path):
    path = write("valeoai-v1", random(generator_shapes(NETWORK, 16, 32)), tmp_path)
    run("convert", path, "--family", "valeoai-v1", "--out", tmp_path / "tall")
    assert read_config(tmp_path / "tall/config.json", ModelSpec).tokenizer == WIDER


def test_a_tokenizer_alone_makes_codes(toys, files, photos, tmp_path, capsys):
    out, codes = tmp_path / "alone", tmp_path / "codes"
    run("convert", files / FILES["taming-vqgan"], "--family", "taming-vqgan", "--out", out)
    assert tree(out) == ["config.json", "manifest.json", "model-conversion.txt", "model.safetensors"]
    given = read_lone_tokenizer(out)
    assert given.config in (PIXELS, WIDER)  # a picture's size is not in the file
    run("tokenize", out, "--data", photos, "--out", codes)
    assert "wrote" in capsys.readouterr().out
    images = torch.rand(3, 3, *given.config.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(read_lone_tokenizer(codes / "tokenizer").encode(images), given.encode(images))


# -- drawn and repaired ------------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_picture(ready, tmp_path, capsys):
    def drawn(name, *words):
        run("sample", "toy-32", "--out", tmp_path / name, *words)
        return (tmp_path / name).read_bytes()

    one = drawn("a.png", "--classes", 0, 1, "--seed", 0)
    assert one == drawn("b.png", "--classes", 0, 1, "--seed", 0)
    assert one == drawn("c.png", "--labels", 0, 1, "--num", 2)
    assert one != drawn("d.png", "--classes", 0, 1, "--seed", 1)
    assert one != drawn("e.png", "--classes", 1, 0, "--seed", 0)
    single, ten = (drawn(f"{i}.png", "--num", i) for i in (1, 10))
    assert drawn("f.png") == single != ten  # one per label, and not a hundred
    assert f"wrote {tmp_path / 'f.png'}" in capsys.readouterr().out


def test_flags_change_how_a_published_model_draws(ready, tmp_path):
    pictures = {}
    changes = {"own": [], "steps": ["--steps", 9], "order": ["--order", "raster"], "guided": ["--scale", 4]}
    for name, words in {**changes, "greedy": ["--temperature", 0]}.items():
        run("sample", "toy-32", "--classes", 0, 1, 1, 0, "--out", tmp_path / f"{name}.png", *words)
        pictures[name] = (tmp_path / f"{name}.png").read_bytes()
    assert len(set(pictures.values())) == len(pictures)


@pytest.mark.parametrize(("words", "code", "told"), [
    ("sample toy-32 --classes 2", 2, "no class 2: this model's labels go from 0 to 1"),
    ("sample toy-32 --classes -1", 2, "-1"),
    ("sample toy-32 --classes cat", 2, "no class cat: this model has no class names; give a number, or leave it out"),
    ("sample toy-32 --num 0", 2, "--num 0: from 1 to 10,000 on one picture"),
    ("sample toy-32 --num 1000000000000", 2, "from 1 to 10,000 on one picture; unmask evaluate draws more"),
    ("sample toy-32 --steps 1000000000", 2, "from 1 to 100,000"),
    ("sample toy-32 --out {here}/x.txt", 2, "x.txt: .txt is no image format here; use .png"),
    ("sample toy-32 --gif {here}/x.mp4", 2, "x.mp4: an animation is a .gif or a .webp"),
    ("sample amused-256 --classes 1", 2, "amused-256 generates images from texts: give prompts"),
    ("sample besnier-256 --prompt cat", 2, "besnier-256 takes class labels, not texts: give labels"),
    ("fetch besnier-256 --weights", 2, "--weights: give the files, or a folder that holds them"),
    ("fetch besnier-256 --weights --offline", 2, "--weights: give the files, or a folder that holds them"),
    ("sample toy-32 --prompt cat", 2, "toy-32 takes class labels, not texts"),
    ("sample toy-texts", 2, "toy-texts generates images from texts: give"),
    ("sample toy-texts --classes 0", 2, "toy-texts generates images from texts: give"),
    ("inpaint toy-32 {photo} --box 8 8 16 16 --label 2", 2, "no class 2: this model's labels go from 0 to 1"),
    ("inpaint toy-32 {photo} --box 8 8 16 16 --prompt cat", 2, "toy-32 takes class labels, not texts"),
    ("inpaint toy-texts {photo} --box 8 8 16 16", 2, "toy-texts generates images from texts"),
    ("inpaint toy-texts {photo} --box 8 8 16 16 --label 1 --prompt cat", 2, "--label and --prompt: a model draws"),
    ("inpaint toy-bare {photo} --box 8 8 16 16", 2, 'trained without "no class": give each image a label'),
    ("inpaint toy-bare {photo} --box 8 8 16 16 --label 1 --scale 2", 2, "give --scale 1"),
    ("sample toy-bare --scale 2", 2, 'trained without "no class", which guidance needs: give --scale 1'),
    ("inpaint toy-32 {photo}", 2, "say where to fill"),
    ("inpaint toy-row {photo} --box 8 8 16 16 --label 1", 2, "the 4 tokens of an image have no place in it"),
    ("sample toy-row --gif {here}/x.gif --out {here}/x.png", 2, "the 4 tokens of an image have no place in it"),
    ("tokenize toy-texts", 4, "tokenizer.safetensors: no such file"),
])  # fmt: skip
def test_what_a_model_cannot_do_is_one_line(words, code, told, ready, photo, tmp_path, capsys):
    said, found = refused(capsys, *words.format(photo=photo, here=tmp_path).split())
    assert told in said
    assert found == code


@pytest.mark.parametrize("scale", [LinearRamp(2.0), LinearRamp(1.0, start=2.0), CosineRamp(2.0), Interval(0.0)])
def test_a_model_without_no_class_is_asked_for_none_on_any_device(scale, ready):
    """It is refused before the network, which looks at ids on a CPU alone."""
    pipeline = unmask.load("toy-bare", device="cpu")
    labels = torch.tensor([0, 1])
    with pytest.raises(ConfigError, match="which guidance needs"):
        pipeline.generate(labels, sampling=replace(PLAIN, scale=scale))
    with pytest.raises(ConfigError, match="give each image a label"):
        list(pipeline.stream_states(pipeline.make_canvas(1), None))
    for plain in (Interval(1.0), LinearRamp(1.0), CosineRamp(1.0)):
        pipeline.predict(labels, replace(PLAIN, scale=plain))


def test_a_row_of_tokens_draws(ready, tmp_path):
    run("sample", "toy-row", "--classes", 0, 1, "--out", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert min(picture.size) >= 32


def test_a_photo_is_repaired_and_its_other_pixels_stay(ready, photo, tmp_path):
    before = np.asarray(Image.open(photo))
    words = ["inpaint", "toy-32", photo, "--box", 20, 12, 14, 9, "--variants", 2, "--out", tmp_path / "a.png"]
    run(*words, "--label", 1)
    one, two = (np.asarray(Image.open(tmp_path / f"a-{v}.png")) for v in (1, 2))
    hole = np.zeros(before.shape[:2], dtype=bool)
    hole[12:21, 20:34] = True
    for after in (one, two):
        assert after.shape == before.shape
        assert (after[~hole] == before[~hole]).all()
        assert (after[hole] != before[hole]).any()
    assert (one[hole] != two[hole]).any()
    first = (tmp_path / "a-1.png").read_bytes()
    run(*words, "--label", 1)
    assert (tmp_path / "a-1.png").read_bytes() == first


def test_loaded_in_python_it_is_the_folder_s_pipeline(ready):
    loaded, folder = unmask.load("toy-32"), Pipeline.from_pretrained(ready / "toy-32")
    assert loaded.sampling == folder.sampling == PLAIN
    for a, b in ((loaded.model, folder.model), (loaded.tokenizer, folder.tokenizer)):
        pairs = zip(a.parameters(), b.parameters(), strict=True)
        assert all(torch.equal(*(p.to_dense() if p.is_mkldnn else p for p in pair)) for pair in pairs)
    labels = torch.tensor([1, 0, 1])
    assert torch.equal(loaded.generate(labels, seed=3), folder.generate(labels, seed=3))
    again = unmask.load(ready / "toy-32", dtype=torch.bfloat16)
    assert next(again.model.parameters()).dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="did you mean the published toy-32"):
        unmask.load("toy_32")


def test_loaded_in_python_with_weights_at_hand(toys, files):
    pipeline = unmask.load("toy-32", weights=[files], device="cpu", dtype=torch.float32)
    assert pipeline.num_classes == 2
    assert tree(toys / "toy-32") == WHOLE
    table = torch.load(files / FILES["valeoai-v1"], weights_only=True)["model_state_dict"]["tok_emb.weight"]
    assert torch.equal(pipeline.model.embedding.weight, table[:17])
    assert torch.equal(pipeline.model.classes.table.weight, table[[19, 17, 18]])  # "no class" in front
