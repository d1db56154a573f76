"""Every family at its full size: a file of random numbers with the published names and shapes is converted, loaded,
draws and repairs. Needs the lists of names in shared/reference; the formulas are checked at small sizes elsewhere."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_pretrained_flax import flax_bytes
from test_pretrained_google import published as google_names
from test_pretrained_google_tokenizer import as_flax, unflattened
from test_pretrained_maskgit_vqgan import published as vqgan_names

from unmask.errors import ConfigError
from unmask.pipelines.load import load
from unmask.pretrained.families import FAMILIES
from unmask.pretrained.google import GOOGLE_BASE_256
from unmask.pretrained.maskgit_vqgan import MASKGIT_VQGAN_256
from unmask.published import catalogue
from unmask.published.opening import open_model

KEYS = Path(__file__).parents[3] / "shared/reference/checkpoint_keys"
LISTS = {
    "besnier-256": ("valeoai_v1_base_256", "taming_vqgan_f16_1024"),
    "halton-small-384": ("halton_small_384", "llamagen_VQ-16"),
    "titok-b64": ("titok_b64_generator", "titok_b64_tokenizer"),
    "titok-s128": ("titok_s128_generator", "titok_s128_tokenizer"),
    "amused-256": ("amused_256_transformer", "amused_vqvae"),
}
CONTAINERS = {"valeoai-v1": "model_state_dict", "halton-maskgit": "model_state_dict", "taming-vqgan": "state_dict",
              "llamagen-vq16": "model"}  # fmt: skip
NOISE = 0.05 * torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))


def numbers(shape: tuple[int, ...], name: str) -> torch.Tensor:
    """Values like those of a network: norms about 1, the rest small."""
    size = torch.Size(shape).numel()
    values = NOISE.repeat(-(-size // len(NOISE)))[:size].view(shape)
    return values + 1 if re.search(r"norm|ln_|\.ln\d|LayerNorm", name) and name.endswith("weight") else values


def named(listed: str) -> dict[str, torch.Tensor]:
    lines = re.findall(r"^(\S+)\s+\(([\d, ]*)\)", (KEYS / f"{listed}.txt").read_text(), re.MULTILINE)
    found = {name: numbers(tuple(int(n) for n in shape.split(",") if n.strip()), name) for name, shape in lines}
    if "head.weight" in found:  # tied
        found["head.weight"] = found["tok_emb.weight"]
    return found


def write(file: catalogue.File, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        container = CONTAINERS.get(file.family)
        torch.save({container: tensors, "iter": 7} if container else tensors, path)


def clip(folder: Path) -> None:
    """A text encoder of the right widths and one layer, with a vocabulary of letters."""
    transformers = pytest.importorskip("transformers")
    words = [*"abcdefghijklmnopqrstuvwxyz!", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"), "<s>", "</s>"]
    start, end = len(words) - 2, len(words) - 1
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=768, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=768, max_position_embeddings=77, bos_token_id=start, eos_token_id=end, pad_token_id=0,
    )  # fmt: skip
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "!", "model_max_length": 77}
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(special))


def check(name: str, folder: Path, monkeypatch, tmp_path: Path) -> None:
    """Convert, load, draw two pictures, and repair one of them."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    model = catalogue.MODELS[name]
    plain = {"size": None, "sha256": None}
    unchecked = replace(model, model=replace(model.model, **plain), tokenizer=replace(model.tokenizer, **plain))
    monkeypatch.setitem(catalogue.MODELS, name, unchecked)
    texts = ("a cat", "a dog") if name.startswith("amused") else ()
    pipeline = load(name, weights=[folder], prompts=texts, device="cpu")
    quick = replace(pipeline.sampling, steps=2, temperature=1.0)
    images = pipeline.generate(torch.tensor([0, 1]), seed=0, sampling=quick)
    side = model.size.tokenizer.size[0]
    assert images.shape == (2, 3, side, side)
    assert images.isfinite().all()
    assert images.abs().max() <= 1
    assert not torch.equal(images[0], images[1])
    hole = torch.zeros(1, side, side, dtype=torch.bool)
    hole[:, : side // 4, : side // 4] = True
    if len(pipeline.tokenizer.grid) == 1:
        with pytest.raises(ConfigError, match=r"the \d+ tokens of an image have no place in it"):
            pipeline.fill(images[:1], hole, torch.tensor([1]), sampling=quick)
        return
    repaired = pipeline.fill(images[:1], hole, torch.tensor([1]), sampling=quick)
    assert torch.equal(repaired[~hole[:, None].expand_as(repaired)], images[:1][~hole[:, None].expand_as(repaired)])
    assert not torch.equal(repaired, images[:1])
    assert open_model(name).fetch() == tmp_path / "cache/models" / name  # the weights are needed once


@pytest.mark.skipif(not KEYS.is_dir(), reason="published models at full size: no shared/reference/checkpoint_keys")
@pytest.mark.parametrize("name", LISTS)
def test_a_published_model_runs_from_a_file_with_its_names(name, tmp_path, monkeypatch):
    model, folder = catalogue.MODELS[name], tmp_path / "files"
    generator, tokenizer = (named(listed) for listed in LISTS[name])
    write(model.model, generator, folder)
    write(model.tokenizer, tokenizer, folder)
    if name.startswith("amused"):
        clip(folder)
    check(name, folder, monkeypatch, tmp_path)


def test_google_s_model_runs_from_a_flax_file(tmp_path, monkeypatch):
    model, folder = catalogue.MODELS["maskgit-256"], tmp_path / "files"
    folder.mkdir()
    flat = {name: numbers(shape, name) for name, shape in google_names(GOOGLE_BASE_256, 1024, 256).items()}
    torch_names = {name: numbers(shape, name) for name, shape in vqgan_names(MASKGIT_VQGAN_256).items()}
    (folder / model.model.name).write_bytes(flax_bytes({"params": unflattened(flat)}))
    (folder / model.tokenizer.name).write_bytes(flax_bytes(as_flax(MASKGIT_VQGAN_256, torch_names)))
    check("maskgit-256", folder, monkeypatch, tmp_path)


def test_every_family_is_run_here():
    covered = {
        file.family for name in (*LISTS, "maskgit-256") for file in (catalogue.MODELS[name].model,
                                                                    catalogue.MODELS[name].tokenizer)
    }  # fmt: skip
    assert set(FAMILIES) - covered == {"maskgit-vqgan"}  # the same tokenizer as google-vqgan, in torch
