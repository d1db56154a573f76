"""No wait for the device between the first state and the last: one would stall a GPU once per step."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from unmask.method.rand import Rand, seeded
from unmask.method.sampling.decode import decode
from unmask.method.sampling.extra_priorities import MarginRepulsion, Moment
from unmask.method.sampling.priorities import (
    Confidence,
    Entropy,
    Halton,
    Margin,
    MaxLogit,
    Random,
    Raster,
    compute_halton_order,
)
from unmask.method.schedules import Cosine, ratios

K, GRID = 11, (4, 6)
RATIOS = ratios(Cosine(), 6)
TABLE = torch.randn(K + 1, K, generator=torch.Generator().manual_seed(0))
every_priority = pytest.mark.parametrize(
    "priority",
    [
        Confidence(),
        MaxLogit(),
        Margin(),
        Entropy(),
        Random(),
        Raster(),
        Halton(GRID),
        Moment(),
        MarginRepulsion(1, GRID),
    ],
    ids=repr,
)


def predict(tokens: torch.Tensor, t: float) -> torch.Tensor:
    return TABLE[tokens]


def canvas() -> torch.Tensor:
    """Four rows with 6, 11, 16 and 21 unknown tokens."""
    tokens = torch.randint(0, K, (4, 24), generator=torch.Generator().manual_seed(1))
    return torch.where(torch.arange(24) < torch.tensor([6, 11, 16, 21])[:, None], K, tokens)


class NoWaiting(TorchDispatchMode):
    """Raises at operations for which the host must wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        indices = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else []
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if by_mask or name in {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero"}:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


class UnwatchedRand(Rand):
    """`Rand` hashes its key on the host, whatever the device of its rows; test_rand.py holds that part."""

    def __call__(self, stream: str, *shape: int) -> torch.Tensor:
        with _disable_current_modes():
            return super().__call__(stream, *shape)


@every_priority
@pytest.mark.parametrize("options", [{}, {"top_k": 3, "top_p": 0.8}, {"temperature": 0.0}], ids=str)
def test_the_loop_never_waits_for_the_device(priority, options):
    compute_halton_order(GRID)  # computed once and kept
    rand = UnwatchedRand(0, torch.arange(4), 4)
    states = decode(predict, canvas(), RATIOS, mask_id=K, rand=rand, priority=priority, **options)
    first = next(states)
    with NoWaiting():
        steps = [next(states) for _ in range(6)]
    assert [s.step for s in (first, *steps)] == list(range(7))
    assert next(states, None) is None


@pytest.mark.parametrize("wait", [
    lambda x: x.sum().item(), lambda x: bool((x > 0).any()), lambda x: x.nonzero(), lambda x: x[x > 0],
])  # fmt: skip
def test_the_watch_sees_what_waits(wait):
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        wait(torch.ones(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="device synchronisation on a real GPU: no CUDA device here")
@every_priority
def test_the_loop_never_synchronises_a_gpu(priority):
    table, rand = TABLE.cuda(), seeded(0, 4, device="cuda")
    states = decode(lambda tokens, t: table[tokens], canvas().cuda(), RATIOS, mask_id=K, rand=rand, priority=priority)
    next(states)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(6):
            next(states)
    finally:
        torch.cuda.set_sync_debug_mode("default")
