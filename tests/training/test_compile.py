"""Compiled blocks: the curve of the others up to rounding, continued bit for bit, and refused where they do nothing."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from unmask.cli import main
from unmask.method.models.configs import TransformerConfig
from unmask.runtime import kernels
from unmask.storage.weights import have_same_weights

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
RECIPE = [
    "train",
    "digits",
    "--model.dim",
    "32",
    "--model.depth",
    "2",
    "--training.steps",
    "4",
    "--training.save-every",
    "2",
]


def train(out, *flags: str) -> None:
    """Train in a process of its own: the checks of shapes and types in tests cannot be compiled."""
    command = [sys.executable, "-m", "unmask", *RECIPE, "--training.log-every", "1", "--out", str(out), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


def read_losses(run) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@needs_compiler
def test_it_gives_the_losses_of_the_others_and_continues_bit_for_bit(tmp_path):
    train(tmp_path / "plain", "--training.precision", "fp32")
    train(tmp_path / "whole", "--training.precision", "fp32", "--training.compile")
    losses = [read_losses(tmp_path / name) for name in ("plain", "whole")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert not have_same_weights(*(tmp_path / name / "model.safetensors" for name in ("plain", "whole"))), "it compiled"

    parted = tmp_path / "parted"
    shutil.copytree(tmp_path / "whole", parted)
    shutil.rmtree(parted / "checkpoints" / "step-00000004")
    (parted / "model.safetensors").unlink()
    train(parted, "--training.precision", "fp32", "--training.compile")
    assert have_same_weights(parted / "model.safetensors", tmp_path / "whole" / "model.safetensors")


def test_without_a_compiler_it_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main([*RECIPE, "--training.compile", "--device", "cpu", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "install g++" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_has_nothing_to_compile(tmp_path, capsys):
    command = ["train-tokenizer", "cifar10-tokenizer", "--data", str(tmp_path), "--training.compile"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--device", "cpu", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "a tokenizer has no blocks" in capsys.readouterr().err


def test_evaluation_runs_the_blocks_as_they_were(monkeypatch):
    model, stances = TransformerConfig(dim=16, depth=2, heads=2).build(5, (4,)), []

    def set_stance(stance):
        stances.append(stance)
        return nullcontext()

    monkeypatch.setattr(torch.compiler, "set_stance", set_stance)
    with kernels.skip_compiled(model):
        assert stances == []
    model.blocks[0]._compiled_call_impl = lambda *inputs: None
    with kernels.skip_compiled(model):
        assert stances == ["force_eager"]
