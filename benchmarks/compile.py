"""A training step with compiled blocks against one without, forward and backward: what `--training.compile` saves.

    OMP_NUM_THREADS=1 python benchmarks/compile.py
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 python benchmarks/compile.py

The sizes are those of the recipes, in the number type that training chooses. One thread, interleaved, CPU seconds; the
median of the paired ratios is what to look at. Compiling is timed alone; a second run finds its code in torch's cache.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch

from unmask.method.models.configs import TransformerConfig
from unmask.method.models.partition_config import PartitionConfig
from unmask.method.models.protocol import Generator
from unmask.method.objectives import MaskGIT
from unmask.method.partitioning import Partition
from unmask.method.rand import seeded
from unmask.method.schedules import Arccos
from unmask.runtime.kernels import choose_dtype, compile_blocks
from unmask.runtime.provenance import describe_environment

REPEATS = 7
CASES = {  # width, blocks, vocabulary, grid, rows
    "mnist": (128, 4, 16, (7, 7), 128),
    "cifar10": (256, 6, 2048, (8, 8), 64),
}


def make(kind: str, dim: int, depth: int, vocab_size: int, grid: tuple[int, ...]) -> Generator:
    torch.manual_seed(0)
    if kind == "plain":
        return TransformerConfig(dim=dim, depth=depth, heads=4, num_classes=10).build(vocab_size, grid)
    half = depth // 2
    config = PartitionConfig(dim=dim, encoder_depth=half, decoder_depth=depth - half, heads=4, num_classes=10)
    return config.build(vocab_size, grid)


def make_step(model: Generator, rows: int) -> Callable[[], None]:
    objective = MaskGIT(schedule=Arccos()) if isinstance(model.config, TransformerConfig) else Partition()
    tokens = torch.randint(model.vocab_size, (rows, model.length), generator=torch.Generator().manual_seed(0))
    half = choose_dtype(torch.device("cpu")) == torch.bfloat16

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective(model, tokens, torch.arange(rows) % 10, mask_id=model.mask_id, rand=seeded(0, rows))
        (loss.total / loss.count).backward()
        model.zero_grad()

    return step


def cpu_seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    kind = "bfloat16" if choose_dtype(torch.device("cpu")) == torch.bfloat16 else "float32"
    print(describe_environment(torch.device("cpu")), os.environ.get("ATEN_CPU_CAPABILITY", "all instructions"), kind)
    print("size     network    compiling s   plain ms   compiled ms   compiled/plain   (ms per row)")
    for name, (dim, depth, vocab_size, grid, rows) in CASES.items():
        for network in ("plain", "partition"):
            models = [make(network, dim, depth, vocab_size, grid) for _ in range(2)]
            compile_blocks(models[1])
            plain, compiled = (make_step(model, rows) for model in models)
            first = cpu_seconds(compiled)
            times = [(cpu_seconds(plain), cpu_seconds(compiled)) for _ in range(REPEATS + 1)][1:]
            ratio = statistics.median(b / a for a, b in times)
            one, two = (1000 * statistics.median(column) / rows for column in zip(*times, strict=True))
            print(f"{name:8s} {network:10s} {first:11.1f} {one:10.3f} {two:13.3f} {ratio:16.3f}", flush=True)


if __name__ == "__main__":
    main()
