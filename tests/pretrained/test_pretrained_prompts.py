"""Texts to prompts: a tiny random CLIP against its formulas on plain tensors, and damaged folders."""

import json
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.errors import CheckpointError, ConfigError
from unmask.method.guidance import guided
from unmask.pretrained.amused import Amused
from unmask.pretrained.clip import NEEDED_FILES, read_clip, write_clip
from unmask.pretrained.prompts import Prompted, load_text_reader

transformers = pytest.importorskip("transformers", reason="prompts: no transformers")

LETTERS = "abcdefghijklmnopqrstuvwxyz!"
WORDS = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
PAD, START, END = (WORDS.index(word) for word in ("!", "<|startoftext|>", "<|endoftext|>"))
SIZES = {
    "vocab_size": len(WORDS), "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 3, "projection_dim": 8, "max_position_embeddings": 77, "bos_token_id": START,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    there = tmp_path_factory.mktemp("amused")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.CLIPTextConfig(**SIZES, eos_token_id=END, pad_token_id=PAD)
        model = transformers.CLIPTextModelWithProjection(config)
        for name, value in model.named_parameters():
            torch.nn.init.normal_(value, std=0.4)
            value.data += "norm" in name and name.endswith("weight")
    model.save_pretrained(there / "text_encoder")
    (there / "tokenizer").mkdir()
    (there / "tokenizer/vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (there / "tokenizer/merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    (there / "tokenizer/tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "pad_token": "!"}))
    return there


@pytest.fixture(scope="module")
def reader(folder):
    return load_text_reader(folder)


def spelled(*words: str) -> list[int]:
    """Return token numbers of words in the vocabulary, with start, end and padding."""
    ids = [START, *(WORDS.index(word) for word in words), END]
    return ids + [PAD] * (77 - len(ids))


def reference(w: dict[str, Tensor], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states before the last layer, without the final norm, and the projected state of the end."""

    def norm(name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"text_model.{name}.weight"] + w[f"text_model.{name}.bias"]

    def lin(name: str, x: Tensor) -> Tensor:
        return x @ w[f"text_model.{name}.weight"].T + w[f"text_model.{name}.bias"]

    table = "text_model.embeddings.{}_embedding.weight"
    x = w[table.format("token")][ids] + w[table.format("position")]
    later = torch.ones(77, 77, dtype=torch.bool).triu(1)
    states = [x]
    for i in range(3):
        name = f"encoder.layers.{i}."
        y = norm(name + "layer_norm1", x)
        q, k, v = (lin(f"{name}self_attn.{part}_proj", y).unflatten(-1, (3, -1)) for part in "qkv")
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
        mixed = torch.einsum("bhij,bjhd->bihd", scores.masked_fill(later, -torch.inf).softmax(-1), v).flatten(2)
        x = x + lin(name + "self_attn.out_proj", mixed)
        y = lin(name + "mlp.fc1", norm(name + "layer_norm2", x))
        x = x + lin(name + "mlp.fc2", y / (1 + (-1.702 * y).exp()))  # CLIP's quick GELU
        states.append(x)
    end = norm("final_layer_norm", x)[torch.arange(len(ids)), (ids == END).int().argmax(1)]
    return states[-2], end @ w["text_projection.weight"].T


def test_a_prompt_is_the_published_formula(folder, reader):
    w = {name: tensor.double() for name, tensor in load_file(folder / "text_encoder/model.safetensors").items()}
    ids = torch.tensor([spelled("the</w>", "c", "a", "t</w>"), spelled(), spelled("a</w>")])
    hidden, pooled = reference(w, ids)
    prompt = reader(["The  cat", "", "a"], (512, 384))
    torch.testing.assert_close(prompt.hidden.double(), hidden, rtol=0, atol=1e-5)
    torch.testing.assert_close(prompt.pooled.double(), pooled, rtol=0, atol=1e-5)
    assert (hidden[0] - hidden[1]).abs().max() > 0.1
    assert (pooled[0] - pooled[1]).abs().max() > 0.1
    assert prompt.micro.tolist() == [[384, 512, 0, 0, 6]] * 3  # width first
    told = reader(["a"], (512, 384), aesthetic=4.5, crop=(3, 7)).micro
    assert told.tolist() == [[384, 512, 3, 7, 4.5]]


def test_a_text_does_not_depend_on_its_neighbours(reader):
    texts = [f"{LETTERS[i % 26]} {LETTERS[i // 26]}" for i in range(130)]
    many = reader(texts, (256, 256))
    assert many.hidden.shape == (130, 77, 12)
    torch.testing.assert_close(many.hidden[[129]], reader(texts[129:], (256, 256)).hidden)
    torch.testing.assert_close(many.pooled[[64]], reader([texts[64]], (256, 256)).pooled)


def test_a_long_text_is_refused_and_not_cut_off(reader):
    fits = reader(["a " * 75], (1, 1))
    assert torch.isfinite(fits.hidden).all()
    with pytest.raises(
        ConfigError, match=re.escape("has 78 tokens with start and end, and 77 fit: shorten it")
    ) as error:
        reader(["the", "a\n" * 76], (1, 1))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="no text to encode"):
        reader([], (1, 1))


def test_prompts_guide_a_network(reader):
    sizes = Amused(
        dim=8, depth=1, heads=2, mlp_dim=8, block_dim=6, blocks=1, block_heads=2, text_dim=12, pooled_dim=8, micro_dim=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = sizes.build(9, (2, 2)).requires_grad_(False)
    model = Prompted(network, reader(["the cat", "a dog"], (32, 32)), reader([""], (32, 32)))
    tokens = torch.full((2, 4), 9)
    predict = guided(model, torch.tensor([0, 1]), scale=10.0)
    logits = predict(tokens, 0.0)
    assert logits.shape == (2, 4, 9)
    assert not torch.allclose(logits[0], logits[1])


# -- as transformers reads the same folder -----------------------------------------------------------------------------


TEXTS = [
    "",
    "the cat",
    "THE  Cat's 12 hats!!",
    "th the\tthese",
    "a b\nc <|endoftext|> d",
    "<|startoftext|>",
    "caf\u00e9 \u732b",
]


def test_the_weights_and_numbers_are_those_of_transformers(folder, reader):
    theirs = transformers.CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder").eval()
    ours = dict(reader.encoder.named_parameters())
    assert ours.keys() == dict(theirs.named_parameters()).keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.named_parameters())
    ids = torch.tensor(reader.tokenizer(TEXTS, padding="max_length", max_length=77).input_ids)
    with torch.no_grad():
        said = theirs(ids, output_hidden_states=True)
    prompt = reader(TEXTS, (1, 1))
    assert torch.equal(prompt.hidden, said.hidden_states[-2])
    assert torch.equal(prompt.pooled, said.text_embeds)


@pytest.mark.parametrize(("config", "older"), [
    ({"pad_token": "!"}, None),
    ({}, {"pad_token": {"content": "!", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}}),
    ({"pad_token": "a</w>"}, {"pad_token": "!"}),
    ({"pad_token": "!", "added_tokens_decoder": {str(END): {"content": "<|endoftext|>", "special": True}}},
     {"pad_token": "a</w>"}),
    (None, None),
])  # fmt: skip
def test_the_ids_are_those_of_transformers(copied, config, older):
    for name, value in (("tokenizer_config", config), ("special_tokens_map", older)):
        path = copied / f"tokenizer/{name}.json"
        path.unlink(missing_ok=True)
        if value is not None:
            path.write_text(json.dumps(value))
    theirs = transformers.CLIPTokenizer.from_pretrained(copied / "tokenizer")
    ours = load_text_reader(copied).tokenizer
    rows = [made(TEXTS, padding="max_length", max_length=77).input_ids for made in (theirs, ours)]
    assert rows[0] == rows[1]
    assert rows[0][0][-1] == (END if config is None else PAD)


def test_the_other_gelu_is_another_network(copied, reader):
    path = copied / "text_encoder/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "gelu"}))
    theirs = transformers.CLIPTextModelWithProjection.from_pretrained(copied / "text_encoder").eval()
    prompt = load_text_reader(copied)(["a"], (1, 1))
    assert torch.equal(prompt.pooled, theirs(torch.tensor([spelled("a</w>")])).text_embeds)
    assert not torch.allclose(prompt.pooled, reader(["a"], (1, 1)).pooled)


def test_every_byte_is_a_token_and_a_merge_may_begin_with_a_hash(copied):
    """CLIP's own files are like this: each byte is one letter of their tokens."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in kept] + [chr(256 + i) for i in range(256 - len(kept))]
    words = [*letters, *(letter + "</w>" for letter in letters), "##", "##</w>", "<|startoftext|>", "<|endoftext|>"]
    (copied / "tokenizer/vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (copied / "tokenizer/merges.txt").write_text("#version: 0.2\n# #\n# #</w>\n")
    config = {**SIZES, "vocab_size": len(words), "eos_token_id": 2}
    (copied / "text_encoder/config.json").write_text(json.dumps(config))
    path = copied / "text_encoder/model.safetensors"
    table = {"text_model.embeddings.token_embedding.weight": torch.randn(len(words), 12)}
    save_file({**load_file(path), **table}, path)
    rows = load_text_reader(copied).tokenizer(["##", "\u732b\u00ad"]).input_ids
    assert words[rows[0][1]] == "##</w>"
    assert len(rows[1]) == 2 + 5
    assert rows == transformers.CLIPTokenizer.from_pretrained(copied / "tokenizer")(["##", "\u732b\u00ad"]).input_ids


def test_what_is_written_is_what_was_read(folder, tmp_path, reader):
    write_clip(read_clip(folder), tmp_path)
    assert read_clip(tmp_path).sizes == read_clip(folder).sizes
    assert read_clip(tmp_path).files == read_clip(folder).files
    again, before = (made(TEXTS, (1, 1)) for made in (load_text_reader(tmp_path), reader))
    assert torch.equal(again.hidden, before.hidden)
    assert torch.equal(again.pooled, before.pooled)
    theirs = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path / "text_encoder").eval()
    ids = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")(TEXTS, padding="max_length", max_length=77)
    torch.testing.assert_close(theirs(torch.tensor(ids.input_ids)).text_embeds, before.pooled)


# -- folders that are not one ------------------------------------------------------------------------------------------


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def broken(folder, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        load_text_reader(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", *NEEDED_FILES])
def test_a_missing_part_is_named(copied, part):
    gone = copied / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    broken(copied, f"no {part}.* there; name a local copy of amused/amused-256")


def test_pickled_weights_are_not_read(copied):
    weights = load_file(copied / "text_encoder/model.safetensors")
    (copied / "text_encoder/model.safetensors").unlink()
    with open(copied / "text_encoder/pytorch_model.bin", "wb") as file:
        torch.save(weights, file)
    broken(copied, "no text_encoder/model.safetensors there")


def test_damaged_weights(copied):
    (copied / "text_encoder/model.safetensors").write_bytes(b"nonsense")
    broken(copied, "model.safetensors is too small for .*get that of amused/amused-256")


@pytest.mark.parametrize(("name", "value", "told"), [
    ("text_projection.weight", None, "1 tensors are missing, unknown, .*, first text_projection.weight"),
    ("text_model.more", torch.zeros(1), "1 tensors are missing, unknown, .*, first text_model.more"),
    ("text_projection.weight", torch.zeros(12, 8), "of another shape .*, first .*text_projection.weight"),
    ("text_projection.weight", torch.full((8, 12), torch.nan), "or not finite, first text_projection.weight"),
    ("text_projection.weight", torch.full((8, 12), -torch.inf), "or not finite, first text_projection.weight"),
])  # fmt: skip
def test_other_weights(copied, name, value, told):
    path = copied / "text_encoder/model.safetensors"
    weights = {**load_file(path), name: value}
    save_file({n: x for n, x in weights.items() if x is not None}, path, metadata={"format": "pt"})
    broken(copied, told)


def test_an_older_files_position_ids_are_no_weights(copied, reader):
    path = copied / "text_encoder/model.safetensors"
    weights = {**load_file(path), "text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(weights, path, metadata={"format": "pt"})
    assert torch.equal(load_text_reader(copied)(["a"], (1, 1)).hidden, reader(["a"], (1, 1)).hidden)


def test_a_tokenizer_of_another_vocabulary(copied):
    words = {word: i for i, word in enumerate([*WORDS[:-2], "ha", *WORDS[-2:]])}
    (copied / "tokenizer/vocab.json").write_text(json.dumps(words))
    broken(copied, f"tokenizer knows {len(WORDS) + 1} tokens and ends with {END + 1}, the text model {len(WORDS)} and")


def test_a_text_model_that_waits_for_another_end(copied, reader):
    path = copied / "text_encoder/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "eos_token_id": END - 1}))
    broken(copied, f"ends with {END}, the text model {len(WORDS)} and {END - 1}")
    path.write_text(json.dumps({**config, "eos_token_id": 2}))  # older files: the highest id ends a text
    assert torch.equal(load_text_reader(copied)(["a"], (1, 1)).pooled, reader(["a"], (1, 1)).pooled)


def test_without_transformers_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'unmask[prompts]'")):
        load_text_reader(folder)


def test_transformers_sees_the_weights_alone(folder, tmp_path, monkeypatch):
    there, seen = tmp_path / "amused", []
    shutil.copytree(folder, there)
    (there / "text_encoder/adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    load = transformers.CLIPTextModelWithProjection.from_pretrained

    def watched(place, **options):
        seen.extend(sorted(path.name for path in place.iterdir()))
        return load(place, **options)

    monkeypatch.setattr(transformers.CLIPTextModelWithProjection, "from_pretrained", watched)
    read_clip(there)
    assert seen == ["model.safetensors"]
