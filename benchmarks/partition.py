"""A partition model against the plain network of the same width and number of blocks: sampling, and a training step.

    OMP_NUM_THREADS=1 python benchmarks/partition.py
    OMP_NUM_THREADS=1 python benchmarks/partition.py wider      (the partition model is 1.5 times as wide)
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 python benchmarks/partition.py

One thread, interleaved, CPU seconds; the median of the paired ratios is what to look at. Weights are random. Sampling
is in Halton order, without guidance, in float32 and with bfloat16 weights; training is in float32 and under autocast.
bfloat16 is left out on CPUs where this library does not choose it.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable

import torch

from unmask.method.guidance import guided
from unmask.method.models.configs import TransformerConfig
from unmask.method.models.partition_config import PartitionConfig
from unmask.method.models.protocol import Generator
from unmask.method.objectives import MaskGIT
from unmask.method.partitioning import Partition
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.method.sampling.priorities import Halton
from unmask.method.schedules import Arccos, Cosine, ratios
from unmask.runtime.kernels import choose_dtype
from unmask.runtime.provenance import describe_environment

SIZES = {  # widths of the plain and of the partition network, blocks, vocabulary, grid, images
    "mnist": (128, 128, 4, 16, (7, 7), 64),
    "wider": (128, 192, 4, 16, (7, 7), 64),
    "cifar10": (256, 256, 6, 2048, (8, 8), 32),
    "16x16": (256, 256, 6, 1024, (16, 16), 8),
}
REPEATS = 7


def cpu_seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def make(kind: str, dim: int, depth: int, vocab_size: int, grid: tuple[int, ...]) -> Generator:
    torch.manual_seed(0)
    if kind == "plain":
        return TransformerConfig(dim=dim, depth=depth, heads=4, num_classes=10).build(vocab_size, grid)
    half = depth // 2
    config = PartitionConfig(
        dim=dim, encoder_depth=half, decoder_depth=depth - half, heads=6 if dim == 192 else 4, num_classes=10
    )
    return config.build(vocab_size, grid)


def sample(model: Generator, images: int, steps: int) -> None:
    canvas = torch.full((images, model.length), model.mask_id)
    predict = guided(model, torch.arange(images) % 10)
    reveals = ratios(Cosine(), steps)
    with torch.inference_mode():
        for _ in decode(
            predict, canvas, reveals, mask_id=model.mask_id, rand=seeded(0, images), priority=Halton(model.grid)
        ):
            pass


def train(model: Generator, images: int, autocast: bool) -> None:
    objective = MaskGIT(schedule=Arccos()) if isinstance(model.config, TransformerConfig) else Partition()
    tokens = torch.randint(model.vocab_size, (images, model.length), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = objective(model, tokens, torch.arange(images) % 10, mask_id=model.mask_id, rand=seeded(0, images))
    (loss.total / loss.count).backward()
    model.zero_grad()


def main() -> None:
    torch.set_num_threads(1)
    print(describe_environment(torch.device("cpu")), os.environ.get("ATEN_CPU_CAPABILITY", "all instructions"))
    halves = (False, True) if choose_dtype(torch.device("cpu")) == torch.bfloat16 else (False,)
    print("size     type  what              plain ms  partition ms  plain/partition   (ms per image)")
    for name in sys.argv[1:] or SIZES:
        *widths, depth, vocab_size, grid, images = SIZES[name]
        kinds = list(zip(("plain", "partition"), widths, strict=True))
        for half in halves:
            models = [make(kind, dim, depth, vocab_size, grid) for kind, dim in kinds]
            cast = [model.bfloat16() if half else model for model in models]
            tasks: dict[str, list[Callable[[], None]]] = {
                f"{steps} steps": [lambda m=m, n=images, s=steps: sample(m, n, s) for m in cast] for steps in (8, 16)
            }
            full = [make(kind, dim, depth, vocab_size, grid) for kind, dim in kinds]
            tasks["training step"] = [lambda m=m, n=images, h=half: train(m, n, h) for m in full]
            for what, pair in tasks.items():
                times = [tuple(cpu_seconds(run) for run in pair) for _ in range(REPEATS + 1)][1:]
                ratio = statistics.median(a / b for a, b in times)
                first, second = (1000 * statistics.median(column) / images for column in zip(*times, strict=True))
                kind = "bf16" if half else "fp32"
                print(f"{name:8s} {kind}  {what:16s} {first:9.3f} {second:13.3f} {ratio:16.2f}", flush=True)


if __name__ == "__main__":
    main()
