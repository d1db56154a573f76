"""Check the judge of text against chains of known entropy, against one token at a time, and against its file."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import log_softmax

from unmask.data.tokens import TokenSet
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.metrics import judge as module
from unmask.metrics.features import hash_network
from unmask.metrics.judge import (
    Judge,
    JudgeConfig,
    load_judge,
    measure_surprise,
    read_text_digest,
    save_judge,
    train_judge,
)

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "text" / "tinyshakespeare.txt"
END = 6
SHORT = JudgeConfig(dim=8, steps=3, batch_size=4, context=8)


def chain(seed, num, length):
    """Sample a chain: each token is one of the two after its predecessor (modulo 6), the likelier one with 0.9."""
    rand = torch.Generator().manual_seed(seed)
    steps = 1 + (torch.rand(num, length, generator=rand) < 0.1).long()
    return (torch.randint(6, (num, 1), generator=rand) + steps.cumsum(1)) % 6


@pytest.fixture(scope="module")
def random_judge():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Judge(JudgeConfig(dim=16, depth=2), 7, END).eval()


@pytest.fixture(scope="module")
def trained():
    config = JudgeConfig(dim=32, steps=250, batch_size=16, context=16, learning_rate=1e-2)
    return train_judge(TokenSet(tokens=chain(0, 400, 32)), config, vocab_size=7, end_id=END)


# -- what surprise is --


def test_surprise_is_that_of_one_token_at_a_time(random_judge):
    rows = chain(0, 5, 12)
    rows[1, 8:] = -1
    rows[2, 4] = END
    found = measure_surprise(random_judge, rows)
    with torch.no_grad():
        for i in range(5):
            for j in range(12 if i != 1 else 8):
                before = torch.tensor([[END, *rows[i, :j].tolist()]])
                logits = random_judge.head(random_judge.lstm(random_judge.embedding(before))[0][0, -1])
                assert found[i, j].item() == pytest.approx(-log_softmax(logits, 0)[rows[i, j]].item(), abs=1e-5)
    assert found[1, 8:].tolist() == [0.0] * 4


def test_absent_tokens_and_the_cut_into_batches_change_nothing(random_judge, monkeypatch):
    rows = chain(1, 7, 10)
    whole = measure_surprise(random_judge, rows)
    wider = torch.cat([rows, torch.full((7, 5), -1)], 1)
    torch.testing.assert_close(measure_surprise(random_judge, wider)[:, :10], whole)
    torch.testing.assert_close(measure_surprise(random_judge, rows, batch=2), whole)
    torch.testing.assert_close(measure_surprise(random_judge, rows.to(torch.int32)), whole)
    monkeypatch.setattr(module, "LOGITS_PER_BLOCK", 3 * random_judge.vocab_size)  # three positions at once
    torch.testing.assert_close(measure_surprise(random_judge, rows), whole)
    assert torch.equal(wider[:, 10:], torch.full((7, 5), -1))


def test_logits_of_forward_are_those_of_surprise(random_judge):
    rows = chain(2, 3, 6)
    with torch.no_grad():
        nats = -log_softmax(random_judge(rows), -1).gather(2, rows[..., None])[..., 0]
    torch.testing.assert_close(measure_surprise(random_judge, rows), nats)


# -- training --


def test_it_learns_a_chain_to_its_entropy_beyond_the_length_of_its_pieces(trained):
    least = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)  # 0.325 nats
    rows = chain(1, 400, 48)  # training used pieces of 16 from rows of 32
    nats = measure_surprise(trained, rows)
    assert nats[:, 0].mean().item() == pytest.approx(math.log(6), abs=0.05)  # the first token is unpredictable
    assert nats[:, 1:].mean().item() == pytest.approx(least, abs=0.03)
    assert nats[:, 40:].mean().item() == pytest.approx(least, abs=0.03)


def test_it_tells_noise_and_flatters_repetition(trained):
    nats = measure_surprise(trained, chain(1, 100, 32)).mean()
    noise = torch.randint(6, (100, 32), generator=torch.Generator().manual_seed(0))
    assert measure_surprise(trained, noise).mean() > 4 * nats
    stuck = (torch.arange(100)[:, None] + torch.arange(32)) % 6  # the likeliest token, always
    assert measure_surprise(trained, stuck)[:, 1:].mean() < 0.6 * nats


def test_absent_tokens_are_not_learned():
    rows = chain(0, 40, 12)
    wider = torch.cat([rows, torch.full((40, 2), -1)], 1)
    config = JudgeConfig(dim=8, steps=5, batch_size=4, context=14)
    first, second = (
        train_judge(TokenSet(tokens=data), config, vocab_size=7, end_id=END).state_dict() for data in (rows, wider)
    )
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=1e-5, rtol=1e-4)
    nothing = train_judge(TokenSet(tokens=torch.full((4, 3), -1)), SHORT, vocab_size=7, end_id=END)
    assert all(value.isfinite().all() for value in nothing.state_dict().values())


def test_training_is_a_function_of_its_arguments_and_leaves_global_noise_alone():
    data = TokenSet(tokens=chain(0, 20, 16))
    state = torch.get_rng_state()
    steps = []
    first = train_judge(data, SHORT, vocab_size=7, end_id=END, progress=lambda *seen: steps.append(seen))
    assert torch.equal(torch.get_rng_state(), state)
    assert steps == [("judge", 1, 3), ("judge", 2, 3), ("judge", 3, 3)]
    assert not first.training
    torch.rand(3)
    again = train_judge(data, SHORT, vocab_size=7, end_id=END)
    assert hash_network(again) == hash_network(first)
    changed = {"dim": 9, "depth": 2, "steps": 4, "batch_size": 5, "context": 7, "learning_rate": 1e-3, "seed": 1}
    assert changed.keys() == SHORT.__dataclass_fields__.keys()
    for name, value in changed.items():
        other = JudgeConfig(**{**vars(SHORT), name: value})
        found = train_judge(data, other, vocab_size=7, end_id=END)
        assert hash_network(found) != hash_network(first), name


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="skipped: tinyshakespeare.txt is not there")
def test_shakespeare_surprises_less_after_a_little_training():
    text = SHAKESPEARE.read_bytes()[:400_000]
    _, ids = torch.tensor(list(text)).unique(return_inverse=True)
    rows = ids.view(-1, 100)
    end = int(ids.max()) + 1
    config = JudgeConfig(dim=96, steps=120, learning_rate=1e-2)
    judge = train_judge(TokenSet(tokens=rows[:3600]), config, vocab_size=end + 1, end_id=end)
    nats = measure_surprise(judge, rows[3600:]).mean().item()
    assert 1.5 < nats < 2.4  # 4.1 for uniform characters, 3.3 by their frequencies


# -- the file --


def test_save_and_load_keep_every_bit(random_judge, tmp_path):
    path = tmp_path / "judge.safetensors"
    save_judge(random_judge, path, "abc")
    loaded = load_judge(path)
    assert hash_network(loaded) == hash_network(random_judge)
    assert (loaded.config, loaded.vocab_size, loaded.end_id) == (random_judge.config, 7, END)
    assert not loaded.training
    assert read_text_digest(path) == "abc"
    rows = chain(0, 3, 9)
    assert torch.equal(measure_surprise(loaded, rows), measure_surprise(random_judge, rows))


@pytest.mark.parametrize("damage", ["missing", "bytes", "foreign", "weights", "config"])
def test_a_file_that_is_no_judge_is_refused_in_one_line(random_judge, tmp_path, damage):
    path = tmp_path / "judge.safetensors"
    facts = '{"config": {"dim": 16, "depth": %d}, "vocab_size": 7, "end_id": %d}'
    weights = {name: value.contiguous() for name, value in random_judge.state_dict().items()}
    if damage == "bytes":
        path.write_bytes(b"not safetensors")
    elif damage == "foreign":
        save_file(weights, path)
    elif damage == "weights":
        save_file(weights, path, metadata={"judge": facts % (1, 6)})
    elif damage == "config":
        save_file(weights, path, metadata={"judge": facts % (2, 7)})
    with pytest.raises(CheckpointError) as raised:
        load_judge(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


# -- refusals --


@pytest.mark.parametrize("name", ["dim", "depth", "steps", "batch_size", "context"])
def test_counts_start_at_one(name):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        JudgeConfig(**{name: 0})


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_the_rate_is_positive(rate):
    with pytest.raises(ConfigError, match="learning_rate must be positive"):
        JudgeConfig(learning_rate=rate)


@pytest.mark.parametrize("end_id", [-1, 7])
def test_the_end_is_a_token(end_id):
    with pytest.raises(ConfigError, match=f"end_id {end_id} is no token"):
        Judge(SHORT, 7, end_id)


@pytest.mark.parametrize("stray", [7, -2])
def test_tokens_of_another_vocabulary_and_masks_are_refused(random_judge, stray):
    rows = torch.tensor([[0, 1, stray]])
    with pytest.raises(DataError, match="a judge of 7 tokens reads 0 to 6"):
        measure_surprise(random_judge, rows)
    with pytest.raises(DataError, match="a judge of 7 tokens reads 0 to 6"):
        train_judge(TokenSet(tokens=rows), SHORT, vocab_size=7, end_id=END)


def test_nothing_to_judge_is_refused(random_judge):
    with pytest.raises(ConfigError, match="0 rows of 4 tokens"):
        measure_surprise(random_judge, torch.zeros(0, 4, dtype=torch.long))
