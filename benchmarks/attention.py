"""SDPA against explicit attention on CPU: where `models/layers.py` should switch. One thread, interleaved, CPU time.

OMP_NUM_THREADS=1 python benchmarks/attention.py
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from unmask.models import layers
from unmask.provenance import environment

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
PAIRS = 7


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
    print(environment(torch.device("cpu")))
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


if __name__ == "__main__":
    main()
