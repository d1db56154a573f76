"""Generative perplexity, against a sum over tokens one by one, with a tiny causal model of transformers."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from unmask.errors import CheckpointError, ConfigError
from unmask.evaluation.text_table import split_documents
from unmask.metrics.causal_judge import CausalJudge, load_causal_judge, measure_generative_perplexity
from unmask.tokenizers.text import Bytes, build_tokenizer

pytest.importorskip("transformers")
from tiny_gpt2 import CONTEXT, save_tiny_gpt2


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> CausalJudge:
    return load_causal_judge(str(save_tiny_gpt2(tmp_path_factory.mktemp("gpt2"))))


def add_up(judge: CausalJudge, rows: list[list[str]]) -> float:
    """The definition, one token at a time: no batch, no padding, no shift."""
    nats = []
    for documents in rows:
        row = [(29, False)]
        for number, text in enumerate(documents):
            row += [(29, False)] if number else []
            row += [(judge.tokenizer.convert_tokens_to_ids(character), True) for character in text]
        ids = [token for token, _ in row[:CONTEXT]]
        for at in range(1, len(ids)):
            if row[at][1]:
                p = judge.network(torch.tensor([ids[:at]])).logits[0, -1].double().softmax(-1)
                nats.append(-math.log(p[ids[at]]))
    return math.exp(sum(nats) / len(nats))


ROWS = [["the cat"], ["a"], ["one text.", "another one"], ["x" * 60], ["", "after an end"], [""]]


def test_it_is_the_sum_over_tokens_one_by_one(judge):
    assert measure_generative_perplexity(judge, ROWS) == pytest.approx(add_up(judge, ROWS), rel=1e-5)
    for row in ROWS[:-1]:
        assert measure_generative_perplexity(judge, [row]) == pytest.approx(add_up(judge, [row]), rel=1e-5)


def test_a_uniform_judge_gives_its_vocabulary(judge):
    with torch.no_grad():
        kept = judge.network.lm_head.weight.clone()
        judge.network.lm_head.weight.zero_()
        found = measure_generative_perplexity(judge, ROWS)
        judge.network.lm_head.weight.copy_(kept)
    assert found == pytest.approx(30, rel=1e-6)


def test_without_text_it_is_nan(judge):
    assert math.isnan(measure_generative_perplexity(judge, [[""], []]))


def test_a_judge_without_a_begin_token_does_not_score_the_first_token(tmp_path, judge):
    bare = load_causal_judge(str(save_tiny_gpt2(tmp_path, begin=None)))
    p = bare.network(torch.tensor([[1]])).logits[0, -1].double().softmax(-1)
    assert measure_generative_perplexity(bare, [["bc"]]) == pytest.approx(1 / float(p[2]), rel=1e-5)
    assert math.isnan(measure_generative_perplexity(bare, [["b"]]))


def test_a_row_is_split_at_its_end_tokens():
    tokenizer = build_tokenizer(Bytes(context=16), lambda: iter(()))
    end = tokenizer.end_id
    row = [*tokenizer.encode("one").tolist(), end, *tokenizer.encode("two").tolist(), end, -1, -1]
    assert split_documents(row, tokenizer) == ["one", "two", ""]
    assert split_documents([end], tokenizer) == ["", ""]


def test_what_is_no_judge_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no such folder; give one, or gpt2 or gpt2-large"):
        load_causal_judge(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        load_causal_judge(str(tmp_path))
    assert "\n" not in str(caught.value)
    folder = save_tiny_gpt2(tmp_path / "half")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_causal_judge(str(folder))


@pytest.mark.parametrize(
    "entry",
    [
        {"_attn_implementation": "evil/kernel"},
        {"experts_implementation": "evil/kernel"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}},
        {"dtype": "evil"},
    ],
)
def test_a_configuration_names_no_code_that_is_fetched_or_run(judge, tmp_path, entry, capfd):
    folder = save_tiny_gpt2(tmp_path)
    (folder / "evil.py").write_text("raise SystemExit('run')")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entry))
    capfd.readouterr()
    loaded = load_causal_judge(str(folder))
    assert capfd.readouterr() == ("", "")
    assert measure_generative_perplexity(loaded, ROWS) == measure_generative_perplexity(judge, ROWS)
    assert loaded.network.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("config", [[1], {"model_type": "gpt2", "n_embd": "x"}])
def test_a_configuration_that_is_none_is_one_line(tmp_path, config):
    folder = save_tiny_gpt2(tmp_path)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        load_causal_judge(str(folder))
    assert "\n" not in str(caught.value)


def test_a_published_judge_without_a_network_is_one_line_at_once(tmp_path):
    code = "from unmask.metrics.causal_judge import load_causal_judge as load\ntry: load('gpt2')\n"
    code += "except Exception as error: print(type(error).__name__, error)"
    place = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **place}, timeout=120
    )
    assert found.stdout.startswith("CheckpointError cannot download config.json of openai-community/gpt2"), found
    assert found.stdout.count("\n") == 1
    assert "Retrying" not in found.stderr


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"n_layer": 10**9}, "n_layer 1,000,000,000 in config.json is more than 1,024"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers 1,000,000,000"),
        ({"n_embd": 1 << 20, "n_positions": 1 << 30}, "parameters, and the weights have"),
    ],
)
def test_sizes_beyond_the_weights_are_refused_before_memory_is_taken(tmp_path, entry, said):
    folder = save_tiny_gpt2(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entry))
    with pytest.raises(CheckpointError) as caught:
        load_causal_judge(str(folder))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
