"""Tiny networks in the published layout, and a catalogue that has them: what the tests of published models run on."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.cli import main
from unmask.decoding.presets import Preset, Scores
from unmask.decoding.sampling import Sampling
from unmask.pretrained.families import FAMILIES, Size
from unmask.pretrained.google import GoogleMaskGIT
from unmask.pretrained.maskgit_vqgan import MaskGITVQGAN
from unmask.pretrained.titok import TiTok
from unmask.pretrained.titok_bert import TiTokBert
from unmask.pretrained.valeoai import ValeoaiMaskGIT
from unmask.published.catalogue import MODELS, Published
from unmask.published.files import File
from unmask.recipes.reading import write_config
from unmask.recipes.spec import ModelSpec
from unmask.storage.weights import write_weights
from unmask.tokenizers.quantizers import VQ
from unmask.tokenizers.vqgan import VQGAN

PIXELS = VQGAN(size=(32, 32), width=4, multipliers=(1, 1, 1, 2), blocks=1, decoder_blocks=1, attention=(4,), groups=2,
               z_channels=6, quantizer=VQ(vocab_size=16, dim=5, normalize=False, decay=0.0))  # fmt: skip
WIDER = replace(PIXELS, size=(64, 32), attention=(8,))
NETWORK = ValeoaiMaskGIT(dim=16, depth=1, heads=2, mlp_dim=24, num_classes=2)
SIZE, TALL = Size(model=NETWORK, tokenizer=PIXELS), Size(model=NETWORK, tokenizer=WIDER)
ROW = TiTok(num_latents=4, width=12, depth=1, heads=3, vocab_size=9, token_dim=3,
            pixels=MaskGITVQGAN(size=(32, 32), width=32, multipliers=(1, 1), blocks=1, codes=7, dim=5))  # fmt: skip
ROW_SIZE = Size(model=TiTokBert(dim=12, depth=1, heads=3, mlp_dim=20, num_classes=2), tokenizer=ROW)
BARE_SIZE = Size(model=GoogleMaskGIT(dim=16, depth=1, heads=2, mlp_dim=24, num_classes=2), tokenizer=PIXELS)
"""Of a model that was trained without "no class"."""
PLAIN = Sampling(steps=3)
FILES = {"valeoai-v1": "toy/generator.pth", "taming-vqgan": "toy/vqgan.ckpt"}
CONTAINERS = {"valeoai-v1": "model_state_dict", "taming-vqgan": "state_dict"}


WHOLE = [
    "config.json",
    "manifest.json",
    "model-conversion.txt",
    "model.safetensors",
    "tokenizer-conversion.txt",
    "tokenizer.safetensors",
]


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


def write_files(folder):
    """Both files of toy-32."""
    write("valeoai-v1", random(generator_shapes(NETWORK, 16, 16)), folder)
    write("taming-vqgan", random(tokenizer_shapes(PIXELS)), folder)
    return folder


def write(family, tensors, folder):
    path = folder / FILES[family]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({CONTAINERS[family]: tensors, "iter": 7}, path)
    return path


# -- a catalogue -------------------------------------------------------------------------------------------------------


def entry(size, **changes):
    score = Preset(size=(32, 32), sampling=PLAIN, expected=Scores(fid=12.5), source="a toy's page")
    made = Published(
        about="a toy", licence="MIT", data="noise", size=size, parameters=(1_000, 2_000), sampling=PLAIN, preset=score,
        model=File(family="valeoai-v1", repo="toy/weights", name=FILES["valeoai-v1"]),
        tokenizer=File(family="taming-vqgan", repo="toy/weights", name=FILES["taming-vqgan"]),
    )  # fmt: skip
    return replace(made, **changes)


def catalogue(patch, cache):
    """The toys beside the true models, and a cache of their own."""
    patch.setenv("UNMASK_CACHE", str(cache))
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
    patch.setattr("unmask.published.files.download_file", offline)
    for name, size in (("toy-32", SIZE), ("toy-row", ROW_SIZE), ("toy-bare", BARE_SIZE)):
        patch.setitem(MODELS, name, entry(size))
    texts = MODELS["amused-256"]
    patch.setitem(MODELS, "toy-texts", entry(texts.size, preset=None))
    sizes = {"valeoai-v1": (TALL, SIZE), "taming-vqgan": (Size(tokenizer=WIDER), Size(tokenizer=PIXELS))}
    for family, tiny in sizes.items():
        patch.setitem(FAMILIES, family, replace(FAMILIES[family], sizes=tiny))


def offline(address, *more, **named):
    raise AssertionError(f"{address} was asked for")


def convert_all(files, cache):
    """A cache in which toy-32 was converted, and toy-row, toy-bare and toy-texts are as if."""
    with pytest.MonkeyPatch.context() as patch:
        catalogue(patch, cache)
        main(["fetch", "toy-32", "--weights", str(files)])
    for name, size in (("toy-row", ROW_SIZE), ("toy-bare", BARE_SIZE)):
        folder = cache / "models" / name
        folder.mkdir()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parts = {"model": size.build(), "tokenizer": size.tokenizer.build()}
        for part, network in parts.items():
            write_weights(dict(network.named_parameters()), folder / f"{part}.safetensors")
        write_config(ModelSpec(tokenizer=size.tokenizer, model=size.model, sampling=PLAIN), folder)
    shutil.copy(cache / "models/toy-32/tokenizer.safetensors", cache / "models/toy-bare")
    (cache / "models/toy-texts").mkdir()
    write_config(MODELS["amused-256"].spec, cache / "models/toy-texts")
    return cache


def draw_photos(root, classes):
    rand = np.random.default_rng(0)
    for place in range(48):
        folder = root / classes[place % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rand.normal(60 + 120 * (place % len(classes)) / len(classes), 40, (34, 40, 3)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{place}.png")
    return root


def code_all(converted, photos, root):
    """Codes of the published tokenizer, of two classes, of three and of none, and a classifier."""
    sets = {"two": photos, "three": draw_photos(root / "photos-three", ["a", "b", "c"]), "none": photos / "sea"}
    with pytest.MonkeyPatch.context() as patch:
        catalogue(patch, converted)
        for name, source in sets.items():
            run("tokenize", "toy-32", "--data", source, "--out", root / name)
        judge = ["--classifier.steps", 2, "--classifier.width", 4, "--classifier.batch-size", 8]
        run("train-features", "folder", "--data", photos, "--data.size", 32, "--out", root / "judge", *judge)
    return root


# -- the command line --------------------------------------------------------------------------------------------------


def run(*words):
    main([str(word) for word in words])


def refused(capsys, *words):
    """The one line of an error, and its exit code; before it, a command may say what data it took."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*words)
    *before, said = capsys.readouterr().err.splitlines(keepends=True)
    assert said.startswith("unmask: "), said
    assert [line for line in before if " held out" not in line and not line.startswith(("note: ", "left out "))] == []
    return said, stop.value.code


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
