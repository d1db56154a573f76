"""Published models as users take them: listed, fetched, converted, drawn with, repaired with, measured and trained on.

Tiny networks in the published layout stand for the weights; the true sizes are in tests/machinery.
"""

import hashlib
import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask import presets
from unmask.catalogue import MODELS, File, Published
from unmask.cli import main
from unmask.config import from_json, to_json
from unmask.data.sources import Codes
from unmask.decoding import Sampling
from unmask.errors import CheckpointError
from unmask.experiments import base as experiment
from unmask.experiments import images as image_experiment
from unmask.experiments.coded import read_tokenizer
from unmask.pipeline import Pipeline
from unmask.presets import REPORT_256, Preset, Scores
from unmask.pretrained.download import Source
from unmask.pretrained.families import FAMILIES, Size
from unmask.pretrained.maskgit_vqgan import MaskGITVQGAN
from unmask.pretrained.titok import TiTok
from unmask.pretrained.titok_bert import TiTokBert
from unmask.pretrained.valeoai import ValeoaiMaskGIT
from unmask.published import adopted, write_recipe
from unmask.rand import seeded
from unmask.recipes import Recipe, find, read_recipe
from unmask.tokenizers.quantizers import VQ
from unmask.tokenizers.vqgan import VQGAN
from unmask.weights import same_weights, write_weights

PIXELS = VQGAN(size=(32, 32), width=4, multipliers=(1, 1, 1, 2), blocks=1, decoder_blocks=1, attention=(4,), groups=2,
               z_channels=6, quantizer=VQ(vocab_size=16, dim=5, normalize=False, decay=0.0))  # fmt: skip
WIDER = replace(PIXELS, size=(64, 32), attention=(8,))
NETWORK = ValeoaiMaskGIT(dim=16, depth=1, heads=2, mlp_dim=24, num_classes=2)
SIZE, TALL = Size(model=NETWORK, tokenizer=PIXELS), Size(model=NETWORK, tokenizer=WIDER)
ROW = TiTok(num_latents=4, width=12, depth=1, heads=3, vocab_size=9, token_dim=3,
            pixels=MaskGITVQGAN(size=(32, 32), width=32, multipliers=(1, 1), blocks=1, codes=7, dim=5))  # fmt: skip
ROW_SIZE = Size(model=TiTokBert(dim=12, depth=1, heads=3, mlp_dim=20, num_classes=2), tokenizer=ROW)
PLAIN = Sampling(steps=3)
FILES = {"valeoai-v1": "toy/generator.pth", "taming-vqgan": "toy/vqgan.ckpt"}
CONTAINERS = {"valeoai-v1": "model_state_dict", "taming-vqgan": "state_dict"}


# -- files in the published layout -------------------------------------------------------------------------------------


def both(layers):
    return {f"{n}.weight": s for n, s in layers.items()} | {f"{n}.bias": s[:1] for n, s in layers.items()}


def generator_shapes(c, k, length):
    """valeoai's names: codes, mask, classes and none in one table, the class in the last place."""
    d, m, words = c.dim, c.mlp_dim, k + 1 + c.num_classes + 1
    layers = {f"first_layer.{i}": (d,) for i in (0, 4)} | {f"first_layer.{i}": (d, d) for i in (2, 6)}
    layers |= {"last_layer.0": (d,), "last_layer.2": (d, d), "last_layer.4": (d,)}
    shapes = {"pos_emb": (1, length + 1, d), "bias": (length + 1, words), "tok_emb.weight": (words, d)}
    for i in range(c.depth):
        place = f"transformer.layers.{i}"
        layers |= {f"{place}.0.norm": (d,), f"{place}.0.fn.mha.out_proj": (d, d), f"{place}.1.norm": (d,)}
        layers |= {f"{place}.1.fn.net.0": (m, d), f"{place}.1.fn.net.3": (d, m)}
        shapes |= {f"{place}.0.fn.mha.in_proj_weight": (3 * d, d), f"{place}.0.fn.mha.in_proj_bias": (3 * d,)}
    return shapes | both(layers)


def tokenizer_shapes(c):
    """taming's names for one block a level and attention in the coarsest."""
    dims, z, code = [c.width * m for m in c.multipliers], c.z_channels, c.quantizer.dim
    top, last = len(dims) - 1, dims[-1]
    layers = {"encoder.conv_in": (c.width, 3, 3, 3), "encoder.conv_out": (z, last, 3, 3), "encoder.norm_out": (last,)}
    layers |= {"decoder.conv_in": (last, z, 3, 3), "decoder.conv_out": (3, c.width, 3, 3)}
    layers |= {"decoder.norm_out": (c.width,), "quant_conv": (code, z, 1, 1), "post_quant_conv": (z, code, 1, 1)}
    blocks = [(f"{part}.mid.block_{i}", last, last) for part in ("encoder", "decoder") for i in (1, 2)]
    blocks += [(f"encoder.down.{i}.block.0", dims[max(i - 1, 0)], dim) for i, dim in enumerate(dims)]
    blocks += [(f"decoder.up.{i}.block.0", dims[min(i + 1, top)], dim) for i, dim in enumerate(dims)]
    for place, before, after in blocks:
        layers |= {f"{place}.norm1": (before,), f"{place}.conv1": (after, before, 3, 3)}
        layers |= {f"{place}.norm2": (after,), f"{place}.conv2": (after, after, 3, 3)}
        layers |= {f"{place}.nin_shortcut": (after, before, 1, 1)} if before != after else {}
    attended = ("encoder.mid.attn_1", "decoder.mid.attn_1", f"encoder.down.{top}.attn.0", f"decoder.up.{top}.attn.0")
    for place in attended:
        layers |= {f"{place}.norm": (last,)} | {f"{place}.{n}": (last, last, 1, 1) for n in ("q", "k", "v", "proj_out")}
    layers |= {f"encoder.down.{i}.downsample.conv": (dims[i],) * 2 + (3, 3) for i in range(top)}
    layers |= {f"decoder.up.{i}.upsample.conv": (dims[i],) * 2 + (3, 3) for i in range(1, top + 1)}
    return both(layers) | {"quantize.embedding.weight": (c.vocab_size, code), "loss.logvar": (1,)}


def random(shapes, seed=0):
    """Inputs of a layer add up to about 1, and nothing is trivial."""
    generator = torch.Generator().manual_seed(seed)
    values = {
        name: torch.randn(shape, generator=generator) * 1.5 / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        for name, shape in sorted(shapes.items())
    }
    # Classes that are attended to, and tokens that are not all alike.
    changes = {name: 3.0 for name in values if ".mha." in name} | {"last_layer.4.weight": 0.6, "last_layer.4.bias": 0.1}
    return {name: value * changes.get(name, 1.0) for name, value in values.items()}


def write(family, tensors, folder):
    path = folder / FILES[family]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({CONTAINERS[family]: tensors, "iter": 7}, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write("valeoai-v1", random(generator_shapes(NETWORK, 16, 16)), folder)
    write("taming-vqgan", random(tokenizer_shapes(PIXELS)), folder)
    return folder


def entry(size, **changes):
    score = Preset(size=(32, 32), sampling=PLAIN, expected=Scores(fid=12.5), source="a toy's page")
    made = Published(
        about="a toy", licence="MIT", data="noise", size=size, sampling=PLAIN, preset=score,
        model=File(family="valeoai-v1", page="https://example.org/toy", name=FILES["valeoai-v1"]),
        tokenizer=File(family="taming-vqgan", page="https://example.org/toy", name=FILES["taming-vqgan"]),
    )  # fmt: skip
    return replace(made, **changes)


def catalogue(patch, cache):
    """The toys beside the true models, and a cache of their own."""
    patch.setenv("UNMASK_CACHE", str(cache))
    patch.setattr("unmask.pretrained.download.get", offline)
    for name, size in (("toy-32", SIZE), ("toy-row", ROW_SIZE)):
        patch.setitem(MODELS, name, entry(size))
    texts = MODELS["amused-256"]
    patch.setitem(MODELS, "toy-texts", entry(texts.size, preset=None))
    sizes = {"valeoai-v1": (TALL, SIZE), "taming-vqgan": (Size(tokenizer=WIDER), Size(tokenizer=PIXELS))}
    for family, tiny in sizes.items():
        patch.setitem(FAMILIES, family, replace(FAMILIES[family], sizes=tiny))


def offline(address, *more, **named):
    raise AssertionError(f"{address} was asked for")


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """The catalogue with an empty cache."""
    catalogue(monkeypatch, tmp_path / "cache")
    return tmp_path / "cache/models"


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    """A cache in which toy-32 was converted, and toy-row and toy-texts are as if."""
    cache = tmp_path_factory.mktemp("ready")
    with pytest.MonkeyPatch.context() as patch:
        catalogue(patch, cache)
        main(["fetch", "toy-32", "--weights", str(files)])
    row = cache / "models/toy-row"
    row.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {"model": ROW_SIZE.build(), "tokenizer": ROW.build()}
    for name, part in parts.items():
        write_weights(dict(part.named_parameters()), row / f"{name}.safetensors")
    write_recipe(ROW_SIZE, row, PLAIN)
    (cache / "models/toy-texts").mkdir()
    write_recipe(MODELS["amused-256"].size, cache / "models/toy-texts", presets.AMUSED)
    return cache


@pytest.fixture
def ready(converted, monkeypatch):
    catalogue(monkeypatch, converted)
    return converted / "models"


def run(*words):
    main([str(word) for word in words])


def refused(capsys, *words):
    """The one line of an error, and its exit code."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*words)
    said = capsys.readouterr().err
    assert said.startswith("unmask: "), said
    assert said.count("\n") == 1, said
    return said, stop.value.code


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


WHOLE = [
    "config.json",
    "model-conversion.txt",
    "model.safetensors",
    "tokenizer-conversion.txt",
    "tokenizer.safetensors",
]


# -- listed and fetched ------------------------------------------------------------------------------------------------


def test_the_models_are_listed(toys, monkeypatch, capsys):
    for name in set(MODELS) - {"besnier-256", "amused-256", "toy-32"}:  # to count parameters takes its time
        monkeypatch.delitem(MODELS, name)
    run("models")
    said = capsys.readouterr().out
    assert all(re.search(rf"^{name} ", said, re.M) for name in MODELS)
    assert re.search(r"^besnier-256 +174 \+ 72 M +6\.80 +MIT +the reproduction of MaskGIT .*256x256$", said, re.M)
    assert re.search(r"^toy-32 +0 \+ 0 M +12\.50 +MIT +a toy$", said, re.M)
    assert re.search(r"^amused-256 .* – +openrail", said, re.M)
    assert not toys.exists()


def test_a_model_is_told_of(toys, capsys):
    run("models", "toy-32")
    said = capsys.readouterr().out
    model, tokenizer = (sum(p.numel() for p in part.parameters()) for part in (SIZE.build(), PIXELS.build()))
    assert f"parameters  {model:,} and {tokenizer:,} of the tokenizer" in said
    assert "published   fid 12.5 (a toy's page)" in said
    assert re.search(r"^sampled +steps 3", said, re.M)
    assert "toy/generator.pth of https://example.org/toy (by hand, with --weights: no hash is known here)" in said
    run("models", "titok-s128")
    said = capsys.readouterr().out
    assert "generator_titok_s128.bin of https://huggingface.co/fun-research/TiTok (by hand" in said
    assert re.search(r"steps 64.*noises=\([\d.]+ \.\.\. 0\.0\)", said)  # not all 64
    run("models", "besnier-256")
    assert (
        "MaskGIT_ImageNet_256.pth of https://huggingface.co/llvictorll/Maskgit-pytorch (fetched, sha256 74b38fa1"
        in (capsys.readouterr().out)
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
    ("fetch toy-32", 4, "toy-32 needs toy/generator.pth of https://example.org/toy"),
    ("fetch toy-32 --weights {here}/nowhere", 4, "nowhere: no such file or folder"),
    ("fetch toy-32 --weights {here}", 4, "toy/generator.pth"),
    ("sample {here} --weights {here}", 2, "weights are for a published model"),
    ("convert {photo} --family valeoai-v2 --out {here}/o", 2, "no family valeoai-v2: did you mean valeoai-v1?"),
    ("convert {here}/nowhere.pth --family valeoai-v1 --out {here}/o", 4, "nowhere.pth: cannot be read"),
    ("convert {photo} --family valeoai-v1 --out {here}/o", 4, "photo.png: byte 1"),
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
    assert "toy-32 needs toy/generator.pth of https://example.org/toy" in said
    assert "--weights" in said
    assert not toys.exists()


@pytest.fixture
def fetched(toys, files, tmp_path, monkeypatch):
    """toy-32 with hashes and sizes, its files lying where a download would put them."""
    parts = {}
    for part, name in (("model", FILES["valeoai-v1"]), ("tokenizer", FILES["taming-vqgan"])):
        body = (files / name).read_bytes()
        digest = hashlib.sha256(body).hexdigest()[:8]
        source = Source(repo="toy/weights", path=name, size=len(body), sha256=digest)
        parts[part] = replace(getattr(MODELS["toy-32"], part), source=source)
        place = toys.parent / "downloads" / source.place
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(body)
    monkeypatch.setitem(MODELS, "toy-32", replace(MODELS["toy-32"], **parts))
    return toys


def test_what_was_downloaded_is_taken_without_asking(fetched):
    run("fetch", "toy-32", "--offline")
    assert tree(fetched / "toy-32") == WHOLE


def test_offline_says_what_is_not_there(fetched, capsys):
    gone = next((fetched.parent / "downloads").rglob("generator.pth"))
    gone.unlink()
    said, code = refused(capsys, "sample", "toy-32", "--offline")
    assert code == 4
    assert f"{gone} is not there, and this is offline" in said
    assert "huggingface.co/toy/weights/resolve/main/toy/generator.pth" in said
    assert not fetched.exists()


@pytest.mark.parametrize("whose", ["given", "downloaded"])
@pytest.mark.parametrize(("spoil", "says"), [
    (lambda body: body[:-5], r"is \d+ bytes and not the published \d+"),
    (lambda body: body[:-1] + b"x", r"is of sha256 \w{12} and not the published \w{8}"),
])  # fmt: skip
def test_another_file_than_the_published_is_not_taken(whose, spoil, says, fetched, files, tmp_path, capsys):
    mine = shutil.copytree(files, tmp_path / "mine")
    path = mine / FILES["valeoai-v1"] if whose == "given" else next(fetched.parent.rglob("generator.pth"))
    path.write_bytes(spoil(path.read_bytes()))
    how = ["--weights", mine] if whose == "given" else ["--offline"]
    said, code = refused(capsys, "fetch", "toy-32", *how)
    assert code == 4
    assert str(path) in said
    assert re.search(says, said)
    assert not fetched.exists()


def test_a_file_of_another_family_is_told_by_its_names(toys, files, tmp_path, capsys):
    """The tokenizer under the generator's name: what fits is said, and the model is not there afterwards."""
    mine = shutil.copytree(files, tmp_path / "mine")
    torch.save({"model_state_dict": random(tokenizer_shapes(PIXELS))}, mine / FILES["valeoai-v1"])
    names = {"taming-vqgan": ("encoder.mid.attn_1.q.weight", "quant_conv.weight"), "valeoai-v1": ("tok_emb.weight",)}
    with pytest.MonkeyPatch.context() as patch:  # the true ones are of five levels
        patch.setattr("unmask.pretrained.families.known_names", lambda: names)
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
    assert "toy-32 needs toy/generator.pth" in said
    run("fetch", "toy-32", "--weights", files)
    assert tree(folder) == WHOLE
    assert all(same_weights(folder / name, sound / name) for name in WHOLE)


# -- converted by hand -------------------------------------------------------------------------------------------------


def test_a_generator_and_then_its_tokenizer_are_a_model(toys, files, tmp_path, capsys):
    generator, tokenizer, out = *(files / name for name in FILES.values()), tmp_path / "mine"
    run("convert", generator, "--family", "valeoai-v1", "--out", out)
    said = capsys.readouterr().out
    count = sum(p.numel() for p in SIZE.build().parameters())
    renamed = len(generator_shapes(NETWORK, 16, 16)) - 2 - 1
    split = "2 split, 0 not needed, none missing or unknown"
    assert f"0 tensors kept their names, {renamed + 1} were renamed, {split}: {count:,} parameters\nwrote {out}" in said
    assert tree(out) == ["config.json", "model-conversion.txt", "model.safetensors"]
    refusal, code = refused(capsys, "sample", out)
    assert code == 4
    assert "tokenizer.safetensors" in refusal
    run("convert", tokenizer, "--family", "taming-vqgan", "--out", out)
    assert ", 1 not needed, none missing or unknown: " in capsys.readouterr().out
    assert tree(out) == WHOLE
    report = (out / "model-conversion.txt").read_text()
    assert f"source: {generator}\nparameters: {count:,} as float32\nkept under their names: 0\n" in report
    assert "\n  last_layer.4.bias -> last.3.bias\n" in report
    assert "\n  pos_emb -> position, class_position\n" in report
    recipe = read_recipe(out / "config.json", Recipe)
    assert (recipe.model, recipe.tokenizer) == (NETWORK, PIXELS)  # and not the taller size, which is listed first
    assert recipe.sampling == PLAIN
    picture = tmp_path / "x.png"
    run("sample", out, "--labels", 0, 1, "--num", 4, "--out", picture)
    assert picture.exists()
    run("fetch", "toy-32", "--weights", files)
    assert (out / "config.json").read_bytes() == (toys / "toy-32/config.json").read_bytes()
    assert all(same_weights(out / name, toys / "toy-32" / name) for name in WHOLE if name.endswith(".safetensors"))
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
    assert read_recipe(tmp_path / "tall/config.json", Recipe).tokenizer == WIDER


def test_a_tokenizer_alone_makes_codes(toys, files, photos, tmp_path, capsys):
    out, codes = tmp_path / "alone", tmp_path / "codes"
    run("convert", files / FILES["taming-vqgan"], "--family", "taming-vqgan", "--out", out)
    assert tree(out) == ["config.json", "model-conversion.txt", "model.safetensors"]
    given = read_tokenizer(out)
    assert given.config in (PIXELS, WIDER)  # a picture's size is not in the file
    run("tokenize", out, "--data", photos, "--out", codes)
    assert "wrote" in capsys.readouterr().out
    images = torch.rand(3, 3, *given.config.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(read_tokenizer(codes / "tokenizer").encode(images), given.encode(images))


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


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(("words", "code", "told"), [
    ("sample toy-32 --classes 2", 2, "labels 2..2: this model has 2 classes, counted from 0"),
    ("sample toy-32 --classes -1", 2, "-1"),
    ("sample toy-32 --classes cat", 2, "no class cat: give its number"),
    ("sample toy-32 --num 0", 2, "--num 0: at least 1"),
    ("sample toy-32 --prompt cat", 2, "toy-32 knows classes and no texts"),
    ("sample toy-texts", 2, "toy-texts draws from texts: give"),
    ("sample toy-texts --classes 0", 2, "toy-texts draws from texts: give"),
    ("inpaint toy-32 {photo} --box 8 8 16 16 --label 2", 2, "this model has 2 classes"),
    ("inpaint toy-32 {photo} --box 8 8 16 16 --prompt cat", 2, "toy-32 knows classes and no texts"),
    ("inpaint toy-texts {photo} --box 8 8 16 16", 2, "toy-texts draws from texts"),
    ("inpaint toy-32 {photo}", 2, "say where the hole is"),
    ("inpaint toy-row {photo} --box 8 8 16 16 --label 1", 2, "a row of 4 tokens of the whole picture"),
    ("sample toy-row --gif {here}/x.gif --out {here}/x.png", 2, "a row of 4 tokens of the whole picture"),
    ("tokenize toy-texts", 4, "tokenizer.safetensors: no such file"),
])  # fmt: skip
def test_what_a_model_cannot_do_is_one_line(words, code, told, ready, photo, tmp_path, capsys):
    said, found = refused(capsys, *words.format(photo=photo, here=tmp_path).split())
    assert told in said
    assert found == code


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
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
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


# -- measured and trained on -------------------------------------------------------------------------------------------


def draw_photos(root, classes):
    rand = np.random.default_rng(0)
    for place in range(48):
        folder = root / classes[place % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rand.normal(60 + 120 * (place % len(classes)) / len(classes), 40, (34, 40, 3)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{place}.png")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("photos") / "photos", ["sand", "sea"])


@pytest.fixture(scope="module")
def coded(converted, photos, tmp_path_factory):
    """Codes of the published tokenizer, of two classes, of three and of none, and a classifier."""
    root = tmp_path_factory.mktemp("coded")
    sets = {"two": photos, "three": draw_photos(root / "photos-three", ["a", "b", "c"]), "none": photos / "sea"}
    with pytest.MonkeyPatch.context() as patch:
        catalogue(patch, converted)
        for name, source in sets.items():
            run("tokenize", "toy-32", "--data", source, "--out", root / name)
        judge = ["--classifier.steps", 2, "--classifier.width", 4, "--classifier.batch-size", 8]
        run("train-features", "folder", "--data", photos, "--data.size", 32, "--out", root / "judge", *judge)
    return root


def test_codes_are_those_of_the_published_tokenizer(ready, coded):
    meta = image_experiment.open_coded(coded / "two").meta
    assert (meta.vocab_size, meta.grid, meta.classes) == (16, (4, 4), ("sand", "sea"))
    assert same_weights(coded / "two/tokenizer/model.safetensors", ready / "toy-32/tokenizer.safetensors")


def test_a_published_model_is_measured(ready, coded, tmp_path, capsys):
    out = tmp_path / "figures"
    words = ["evaluate", "toy-32", "--data", coded / "two", "--classifier", coded / "judge", "--samples", 12]
    run(*words, "--out", out)
    shown = re.findall(rf"^  {re.escape(str(out))}/(\S+) ", capsys.readouterr().out, re.M)
    assert {"report.json", "samples.png", "decode.gif", "inpaint.png"} <= set(shown)
    assert all((out / name).exists() for name in shown)
    report = json.loads((out / "report.json").read_text())
    assert np.isfinite([report[name] for name in ("frechet", "frechet_limit", "frechet_floor")]).all()
    assert 0 <= report["class_accuracy"] <= 1
    assert report["num_samples"] == 12
    assert report["steps"] == 3
    assert report["num_parameters"] == sum(p.numel() for p in SIZE.build().parameters())
    assert (out / "samples.png").exists()
    assert tree(ready / "toy-32") == WHOLE  # the cache is as it was
    run(*words, "--out", out, "--steps", 2)  # again, over itself
    again = json.loads((out / "report.json").read_text())
    assert again["steps"] == 2
    assert again["frechet_floor"] == report["frechet_floor"]


def test_a_row_of_tokens_is_measured_too(ready, photos, coded, tmp_path):
    """It has no places to repair or to show, and all other figures."""
    run("tokenize", "toy-row", "--data", photos, "--out", tmp_path / "codes")
    words = ["evaluate", "toy-row", "--data", tmp_path / "codes", "--classifier", coded / "judge", "--samples", 12]
    run(*words, "--out", tmp_path / "figures")
    report = json.loads((tmp_path / "figures/report.json").read_text())
    assert np.isfinite(report["frechet"])
    assert 0 <= report["class_accuracy"] <= 1
    assert "inpaint_class_accuracy" not in report
    assert (tmp_path / "figures/samples.png").exists()


@pytest.mark.parametrize(("words", "code", "told"), [
    ("evaluate toy-32", 2, "Give --data CODES, which unmask tokenize NAME makes"),
    ("evaluate toy-32 --data {coded}/three", 2, "three has 3 classes and the model 2: their numbers mean other things"),
    ("evaluate toy-32 --data {coded}/none --classifier {coded}/judge", 2, "no classes and the model 2"),
    ("evaluate toy-texts --data {coded}/none", 2, "draws from texts, and codes have none"),
    ("train imagenet256 --init toy-32 --data {coded}/none", 2, "no classes"),
    ("evaluate toy-32 --data {coded}/nowhere", 3, "nowhere"),
    ("evaluate toy-row --data {coded}/two", 2, "tokenizer"),
    ("evaluate {ready}/toy-32 --data {coded}/two", 2, "--data and --out are for published models"),
    ("train imagenet256 --init toy-row --data {coded}/two", 2, "was trained with another tokenizer"),
    ("train imagenet256 --init toy-texts --data {coded}/two", 2, "can be sampled here but not trained"),
])  # fmt: skip
def test_what_does_not_go_together_is_one_line(words, code, told, ready, coded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said, found = refused(capsys, *words.format(coded=coded, ready=ready).split())
    assert told in said
    assert found == code
    assert not (tmp_path / "runs" / words.split()[1] / "config.json").exists()  # the next try finds no trace


def recipe_from(name, coded):
    return replace(find("imagenet256", Recipe), init=name, data=Codes(path=str(coded)))


def test_a_training_starts_from_the_published_network_and_weights(ready, coded, tmp_path):
    theirs = dict(unmask.load("toy-32", device="cpu", dtype=torch.float32).model.named_parameters())
    for codes, classes in (("two", 2), ("three", 3)):
        recipe, notes = adopted(recipe_from("toy-32", coded / codes))
        assert notes == [f"the network is that of toy-32: {NETWORK}"]
        assert recipe.model == NETWORK
        assert recipe.init == "toy-32"
        made, said = experiment.begin(image_experiment.prepare(recipe), tmp_path / "run")
        assert said[0] == "starting from toy-32"
        assert said[1:] == ([] if classes == 2 else ["3 classes here, 2 there: started anew"])
        ours = dict(made.named_parameters())
        assert ours.keys() == theirs.keys()
        same = {name for name in ours if torch.equal(ours[name], theirs[name])}
        assert same == ours.keys() - (set() if classes == 2 else {"classes.table.weight"})
        assert torch.equal(ours["classes.table.weight"][0], theirs["classes.table.weight"][0])
        assert len(ours["classes.table.weight"]) == classes + 1


def test_a_recipe_that_starts_from_nothing_or_from_our_own_keeps_its_network(ready, coded):
    recipe = find("imagenet256", Recipe)
    assert adopted(recipe) == (recipe, [])
    mine = replace(recipe, init=str(coded / "two"))  # a folder without a model: `begin` says so
    assert adopted(mine) == (mine, [])


def test_a_published_model_is_trained_on(ready, coded, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "imagenet256", "--init", "toy-32", "--data", coded / "two", "--out", out, "--training.steps", 4]
    words += ["--training.batch-size", 4, "--training.log-every", 1, "--training.evaluate-every", 2]
    words += ["--training.save-every", 2, "--training.optimizer.learning-rate", 1e-30]
    words += ["--training.optimizer.weight-decay", 0]
    run(*words)
    said = capsys.readouterr()
    text = re.sub(r"\s+", " ", said.out + said.err)
    assert "the network is that of toy-32: ValeoaiMaskGIT(dim=16" in text
    assert "starting from" in text
    trained, first = (unmask.load(name, device="cpu", dtype=torch.float32) for name in (out, "toy-32"))
    assert all(
        torch.equal(a, b) for a, b in zip(trained.model.parameters(), first.model.parameters(), strict=True)
    )  # at such a rate
    assert trained.classes == ("sand", "sea")
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(max((out / "checkpoints").glob("step-*")))  # as if it had been stopped after step 2
    run(*words)
    said = capsys.readouterr()
    assert "starting from" not in said.out + said.err
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == steps
    run("sample", out, "--labels", "sea", "--num", 2, "--out", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 32


def test_a_published_model_learns(ready, coded, tmp_path):
    """At a real rate all weights move, and the held-out loss falls."""
    out = tmp_path / "run"
    words = ["train", "imagenet256", "--init", "toy-32", "--data", coded / "two", "--out", out, "--training.steps", 30]
    words += ["--training.batch-size", 8, "--training.log-every", 10, "--training.evaluate-every", 10]
    run(*words, "--training.optimizer.learning-rate", 0.01)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert losses[-1] < losses[0]
    trained, first = (unmask.load(name, device="cpu", dtype=torch.float32) for name in (out, "toy-32"))
    moved = zip(trained.model.named_parameters(), first.model.parameters(), strict=True)
    assert [name for (name, a), b in moved if torch.equal(a, b)] == []


# -- sampled as published ----------------------------------------------------------------------------------------------


def cosine(n, steps, _):
    """Google's rule (B.1): floor(N cos(pi r/2)) stay masked, one at least, and one fewer than before at most."""
    left, counts = n, []
    for s in range(steps):
        after = 0 if s == steps - 1 else max(1, min(left - 1, math.floor(n * math.cos(math.pi / 2 * (s + 1) / steps))))
        counts.append(left - after)
        left = after
    return counts


def arccos(n, steps, _):
    """TiTok's: the same with (2/pi) arccos(r)."""
    left, counts = n, []
    for s in range(steps):
        wanted = math.floor(n * math.acos((s + 1) / steps) * 2 / math.pi)
        after = 0 if s == steps - 1 else max(1, min(left - 1, wanted))
        counts.append(left - after)
        left = after
    return counts


def halton(n, steps, _):
    """Halton-MaskGIT's: int(N (1 - (2/pi) arccos((s+1)/T))) are known after step s, and s + 1 at least."""
    known = [max(s + 1, int(n * (1 - 2 / math.pi * math.acos((s + 1) / steps)))) for s in range(steps)]
    return [a - b for a, b in zip(known, [0, *known], strict=False)]


def density(n, steps, _):
    """The reproduction report's: (2/pi) arccos(r) of r from 1 to 0 is how many tokens a step reveals."""
    values = [2 / math.pi * math.acos(1 - s / (steps - 1)) for s in range(steps)]
    counts = [max(1, round(v / sum(values) * n)) for v in values]
    counts[-1] += n - sum(counts)
    return counts


def constant(s):
    return lambda i, steps: s


def rising(w):
    """(1 + w i/T) c - (w i/T) u."""
    return lambda i, steps: 1 + w * i / steps


def powered(scale, power):
    """TiTok's power-cosine."""
    return lambda i, steps: (1 - math.cos((i / steps) ** power * math.pi)) / 2 * (scale - 1) + 1


def lagged(noise):
    return lambda i, steps: noise * (1 - i / steps)


def falling(noise):
    return lambda i, steps: noise * (1 - (i + 1) / steps)


def annealed(noise):
    """Logits over 0.5 + 0.8 (1 - r) and then + noise (1 - r) Gumbel, as one factor on the logits themselves."""
    return lambda i, steps: noise * (1 - (i + 1) / steps) * (0.5 + 0.8 * (1 - (i + 1) / steps))


def spanned(i, steps):
    return float(torch.linspace(2, 0, steps, dtype=torch.float64)[i])


NONE, ONE = constant(0.0), constant(1.0)
# tokens, steps, tokens revealed, noise on the score, guidance, temperature
PUBLISHED = {
    "besnier-256": (256, 8, density, lagged(4.5), rising(3.0), ONE),
    "besnier-512": (1024, 15, density, lagged(7.0), rising(2.8), ONE),
    "halton-tiny-256": (256, 32, halton, NONE, constant(2.5), ONE),
    "halton-small-256": (256, 32, halton, NONE, constant(2.0), ONE),
    "halton-base-256": (256, 32, halton, NONE, constant(1.7), ONE),
    "halton-small-384": (576, 32, halton, NONE, constant(2.0), ONE),
    "halton-base-384": (576, 32, halton, NONE, constant(1.7), ONE),
    "halton-large-384": (576, 32, halton, NONE, constant(1.5), ONE),
    "maskgit-256": (256, 8, cosine, falling(4.5), ONE, ONE),
    "maskgit-512": (1024, 12, cosine, falling(4.5), ONE, ONE),
    "titok-l32": (32, 8, arccos, annealed(9.5), rising(4.5), annealed(9.5)),
    "titok-b64": (64, 8, arccos, annealed(11.0), rising(3.0), annealed(11.0)),
    "titok-s128": (128, 64, arccos, annealed(2.8), powered(6.9, 3.0), annealed(2.8)),
    "amused-256": (256, 12, cosine, spanned, constant(10.0), ONE),
    "amused-512": (1024, 12, cosine, spanned, constant(10.0), ONE),
}


def test_every_published_model_is_in_the_table():
    assert set(PUBLISHED) == set(MODELS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_sampling_is_plain_data(name):
    sampling = MODELS[name].sampling
    assert from_json(Sampling, json.loads(json.dumps(to_json(sampling)))) == sampling
    assert sampling.on(MODELS[name].size.tokenizer.grid) == sampling  # it is of this grid already


def factor(priority, t):
    """By how much the score of a token changes with its Gumbel noise."""
    logits, sample = torch.zeros(2, 1, 3, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.long)
    scores = priority(logits, sample, masked=sample == 0, t=t, rand=seeded(0, 2)).double()
    gumbel = -torch.log(-torch.log(seeded(0, 2)("order", 1)))
    return float((scores[1] - scores[0]) / (gumbel[1] - gumbel[0]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_sampled_as_its_code_does(name):
    """What a decoding really does, by hand: the tokens of every step, and its noise, guidance and temperature."""
    tokens, steps, counts, noise, scale, temperature = PUBLISHED[name]
    sampling, size = MODELS[name].sampling, MODELS[name].size
    assert (sampling.steps, math.prod(size.tokenizer.grid)) == (steps, tokens)
    asked, scored = [], []

    def predict(canvas, t):
        asked.append(t)
        return torch.zeros(*canvas.shape, 3)

    def priority(logits, sample, *, masked, t, rand):
        scored.append(t)
        return sampling.priority(logits, sample, masked=masked, t=t, rand=rand)

    blank = torch.full((2, tokens), 3)
    states = list(sampling.run(predict, blank, mask_id=3, rand=seeded(0, 2), priority=priority))
    found = [state.revealed.sum(1).tolist() for state in states[1:]]
    assert found == [[count] * 2 for count in counts(tokens, steps, None)]
    assert [sampling.scale(t) for t in asked] == pytest.approx([scale(i, steps) for i in range(steps)])
    if not name.startswith("halton"):  # which has no noise, but a place in a list
        wanted = [noise(i, steps) for i in range(steps)]
        assert [factor(sampling.priority, t) for t in scored] == pytest.approx(wanted, abs=1e-5)
    given = sampling.temperature if isinstance(sampling.temperature, tuple) else (sampling.temperature,) * steps
    assert list(given) == pytest.approx([temperature(i, steps) for i in range(steps)])


def test_the_report_s_model_is_sampled_by_its_preset():
    assert MODELS["besnier-256"].sampling == REPORT_256.sampling
    assert all(model.preset is None or model.sampling == model.preset.sampling for model in MODELS.values())
