"""The text encoder of a model that takes prompts is fetched, replaced and saved with the model, and nothing else is."""

import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from published_amused import published
from published_toys import FILES, PIXELS, WHOLE, entry, random, refused, run, tree
from safetensors.torch import load_file, save_file
from toy_hub import serving, use

from unmask.errors import CheckpointError, ConfigError
from unmask.pipelines.image import Pipeline
from unmask.pipelines.load import load
from unmask.pretrained.amused import Amused
from unmask.pretrained.clip import NEEDED_FILES
from unmask.pretrained.conditions import EXTRA_FILES, OPTIONAL_EXTRA_FILES
from unmask.pretrained.families import Size
from unmask.published.catalogue import MODELS, File
from unmask.published.opening import open_model
from unmask.recipes.reading import write_config
from unmask.storage.weights import have_same_weights, write_weights

transformers = pytest.importorskip("transformers", reason="prompts: no transformers")

WORDS = ["a", "b", "ab</w>", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
TEXTS = sorted([*NEEDED_FILES, "tokenizer/special_tokens_map.json"])
WEIGHTS = "text_encoder/model.safetensors"
NETWORK = Amused(
    dim=8, depth=1, heads=2, mlp_dim=8, block_dim=6, blocks=1, block_heads=2, text_dim=8, pooled_dim=6, micro_dim=4
)
NETWORK_FILE = "toy/words.safetensors"


def write_texts(folder, seed=0):
    sizes = {
        "vocab_size": len(WORDS), "hidden_size": 8, "intermediate_size": 12, "projection_dim": 6,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 5, "eos_token_id": len(WORDS) - 1,
    }  # fmt: skip
    for part in ("text_encoder", "tokenizer"):
        (folder / part).mkdir(exist_ok=True)
    (folder / "text_encoder/config.json").write_text(json.dumps({**sizes, "_name_or_path": "theirs"}))
    with torch.device("meta"):
        made = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**sizes))
    shapes = {name: tuple(value.shape) for name, value in made.named_parameters()}
    (folder / WEIGHTS).unlink(missing_ok=True)
    save_file(random(shapes, seed), folder / WEIGHTS)
    (folder / "tokenizer/vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\na b</w>\n")
    (folder / "tokenizer/special_tokens_map.json").write_text('{"pad_token": "a"}')
    return folder


@pytest.fixture
def mine(toys, files, tmp_path, monkeypatch):
    """toy-words, a model that takes prompts, and its files."""
    model = File(family="amused", repo="toy/weights", name=NETWORK_FILE)
    monkeypatch.setitem(MODELS, "toy-words", entry(Size(model=NETWORK, tokenizer=PIXELS), model=model, preset=None))
    folder = shutil.copytree(files, tmp_path / "mine")
    save_file(random(published(NETWORK, PIXELS.vocab_size)), folder / NETWORK_FILE)
    return write_texts(folder)


@pytest.fixture
def snapshot(mine, tmp_path):
    """The same as a Hugging Face cache has it: every file a link to one that is named by its hash."""
    place, blobs = tmp_path / "hub/snapshots/abc", tmp_path / "hub/blobs"
    blobs.mkdir(parents=True)
    for number, name in enumerate(tree(mine)):
        shutil.copyfile(mine / name, blobs / f"blob{number}")
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(os.path.relpath(blobs / f"blob{number}", (place / name).parent))
    return place


def test_the_text_encoder_comes_along(mine, toys):
    run("fetch", "toy-words", "--weights", mine)
    folder = toys / "toy-words"
    assert tree(folder) == sorted([*WHOLE, *TEXTS])
    assert have_same_weights(folder / WEIGHTS, mine / WEIGHTS)
    assert json.loads((folder / "tokenizer/special_tokens_map.json").read_text())["pad_token"] == "a"
    assert "_name_or_path" not in json.loads((folder / "text_encoder/config.json").read_text())


def test_weights_given_anew_replace_an_old_text_encoder(mine, toys):
    run("fetch", "toy-words", "--weights", mine)
    folder = toys / "toy-words"
    (folder / "text_encoder/config.json").write_text("damaged")
    (folder / "tokenizer/special_tokens_map.json").write_text('{"pad_token": "b"}')
    write_texts(mine, seed=1)
    run("fetch", "toy-words", "--weights", mine)
    assert have_same_weights(folder / WEIGHTS, mine / WEIGHTS)
    assert tree(folder) == sorted([*WHOLE, *TEXTS])  # and no file that counted for more
    assert "damaged" not in (folder / "text_encoder/config.json").read_text()


def test_links_of_a_cache_are_followed(mine, snapshot, toys):
    for given in ([snapshot], [snapshot / name for name in (NETWORK_FILE, FILES["taming-vqgan"])]):
        run("fetch", "toy-words", "--weights", *given)
        assert tree(toys / "toy-words") == sorted([*WHOLE, *TEXTS])
        assert not any(path.is_symlink() for path in (toys / "toy-words").rglob("*"))
        shutil.rmtree(toys)


def test_a_file_of_a_cache_is_told_by_its_link(snapshot, toys, monkeypatch):
    model, tokenizer = (snapshot / name for name in FILES.values())
    run("fetch", "toy-32", "--weights", model, tokenizer)
    assert tree(toys / "toy-32") == WHOLE
    shutil.rmtree(toys)
    monkeypatch.chdir(snapshot / "toy")
    run("fetch", "toy-32", "--weights", model.name, f"../toy/{tokenizer.name}")
    assert tree(toys / "toy-32") == WHOLE


def test_a_link_of_another_name_is_told_by_its_file(files, toys, tmp_path):
    (tmp_path / "mine.bin").symlink_to(files / FILES["valeoai-v1"])
    run("fetch", "toy-32", "--weights", tmp_path / "mine.bin", files / FILES["taming-vqgan"])
    assert tree(toys / "toy-32") == WHOLE


@pytest.mark.parametrize("how", ["missing", "lost link", "passwd", "pipe"])
@pytest.mark.parametrize("name", NEEDED_FILES)
def test_a_model_without_a_sound_text_encoder_is_not_whole(mine, toys, name, how, capsys):
    path = mine / name
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how != "missing":
        path.symlink_to("/etc/passwd" if how == "passwd" else "nowhere")
    said, code = refused(capsys, "fetch", "toy-words", "--weights", mine)
    assert code == 4
    assert name in said
    assert tree(toys / "toy-words") == []
    with pytest.raises(CheckpointError):
        load("toy-words", prompts=["a"], weights=[mine])


def test_a_refused_text_encoder_leaves_the_model_as_it_was(mine, toys, capsys):
    run("fetch", "toy-words", "--weights", mine)
    before = {name: (toys / "toy-words" / name).read_bytes() for name in tree(toys / "toy-words")}
    weights = load_file(mine / WEIGHTS)
    weights["text_projection.weight"] = torch.full_like(weights["text_projection.weight"], torch.nan)
    (mine / WEIGHTS).unlink()
    save_file(weights, mine / WEIGHTS)
    said, code = refused(capsys, "fetch", "toy-words", "--weights", mine)
    assert (code, "not finite" in said) == (4, True)
    assert before == {name: (toys / "toy-words" / name).read_bytes() for name in tree(toys / "toy-words")}
    assert open_model("toy-words").fetch() == toys / "toy-words"


def test_a_prompt_needs_nothing_else_to_be_done(mine, toys, monkeypatch, tmp_path):
    """Network, tokenizer and text encoder come from the Hub, and are converted, at the first sample."""
    extras = tuple(
        File(family="", repo="toy/weights", name=name, optional=name in OPTIONAL_EXTRA_FILES) for name in EXTRA_FILES
    )
    monkeypatch.setitem(MODELS, "toy-words", replace(MODELS["toy-words"], extras=extras))
    with serving({f"toy/weights/{name}": (mine / name).read_bytes() for name in tree(mine)}) as hub:
        use(monkeypatch, hub, toys.parent / "hub")
        run("sample", "toy-words", "--prompt", "a", "--out", tmp_path / "a.png")
        assert tree(toys / "toy-words") == sorted([*WHOLE, *TEXTS])
        there = len(hub.asked)
        run("sample", "toy-words", "--prompt", "a", "--out", tmp_path / "b.png")
        assert len(hub.asked) == there
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_missing_package_is_named_before_a_download(toys, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    said, code = refused(capsys, "sample", "amused-256", "--prompt", "a cat")
    assert (code, "pip install 'unmask[prompts]'" in said) == (2, True)


# -- saved -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawing(tmp_path):
    """A tiny model that takes prompts."""
    pytest.importorskip("transformers", reason="prompts: no transformers")
    folder, size = tmp_path / "drawing", Size(model=NETWORK, tokenizer=PIXELS)
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {"model": size.build(), "tokenizer": PIXELS.build()}
    for part, built in parts.items():
        write_weights(dict(built.named_parameters()), folder / f"{part}.safetensors")
    write_texts(folder)
    write_config(entry(size).spec, folder)
    return folder


def test_a_saved_model_reads_texts_as_before(drawing, tmp_path):
    out = tmp_path / "out"
    before = Pipeline.from_pretrained(drawing, prompts=["a ab", "b"], device="cpu", dtype=torch.float32)
    out.mkdir()
    write_texts(out, seed=1)  # of another model
    with pytest.raises(ConfigError, match="which unmask did not make so"):
        before.save_pretrained(out)
    before.save_pretrained(out, overwrite=True)
    assert tree(out) == sorted(
        ["README.md", "config.json", "manifest.json", "model.safetensors", "tokenizer.safetensors", *TEXTS]
    )
    after = Pipeline.from_pretrained(out, prompts=["a ab", "b"], device="cpu", dtype=torch.float32)
    assert torch.equal(after.generate(num=2), before.generate(num=2))


@pytest.mark.parametrize("name", NEEDED_FILES)
def test_nothing_that_a_link_leads_to_is_uploaded(drawing, tmp_path, name, monkeypatch):
    model = Pipeline.from_pretrained(drawing, prompts=["a"], device="cpu", dtype=torch.float32)
    (drawing / name).unlink()
    (drawing / name).symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match=name.rsplit("/", maxsplit=1)[-1]) as error:
        model.save_pretrained(tmp_path / "out")
    assert str(error.value).isprintable()
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("unmask.pipelines.base.upload_model", lambda *given, **more: pytest.fail("uploaded"))
    with pytest.raises(CheckpointError):
        model.push_to_hub("me/words")
