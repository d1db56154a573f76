"""Conditions beyond classes: prompts, the text encoder beside the weights, and networks without "no class"."""

import json
import re

import pytest
import torch

from unmask.errors import CheckpointError, ConfigError
from unmask.method.guidance import NULL
from unmask.method.models.protocol import Generator
from unmask.method.models.transformer import TransformerConfig
from unmask.pretrained.amused import Amused, Prompt
from unmask.pretrained.clip import Clip, TextSizes, read_clip, write_clip
from unmask.pretrained.conditions import (
    EXTRA_FILES,
    add_null_class,
    attach_prompts,
    check_guidance,
    check_prompts,
    detach_prompts,
    has_null_class,
    read_extras,
    takes_prompts,
    write_extras,
)
from unmask.pretrained.google import GoogleMaskGIT
from unmask.pretrained.halton_maskgit import HaltonMaskGIT
from unmask.pretrained.titok_bert import TiTokBert
from unmask.pretrained.titok_uvit import TiTokUViT
from unmask.pretrained.valeoai import ValeoaiMaskGIT
from unmask.storage.config import to_json

WORDS = ("a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>")
SIZES = TextSizes(
    vocab_size=4, hidden_size=8, intermediate_size=12, projection_dim=6, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=5, eos_token_id=3,
)  # fmt: skip
PROMPTED = Amused(
    dim=8, depth=1, heads=2, mlp_dim=12, block_dim=8, blocks=1, block_heads=2, text_dim=8, pooled_dim=6, micro_dim=4
)
BARE = GoogleMaskGIT(dim=8, depth=1, heads=2, mlp_dim=12, num_classes=3)
CLASSED = (
    TransformerConfig(dim=8, depth=1, heads=2, num_classes=3),
    ValeoaiMaskGIT(dim=8, depth=1, heads=2, num_classes=3),
    HaltonMaskGIT(dim=8, depth=1, heads=2, num_classes=3),
    TiTokBert(dim=8, depth=1, heads=2, num_classes=3),
    TiTokUViT(dim=8, depth=2, heads=2, num_classes=3),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="prompts: no transformers")
    there = tmp_path_factory.mktemp("toy-words")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**to_json(SIZES)))
        for value in encoder.parameters():
            torch.nn.init.normal_(value, std=0.3)
    special = {"bos_token": WORDS[2]} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), WORDS[3])
    tables = {"vocab.json": {word: i for i, word in enumerate(WORDS)}, "tokenizer_config.json": special}
    files = {f"tokenizer/{name}": json.dumps(table).encode() for name, table in tables.items()}
    files["tokenizer/merges.txt"] = b"#version: 0.2\n"
    write_clip(Clip(sizes=SIZES, encoder=encoder, tokenizer=None, files=files), there)
    return there


def test_only_amused_takes_prompts():
    assert takes_prompts(PROMPTED)
    assert not any(takes_prompts(config) for config in (*CLASSED, BARE, None))


def test_missing_and_unwanted_prompts_are_one_clear_line():
    check_prompts(PROMPTED, ["a"], "toy")
    for config in (*CLASSED, BARE):
        check_prompts(config, [], "toy")
        with pytest.raises(ConfigError, match=r"^toy takes class labels, not texts: give labels .*--labels\)$"):
            check_prompts(config, ["a"], "toy")
    with pytest.raises(ConfigError, match=r"^toy generates images from texts: give prompts .*--prompt\)$"):
        check_prompts(PROMPTED, (), "toy")


def test_networks_of_classes_stay_as_they_are(tmp_path):
    for config in (*CLASSED, BARE):
        model = config.build(5, (2, 2))
        assert attach_prompts(model, tmp_path, (), (32, 32)) is model
        assert detach_prompts(model) is model
        with pytest.raises(ConfigError, match="takes class labels"):
            attach_prompts(model, tmp_path, ["a"], (32, 32))


def test_prompts_become_the_classes_of_the_network(folder):
    pytest.importorskip("transformers", reason="prompts: no transformers")
    model = PROMPTED.build(5, (2, 2)).eval()
    with pytest.raises(ConfigError, match=rf"^the model {folder.name} generates images from texts"):
        attach_prompts(model, folder, (), (32, 48))
    network = attach_prompts(model, folder, ("a", "b a"), (32, 48))
    assert isinstance(network, Generator)
    assert network.config.num_classes == 2
    assert detach_prompts(network) is model
    tokens = torch.full((3, 4), network.mask_id)
    with torch.no_grad():
        logits = network(tokens, torch.tensor([0, 1, NULL]))
        assert (logits[0] - logits[1]).abs().max() > 1e-6
        assert torch.equal(logits[2], network(tokens)[2])
    prompts = network.prompts
    assert isinstance(prompts, Prompt)
    assert prompts.micro.tolist() == [[48, 32, 0, 0, 6]] * 3


def test_a_model_of_prompts_needs_its_text_encoder(tmp_path):
    pytest.importorskip("transformers", reason="prompts: no transformers")
    with pytest.raises(CheckpointError, match=r"no text_encoder/config\.json there"):
        attach_prompts(PROMPTED.build(5, (2, 2)), tmp_path, ["a"], (32, 32))


def test_the_text_encoder_is_copied(folder, tmp_path):
    write_extras(read_extras(PROMPTED, folder), tmp_path)
    copied = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert copied <= set(EXTRA_FILES)
    theirs, ours = read_clip(folder), read_clip(tmp_path)
    assert (theirs.sizes, theirs.files) == (ours.sizes, ours.files)
    weights = ours.encoder.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in theirs.encoder.state_dict().items())


def test_a_damaged_text_encoder_is_found_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"no text_encoder/config\.json there"):
        read_extras(PROMPTED, tmp_path)


def test_other_families_have_nothing_beside_their_weights(tmp_path):
    for config in (*CLASSED, BARE):
        assert read_extras(config, tmp_path) is None
    write_extras(None, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_only_a_network_without_no_class_limits_labels_and_guidance():
    for config in (*CLASSED, PROMPTED, add_null_class(BARE), None):
        assert has_null_class(config)
        check_guidance(config, labelled=False, guided=True)
    assert not has_null_class(BARE)
    check_guidance(BARE, labelled=True, guided=False)
    for labelled, guided, message in (
        (False, False, 'trained without "no class": give each image a label'),
        (True, True, 'trained without "no class", which guidance needs: give --scale 1'),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            check_guidance(BARE, labelled=labelled, guided=guided)


def test_no_class_is_added_where_it_is_missing():
    config = add_null_class(BARE)
    assert (config.null_class, config.dim) == (True, BARE.dim)
    assert config.build(5, (2, 2))(torch.full((1, 4), 5)).shape == (1, 4, 5)
    for config in CLASSED:
        assert add_null_class(config) is config
