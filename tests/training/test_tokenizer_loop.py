"""Check the tokenizer's loop: its gradients, and that resuming, micro-batches and ranks change nothing."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from toy_run import ALONE, Cut, cut, state
from toy_tokenizer import (
    BATCH,
    LOSS,
    QUANTIZERS,
    STEPS,
    everything,
    job,
    poisoned,
    stopping,
    toy_batches,
    toy_config,
    toy_metrics,
    toy_networks,
    toy_pictures,
    toy_stages,
    toy_train,
)

from unmask.errors import CheckpointError, ConfigError, NonFiniteError, Preempted
from unmask.runtime.distributed import World
from unmask.tokenizers.losses import (
    PatchGAN,
    TokenizerLoss,
    compute_hinge_loss,
    measure_perceptual_distance,
    sum_image_means,
)
from unmask.tokenizers.quantizers import Codebook
from unmask.training.checkpoint import load_checkpoint
from unmask.training.optim import Constant, Muon
from unmask.training.steps import split_rows
from unmask.training.tokenizer_loop import Networks, measure_code_use, start_codebook
from unmask.training.tokenizer_step import compute_gradients, find_cause

TWO = World(1, 2, torch.device("cpu"))
EACH = pytest.mark.parametrize("quantizer", QUANTIZERS)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def nothing(model):
    """Return an evaluator that writes one line to metrics.jsonl."""
    return lambda: [("half", 0.5)]


# -- what one step computes --------------------------------------------------------------------------------------------


def direct(networks: Networks, weight: float, loss: TokenizerLoss) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Compute both networks' gradients on the first batch from one graph, and the two last-layer gradients of eq. 7."""
    images = toy_batches()(0, torch.arange(BATCH))[0]
    made, quantized, _ = networks.core(images)
    likeness = loss.pixel * sum_image_means((made - images).abs()) + loss.perceptual * measure_perceptual_distance(
        toy_stages, made, images
    )
    adversarial = -sum_image_means(networks.critic(made))
    pull, push = (
        torch.autograd.grad(x, networks.core.last_layer, retain_graph=True)[0] for x in (likeness, adversarial)
    )
    total = likeness + quantized.loss + weight * adversarial
    critic = compute_hinge_loss(networks.critic(images), networks.critic(made.detach()))
    gradients = {}
    for network, value in ((networks.core, total), (networks.critic, critic)):
        names, parameters = zip(*((n, p) for n, p in network.named_parameters() if p.requires_grad), strict=True)
        gradients |= {
            f"{type(network).__name__}.{n}": g
            for n, g in zip(names, torch.autograd.grad(value, parameters), strict=True)
        }
    return gradients, pull, push


@EACH
@pytest.mark.parametrize("accumulate", [1, 4])
def test_gradients_are_those_of_the_whole_loss_in_one_graph(quantizer, accumulate):
    networks, loss = toy_networks(quantizer), replace(LOSS, pixel=0.7, perceptual=1.3)
    if quantizer == "lfq" and accumulate > 1:
        pytest.skip("LFQ's diversity is that of a micro-batch")
    start_codebook(networks, toy_batches(), toy_config(), ALONE)
    expected, pull, push = direct(networks, 0.3, loss)
    sums = compute_gradients(0, networks, loss, 0.3, toy_batches(), toy_config(accumulate=accumulate), ALONE)
    found = {
        f"{type(network).__name__}.{n}": p.grad
        for network in (networks.core, networks.critic)
        for n, p in network.named_parameters()
        if p.requires_grad
    }
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(1 + gradient.abs().max()))
    torch.testing.assert_close(sums.pulls, torch.stack([pull.flatten(), push.flatten()]).double(), rtol=1e-4, atol=1e-5)


def test_without_the_adversary_the_discriminator_is_left_alone():
    networks = toy_networks()
    sums = compute_gradients(0, networks, LOSS, None, toy_batches(), toy_config(), ALONE)
    assert all(p.grad is None for p in networks.critic.parameters())
    assert not sums.pulls.any()
    assert sums.terms[3:5].tolist() == [0, 0]


@EACH
def test_sums_of_a_step(quantizer):
    networks = toy_networks(quantizer)
    sums = compute_gradients(0, networks, LOSS, 0.3, toy_batches(), toy_config(accumulate=2), ALONE)
    images = toy_batches()(0, torch.arange(BATCH))[0]
    with torch.no_grad():
        made, quantized, z = networks.core(images)
        verdicts = networks.critic(images), networks.critic(made)
    terms = [
        sum_image_means((made - images).abs()),
        measure_perceptual_distance(toy_stages, made, images),
        quantized.loss,
    ]
    terms += [
        -sum_image_means(verdicts[1]),
        compute_hinge_loss(*verdicts),
        torch.tensor(float(BATCH)),
        torch.tensor(0.0),
    ]
    kept = [i for i in range(7) if quantizer != "lfq" or i != 2]
    torch.testing.assert_close(sums.terms[kept], torch.stack(terms).double()[kept], rtol=1e-5, atol=1e-5)
    assert torch.equal(sums.codes, quantized.tokens.flatten().bincount(minlength=len(sums.codes)).double())
    codebook = networks.codebook
    assert (codebook is None) == (sums.table is None) == (sums.candidates is None)
    if codebook is not None:
        torch.testing.assert_close(sums.table, codebook.sum_latents(z, quantized.tokens))
        distance = (sums.candidates[:, :, None] - z.flatten(2)).abs().amax(1).amin(1)
        assert distance.max() < 1e-5  # each is a latent of the same image


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (1, 4), (2, 2), (3, 2)])
def test_every_row_is_taken_once(ranks, accumulate):
    config = toy_config(accumulate=accumulate)
    taken = [
        row
        for r in range(ranks)
        for rows in split_rows(config.batch_size, config.accumulate, World(r, ranks, ALONE.device))
        for row in rows.tolist()
    ]
    assert sorted(taken) == list(range(BATCH))


@pytest.mark.parametrize("strength", [1.0, 1e-4])
def test_the_adversarial_weight_is_equation_7_one_step_later(tmp_path, strength):
    """Include a discriminator gradient so small that the 1e-4 in the denominator matters."""

    def networks():
        made = toy_networks()
        with torch.no_grad():
            list(made.critic.parameters())[-2].mul_(strength)
        return made

    loss, frozen = replace(LOSS, start=0.0, adversarial=0.8, ceiling=1e9), Constant(warmup=10**9)
    _, pull, push = (x / BATCH if isinstance(x, Tensor) else x for x in direct(networks(), 0.0, loss))
    assert (float(push.norm()) < 1e-3) == (strength < 1)
    toy_train(tmp_path, toy_config(steps=2, learning_rate=frozen), networks(), loss=loss)
    ratio = float(pull.norm() / (push.norm() + 1e-4))
    assert [line["adversarial_weight"] for line in toy_metrics(tmp_path)] == [0.0, pytest.approx(0.8 * ratio, rel=1e-4)]


def test_the_adversarial_weight_has_a_ceiling(tmp_path):
    toy_train(tmp_path, toy_config(steps=2), loss=replace(LOSS, start=0.0, adversarial=0.8, ceiling=0.01))
    assert toy_metrics(tmp_path)[1]["adversarial_weight"] == pytest.approx(0.8 * 0.01)


def test_the_discriminator_starts_when_it_should(tmp_path):
    toy_train(tmp_path, toy_config())
    lines = toy_metrics(tmp_path)
    assert [line["step"] for line in lines if line["discriminator"] > 0] == list(range(7, STEPS + 1))
    assert [line["step"] for line in lines if line["adversarial_weight"] > 0] == list(range(8, STEPS + 1))


def test_a_run_without_adversary_or_features(tmp_path):
    before = everything(toy_networks())
    networks = toy_networks()
    networks = Networks(networks.model, networks.discriminator, None)
    toy_train(tmp_path, toy_config(), networks, loss=replace(LOSS, adversarial=0.0))
    after = everything(networks)
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("discriminator."))
    assert not any(torch.equal(before[n], after[n]) for n in before if n.startswith("model.decoder"))
    lines = toy_metrics(tmp_path)
    assert all(line["perceptual"] == line["adversarial"] == line["discriminator"] == 0 for line in lines)


def test_lines_are_means_over_all_images_since_the_last(tmp_path):
    """With constant weights, a line over three steps equals the metrics of their images together."""
    frozen = Constant(warmup=10**9)
    toy_train(tmp_path, toy_config(steps=3, log_every=3, learning_rate=frozen))
    (line,) = toy_metrics(tmp_path)
    networks = toy_networks()
    images = torch.cat([toy_batches()(step, torch.arange(BATCH))[0] for step in range(3)])
    with torch.no_grad():
        made, quantized, _ = networks.core(images)
    assert line["pixel"] == pytest.approx(float((made - images).abs().mean()), rel=1e-4)
    p = quantized.tokens.flatten().bincount(minlength=60) / quantized.tokens.numel()
    assert line["usage"] == pytest.approx(float((p > 0).float().mean()), abs=0.02)
    assert line["perplexity"] == pytest.approx(float(torch.special.entr(p).sum().exp()), rel=1e-2)


def test_code_use():
    assert measure_code_use(torch.tensor([3.0, 3, 3, 3])) == {"usage": 1.0, "perplexity": pytest.approx(4.0)}
    assert measure_code_use(torch.tensor([0.0, 5, 0, 0])) == {"usage": 0.25, "perplexity": pytest.approx(1.0)}


def test_a_codebook_starts_at_the_first_batch():
    results = []
    for accumulate in (1, 4):
        networks = toy_networks("vq")
        start_codebook(networks, toy_batches(), toy_config(accumulate=accumulate), ALONE)
        results.append(networks.codebook.table.detach().clone())
    torch.testing.assert_close(*results)
    reference = toy_networks("vq")
    with torch.no_grad():
        z = reference.core.encode_latents(toy_batches()(0, torch.arange(BATCH))[0])
    reference.codebook.start(z.flatten(2).transpose(1, 2).flatten(0, 1))
    torch.testing.assert_close(results[0], reference.codebook.table.detach())
    assert len(reference.core.quantizer(z).tokens.unique()) > 40


# -- it learns ---------------------------------------------------------------------------------------------------------


@EACH
def test_it_learns(tmp_path, quantizer):
    config = toy_config(steps=60, log_every=15)
    networks, ema = toy_train(tmp_path, config, toy_networks(quantizer))
    first, *_, last = toy_metrics(tmp_path)
    assert last["pixel"] < 0.6 * first["pixel"]
    assert last["usage"] > 0.4
    with ema.swap_weights(), torch.no_grad():
        images = toy_pictures().read_rows(torch.arange(40), ALONE.device)[0]
        made = networks.core.decode(networks.core.encode(images))
    spread = (images - images.mean(0)).abs().mean()
    assert (made - images).abs().mean() < 0.6 * spread


def test_muon_is_an_optimizer_too(tmp_path):
    toy_train(tmp_path, toy_config(steps=10, optimizer=Muon()), loss=replace(LOSS, adversarial=0.0))
    assert toy_metrics(tmp_path)[-1]["pixel"] < toy_metrics(tmp_path)[0]["pixel"]


# -- resuming ----------------------------------------------------------------------------------------------------------


@EACH
def test_resuming_gives_the_bits_of_the_uninterrupted_run(tmp_path, quantizer):
    """Cut before and after the start of the discriminator, and between two lines of metrics.jsonl."""
    config = toy_config(save_every=1, log_every=5, evaluate_every=4)
    whole = everything(*toy_train(tmp_path / "whole", config, toy_networks(quantizer), more=[nothing]))
    for step in (2, 6, 9):
        with pytest.raises(Cut):
            toy_train(tmp_path / "cut", config, toy_networks(quantizer), batches=stopping(step, cut), more=[nothing])
    again = everything(*toy_train(tmp_path / "cut", config, toy_networks(quantizer), more=[nothing]))
    assert equal(again, whole)
    assert state(tmp_path / "cut", STEPS) == state(tmp_path / "whole", STEPS)
    assert toy_metrics(tmp_path / "cut") == toy_metrics(tmp_path / "whole")
    assert [line["step"] for line in toy_metrics(tmp_path / "cut")] == [4, 5, 8, 10, 12, 12]


@pytest.mark.parametrize("lost", ["ratio", "log.used", "buffer.quantizer.count"])
def test_a_checkpoint_without_any_of_its_parts_would_be_seen(tmp_path, lost, monkeypatch):
    """Otherwise equal bits would prove nothing."""
    config = toy_config(save_every=1, log_every=5)
    toy_train(tmp_path / "whole", config, toy_networks("vq"))
    with pytest.raises(Cut):
        toy_train(tmp_path / "cut", config, toy_networks("vq"), batches=stopping(8, cut))

    def forgetful(found, tensors, *, sharded):
        before = tensors[lost].clone()
        load_checkpoint(found, tensors, sharded=sharded)
        tensors[lost].copy_(before)

    monkeypatch.setattr("unmask.training.steps.load_checkpoint", forgetful)
    toy_train(tmp_path / "cut", config, toy_networks("vq"))
    same = state(tmp_path / "cut", STEPS) == state(tmp_path / "whole", STEPS)
    assert not (same and toy_metrics(tmp_path / "cut") == toy_metrics(tmp_path / "whole"))


def test_a_damaged_newest_checkpoint_is_named(tmp_path, capsys):
    config = toy_config(save_every=4)
    with pytest.raises(Cut):
        toy_train(tmp_path, config, batches=stopping(10, cut))
    (tmp_path / "checkpoints/step-00000008/state.safetensors").write_bytes(b"")
    capsys.readouterr()
    toy_train(tmp_path, config)
    said = capsys.readouterr().out
    assert "step-00000008 is damaged" in said
    assert "continuing after step 4" in said
    toy_train(tmp_path, config, batches=stopping(STEPS, cut))  # finished: no batch is read
    assert f"all {STEPS} steps are done already" in capsys.readouterr().out


def test_a_checkpoint_of_another_tokenizer_is_refused(tmp_path):
    toy_train(tmp_path, toy_config(steps=2))
    with pytest.raises(CheckpointError, match="of another model"):
        toy_train(tmp_path, toy_config(steps=4), toy_networks("vq"))


@pytest.mark.parametrize("step", [2, 8])
def test_a_signal_saves_at_the_end_of_the_step_and_the_same_call_continues(tmp_path, step):
    config = toy_config(log_every=5)
    toy_train(tmp_path / "whole", config)
    batches = stopping(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match=f"after step {step + 1}; saved"):
        toy_train(tmp_path / "cut", config, batches=batches)
    assert [p.name for p in (tmp_path / "cut/checkpoints").iterdir()] == [f"step-{step + 1:08d}"]
    toy_train(tmp_path / "cut", config)
    assert state(tmp_path / "cut", STEPS) == state(tmp_path / "whole", STEPS)
    assert toy_metrics(tmp_path / "cut") == toy_metrics(tmp_path / "whole")


def test_more_steps_continue_a_finished_run(tmp_path, capsys):
    toy_train(tmp_path, toy_config(steps=4, log_every=4))
    toy_train(tmp_path, toy_config(steps=8, log_every=4))
    said = capsys.readouterr().out
    assert "continuing after step 4 (of 4 before) to 8; the learning rate follows the schedule of 8 steps" in said
    assert [line["step"] for line in toy_metrics(tmp_path)] == [4, 8]


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantizer", "step"), [("fsq", 3), ("fsq", 8), ("vq", 8), ("vq-gradient", 3), ("lfq", 3)])
def test_nothing_non_finite_reaches_the_weights(tmp_path, quantizer, step):
    bad, good = toy_networks(quantizer), toy_networks(quantizer)
    config = toy_config(accumulate=2, save_every=2)
    with pytest.raises(NonFiniteError, match=rf"step {step}: pixel nan, .* gradient norm nan, from rows \[6\] of"):
        toy_train(tmp_path / "bad", config, bad, batches=poisoned(step, 6))
    with pytest.raises(Cut):
        toy_train(tmp_path / "good", config, good, batches=stopping(step, cut))
    assert equal(everything(bad), everything(good))
    assert toy_metrics(tmp_path / "bad") == toy_metrics(tmp_path / "good")


def test_a_sick_network_is_not_blamed_on_a_row():
    networks = toy_networks()
    batches, config = toy_batches(), toy_config()
    assert find_cause(0, 1.0, networks, LOSS, 0.1, batches, config, ALONE).startswith("no single row")
    with torch.no_grad():
        next(networks.critic.parameters()).fill_(torch.inf)
    assert find_cause(0, 1.0, networks, LOSS, None, batches, config, ALONE).startswith("no single row")
    assert find_cause(0, 1.0, networks, LOSS, 0.1, batches, config, ALONE).startswith("the weights: discriminator.")


def test_a_collapse_is_said_once(tmp_path, capsys):
    networks = toy_networks()
    with torch.no_grad():
        networks.core.before.weight.zero_()
    frozen = Constant(warmup=10**9)
    toy_train(tmp_path / "collapsed", toy_config(log_every=4, learning_rate=frozen), networks)
    assert capsys.readouterr().out.count("only 1.7% of 60 codes are in use: the codebook collapses") == 1
    toy_train(tmp_path / "short", toy_config(log_every=1, steps=2, learning_rate=frozen), networks)
    assert "collapses" not in capsys.readouterr().out  # 256 tokens are too few for a codebook of 60


@pytest.mark.parametrize(
    ("config", "loss", "here", "words"),
    [
        ({"strategy": "fsdp"}, {}, TWO, "tokenizers are small enough for ddp"),
        ({"batch_size": 4, "accumulate": 4}, {}, TWO, "batch_size 4 leaves some of 2 processes x 4"),
        (
            {},
            {"discriminator": PatchGAN(layers=2)},
            ALONE,
            "layers 2 needs images of 12 pixels or more per side, not 8x8",
        ),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, config, loss, here, words):
    with pytest.raises(ConfigError, match=words):
        toy_train(tmp_path, toy_config(**config), here=here, loss=replace(LOSS, **loss))


def test_bfloat16_trains_and_picks_codes_in_float32(tmp_path):
    networks, _ = toy_train(tmp_path, toy_config(precision="bf16"), toy_networks("vq"))
    assert isinstance(networks.core.quantizer, Codebook)
    assert all(x.isfinite().all() and x.dtype == torch.float32 for x in everything(networks).values())
    assert toy_metrics(tmp_path)[-1]["pixel"] < toy_metrics(tmp_path)[0]["pixel"]


# -- micro-batches and ranks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return job(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("quantizer", ["fsq", "vq", "vq-gradient"])
@pytest.mark.parametrize("name", ["1-4", "2-1", "2-2"])
def test_micro_batches_and_ranks_change_nothing(runs, quantizer, name):
    reference = load_file(runs / f"{quantizer}-1-1-rank0.safetensors")
    other = load_file(runs / f"{quantizer}-{name}-rank0.safetensors")
    assert reference.keys() == other.keys()
    assert max(float((reference[n] - other[n]).abs().max()) for n in reference) <= 1e-8
    lines = toy_metrics(runs / f"{quantizer}-1-1")
    for a, b in zip(lines, toy_metrics(runs / f"{quantizer}-{name}"), strict=True):
        assert b == pytest.approx(a, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("quantizer", ["fsq", "vq", "vq-gradient"])
def test_the_runs_learned_something(runs, quantizer):
    """Otherwise runs that do nothing would agree too."""
    start, after = everything(toy_networks(quantizer)), load_file(runs / f"{quantizer}-1-1-rank0.safetensors")
    for part in ("model.encoder", "model.decoder", "discriminator"):
        assert max(float((after[n] - x).abs().max()) for n, x in start.items() if n.startswith(part)) > 5e-3
    if quantizer != "fsq":
        assert float((after["model.quantizer.table"] - start["model.quantizer.table"]).abs().max()) > 0.1


@pytest.mark.parametrize("quantizer", ["fsq", "vq", "vq-gradient"])
def test_ranks_hold_the_same_bits(runs, quantizer):
    first, second = (load_file(runs / f"{quantizer}-2-2-rank{rank}.safetensors") for rank in (0, 1))
    assert equal(first, second)


def test_nan_on_one_rank_stops_all_before_the_step(runs):
    messages = {(runs / f"nan-{rank}").read_text() for rank in (0, 1)}
    assert len(messages) == 1
    assert "from rows [5] of the batch" in messages.pop()
    first, second = (load_file(runs / f"nan-rank{rank}.safetensors") for rank in (0, 1))
    assert equal(first, second)
    assert all(x.isfinite().all() for x in first.values())
