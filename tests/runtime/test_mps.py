"""Apple's GPUs: chosen where there is one, with the tests that CUDA has, and no float64 on the way: they lack it."""

import sys
import traceback
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_run import toy_config, toy_train

import unmask
from unmask.cli import main
from unmask.errors import ConfigError
from unmask.method import rand as noise
from unmask.method.likelihood import compute_exact_nll, estimate_bound
from unmask.method.rand import BELOW_ONE, seeded
from unmask.method.sampling.adaptive import EntropyBound, Threshold, decode_adaptive
from unmask.method.sampling.ancestral import decode_ancestral
from unmask.method.sampling.decode import decode
from unmask.method.sampling.priorities import Confidence, Halton, Margin
from unmask.method.schedules import Cosine, ratios
from unmask.runtime.devices import pick_device
from unmask.runtime.distributed import join_world

SOURCE = str(Path(unmask.__file__).parent)
K, L = 11, 16
HERE = torch.backends.mps.is_available()
needs_mps = pytest.mark.skipif(not HERE, reason="needs an Apple GPU (MPS)")


def pretend(monkeypatch, *, cuda: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_it_is_chosen_where_there_is_no_cuda(monkeypatch):
    pretend(monkeypatch, cuda=False)
    assert pick_device("auto") == pick_device("mps") == torch.device("mps")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for device in (None, "mps"):
        with join_world(device) as here:
            assert (here.device.type, here.size) == ("mps", 1)
    pretend(monkeypatch, cuda=True)
    assert pick_device("auto").type == "cuda"


def test_several_processes_cannot_share_it(monkeypatch):
    pretend(monkeypatch, cuda=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="device mps: one process can use it, not 2"), join_world("mps"):
        pass


@pytest.mark.skipif(HERE, reason="there is MPS here")
def test_where_there_is_none_it_is_refused():
    with pytest.raises(ConfigError, match="device mps: there is none here"), join_world("mps"):
        pass


# -- no float64, as on a device that has none --

ON_THE_CPU = {
    "count_reveals",
    "ratios",
    "check_ratios",
    "compute_halton_order",
    "_invert_radix",
    "_copy_to_memory",
}
"""Functions that compute a few numbers on the CPU, whatever the device of the model."""


def is_on_the_cpu(frame) -> bool:
    """Return whether a line is the shuffle of the rows, or the sums of the log."""
    return f"{SOURCE}/data/" in frame.filename or "window" in str(frame.line)


def has_float64(values: object) -> bool:
    return any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves(values))


class NoFloat64(TorchDispatchMode):
    """Refuse float64 on the way of sampling and training, where MPS would."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if has_float64(out) and not has_float64(args):  # what was float64 before lies on the CPU
            frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(SOURCE)]
            if frames and not {frame.name for frame in frames} & ON_THE_CPU and not is_on_the_cpu(frames[-1]):
                raise AssertionError(f"float64 by {frames[-1].name}: {frames[-1].line}")
        return out


@pytest.fixture
def without_float64(monkeypatch):
    """Give every device the types of MPS."""
    for name, module in list(sys.modules.items()):
        if name.startswith("unmask.") and hasattr(module, "choose_wide_dtype"):
            monkeypatch.setattr(module, "choose_wide_dtype", lambda device: torch.float32)
    draw = noise.Rand.__call__
    monkeypatch.setattr(noise.Rand, "__call__", lambda self, *of: draw_on_the_cpu(draw, self, *of))


def draw_on_the_cpu(draw, self, *of):
    with torch.utils._python_dispatch._disable_current_modes():
        u = draw(self, *of)
        shuffles = any(f"{SOURCE}/data/" in frame.filename for frame in traceback.extract_stack())
        return u if shuffles else u.clamp(max=BELOW_ONE).float()


def predict(tokens, t):
    return torch.randn(*tokens.shape, K, generator=torch.Generator().manual_seed(0))


SAMPLERS = {
    "confidence": lambda canvas, draw: decode(
        predict, canvas, ratios(Cosine(), 4), mask_id=K, rand=draw, priority=Confidence(), top_k=5, top_p=0.9
    ),
    "halton": lambda canvas, draw: decode(
        predict, canvas, ratios(Cosine(), 4), mask_id=K, rand=draw, priority=Halton((4, 4))
    ),
    "margin": lambda canvas, draw: decode(
        predict, canvas, ratios(Cosine(), 4), mask_id=K, rand=draw, priority=Margin()
    ),
    "ancestral": lambda canvas, draw: decode_ancestral(predict, canvas, ratios(Cosine(), 4), mask_id=K, rand=draw),
    "entropy bound": lambda canvas, draw: decode_adaptive(
        predict, canvas, rule=EntropyBound(0.5), mask_id=K, rand=draw, max_steps=4
    ),
    "threshold": lambda canvas, draw: decode_adaptive(
        predict, canvas, rule=Threshold(0.5), mask_id=K, rand=draw, max_steps=4
    ),
}


def sample(name, device="cpu"):
    canvas = torch.full((3, L), K, device=device)
    *_, last = SAMPLERS[name](canvas, seeded(0, 3, device=device))
    return last.tokens


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_needs_float64(without_float64, name):
    with NoFloat64():
        tokens = sample(name)
    assert tokens.max() < K


def test_no_likelihood_needs_float64(without_float64):
    tokens = torch.zeros(3, L, dtype=torch.long)
    with NoFloat64():
        estimate_bound(predict, tokens, mask_id=K, rand=seeded(0, 3), passes=2)
        compute_exact_nll(predict, tokens, ratios(Cosine(), 4), mask_id=K, rand=seeded(0, 3))


def test_no_training_step_needs_float64(without_float64, tmp_path):
    with NoFloat64():
        toy_train(tmp_path / "run", toy_config(steps=2))


def test_noise_in_float32_stays_below_one():
    assert torch.tensor(1 - 2.0**-53, dtype=torch.float64).clamp(max=BELOW_ONE).float() < 1
    assert torch.tensor(2.0**-53, dtype=torch.float64).float() > 0


# -- on a real one --


@needs_mps
def test_it_sees_the_numbers_of_the_cpu():
    here, there = seeded(3, 50)("x", 70), seeded(3, 50, device="mps")("x", 70)
    assert torch.equal(here.clamp(max=BELOW_ONE).float(), there.cpu())


@needs_mps
@pytest.mark.parametrize("name", SAMPLERS)
def test_it_samples(name):
    assert sample(name, "mps").max() < K


@needs_mps
def test_a_run_is_judged_and_swept(tmp_path):
    out = tmp_path / "run"
    small = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--training.batch-size", "8"]
    small += ["--classifier.steps", "5", "--device", "mps", "--training.steps", "4"]
    main(["train", "digits", "--out", str(out), *small])
    main(["sample", str(out), "--num", "2", "--device", "mps", "--out", str(tmp_path / "samples.png")])
    tiny = ["--samples", "20", "--tune", "20", "--steps", "2", "--temperatures", "1.0", "--device", "mps"]
    main(["sweep", str(out), *tiny, "--orders", "confidence", "halton"])
