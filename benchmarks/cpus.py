"""The number type and the kernels that this library chooses on a CPU, against every other choice.

    OMP_NUM_THREADS=1 python benchmarks/cpus.py

It runs with all instructions of this CPU, and again with fewer: `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA` tell
torch and oneDNN which to use (MKL, which torch may take for float32 products, obeys neither). First come the rates of
one matrix product, then sampling and a training step at the sizes of the recipes. One thread, interleaved, CPU seconds,
medians; weights are random. A choice that takes more than 1.1 times the best is marked.

Beside them stands int8, which is never the choice, because it is less exact: no row is marked on its account.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from unmask.method.guidance import guided
from unmask.method.models.configs import TransformerConfig
from unmask.method.models.transformer import MaskedTransformer
from unmask.method.objectives import MaskGIT
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.method.sampling.priorities import Halton
from unmask.method.schedules import Arccos, ratios
from unmask.runtime import packed
from unmask.runtime.int8 import Int8Linear, round_layers
from unmask.runtime.kernels import INT8, PACKING, choose_dtype, find_private, packs_linear
from unmask.runtime.provenance import describe_environment

LIMITS = {  # what torch and oneDNN may use
    "all instructions": {},
    "AVX-512 with bfloat16": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "AVX-512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}
SIZES = {  # width, blocks, vocabulary, grid, rows sampled, steps, rows trained: 0 to leave the training out
    "mnist": (128, 4, 16, (7, 7), 64, 8, 128),
    "cifar10": (256, 6, 2048, (8, 8), 16, 8, 32),
    "tinystories": (256, 6, 4096, (256,), 1, 8, 4),
    "wide": (768, 4, 1024, (16, 16), 2, 8, 0),  # of published networks, which have 24 blocks
}
PRODUCT = (514, 768, 3072)
"""Rows, width and hidden width of one linear layer: two images of 257 tokens, as published networks have."""
ROUNDED = "int8"
"""The way that rounds linear layers to 8-bit integers."""
REPEATS = 5
WORST = 1.1
"""A choice may take this many times the best."""
Ways = dict[str, Callable[[], object]]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    if sys.argv[1:] == ["--here"]:
        return measure_here()
    print(describe_environment(torch.device("cpu")), flush=True)
    flags = torch.backends.cpu.get_cpu_capability()
    for name, limit in LIMITS.items():
        if flags != "AVX512" and "AVX-512" in name:
            continue
        print(f"\n{name}", flush=True)
        subprocess.run([sys.executable, __file__, "--here"], env=os.environ | limit, check=True)


def measure_here() -> None:
    """Measure under the limits of this process."""
    torch.set_num_threads(1)
    where = torch.device("cpu")
    kind = {dtype: name for name, dtype in TYPES.items()}[choose_dtype(where)]
    layout = "packed" if packs_linear(TYPES[kind]) else "plain"
    print(f"chosen: {kind}, linear layers {layout}, training in {kind}")
    rows, width, hidden = PRODUCT
    taken = time_ways(make_products(rows, width, hidden))
    rates = {way: 2 * rows * width * hidden / seconds / 1e9 for way, seconds in taken.items()}
    show(f"product {rows}x{width}x{hidden}", rates, f"{kind} {layout}", "GFLOP/s", best=max)
    for name, (dim, depth, vocab_size, grid, sampled, steps, trained) in SIZES.items():
        make = TransformerConfig(dim=dim, depth=depth, heads=max(4, dim // 64))
        taken = time_ways(make_samplers(make, vocab_size, grid, sampled, steps))
        each = {way: 1000 * seconds / sampled for way, seconds in taken.items()}
        show(f"{name}, {steps} steps", each, f"{kind} {layout}", "ms a row")
        if not trained:
            continue
        taken = time_ways(make_trainings(make, vocab_size, grid, trained))
        show(f"{name}, training", {way: 1000 * seconds / trained for way, seconds in taken.items()}, kind, "ms a row")


def show(what: str, values: Mapping[str, float], chosen: str, unit: str, best: Callable[..., float] = min) -> None:
    """Print a row: each way with its value, a star at the chosen one, and how far that is from the best but int8."""
    top = best(value for way, value in values.items() if way != ROUNDED)
    off = max(values[chosen] / top, top / values[chosen])
    cells = ", ".join(f"{'*' * (way == chosen)}{way} {value:.2f}" for way, value in values.items())
    verdict = f"  WRONG BY {off:.2f}" if off > WORST else ""
    print(f"{what:26s} {cells}   {unit}{verdict}", flush=True)


def time_ways(ways: Ways) -> dict[str, float]:
    """Return the median CPU seconds of each way, run in turns."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(REPEATS + 1):
        for way, run in ways.items():
            start = time.process_time()
            run()
            times[way].append(time.process_time() - start)
    return {way: statistics.median(taken[1:]) for way, taken in times.items()}


def list_layouts() -> list[str]:
    """Return the layouts that this torch has, whether or not they would be chosen."""
    has = torch.backends.mkldnn.is_available() and all(find_private(name, "nothing is packed") for name in PACKING)
    return ["plain", "packed"] if has else ["plain"]


def has_int8() -> bool:
    """Return whether this torch multiplies 8-bit integers."""
    found = [find_private(name, "int8 is left out") for name in INT8]
    return torch.backends.mkldnn.is_available() and all(found)


def make_products(rows: int, width: int, hidden: int) -> Ways:
    ways: Ways = {}
    for name, dtype in TYPES.items():
        x, weight = torch.randn(rows, width, dtype=dtype), torch.randn(hidden, width, dtype=dtype)
        ways[f"{name} plain"] = lambda x=x, weight=weight: F.linear(x, weight)
        if "packed" in list_layouts() and can_pack(dtype):
            layer = torch.nn.Linear(width, hidden, bias=False).to(dtype)
            arranged = packed.PackedLinear(layer)
            ways[f"{name} packed"] = lambda x=x, arranged=arranged: run_quietly(arranged, x)
    if has_int8():
        kind = choose_dtype(torch.device("cpu"))
        x, rounded = torch.randn(rows, width, dtype=kind), Int8Linear(torch.nn.Linear(width, hidden, bias=False))
        ways[ROUNDED] = lambda: run_quietly(rounded, x)
    return ways


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether oneDNN has a kernel for this type under the limits."""
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def run_quietly(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return layer(x)


def make_samplers(make: TransformerConfig, vocab_size: int, grid: tuple[int, ...], rows: int, steps: int) -> Ways:
    ways: Ways = {}
    for name, dtype in TYPES.items():
        for layout in list_layouts():
            if layout == "packed" and not can_pack(dtype):
                continue
            torch.manual_seed(0)
            model = make.build(vocab_size, grid).to(dtype).eval()
            if layout == "packed":
                packed.packs_linear = lambda dtype: True
                model = packed.pack(model)
            ways[f"{name} {layout}"] = lambda model=model: sample(model, rows, steps)
    if has_int8():
        torch.manual_seed(0)
        plain = make.build(vocab_size, grid).to(choose_dtype(torch.device("cpu"))).eval()
        rounded = packed.pack(round_layers(plain))
        ways[ROUNDED] = lambda: sample(rounded, rows, steps)
    return ways


def sample(model: MaskedTransformer, rows: int, steps: int) -> None:
    canvas = torch.full((rows, model.length), model.mask_id)
    order, noise = Halton(model.grid), seeded(0, rows)
    plan = ratios(Arccos(), steps)
    with torch.inference_mode():
        for _ in decode(guided(model, None), canvas, plan, mask_id=model.mask_id, rand=noise, priority=order):
            pass


def make_trainings(make: TransformerConfig, vocab_size: int, grid: tuple[int, ...], rows: int) -> Ways:
    def train(half: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective(model, tokens, None, mask_id=vocab_size, rand=seeded(0, rows))
        (loss.total / loss.count).backward()
        model.zero_grad()

    torch.manual_seed(0)
    model, objective = make.build(vocab_size, grid), MaskGIT(schedule=Arccos())
    tokens = torch.randint(vocab_size, (rows, model.length))
    return {"float32": lambda: train(False), "bfloat16": lambda: train(True)}


if __name__ == "__main__":
    main()
