"""Saving in the background: what is saved is the state of its step, one save runs at a time, and none is lost."""

import errno
import os
import threading
from unittest import mock

import pytest
import torch
from toy_run import ALONE, Cut, cut, poisoned, state, stopping, toy_config, toy_model, toy_train

from unmask.errors import DiskError, NonFiniteError, Preempted
from unmask.runtime.distributed import World
from unmask.training import checkpoint, runfolder, saving
from unmask.training.ema import Ema
from unmask.training.runfolder import find_latest_checkpoint, is_known_complete, verify_checkpoint
from unmask.training.saving import Saver, find_non_finite

META = {"recipe": {}}


def save(saver, root, step, tensors):
    saver.save(root, step, tensors, META, sharded=False, world=ALONE, keep=2)


@pytest.fixture
def gate(monkeypatch):
    """Hold every background save until the event is set."""
    event, real = threading.Event(), saving.save_checkpoint

    def wait_then_save(*args, **options):
        assert event.wait(60)
        return real(*args, **options)

    monkeypatch.setattr(saving, "save_checkpoint", wait_then_save)
    return event


def test_what_is_saved_is_the_state_at_the_call(tmp_path, gate):
    tensors, saver = {"x": torch.ones(3), "tied": torch.ones(3)[:2], "n": torch.tensor(4)}, Saver()
    save(saver, tmp_path, 1, tensors)
    tensors["x"].fill_(7)  # as the next step of the training does
    assert not list(tmp_path.iterdir())
    gate.set()
    saver.wait()
    into = {name: torch.zeros_like(x) for name, x in tensors.items()}
    checkpoint.load_checkpoint(verify_checkpoint(tmp_path / "step-00000001"), into, sharded=False)
    assert into["x"].tolist() == [1, 1, 1]
    assert into["n"] == 4


def test_shards_are_written_by_the_ranks_that_wait_for_hours(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(saving, "save_checkpoint", lambda *arguments, **options: given.update(options))
    group = torch.distributed.ProcessGroup(0, 1)
    world = World(0, 1, torch.device("cpu"), patient=group)
    Saver().save(tmp_path, 1, {"x": torch.ones(3)}, META, sharded=True, world=world, keep=2)
    assert given["group"] is group


def test_one_save_runs_at_a_time(tmp_path, monkeypatch):
    running, most, real = [], [], saving.save_checkpoint

    def count(*args, **options):
        running.append(1)
        most.append(len(running))
        real(*args, **options)
        running.pop()

    monkeypatch.setattr(saving, "save_checkpoint", count)
    saver = Saver()
    for step in range(1, 9):
        save(saver, tmp_path, step, {"x": torch.full((1000,), float(step))})
    saver.wait()
    assert most == [1] * 8
    assert [path.name[-1] for path in runfolder.list_checkpoints(tmp_path)] == ["8", "7"]


def test_a_failed_save_is_raised_by_the_next_call_and_leaves_the_older_ones(tmp_path, monkeypatch):
    saver = Saver()
    save(saver, tmp_path, 1, {"x": torch.ones(3)})
    saver.wait()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "_write_whole", full)
    save(saver, tmp_path, 2, {"x": torch.ones(3)})
    saver._pending.exception()
    with pytest.raises(DiskError, match=r"step 2 could not be saved .* step-00000001 is kept"):
        saver.check()
    saver.check()
    saver.wait()  # said once
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_full_disk_stops_the_run_within_a_step(tmp_path, monkeypatch):
    """The thread is joined before the next step, so that the test does not depend on its speed."""
    monkeypatch.setattr(checkpoint, "_write_whole", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    real = Saver.save
    monkeypatch.setattr(Saver, "save", lambda self, *a, **k: (real(self, *a, **k), self._pending.exception()))
    with pytest.raises(DiskError, match="step 4 could not be saved"):
        toy_train(tmp_path, toy_config(save_every=4), batches=stopping(5, cut))


def test_a_run_that_ends_by_an_error_finishes_its_save_first(tmp_path, gate):
    config = toy_config(save_every=4)
    batches = stopping(5, lambda: (gate.set(), cut()))
    with pytest.raises(Cut):
        toy_train(tmp_path, config, batches=batches)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_two_errors_are_one_line(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_whole", full)
    monkeypatch.setattr(Saver, "check", lambda self: None)  # else the full disk would be the first error
    with pytest.raises(NonFiniteError, match=r"step 5: loss nan.*; also, step 4 could not be saved") as caught:
        toy_train(tmp_path, toy_config(save_every=4), objective=poisoned(5, 3))
    assert "\n" not in str(caught.value)


def test_a_signal_waits_for_the_save(tmp_path, gate):
    def act():
        gate.set()
        os.kill(os.getpid(), 15)

    with pytest.raises(Preempted, match="after step 6; saved"):
        toy_train(tmp_path, toy_config(save_every=4), batches=stopping(5, act))
    assert find_latest_checkpoint(tmp_path / "checkpoints", report=pytest.fail).step == 6


def test_a_state_larger_than_half_of_the_free_memory_is_saved_without_a_copy(tmp_path, monkeypatch):
    config = toy_config(save_every=5)
    toy_train(tmp_path / "copied", config)
    monkeypatch.setattr(saving, "measure_free_memory", lambda: 1000.0)
    monkeypatch.setattr(saving, "_copy_to_memory", lambda tensor: pytest.fail("copied"))
    toy_train(tmp_path / "direct", config)
    for step in (10, 12):
        assert state(tmp_path / "copied", step) == state(tmp_path / "direct", step)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory")])
def test_a_state_that_cannot_be_copied_is_saved_without_a_copy(tmp_path, monkeypatch, error):
    def refuse(tensor):
        raise error

    monkeypatch.setattr(saving, "_copy_to_memory", refuse)
    save(saver := Saver(), tmp_path, 1, {"x": torch.ones(3)})
    assert saver._pending is None  # and on the disk already
    verify_checkpoint(tmp_path / "step-00000001")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("free", [0.0, 1e15])
def test_ranks_wait_for_a_slow_save_at_barriers_only(tmp_path, monkeypatch, rank, free):
    """A barrier waits for hours; another collective operation would end a healthy run after minutes."""
    calls, saver, world = [], Saver(), World(rank, 2, torch.device("cpu"))
    monkeypatch.setattr(saving, "measure_free_memory", lambda: free)
    monkeypatch.setattr(saving, "barrier", lambda world: calls.append(("barrier", saver._pending is None)))
    monkeypatch.setattr(saving, "find_first_rank", lambda number, world: calls.append("reduce") or (-1, -1))
    monkeypatch.setattr(saving, "check_equal_weights", lambda tensors, step, world: None)
    monkeypatch.setattr(saving, "broadcast_text", lambda text, world: text)
    for step in (1, 2):
        saver.save(tmp_path, step, {"x": torch.ones(3)}, META, sharded=False, world=world, keep=2)
    waited = rank == 1 or free == 0
    assert calls == [("barrier", True), "reduce", ("barrier", waited)] * 2
    saver.wait()


def test_what_this_process_wrote_is_not_hashed_again(tmp_path, monkeypatch):
    """A save hashes its new bytes once; a checkpoint that somebody wrote to since is hashed again, and seen."""
    hashed, real = [], runfolder._describe_file

    def count(path):
        hashed.append(path.parent.name.split(".")[0])
        return real(path)

    monkeypatch.setattr(runfolder, "_describe_file", count)
    saver = Saver()
    for step in (1, 2, 3):
        save(saver, tmp_path, step, {"x": torch.ones(3)})
    saver.wait()
    assert hashed == ["step-00000001", "step-00000002", "step-00000003"]
    path = tmp_path / "step-00000003/state.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    save(saver, tmp_path, 4, {"x": torch.ones(3)})
    saver.wait()
    assert hashed[3:] == ["step-00000004", "step-00000003"]
    assert [path.name[-1] for path in runfolder.list_checkpoints(tmp_path)] == ["4", "3", "2"]
    assert not is_known_complete(tmp_path / "step-00000009", {})


def test_a_checkpoint_that_was_loaded_is_not_hashed_again(tmp_path, monkeypatch):
    toy_train(tmp_path, toy_config(steps=4))
    hashed, real = [], runfolder._describe_file
    monkeypatch.setattr(runfolder, "_describe_file", lambda path: (hashed.append(path.parent.name[:13]), real(path))[1])
    toy_train(tmp_path, toy_config(steps=8))
    assert hashed == ["step-00000004", "step-00000008"]


def test_the_first_tensor_that_is_not_finite_is_named():
    good, bad = torch.ones(3), torch.tensor([1.0, torch.inf])
    big = torch.full((1000,), 3e38)  # finite, but its sum is not
    half = torch.full((10,), 6e4, dtype=torch.float16)
    assert find_non_finite({"a": good, "big": big, "half": half, "n": torch.tensor(1)}, ALONE) is None
    assert find_non_finite({"a": good, "b": bad, "c": bad * torch.nan}, ALONE) == "b holds NaN or infinity"


def test_a_state_with_nan_is_not_saved_and_is_named(tmp_path):
    with pytest.raises(NonFiniteError, match="step 3: x holds NaN or infinity; no checkpoint was written"):
        save(Saver(), tmp_path, 3, {"y": torch.ones(2), "x": torch.tensor([torch.nan])})
    assert not list(tmp_path.iterdir())


def test_damaged_averages_are_named_before_they_are_evaluated(tmp_path):
    """The averages become NaN between two steps; without the check the evaluator would fail over its logits."""

    def update(self, step):
        if step == 5:
            next(iter(self.average.values())).fill_(torch.nan)

    with (
        mock.patch.object(Ema, "update", update),
        pytest.raises(NonFiniteError, match=r"step 6: averaged weights: .* holds NaN"),
    ):
        toy_train(tmp_path, toy_config(evaluate_every=6), evaluators=[lambda model: pytest.fail])


def test_damaged_weights_are_named_and_not_a_row(tmp_path):
    model = toy_model()
    name, weight = next((n, p) for n, p in model.named_parameters() if ".mlp." in n)

    def damage():
        weight.data[0, 0] = torch.nan

    with pytest.raises(NonFiniteError, match=f"step 3: loss nan, .* from the weights: {name} holds NaN"):
        toy_train(tmp_path, toy_config(save_every=2), model=model, batches=stopping(3, damage))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
