"""One process, DDP and FSDP2 are the same run. Two ranks on gloo, forked once per strategy by toy_run.py."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from toy_run import ALONE, job, metrics, poisoned, state, toy_config, toy_model, toy_partition, toy_train

from unmask.errors import ConfigError, NonFiniteError
from unmask.runtime.distributed import (
    World,
    broadcast_text,
    distribute,
    gather_full,
    get_gradient_factor,
    get_local,
    resolve_strategy,
    sum_over_ranks,
)

TWO = World(1, 2, torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return job("strategies", tmp_path_factory.mktemp("strategies"))


def distance(runs, a, b, part=""):
    """Return the largest difference between the weights and averages of two runs."""
    first, second = load_file(runs / f"{a}.safetensors"), load_file(runs / f"{b}.safetensors")
    assert first.keys() == second.keys()
    return max(float((first[n] - second[n]).abs().max()) for n in first if n.startswith(part))


OTHERS = [f"{strategy}-{accumulate}" for strategy in ("none", "ddp", "fsdp") for accumulate in (1, 2, 4)][1:]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("part", ["model.", "ema."])
def test_weights_and_average_agree_after_50_steps(runs, name, part):
    assert distance(runs, "none-1", name, part) <= 1e-6


@pytest.mark.parametrize("name", OTHERS)
def test_losses_gradient_norms_and_validation_agree(runs, name):
    reference, other = metrics(runs / "none-1"), metrics(runs / name)
    assert [r["step"] for r in reference] == [r["step"] for r in other] == sorted([*range(1, 51), 25, 50])
    assert sum("validation_loss" in r for r in reference) == 2
    for a, b in zip(reference, other, strict=True):
        assert a.keys() == b.keys()
        assert b == pytest.approx(a, rel=2e-5, abs=1e-7), name


def test_the_runs_learned_something(runs):
    """Otherwise runs that do nothing would agree too."""
    start = {f"model.{n}": p.detach() for n, p in toy_model().named_parameters()}
    after = load_file(runs / "none-1.safetensors")
    assert max(float((after[n] - p).abs().max()) for n, p in start.items()) > 0.02
    losses = [r["loss"] for r in metrics(runs / "none-1") if "loss" in r]
    assert losses[-1] < losses[0]


def test_a_mean_per_micro_batch_would_be_seen(runs):
    assert distance(runs, "wrong-1", "wrong-4") > 1e-3


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_partition_models_agree(runs, strategy):
    assert distance(runs, "none-partition", f"{strategy}-partition") <= 1e-6
    start = {f"model.{n}": p.detach() for n, p in toy_partition().named_parameters()}
    after = load_file(runs / "none-partition.safetensors")
    assert all(not after[n].equal(p) for n, p in start.items())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_muon_agrees(runs, strategy):
    """Orthogonalisation runs in bfloat16, which magnifies the rounding of gradients: hence the wider bound."""
    assert distance(runs, "none-muon", f"{strategy}-muon") <= 1e-3


@pytest.mark.parametrize("name", ["ddp-to-none", "fsdp-to-none", "none-to-fsdp"])
def test_a_run_goes_on_with_another_number_of_processes(runs, name):
    assert distance(runs, "none-1", name) <= 1e-6


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_nan_on_one_rank_stops_all_before_the_step(runs, strategy, tmp_path):
    messages = {(runs / f"{strategy}-nan-{rank}").read_text() for rank in (0, 1)}
    assert messages == {"step 3: loss nan, gradient norm nan, from rows [5] of the batch"}

    model, config = toy_model(), toy_config(save_every=2)
    with pytest.raises(NonFiniteError, match=r"step 3: .* rows \[5\]"):
        toy_train(tmp_path, config, objective=poisoned(3, 5), model=model)
    for rank in (0, 1):
        weights = load_file(runs / f"{strategy}-nan-{rank}.safetensors")
        for name, p in model.named_parameters():
            assert weights[name].isfinite().all()
            assert float((weights[name] - p.detach()).abs().max()) <= 1e-6
    folders = [p.name for p in (runs / f"{strategy}-nan/checkpoints").iterdir()]
    assert folders == ["step-00000002"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_damage_in_the_memory_of_one_rank_is_named_by_all(runs, strategy):
    weights, averages = (
        {(runs / f"{strategy}-{name}-{rank}").read_text() for rank in (0, 1)} for name in ("weights", "averages")
    )
    assert len(weights) == len(averages) == 1
    assert re.fullmatch(
        r"step 3: loss nan, .* from the weights: \S+ holds NaN or infinity on rank 1; .*",
        weights.pop(),
    )
    assert re.fullmatch(
        r"step 2: ema\.\S+ holds NaN or infinity on rank 1; no checkpoint was written, .*", averages.pop()
    )
    kept = [[p.name for p in (runs / f"{strategy}-{name}").glob("checkpoints/*")] for name in ("weights", "averages")]
    assert kept == [["step-00000002"], []]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_one_rank_stops_all_at_one_step(runs, strategy):
    messages = [(runs / f"{strategy}-term-{rank}").read_text() for rank in (0, 1)]
    assert messages == ["stopped by a signal after step 5; saved. The same command continues from there"] * 2
    assert [p.name for p in (runs / f"{strategy}-term/checkpoints").iterdir()] == ["step-00000005"]


def test_ddp_ranks_hold_equal_weights_bit_for_bit(runs):
    first, second = (load_file(runs / f"ddp-nan-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_only_rank_0_writes_metrics(runs):
    lines = (runs / "ddp-1/metrics.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 52
    assert state(runs / "ddp-1", 50)


def test_strategies_that_cannot_work_are_refused():
    assert resolve_strategy("auto", ALONE) == "none"
    assert resolve_strategy("auto", TWO) == "ddp"
    with pytest.raises(ConfigError, match="strategy none with 2 processes"):
        resolve_strategy("none", TWO)
    for strategy in ("ddp", "fsdp"):
        with pytest.raises(ConfigError, match="torchrun"):
            resolve_strategy(strategy, ALONE)


def test_one_process_needs_no_group():
    x = torch.ones(3)
    assert torch.equal(sum_over_ranks(x, ALONE), torch.ones(3))
    assert broadcast_text("token", ALONE) == "token"
    model = toy_model()
    assert distribute(model, "none", ALONE) is model
    assert get_gradient_factor(model, ALONE) == 1
    assert get_local(x) is x
    assert gather_full(x) is x
