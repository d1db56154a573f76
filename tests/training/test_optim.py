"""Check learning-rate curves against closed forms, each optimizer's weights, and the average against float64."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_run import toy_model

from unmask.training import optim
from unmask.training.ema import Ema
from unmask.training.optim import (
    AdamW,
    Constant,
    CosineDecay,
    Muon,
    MuonOptimizer,
    WarmupStableDecay,
    collect_optimizer_state,
    create_optimizer_state,
    orthogonalize,
    set_learning_rate,
)

BOTH = pytest.mark.parametrize("config", [AdamW(), Muon()], ids=["adamw", "muon"])


def gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def step(optimizers):
    for optimizer in optimizers:
        optimizer.step()


# -- curves ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(warmup=st.integers(0, 50), step=st.integers(0, 200))
def test_warm_up_is_a_line_and_then_one(warmup, step):
    expected = (step + 1) / (warmup + 1) if step < warmup else 1.0
    assert Constant(warmup=warmup)(step, 200) == pytest.approx(expected)


@settings(deadline=None)
@given(warmup=st.integers(0, 50), steps=st.integers(51, 300), final=st.floats(0, 1))
def test_cosine_runs_from_one_to_final(warmup, steps, final):
    curve = CosineDecay(warmup=warmup, final=final)
    middle = warmup + (steps - warmup) / 2
    assert curve(warmup, steps) == pytest.approx(1)
    assert curve(steps, steps) == pytest.approx(final)
    if middle == int(middle):
        assert curve(int(middle), steps) == pytest.approx((1 + final) / 2)
    values = [curve(s, steps) for s in range(warmup, steps + 1)]
    assert all(a >= b - 1e-12 for a, b in pairwise(values))
    x = (steps - 1 - warmup) / (steps - warmup)
    assert values[-2] == pytest.approx(final + (1 - final) * math.cos(math.pi * x / 2) ** 2)


@settings(deadline=None)
@given(warmup=st.integers(0, 20), steps=st.integers(100, 300), decay=st.floats(0.1, 0.5), final=st.floats(0, 1))
def test_wsd_is_flat_and_then_a_line(warmup, steps, decay, final):
    curve = WarmupStableDecay(warmup=warmup, decay=decay, final=final)
    for s in range(steps):
        left = steps - s
        expected = 1.0 if left >= decay * steps else final + (1 - final) * left / (decay * steps)
        assert curve(s, steps) == pytest.approx(min(1, (s + 1) / (warmup + 1)) * expected)


def test_no_curve_ever_stops_the_training_or_exceeds_one():
    for curve in (Constant(warmup=3), CosineDecay(warmup=3), WarmupStableDecay(warmup=3)):
        assert all(0 < curve(s, 20) <= 1 for s in range(20))


def test_bad_numbers_are_refused_with_the_number():
    with pytest.raises(ValueError, match=r"decay=1\.5"):
        WarmupStableDecay(decay=1.5)
    with pytest.raises(ValueError, match=r"learning_rate=-1"):
        AdamW(learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"momentum=1\.0"):
        Muon(momentum=1.0)


# -- optimizers --------------------------------------------------------------------------------------------------------


def test_the_rate_is_each_groups_own_base_times_the_factor():
    optimizers = Muon(learning_rate=0.02, rest=AdamW(learning_rate=0.001)).build(toy_model())
    set_learning_rate(optimizers, 0.5)
    set_learning_rate(optimizers, 0.25)  # a factor of the base, not of the last rate
    rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
    assert rates == [[0.005], [0.00025, 0.00025]]


def test_weight_decay_touches_matrices_only():
    model = toy_model()
    optimizers = AdamW(learning_rate=0.1, weight_decay=0.5).build(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    step(optimizers)
    assert {p.ndim for p in model.parameters()} == {1, 2}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if p.ndim == 2 else 1.0))


def test_muon_takes_exactly_the_blocks_attention_and_mlp_matrices():
    model = toy_model()
    names = {id(p): n for n, p in model.named_parameters()}
    muon, rest = Muon().build(model)
    taken = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    layers = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    assert taken == {f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in layers}
    others = [names[id(p)] for g in rest.param_groups for p in g["params"]]
    assert sorted([*taken, *others]) == sorted(names.values())


@BOTH
def test_prime_moves_no_weight_and_leaves_the_state_of_a_fresh_optimizer(config):
    fresh, primed = toy_model(), toy_model()
    start = [p.detach().clone() for p in primed.parameters()]
    optimizers = {model: config.build(model) for model in (fresh, primed)}
    create_optimizer_state(optimizers[primed])
    assert all(torch.equal(p, s) for p, s in zip(primed.parameters(), start, strict=True))
    assert all(p.grad is None for p in primed.parameters())
    assert collect_optimizer_state(optimizers[primed], primed)
    assert not any(t.any() for t in collect_optimizer_state(optimizers[primed], primed).values())
    for seed in range(3):
        for model in (fresh, primed):
            gradients(model, seed)
            set_learning_rate(optimizers[model], 0.7)
            step(optimizers[model])
    assert not any(torch.equal(p, s) for p, s in zip(primed.parameters(), start, strict=True))
    for a, b in zip(fresh.parameters(), primed.parameters(), strict=True):
        assert torch.equal(a, b)
    first, second = (collect_optimizer_state(optimizers[model], model) for model in (fresh, primed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


@BOTH
def test_state_tensors_are_the_optimizers_own(config):
    """Loading a checkpoint writes into these tensors, so they must not be copies."""
    model = toy_model()
    optimizers = config.build(model)
    create_optimizer_state(optimizers)
    tensors = collect_optimizer_state(optimizers, model)
    named = {n.removeprefix("optimizer.").rpartition(".")[0] for n in tensors}
    assert named == {n for n, _ in model.named_parameters()}
    for tensor in tensors.values():
        tensor.fill_(3.0)
    assert all(bool((t == 3).all()) for o in optimizers for s in o.state.values() for t in s.values())


def polynomial_of_singular_values(x):
    """Compute Newton-Schulz in float64: apply the quintic to each singular value, five times."""
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s[..., None, :]) @ v


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    num=st.integers(1, 3),
    decades=st.floats(0, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_orthogonalize_is_the_quintic_of_every_singular_value(rows, columns, num, decades, dtype):
    decades = min(decades, 1.0) if dtype == torch.bfloat16 else decades  # bfloat16 loses values far below the largest
    generator = torch.Generator().manual_seed(rows * 41 + columns)
    u, s, v = torch.linalg.svd(torch.randn(num, rows, columns, generator=generator).double(), full_matrices=False)
    x = ((u * torch.logspace(0, -decades, s.shape[-1], dtype=torch.float64)) @ v).float()
    want, got = polynomial_of_singular_values(x), orthogonalize(x, dtype).double()
    near = 2e-3 if dtype == torch.float32 else 0.3
    assert float((got - want).norm() / want.norm()) < near


def test_an_all_zero_matrix_stays_zero():
    assert not orthogonalize(torch.zeros(2, 3, 9), torch.float32).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_muon_is_torch_s_muon_in_the_type_of_the_device(dtype, monkeypatch):
    """Take ten steps with the same gradients. torch orthogonalizes in bfloat16, so only that type agrees closely."""
    monkeypatch.setattr(optim, "choose_dtype", lambda device: dtype)
    ours, theirs = toy_model(), toy_model()
    muon, _ = Muon(learning_rate=0.02, weight_decay=0.1).build(ours)
    taken = {id(p) for g in muon.param_groups for p in g["params"]}
    hidden = [q for p, q in zip(ours.parameters(), theirs.parameters(), strict=True) if id(p) in taken]
    other = torch.optim.Muon(hidden, lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = [q.detach().clone() for q in hidden]
    for seed in range(10):
        for model in (ours, theirs):
            gradients(model, seed)
        muon.step(), other.step()
    mine = [p for p in ours.parameters() if id(p) in taken]
    moved = torch.cat([(q - s).flatten() for q, s in zip(hidden, start, strict=True)]).norm()
    apart = torch.cat([(p - q).flatten() for p, q in zip(mine, hidden, strict=True)]).norm()
    assert (apart / moved).item() < (1e-2 if dtype == torch.bfloat16 else 0.1)
    for p, q in zip(mine, hidden, strict=True):  # so a checkpoint of one resumes in the other
        assert muon.state[p].keys() == other.state[q].keys() == {"momentum_buffer"}
        assert torch.equal(muon.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_muon_takes_the_type_that_this_cpu_is_fast_in(dtype, monkeypatch):
    monkeypatch.setattr(optim, "choose_dtype", lambda device: dtype)
    used = []
    monkeypatch.setattr(optim, "orthogonalize", lambda x, kind: used.append(kind) or x)
    model = toy_model()
    gradients(model, 0)
    muon, _ = Muon().build(model)
    muon.step()
    assert set(used) == {dtype}
    assert len(used) == 4  # one batched product per shape: qkv, out, up, down
    assert isinstance(muon, MuonOptimizer)


# -- average -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_average_is_the_closed_form_sum(decay):
    """Check average_n = sum_i (1 - d_i) w_i prod_{j > i} d_j + w_start prod_j d_j, in float64."""
    model = torch.nn.Linear(3, 4)
    ema = Ema(model, decay)
    weights = [model.weight.detach().double()]
    for s in range(60):
        with torch.no_grad():
            model.weight.copy_(torch.randn(4, 3, generator=torch.Generator().manual_seed(s)))
        ema.update(s)
        weights.append(model.weight.detach().double())
    d = [1.0] + [min(decay, (1 + s) / (10 + s)) for s in range(60)]
    share = [(1 - d[i] if i else 1.0) * math.prod(d[i + 1 :]) for i in range(61)]
    assert sum(share) == pytest.approx(1)
    expected = sum(a * w for a, w in zip(share, weights, strict=True))
    assert float((ema.average["weight"] - expected).abs().max()) <= 1e-6


def test_the_ramp_depends_on_the_step_alone():
    """Two averages with different numbers of earlier updates move equally at step 100."""
    model = torch.nn.Linear(2, 2, bias=False)
    old, new = Ema(model, 0.999), Ema(model, 0.999)
    for s in range(100):
        old.update(s)
    with torch.no_grad():
        model.weight.add_(1)
    old.update(100), new.update(100)
    assert torch.equal(old.average["weight"], new.average["weight"])
    assert not torch.equal(new.average["weight"], model.weight)


def test_swap_puts_the_average_in_and_the_weights_back_also_after_an_exception():
    model = toy_model()
    ema = Ema(model, 0.9)
    for average in ema.average.values():
        average.add_(0.25)
    raw = [p.detach().clone() for p in model.parameters()]
    averages = [a.clone() for a in ema.average.values()]

    def body():
        with ema.swap_weights():
            assert all(torch.equal(p, a) for p, a in zip(model.parameters(), averages, strict=True))
            assert not torch.equal(next(model.parameters()), raw[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()
    assert all(torch.equal(p, r) for p, r in zip(model.parameters(), raw, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ema.average.values(), averages, strict=True))


def test_the_average_is_float32_for_half_weights():
    """In bfloat16 a step of 1 - 0.999 would be lost in rounding, and the average would not move."""
    model = torch.nn.Linear(2, 2, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = Ema(model, 0.999)
    with torch.no_grad():
        model.weight.fill_(2.0)
    ema.update(100_000)
    assert ema.average["weight"].dtype == torch.float32
    assert ema.average["weight"] == pytest.approx(torch.full((2, 2), 1.001))
