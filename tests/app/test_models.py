"""The page's models: which are offered, and that one at a time is in memory."""

import os
import shutil
import threading
import weakref

import pytest
import torch

from unmask.app import models
from unmask.app.models import Holder, list_choices
from unmask.errors import CheckpointError, ShortageError
from unmask.published.catalogue import MODELS
from unmask.storage.layout import MODEL


def names(*arguments, **keywords):
    return [choice.name for choice in list_choices(*arguments, **keywords)]


def test_every_run_below_the_root_is_offered_and_then_the_published_ones(runs):
    found = names((), runs)
    assert set(found[:2]) == {(runs / "one").as_posix(), (runs / "sub/two").as_posix()}
    assert found[2:] == list(MODELS)


def test_a_named_model_comes_first_and_once(runs):
    named = (runs / "sub/two").as_posix()
    assert names((named,), runs, published=False) == [named, (runs / "one").as_posix()]


def test_a_damaged_folder_is_left_out_and_a_named_one_is_refused(runs, tmp_path):
    bad = shutil.copytree(runs / "one", tmp_path / "bad")
    (bad / "config.json").write_text("{")
    assert names((), tmp_path, published=False) == []
    with pytest.raises(CheckpointError, match=r"config\.json"):
        list_choices((str(bad),))


def test_without_any_run_the_published_models_are_offered(tmp_path):
    assert names((), tmp_path / "none") == list(MODELS)


def test_one_model_is_in_memory_and_the_same_one_is_not_read_twice(runs):
    holder = Holder(device="cpu")
    with holder.use(str(runs / "one")) as first:
        kept = weakref.ref(first)
    with holder.use(str(runs / "one")) as again:
        assert again is first
    del first, again
    with holder.use(str(runs / "sub/two")):
        assert holder.held == str(runs / "sub/two")
        assert kept() is None
    holder.free()
    assert holder.held is None


def test_weights_that_changed_on_the_disk_are_read_again(runs, tmp_path):
    run, holder = shutil.copytree(runs / "one", tmp_path / "run"), Holder(device="cpu")
    with holder.use(str(run)) as before:
        old = next(before.model.parameters()).clone()
    shutil.copy(runs / "sub/two" / MODEL, run / MODEL)
    os.utime(run / MODEL, ns=(1, 1))
    with holder.use(str(run)) as after:
        assert not torch.equal(next(after.model.parameters()), old)


def test_a_run_that_was_deleted_is_refused_and_the_holder_lives_on(runs, tmp_path):
    run, holder = shutil.copytree(runs / "one", tmp_path / "run"), Holder(device="cpu")
    with holder.use(str(run)):
        pass
    shutil.rmtree(run)
    with pytest.raises(CheckpointError), holder.use(str(run)):
        pass
    with holder.use(str(runs / "one")):
        pass


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(runs, monkeypatch):
    monkeypatch.setattr("unmask.runtime.shortage.measure_free_memory", lambda: 10)
    monkeypatch.setattr(models, "load_pipeline", lambda *a, **k: pytest.fail("it was read"))
    with pytest.raises(ShortageError, match="choose a smaller model"), Holder(device="cpu").use(str(runs / "one")):
        pass


def test_a_job_waits_for_the_one_before(runs):
    holder, order = Holder(device="cpu"), []

    def second():
        with holder.use(str(runs / "one")):
            order.append("second")

    other = threading.Thread(target=second)
    with holder.use(str(runs / "one")):
        other.start()
        other.join(0.2)
        order.append("first")
    other.join(20)
    assert order == ["first", "second"]


def test_an_error_frees_the_place(runs):
    holder = Holder(device="cpu")
    with pytest.raises(RuntimeError), holder.use(str(runs / "one")):
        raise RuntimeError
    with holder.use(str(runs / "one")):
        pass


def test_a_busy_model_is_not_freed(runs):
    holder = Holder(device="cpu")
    with holder.use(str(runs / "one")):
        holder.free_if_idle()
        assert holder.held
    holder.free_if_idle()
    assert holder.held is None
