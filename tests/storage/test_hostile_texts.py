"""Hostile folders of a text encoder fetch nothing, run nothing and fill nothing: what they may not say changes
nothing, and what does not fit is refused in one line."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from test_pretrained_prompts import END, SIZES, WORDS, copied, folder, reader  # noqa: F401

from unmask.errors import CheckpointError
from unmask.pretrained.clip import NEEDED_FILES
from unmask.pretrained.prompts import load_text_reader

transformers = pytest.importorskip("transformers", reason="prompts: no transformers")

SECONDS = 5.0
GROWTH = 256 << 20
"""Bytes by which no folder may make this process larger."""
KERNELS = """
import os
def get_kernel(*names, **more):
    with open(os.environ["CANARY"], "a") as file:
        file.write(f"{names}\\n")
    raise ValueError("asked for")
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__init__": lambda self, *a, **k: None, "__call__": lambda self, made, *a: made})
"""
LOAD = """
import sys
from pathlib import Path
from unmask.pretrained.prompts import load_text_reader
for name in sys.argv[1:]:
    print(load_text_reader(Path(name)).encoder.config._attn_implementation)
"""
PLAIN = """
import sys
from transformers import CLIPTextModelWithProjection
CLIPTextModelWithProjection.from_pretrained(sys.argv[1])
"""


def changed(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refuse(there: Path) -> str:
    """Return the one-line error for a folder, which comes fast and takes little memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(CheckpointError) as error:
        load_text_reader(there)
    assert time.monotonic() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < GROWTH
    line = str(error.value)
    assert line.isprintable(), line
    assert len(line) < 1500, line
    assert str(there) in line
    return line


# -- what a configuration may not say --


@pytest.fixture
def kernels(tmp_path, folder):  # noqa: F811
    """Return the environment of a child with a package `kernels` that records its calls, and the record."""
    from transformers.utils import import_utils

    version = getattr(import_utils, "KERNELS_MIN_VERSION", "0.9.0")
    place, canary = tmp_path / "site", tmp_path / "canary"
    for name, body in (
        ("kernels/__init__.py", KERNELS),
        (f"kernels-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n"),
    ):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_text(body)
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CANARY": str(canary), "HF_HUB_OFFLINE": "1"}, canary


def test_no_kernel_is_fetched(copied, kernels, tmp_path):  # noqa: F811
    """transformers imports, by way of the package `kernels`, what a configuration names on the hub."""
    environment, canary = kernels
    names = ("kernels-community/evil", "evil/evil", "flash_attention_2", "flash_attention_3", "sdpa|evil/evil:run")
    places = [shutil.copytree(copied, tmp_path / f"evil{i}") for i in range(len(names))]
    for place, name in zip(places, names, strict=True):
        keys = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
        changed(place / "text_encoder/config.json", **dict.fromkeys(keys, name))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, places)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.split(), canary.exists()) == (0, ["sdpa"] * len(names), False), done.stderr


def test_negative_control_plain_transformers_asks_for_the_kernel(copied, kernels):  # noqa: F811
    environment, canary = kernels
    changed(copied / "text_encoder/config.json", attn_implementation="kernels-community/evil")
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(copied / "text_encoder")],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "kernels-community/evil" in canary.read_text()


@pytest.mark.parametrize("said", [
    {"attn_implementation": "kernels-community/evil"},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    {"quantization_config": [1]},
    {"dtype": "nonsense"},
    {"torch_dtype": "float8_e4m3fn"},
    {"auto_map": {"AutoModel": "evil/evil--evil.Evil"}, "model_type": "evil", "architectures": ["Evil"]},
    {"trust_remote_code": True, "custom_pipelines": {"x": {"impl": "evil.py"}}},
    {"kernel_config": {"x": "evil/evil"}, "use_kernels": True, "experts_implementation": "evil/evil"},
    {"bos_token_id": "x", "pad_token_id": -7, "attention_dropout": 1e9, "initializer_factor": "x"},
    {"output_attentions": True, "return_dict": False, "tie_word_embeddings": "x", "is_decoder": True},
    {"name_or_path": "/etc/passwd", "_name_or_path": ["x"], "id2label": 5, "num_labels": 10**9},
    {"base_model_tp_plan": {"*": "x"}, "gradient_checkpointing": True, "pruned_heads": {"0": [0]}},
])  # fmt: skip
def test_what_else_a_configuration_says_changes_nothing(copied, reader, said):  # noqa: F811
    changed(copied / "text_encoder/config.json", **said)
    prompt, before = (made(["the cat"], (1, 1)) for made in (load_text_reader(copied), reader))
    assert torch.equal(prompt.hidden, before.hidden)
    assert torch.equal(prompt.pooled, before.pooled)


SIZED = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
         "max_position_embeddings", "projection_dim", "eos_token_id")  # fmt: skip


@pytest.mark.parametrize("name", SIZED)
def test_a_size_that_is_none_is_refused(copied, name):  # noqa: F811
    config = copied / "text_encoder/config.json"
    for value in (None, True, -1, 1.5, 10**9, 10**4000, "12", [12], {}, "\x1b[2J\n" * 100):
        changed(config, **{name: value})
        assert name in refuse(copied)
    if name != "eos_token_id":
        changed(config, **{name: 0})
        assert f"{name} is 0, and 1 to " in refuse(copied)


@pytest.mark.parametrize(("name", "value"), [
    ("num_hidden_layers", 3000), ("num_hidden_layers", 60), ("num_hidden_layers", 2), ("hidden_size", 768),
    ("hidden_size", 8192), ("intermediate_size", 1 << 15), ("projection_dim", 1 << 13), ("num_attention_heads", 5),
    ("max_position_embeddings", 78), ("hidden_act", "nope"), ("hidden_act", "gelu_10"), ("hidden_act", ["gelu"]),
    ("layer_norm_eps", None), ("layer_norm_eps", 0), ("layer_norm_eps", -1e-5), ("layer_norm_eps", float("inf")),
    ("layer_norm_eps", float("nan")), ("layer_norm_eps", "1e-5"), ("layer_norm_eps", 1), ("eos_token_id", [END]),
    ("eos_token_id", len(WORDS)),
])  # fmt: skip
def test_sizes_that_the_weights_do_not_have_are_refused(copied, name, value):  # noqa: F811
    changed(copied / "text_encoder/config.json", **{name: value})
    refuse(copied)


def test_the_largest_sizes_that_a_configuration_may_say_are_never_made(copied):  # noqa: F811
    sizes = {"hidden_size": 1 << 13, "intermediate_size": 1 << 15, "num_hidden_layers": 64, "num_attention_heads": 256}
    changed(copied / "text_encoder/config.json", **sizes, projection_dim=1 << 13, max_position_embeddings=1 << 12)
    assert "too small for the 51,647,578,112 parameters" in refuse(copied)


NO_TABLES = {
    "a list": b"[]", "a number": b"1", "nothing": b"", "half": b'{"hidden_size": 1', "not text": b"\xff\xfe{}",
    "twice": b'{"hidden_size": 12, "hidden_size": 12}', "NaN": b'{"x": NaN}', "deep": b"[" * 100_000,
    "long": b'{"x": "' + b"x" * (9 << 20) + b'"}', "digits": b'{"hidden_size": ' + b"9" * 5000 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("part", ["text_encoder/config.json", "tokenizer/vocab.json", "tokenizer/tokenizer_config.json",
                                  "tokenizer/special_tokens_map.json"])  # fmt: skip
@pytest.mark.parametrize("body", NO_TABLES.values(), ids=NO_TABLES)
def test_what_is_no_table_is_refused(copied, part, body):  # noqa: F811
    (copied / part).write_bytes(body)
    if body == NO_TABLES["twice"]:
        assert "is given twice" in refuse(copied)
    else:
        assert Path(part).name in refuse(copied)


# -- tokenizers --


@pytest.mark.parametrize("said", [
    {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"},
    {"tokenizer_class": ["x"], "init_inputs": [1, 2, 3], "vocab_file": "/etc/passwd", "vocab": {"x": 1}},
    {"extra_special_tokens": ["evil"], "additional_special_tokens": {"x": "y"}, "chat_template": "{{ evil }}"},
    {"model_max_length": "nonsense", "errors": 5, "add_prefix_space": {}, "padding_side": "evil", "merges": "x"},
])  # fmt: skip
def test_what_else_a_tokenizer_says_changes_nothing(copied, reader, said):  # noqa: F811
    changed(copied / "tokenizer/tokenizer_config.json", **said)
    (copied / "tokenizer/tokenizer.json").write_text('{"added_tokens": [{"id": 1}]}')
    (copied / "tokenizer/added_tokens.json").write_text('{"evil": 1000}')
    (copied / "tokenizer/evil.py").write_text("raise SystemExit('run')")
    loaded = load_text_reader(copied).tokenizer
    assert loaded(["the evil cat!"]).input_ids == reader.tokenizer(["the evil cat!"]).input_ids
    assert (type(loaded), len(loaded)) == (transformers.CLIPTokenizer, len(WORDS))


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("key", ["pad_token", "bos_token", "eos_token", "unk_token"])
def test_a_special_token_that_is_none_is_refused_or_harmless(copied, name, key):  # noqa: F811
    path = copied / f"tokenizer/{name}.json"
    for value in (None, 5, ["!"], {}, {"content": 5}, {"content": ["!"]}, "evil", "", "\x1b[2J" * 1000):
        path.write_text(json.dumps({key: value}))
        with contextlib.suppress(CheckpointError):  # whatever loads is the same vocabulary
            loaded = load_text_reader(copied).tokenizer
            assert max(loaded(["the evil cat!"]).input_ids[0]) < len(loaded) == len(WORDS)


def test_vocabularies_that_are_none(copied):  # noqa: F811
    path, sound = copied / "tokenizer/vocab.json", {word: i for i, word in enumerate(WORDS)}
    for odd in ({"a": 7}, {"a": -1}, {"a": 1.0}, {"a": "0"}, {"a": None}, {"a": [0]}, {"a": False}, {"a": 10**30},
                {"": 999}, {"more": 10**9}):  # fmt: skip
        path.write_text(json.dumps({**sound, **odd}))
        refuse(copied)
    (copied / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    path.write_text("{}")
    refuse(copied)


def test_merges_that_are_none(copied):  # noqa: F811
    for body in (b"t h e", b"t", b"t  h", b"x y", b"t evil", b"evil", b"\xff", b"#version: 0.2\nt h\n\x1b[2J \x00",
                 b"t\th", b"root:x:0:0:root:/root:/bin/bash\n", b"t h\n" * (3 << 20)):  # fmt: skip
        (copied / "tokenizer/merges.txt").write_bytes(body)
        refuse(copied)


# -- files --


@pytest.mark.parametrize("part", NEEDED_FILES)
def test_what_is_no_file_or_leads_elsewhere(copied, part):  # noqa: F811
    path = copied / part
    sound = path.rename(copied / "sound")
    for target in ("/etc/passwd", "/dev/zero", "/dev/stdin", copied / "nowhere", path, copied, "/proc/self/environ"):
        path.symlink_to(target)
        refuse(copied)
        path.unlink()
    os.mkfifo(path)
    assert f"no {part} there" in refuse(copied)
    path.unlink()
    path.symlink_to(sound)  # as in a cache
    assert load_text_reader(copied)(["a"], (1, 1)).hidden.isfinite().all()


def test_weights_that_are_none(copied):  # noqa: F811
    path = copied / "text_encoder/model.safetensors"
    data = path.read_bytes()
    sound = load(data)
    for body in (b"", data[:-1], data + b"x", data[: len(data) // 2], b"\xff" * 8 + data[8:], b"\x80\x02}q\x00."):
        path.write_bytes(body)
        refuse(copied)
    for name in sound:
        value = sound[name].clone()
        value.view(-1)[-1] = float("nan")
        save_file({**sound, name: value}, path)
        assert f"or not finite, first {name}" in refuse(copied)
    save_file({**sound, "text_model.encoder.layers.3.mlp.fc1.weight": torch.ones(20, 12)}, path)
    assert (
        "1 tensors are missing, unknown, of another shape or not finite, first text_model.encoder.layers.3"
        in refuse(copied)
    )


def test_whatever_transformers_raises_is_one_line(copied, monkeypatch):  # noqa: F811
    for error in (KeyError("x"), TypeError("two\nlines"), ZeroDivisionError(), ImportError("no\x1b[2J")):
        monkeypatch.setattr("transformers.CLIPTextModelWithProjection", raising(error))
        assert "transformers cannot load a CLIP text model from it (" in refuse(copied)


def raising(error):
    def make(config):
        raise error

    return make
