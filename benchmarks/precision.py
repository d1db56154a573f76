"""float32 against bfloat16 on this CPU: a training step under autocast, and sampling with bfloat16 weights.

    OMP_NUM_THREADS=1 python benchmarks/precision.py

One thread, interleaved, CPU seconds; the median of the paired ratios is what to look at. `training/distributed.py`
takes bfloat16 by itself only on CPUs that have instructions for it.
"""

import statistics
import time
from collections.abc import Callable

import torch

from unmask.method.guidance import guided
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.objectives import MaskGIT
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.method.schedules import Cosine, ratios
from unmask.runtime.provenance import describe_environment

SIZES = {"digits": (256, (4, 4), 64), "mnist": (16, (7, 7), 128)}  # vocabulary, grid, batch


def cpu_seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def training_step(model: MaskedTransformer, tokens: torch.Tensor, labels: torch.Tensor, half: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = MaskGIT()(model, tokens, labels, mask_id=model.mask_id, rand=seeded(0, len(tokens)))
    (loss.total / loss.count).backward()


def sampling(model: MaskedTransformer, labels: torch.Tensor) -> None:
    canvas = torch.full((len(labels), model.length), model.mask_id)
    for _ in decode(
        guided(model, labels), canvas, ratios(Cosine(), 8), mask_id=model.mask_id, rand=seeded(0, len(labels))
    ):
        pass


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(describe_environment(torch.device("cpu")))
    print("model    what        fp32 s   bf16 s   fp32/bf16")
    for name, (vocab_size, grid, batch) in SIZES.items():
        model = MaskedTransformer(TransformerConfig(num_classes=10), vocab_size, grid)
        half = MaskedTransformer(TransformerConfig(num_classes=10), vocab_size, grid).bfloat16()
        tokens, labels = torch.randint(vocab_size, (batch, model.length)), torch.randint(10, (batch,))
        kinds = {
            "train step": (
                lambda m=model, x=tokens, y=labels: training_step(m, x, y, False),
                lambda m=model, x=tokens, y=labels: training_step(m, x, y, True),
            ),
            "sampling": (lambda m=model, y=labels: sampling(m, y), lambda m=half, y=labels: sampling(m, y)),
        }
        for what, (full, halved) in kinds.items():
            pairs = [(cpu_seconds(full), cpu_seconds(halved)) for _ in range(8)][1:]
            a, b, ratio = (statistics.median(x) for x in zip(*((a, b, a / b) for a, b in pairs), strict=True))
            print(f"{name:8s} {what:10s} {a:8.3f} {b:8.3f} {ratio:9.2f}")


if __name__ == "__main__":
    main()
