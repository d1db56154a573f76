"""What it saves to leave out what no step needs: a model that is asked for places against the same model without.

    OMP_NUM_THREADS=1 python benchmarks/places.py
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 python benchmarks/places.py

The networks have the sizes of the recipes and random weights, in the type and layout that sampling chooses on this CPU.
One thread, interleaved, CPU seconds; the median of the paired ratios is what to look at. Tokens are compared each time.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from unmask.method.guidance import Predict, guided
from unmask.method.models.configs import TransformerConfig
from unmask.method.models.transformer import MaskedTransformer
from unmask.method.ramps import LinearRamp
from unmask.method.rand import seeded
from unmask.method.sampling.adaptive import EntropyBound, decode_adaptive
from unmask.method.sampling.decode import State, decode
from unmask.method.sampling.priorities import Halton
from unmask.method.schedules import Arccos, Cosine, Power, ratios
from unmask.runtime.kernels import choose_dtype
from unmask.runtime.packed import pack
from unmask.runtime.provenance import describe_environment

REPEATS = 7
Sampler = Callable[[Predict, torch.Tensor], Iterator[State]]


def make(vocab_size: int, grid: tuple[int, ...], dim: int, depth: int, classes: int) -> MaskedTransformer:
    """Return a model whose predictions differ from place to place, as a trained one's do."""
    torch.manual_seed(0)
    model = TransformerConfig(dim=dim, depth=depth, heads=4, num_classes=classes).build(vocab_size, grid)
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    torch.nn.init.normal_(model.head.weight, std=0.15)
    return pack(model.to(choose_dtype(torch.device("cpu"))).eval())


def fixed(model: MaskedTransformer, steps: int, shape: Arccos | Cosine | Power, rows: int) -> Sampler:
    return partial(
        decode,
        ratios=ratios(shape, steps),
        mask_id=model.mask_id,
        rand=seeded(0, rows),
        priority=Halton(model.grid),
    )


def adaptive(model: MaskedTransformer, gamma: float, rows: int) -> Sampler:
    return partial(decode_adaptive, mask_id=model.mask_id, rand=seeded(0, rows), rule=EntropyBound(gamma))


def main() -> None:
    torch.set_num_threads(1)
    print(describe_environment(torch.device("cpu")), os.environ.get("ATEN_CPU_CAPABILITY", "all instructions"))
    print("what                                     all ms   places ms   ratio   (ms per row)")
    stories = make(4096, (256,), 256, 6, 0)
    photos = make(2048, (8, 8), 256, 6, 10)
    digits = make(16, (7, 7), 128, 4, 10)
    cases = {
        "TinyStories, 64 steps": (stories, 4, 1.0, fixed(stories, 64, Power(), 4)),
        "CIFAR-10, 8 steps": (photos, 32, 1.0, fixed(photos, 8, Arccos(), 32)),
        "CIFAR-10, 8 steps, guidance": (photos, 32, LinearRamp(6.0), fixed(photos, 8, Arccos(), 32)),
        "MNIST, 8 steps, guidance": (digits, 64, LinearRamp(1.3), fixed(digits, 8, Arccos(), 64)),
        "MNIST, adaptive": (digits, 64, 1.0, adaptive(digits, 4.0, 64)),
        "CIFAR-10, adaptive": (photos, 64, 1.0, adaptive(photos, 12.0, 64)),
    }
    for name, (model, rows, scale, sampler) in cases.items():
        labels = torch.arange(rows) % 10 if model.classes else None
        canvas = torch.full((rows, model.length), model.mask_id)
        passes, times = 0, []
        for _ in range(REPEATS + 1):
            pair, made = [], []
            for network in (lambda tokens, condition, m=model: m(tokens, condition), model):
                start = time.process_time()
                with torch.inference_mode():
                    *_, last = sampler(guided(network, labels, scale=scale), canvas)
                pair.append(time.process_time() - start)
                made.append(last.tokens)
                passes = last.step
            times.append(pair)
            equal = float((made[0] == made[1]).double().mean())
        ratio = statistics.median(b / a for a, b in times[1:])
        first, second = (1000 * statistics.median(column) / rows for column in zip(*times[1:], strict=True))
        same = "equal tokens" if equal == 1 else f"{equal:.4%} of tokens equal"
        print(f"{name:36s} {first:10.3f} {second:11.3f} {ratio:7.3f}   {passes} passes, {same}", flush=True)


if __name__ == "__main__":
    main()
