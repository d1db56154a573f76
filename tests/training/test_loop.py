"""Check the training loop on a toy: the same call resumes a run and gives the same bits, whatever ended the run."""

import json
import os
import signal

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from toy_run import (
    ADAMW,
    ALONE,
    BATCH,
    MUON,
    Cut,
    cut,
    job,
    metrics,
    poisoned,
    state,
    stopping,
    toy_batches,
    toy_config,
    toy_data,
    toy_experiment,
    toy_model,
    toy_train,
    toy_validation,
)

from unmask.decoding.sampling import Sampling
from unmask.errors import CheckpointError, ConfigError, NonFiniteError, Preempted
from unmask.experiments import validation
from unmask.experiments.validation import ACCURACY_RATIOS, sample_evaluator
from unmask.method.masking import mask_exact
from unmask.method.objectives import Loss, MaskGIT
from unmask.method.rand import seeded
from unmask.pipelines.image import Pipeline
from unmask.runtime.distributed import World
from unmask.runtime.signals import STOPPING, stop_on_signal
from unmask.training.curve import read_metrics
from unmask.training.log import TrainLog
from unmask.training.loop import TrainConfig
from unmask.training.optim import Constant, CosineDecay
from unmask.training.steps import describe_resume

BOTH = pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon"])


FROZEN = CosineDecay(warmup=10**9)


def adamw_state(run, step):
    """Return the first moments in a checkpoint."""
    tensors = load_file(run / f"checkpoints/step-{step:08d}/state.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.endswith(".exp_avg")}


def nothing(model):
    """Return an evaluator that writes one line to metrics.jsonl."""
    return lambda: [("half", 0.5)]


def cut_at(run, config, step, **more):
    with pytest.raises(Cut):
        toy_train(run, config, batches=stopping(step, cut), **more)


# -- resuming ----------------------------------------------------------------------------------------------------------


@BOTH
def test_resuming_gives_the_bits_of_the_uninterrupted_run(tmp_path, optimizer):
    """Cut twice, once between two lines of metrics.jsonl, so that the checkpoint must hold the window of losses."""
    config = toy_config(optimizer=optimizer, save_every=1, log_every=3, evaluate_every=4)
    more = {"evaluators": [nothing]}
    whole_model, whole_average = toy_train(tmp_path / "whole", config, **more)
    cut_at(tmp_path / "cut", config, 2, **more)
    cut_at(tmp_path / "cut", config, 7, **more)
    model, average = toy_train(tmp_path / "cut", config, **more)
    assert state(tmp_path / "cut", 12) == state(tmp_path / "whole", 12)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole_model.parameters(), strict=True))
    assert all(torch.equal(a, whole_average.average[n]) for n, a in average.average.items())
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert [r["step"] for r in metrics(tmp_path / "cut")] == [3, 4, 6, 8, 9, 12, 12]


def test_steps_after_the_last_checkpoint_are_done_again_without_double_lines(tmp_path):
    config = toy_config(save_every=5)
    toy_train(tmp_path / "whole", config)
    cut_at(tmp_path / "cut", config, 8)
    assert [r["step"] for r in metrics(tmp_path / "cut")] == list(range(1, 9))
    toy_train(tmp_path / "cut", config)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert state(tmp_path / "cut", 12) == state(tmp_path / "whole", 12)


def test_another_seed_gives_other_bits(tmp_path):
    """Otherwise equal bits would prove nothing."""
    for seed in (0, 1):
        toy_train(tmp_path / str(seed), toy_config(seed=seed))
    assert state(tmp_path / "0", 12) != state(tmp_path / "1", 12)


def test_a_run_without_its_optimizer_state_would_be_seen(tmp_path, monkeypatch):
    config = toy_config(save_every=6)
    toy_train(tmp_path / "whole", config)
    monkeypatch.setattr("unmask.training.loop.collect_optimizer_state", lambda optimizers, model: {})
    cut_at(tmp_path / "cut", config, 8)
    model, _ = toy_train(tmp_path / "cut", config)
    monkeypatch.undo()
    reference, _ = toy_train(tmp_path / "whole", config)  # finished: loads the weights and does nothing
    distance = max(
        float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), reference.parameters(), strict=True)
    )
    assert distance > 1e-3


def test_a_finished_run_stays_as_it_is(tmp_path):
    config = toy_config()
    first, _ = toy_train(tmp_path, config)
    lines = (tmp_path / "metrics.jsonl").read_text()
    again, _ = toy_train(tmp_path, config, batches=stopping(12, cut))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_more_steps_continue_a_finished_run_on_the_longer_schedule(tmp_path, capsys):
    toy_train(tmp_path / "whole", toy_config(steps=9))
    toy_train(tmp_path / "grown", toy_config(steps=5))
    capsys.readouterr()
    toy_train(tmp_path / "grown", toy_config(steps=9))
    assert (
        "continuing after step 5 (of 5 before) to 9; the learning rate follows the schedule of 9 steps"
        in capsys.readouterr().out.splitlines()
    )
    rows, whole = metrics(tmp_path / "grown"), metrics(tmp_path / "whole")
    assert [r["step"] for r in rows] == list(range(1, 10))
    rates, long_rates = ([r["learning_rate"] for r in one] for one in (rows, whole))
    assert rates[5:] == long_rates[5:]
    assert rates[4] < long_rates[5] == rates[5] < long_rates[4]  # the short one had decayed
    toy_train(tmp_path / "grown", toy_config(steps=9))
    assert "all 9 steps are done already" in capsys.readouterr().out


def test_more_steps_at_a_constant_rate_are_the_bits_of_the_longer_run(tmp_path):
    for run, steps in (("whole", 9), ("grown", 5), ("grown", 9)):
        toy_train(tmp_path / run, toy_config(steps=steps, learning_rate=Constant(warmup=3)))
    assert state(tmp_path / "grown", 9) == state(tmp_path / "whole", 9)


def test_a_resumed_run_says_what_differs_and_what_stays():
    def facts(**changes):
        place = {
            "processes": 1,
            "threads": 2,
            "hardware": "A",
            "torch": "2.9",
            "command": "x",
            "commit": "a",
            **changes,
        }
        return {"steps": 9, "environment": place, "recipe": {"training": {"steps": 9, "precision": "fp32"}}}

    assert describe_resume(4, 9, facts(), facts(command="y")) == ["continuing after step 4"]
    first, second = describe_resume(4, 9, facts(), facts(processes=4, threads=1))
    assert first == "continuing after step 4"
    assert second.startswith("processes 4 now, 1 before; threads 1 now, 2 before: data, masks and noise stay the same")
    assert describe_resume(4, 9, {}, facts()) == ["continuing after step 4"]  # of an early version
    old = {"recipe": {"training": {"steps": 1000}}}
    assert "after step 1,000 (of 1,000 before) to 1,500" in describe_resume(1000, 1500, old, {})[0]


def test_kill_9_at_any_time_and_inside_a_save_changes_no_bit(tmp_path):
    job("kills", tmp_path)
    numbers = json.loads((tmp_path / "kills.json").read_text())
    assert numbers["kills"] == 12
    assert numbers["leftovers"] >= 2, "no kill came in the middle of a save, so the campaign shows too little"
    for number in range(numbers["runs"]):
        run = tmp_path / f"killed-{number}"
        assert state(run, 40) == state(tmp_path / "whole", 40)
        assert metrics(run) == metrics(tmp_path / "whole")
        assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-00000038", "step-00000040"]


@pytest.mark.parametrize("where", ["payload", "manifest"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, where):
    config = toy_config(save_every=4)
    toy_train(tmp_path / "whole", config)
    cut_at(tmp_path / "cut", config, 10)
    newest = tmp_path / "cut/checkpoints/step-00000008"
    path = newest / ("state.safetensors" if where == "payload" else "manifest.json")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    capsys.readouterr()
    toy_train(tmp_path / "cut", config)
    said = capsys.readouterr().out
    assert "step-00000008 is damaged" in said
    assert "continuing after step 4" in said
    assert state(tmp_path / "cut", 12) == state(tmp_path / "whole", 12)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_nothing_but_damage_is_an_error_and_not_a_fresh_start(tmp_path):
    cut_at(tmp_path, toy_config(save_every=4), 10)
    for path in (tmp_path / "checkpoints").glob("*/state.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="all 2 checkpoints"):
        toy_train(tmp_path, toy_config())


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_saves_at_the_end_of_the_step_and_the_same_call_continues(tmp_path, number):
    config = toy_config(log_every=5)
    toy_train(tmp_path / "whole", config)
    before = [signal.getsignal(n) for n in STOPPING]
    with pytest.raises(Preempted, match="after step 7; saved"):
        toy_train(tmp_path / "cut", config, batches=stopping(6, lambda: os.kill(os.getpid(), number)))
    assert [signal.getsignal(n) for n in STOPPING] == before
    assert [p.name for p in (tmp_path / "cut/checkpoints").iterdir()] == ["step-00000007"]
    toy_train(tmp_path / "cut", config)
    assert state(tmp_path / "cut", 12) == state(tmp_path / "whole", 12)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_signal_in_the_last_step_is_a_finished_run(tmp_path):
    toy_train(tmp_path, toy_config(), batches=stopping(11, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert state(tmp_path, 12)


def test_a_second_signal_is_not_caught():
    with stop_on_signal() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.asked
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_closing_a_terminal_sends_several_signals_and_is_one_stop():
    with stop_on_signal() as flag:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert flag.asked


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as flag:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not flag.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# -- NaN ---------------------------------------------------------------------------------------------------------------


def infinite_gradient(model, tokens, condition, *, mask_id, rand):
    """Return a finite loss with an infinite gradient: the square root at 0."""
    loss = MaskGIT()(model, tokens, condition, mask_id=mask_id, rand=rand)
    return Loss(loss.total + (loss.total * 0).sqrt(), loss.count) if rand.step == 3 else loss


def everywhere(model, tokens, condition, *, mask_id, rand):
    loss = MaskGIT()(model, tokens, condition, mask_id=mask_id, rand=rand)
    return Loss(loss.total * torch.inf, loss.count) if rand.step == 3 else loss


def nan_of_the_batch(model, tokens, condition, *, mask_id, rand):
    """Return a loss that is NaN for several rows together and finite for each row alone, with finite gradients."""
    loss = MaskGIT()(model, tokens, condition, mask_id=mask_id, rand=rand)
    bad = torch.tensor(torch.nan if rand.step == 3 and len(tokens) > 1 else 0.0)
    return Loss(loss.total + bad, loss.count)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(
    ("objective", "where"),
    [
        (poisoned(3, 6), r"rows \[6\]"),
        (infinite_gradient, "no single row"),
        (everywhere, "every row"),
        (nan_of_the_batch, "the loss of the whole batch"),
    ],
    ids=["row", "gradient", "all", "value"],
)
def test_nothing_non_finite_reaches_weights_or_disk(tmp_path, objective, where, accumulate):
    config = toy_config(accumulate=accumulate, save_every=2)
    bad = toy_model()
    with pytest.raises(NonFiniteError, match=f"step 3: loss .* gradient norm .* {where}"):
        toy_train(tmp_path / "bad", config, objective=objective, model=bad)
    good = toy_model()
    with pytest.raises(Cut):
        toy_train(tmp_path / "good", config, batches=stopping(3, cut), model=good)
    assert all(torch.equal(a, b) for a, b in zip(bad.parameters(), good.parameters(), strict=True))
    assert [p.name for p in (tmp_path / "bad/checkpoints").iterdir()] == ["step-00000002"]
    assert state(tmp_path / "bad", 2) == state(tmp_path / "good", 2)
    assert metrics(tmp_path / "bad") == metrics(tmp_path / "good")
    toy_train(tmp_path / "bad", config)  # from step 2 on, with a sound objective
    toy_train(tmp_path / "good", config)
    assert state(tmp_path / "bad", 12) == state(tmp_path / "good", 12)


# -- what the loop computes --------------------------------------------------------------------------------------------


def test_the_first_line_is_loss_and_gradient_norm_of_the_first_batch(tmp_path):
    toy_train(tmp_path, toy_config(steps=1, accumulate=4))
    model = toy_model()
    tokens, condition = toy_batches()(0, torch.arange(BATCH))
    loss = MaskGIT()(model, tokens, condition, mask_id=16, rand=seeded(0, BATCH))
    mean = loss.total / loss.count
    mean.backward()
    gradient_norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    line = metrics(tmp_path)[0]
    assert line["loss"] == pytest.approx(float(mean.detach()), rel=1e-6)
    assert line["gradient_norm"] == pytest.approx(float(gradient_norm), rel=1e-5)


def test_a_line_is_the_mean_over_all_tokens_since_the_last(tmp_path):
    toy_train(tmp_path, toy_config(steps=3, log_every=3, learning_rate=FROZEN))
    sums = torch.zeros(2, dtype=torch.float64)
    for step in range(3):
        tokens, condition = toy_batches()(step, torch.arange(BATCH))
        loss = MaskGIT()(toy_model(), tokens, condition, mask_id=16, rand=seeded(0, BATCH).at(step))
        sums += torch.stack([loss.total.detach().double(), loss.count.double()])
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(float(sums[0] / sums[1]), rel=1e-4)


def test_gradients_are_clipped_to_the_norm(tmp_path):
    """Check that a clip far below the gradient scales AdamW's first moment by clip / norm."""
    moments = {}
    for clip in (1e9, 1e-3):
        toy_train(tmp_path / str(clip), toy_config(steps=1, clip=clip))
        moments[clip] = adamw_state(tmp_path / str(clip), 1)
    norm = metrics(tmp_path / "1000000000.0")[0]["gradient_norm"]
    for name, moment in moments[1e9].items():
        torch.testing.assert_close(moments[1e-3][name], moment * (1e-3 / norm), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"batch_size": 10, "accumulate": 4}, "10 must be a multiple of accumulate 4"),
        ({"keep": 1}, "keep 1"),
        ({"clip": 0.0}, r"clip 0\.0"),
        ({"ema": 1.0}, r"ema 1\.0"),
    ],
)
def test_numbers_that_cannot_work_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**changes)


def test_a_batch_too_small_for_the_processes_is_refused(tmp_path):
    two = World(0, 2, torch.device("cpu"))
    config = toy_config(batch_size=4, accumulate=4)
    with pytest.raises(ConfigError, match="batch_size 4 leaves some of 2 processes x 4"):
        toy_train(tmp_path, config, two)


# -- validation --------------------------------------------------------------------------------------------------------


def test_validation_is_the_mean_over_held_out_tokens():
    model, data = toy_model().eval(), toy_data(21)
    with torch.no_grad():
        numbers = dict(toy_validation(ALONE)(model)())
        rand = seeded(1, 21)
        loss = MaskGIT(drop=0.0)(model, data.tokens, data.condition, mask_id=16, rand=rand)
        assert numbers["validation_loss"] == pytest.approx(float(loss.total / loss.count), rel=1e-6)
        for ratio in ACCURACY_RATIOS:
            mask = mask_exact(torch.full((21,), ratio, dtype=torch.float64), rand("mask", 6))
            guess = model(torch.where(mask, 16, data.tokens), data.condition).argmax(-1)
            right = (guess == data.tokens)[mask].double().mean()
            assert numbers[f"accuracy_masked_{round(100 * ratio)}"] == pytest.approx(float(right))
        assert dict(toy_validation(ALONE)(model)()) == numbers


def test_evaluation_sees_the_average_in_eval_mode_and_changes_nothing(tmp_path):
    seen = []

    def spy(model):
        def evaluate():
            assert not model.training
            assert not torch.is_grad_enabled()
            seen.append([p.detach().clone() for p in model.parameters()])
            yield "one", 1.0

        return evaluate

    config = toy_config(evaluate_every=6)
    model, ema = toy_train(tmp_path / "seen", config, evaluators=[spy])
    toy_train(tmp_path / "blind", config)
    assert len(seen) == 2
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(seen[-1], ema.average.values(), strict=True))
    assert state(tmp_path / "seen", 12) == state(tmp_path / "blind", 12)


def test_the_grid_of_samples_is_written_and_always_of_the_same_seed(tmp_path):
    def grid(model):
        return sample_evaluator(Pipeline(model, toy_experiment().recipe.tokenizer, Sampling(steps=3)), "fp32", ALONE)

    toy_train(tmp_path, toy_config(evaluate_every=6), evaluators=[grid])
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["samples-00000006.png", "samples-00000012.png"]
    model = toy_model().eval()
    (name, first), (_, second) = (next(iter(grid(model)())) for _ in range(2))
    assert name == "samples"
    assert isinstance(first, Image.Image)
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(("few", "num"), [(0, 50), (-1, 10)])
def test_pictures_of_many_tokens_are_shown_in_one_row(few, num, monkeypatch):
    """Sampling one such image is slow: on a CPU, fifty would take longer than the steps in between."""
    asked = []

    def drawn(self, *, num):
        asked.append(num)
        return torch.zeros(num, 1, 8, 8)

    pipeline = Pipeline(toy_model(), toy_experiment().recipe.tokenizer, Sampling())
    monkeypatch.setattr(validation, "FEW_TOKENS", pipeline.model.length + few)
    monkeypatch.setattr(Pipeline, "generate", drawn)
    next(iter(sample_evaluator(pipeline, "fp32", ALONE)()))
    assert asked == [num]


# -- the log -----------------------------------------------------------------------------------------------------------


def test_a_line_cut_short_by_a_kill_goes_with_all_after_the_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "seconds": s / 10, "loss": 1.0} for s in (1, 2, 3)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 4, "sec')
    with TrainLog(tmp_path, steps=9, start=2) as log:
        log.record(3, {"loss": 2.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in lines] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert 0.2 <= lines[-1]["seconds"] < 5  # the clock continues from step 2


def write_curve(path, *lines):
    path.write_bytes(b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines))


def row_of(step):
    return json.dumps({"step": step, "seconds": step / 10, "loss": 1.0}).encode()


DAMAGED = [b"\xff", b'{"step": 2, \xff"seconds": 1}', row_of(2)[:9], b"[" * 10_000, b"3", b"null", b"\0" * 40]
DAMAGED += [b'{"stfp": 2, "seconds": 1.0}', b'{"step": 2}', b'{"step": "2", "seconds": 1}']
DAMAGED += [b'{"step": 2, "seconds": null}', b'{"step": 2, "seconds": 1, "loss": "x"}']


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_line_is_named_and_costs_that_line_only(tmp_path, capsys, damage):
    path = tmp_path / "metrics.jsonl"
    write_curve(path, row_of(1), damage, row_of(3), row_of(4))
    for _ in range(2):  # the second time nothing is damaged any more
        with TrainLog(tmp_path, steps=9, start=4) as log:
            log.say("resumed")
    said = capsys.readouterr().out
    assert said.count("resumed") == 2
    assert said.count(f"{path} is damaged in line 2: these lines are left out") == 1
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3, 4]


@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "none"])
def test_a_curve_that_was_cut_or_changed_is_named(tmp_path, capsys, damage):
    config = toy_config(save_every=4, log_every=1)
    cut_at(tmp_path, config, 6)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    changed = {"missing": b"", "cut": b"".join(lines[:3]), "none": b"".join(lines)}
    path.write_bytes(changed.get(damage, b"".join([lines[0].replace(b'"loss": ', b'"loss": 1'), *lines[1:]])))
    if damage == "missing":
        path.unlink()
    capsys.readouterr()
    toy_train(tmp_path, config)
    line = f"{path} is not as step 4 left it: a part of the curve is missing or was changed"
    assert (line in capsys.readouterr().out) == (damage != "none")


def test_a_resumed_run_keeps_the_curve_bit_for_bit(tmp_path):
    config = toy_config(save_every=4, log_every=1)
    cut_at(tmp_path, config, 8)
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + b"\xff")  # one bad byte once stopped every resume
    toy_train(tmp_path, config)
    assert path.read_bytes().startswith(before)
    assert [r["step"] for r in metrics(tmp_path)] == list(range(1, 13))


def test_many_damaged_lines_are_one_line(tmp_path):
    path, notes = tmp_path / "metrics.jsonl", []
    write_curve(path, *[b"x"] * 8, row_of(1))
    assert [row["step"] for row in read_metrics(path, report=notes.append)] == [1]
    assert len(notes) == 1
    assert "in line 1, 2, 3, 4, 5 and 3 more" in notes[0]
    assert read_metrics(tmp_path / "none", report=notes.append) == []


def test_a_silent_log_writes_and_says_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with TrainLog(None, steps=3) as log:
        log.say("hello")
        log.record(1, {"loss": 1.0})
        log.save_picture(1, "x", Image.new("L", (2, 2)))
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())
