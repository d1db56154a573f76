"""SDPA against explicit attention on CPU: where `models/layers.py` should switch. One thread, interleaved, CPU time.

OMP_NUM_THREADS=1 python benchmarks/attention.py
"""

import statistics
import time

import torch
import torch.nn.functional as F

from unmask.provenance import environment


def explicit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


def cpu_seconds(attend, q, k, v, repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        attend(q, k, v).sum().backward()
    return (time.process_time() - start) / repeats


def main() -> None:
    torch.set_num_threads(1)
    print(environment(torch.device("cpu")))
    print("length  dtype     explicit ms   sdpa ms   sdpa/explicit (median of 7 pairs, forward + backward)")
    for length in (16, 32, 50, 64, 96, 128, 256):
        for dtype in (torch.float32, torch.bfloat16):
            batch = max(1, 4096 // length)
            q, k, v = (torch.randn(batch, 4, length, 32, dtype=dtype, requires_grad=True) for _ in range(3))
            pairs = []
            for _ in range(8):
                a = cpu_seconds(explicit, q, k, v, 3)
                b = cpu_seconds(F.scaled_dot_product_attention, q, k, v, 3)
                pairs.append((a, b, b / a))
            a, b, ratio = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
            print(f"{length:6d}  {str(dtype)[6:]:9s} {a * 1e3:11.2f} {b * 1e3:9.2f} {ratio:8.2f}")


if __name__ == "__main__":
    main()
