"""SDPA against explicit attention on CPU: where `models/layers.py` should switch. One thread, interleaved, CPU time.

OMP_NUM_THREADS=1 python benchmarks/attention.py
"""

import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
import torch.nn.functional as F

from unmask.method.models import layers
from unmask.pretrained import vit
from unmask.pretrained.valeoai import ValeoaiMaskGIT
from unmask.runtime.provenance import describe_environment

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
PAIRS = 7
WAYS: tuple[Attend, Attend] = (layers.attend, F.scaled_dot_product_attention)


def explicit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


def forward_and_backward(attend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    attend(q, k, v).sum().backward()


@torch.no_grad()
def forward(attend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    attend(q, k, v)


def compare(run: Callable[..., None], ours: Attend, *x: torch.Tensor) -> str:
    pairs = []
    for _ in range(PAIRS + 1):
        seconds = []
        for attend in (ours, F.scaled_dot_product_attention):
            start = time.process_time()
            for _ in range(3):
                run(attend, *x)
            seconds.append((time.process_time() - start) / 3)
        pairs.append((*seconds, seconds[1] / seconds[0]))
    a, b, ratio = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
    return f"{a * 1e3:11.2f} {b * 1e3:9.2f} {ratio:8.2f}"


def main() -> None:
    torch.set_num_threads(1)
    print(describe_environment(torch.device("cpu")))
    print(f"length  dtype     explicit ms   sdpa ms   sdpa/explicit (median of {PAIRS} pairs, forward + backward)")
    for length in (16, 32, 50, 64, 96, 128, 256):
        for dtype in (torch.float32, torch.bfloat16):
            shape = (max(1, 4096 // length), 4, length, 32)
            x = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
            print(f"{length:6d}  {str(dtype)[6:]:9s} {compare(forward_and_backward, explicit, *x)}")
    print("\nthe same, forward without gradients, as `attend` has it; heads of 48")
    for length in (16, 50, 65, 128, 257, 577, 1025):
        shape = (max(2, 514 // length), 16, length, 48)
        x = (torch.randn(shape, dtype=torch.bfloat16) for _ in range(3))
        print(f"{length:6d}  {'bfloat16':9s} {compare(forward, layers.attend, *x)}")
    print("\nrelative error of both in bfloat16 against float64, by the standard deviation of the scores; 257 tokens")
    for spread in (1, 4, 16):
        q, k, v = torch.randn(3, 2, 16, 257, 48).bfloat16()
        print(f"{spread:6d}  {'':9s} {errors(q * spread, k, v)}")
    print("\nrelative error of the logits of 24 random blocks of width 768, against float32, by the same")
    for gain in (1, 2, 3):
        print(network_errors(gain))


@torch.no_grad()
def errors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    off = [float((attend(q, k, v) - want).norm() / want.norm()) for attend in WAYS]
    return f"{off[0]:11.4f} {off[1]:9.4f} {off[1] / off[0]:8.2f}"


@torch.no_grad()
def network_errors(gain: float) -> str:
    """Queries and keys `gain` times as large as a fresh network has them."""
    torch.manual_seed(0)
    model, tokens, label = (
        ValeoaiMaskGIT().build(1024, (16, 16)).eval(),
        torch.randint(1025, (1, 256)),
        torch.tensor([5]),
    )
    for block in model.blocks:
        block.attention.qkv.weight[: 2 * 768].mul_(gain)
    spreads: list[float] = []

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        spreads.append(float((q @ k.mT * q.shape[-1] ** -0.5).std()))
        return F.scaled_dot_product_attention(q, k, v)

    with patch.object(vit, "attend", watched):
        want = model(tokens, label)
    model.bfloat16()
    off = []
    for attend in WAYS:
        with patch.object(vit, "attend", attend):
            off.append(float((model(tokens, label) - want).norm() / want.norm()))
    return f"{statistics.mean(spreads):6.2f}  {'':9s} {off[0]:11.4f} {off[1]:9.4f} {off[1] / off[0]:8.2f}"


if __name__ == "__main__":
    main()
