"""What page faults cost on a CPU: drawing in batches of several sizes, and training, with freed memory kept or not.

    OMP_NUM_THREADS=1 python benchmarks/memory.py

The models and batches are those of the recipes for CIFAR-10, with random weights. Two processes of one thread for each
way, in turn; CPU seconds of the system and of all, medians over both. "kept" is as the command line runs
(`cli/memory.py`), "given back" is glibc's own way.
"""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from unmask.data import tokens
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.rand import Rand
from unmask.pipelines.image import Pipeline
from unmask.recipes import cifar10, cifar10_tokenizer
from unmask.runtime.kernels import choose_dtype
from unmask.runtime.memory import keep_freed_memory
from unmask.runtime.packed import pack
from unmask.runtime.provenance import describe_environment

WAYS, PROCESSES, ROUNDS, SAMPLES = ("given back", "kept"), 2, 3, 128
BATCHES = (16, 32, 64, 128)
CLASSES, TOKENIZER = 10, cifar10_tokenizer.recipe().tokenizer


def network() -> MaskedTransformer:
    config = cifar10.recipe().model
    assert isinstance(config, TransformerConfig)
    return replace(config, num_classes=CLASSES).build(TOKENIZER.vocab_size, TOKENIZER.grid)


def drawing() -> dict[str, Callable[[], object]]:
    """One way of drawing for each size of a batch."""
    dtype = choose_dtype(torch.device("cpu"))
    model, tokenizer = (pack(part.to(dtype).eval()) for part in (network(), TOKENIZER.build()))
    pipeline = Pipeline(model, tokenizer, cifar10.recipe().sampling)  # type: ignore[arg-type]
    tokens.MAX_CACHED_TOKENS = tokens.MAX_LOGITS  # for larger batches than a CPU gets
    return {f"draw {SAMPLES}, {n} at once": partial(pipeline.generate, num=SAMPLES, batch=n) for n in BATCHES}


def training() -> dict[str, Callable[[], object]]:
    """A step without the optimizer's, of the network and of the tokenizer's autoencoder."""
    recipe, model, autoencoder = cifar10.recipe(), network(), TOKENIZER.build()
    rows = recipe.training.batch_size
    codes = torch.randint(model.vocab_size, (rows, model.length))
    labels, images = torch.arange(rows) % CLASSES, torch.rand(64, 3, 32, 32) * 2 - 1

    def generator() -> None:
        with torch.autocast("cpu", choose_dtype(torch.device("cpu"))):
            rand = Rand(0, torch.arange(rows), rows)
            loss = recipe.objective(model, codes, labels, mask_id=model.mask_id, rand=rand)
        (loss.total / loss.count).backward()

    def tokenizer() -> None:
        with torch.autocast("cpu", choose_dtype(torch.device("cpu"))):
            loss = F.mse_loss(autoencoder(images)[0], images)
        loss.backward()

    return {f"train, {rows} rows": generator, "train tokenizer, 64 images": tokenizer}


def measure(way: str) -> dict[str, list[float]]:
    """CPU seconds of the system and of all, and the process's largest memory in MiB, by what was run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if way == "kept":
        keep_freed_memory()
    told = {}
    for name, run in (drawing() | training()).items():
        run()
        rounds = []
        for _ in range(ROUNDS):
            before = resource.getrusage(resource.RUSAGE_SELF)
            run()
            after = resource.getrusage(resource.RUSAGE_SELF)
            system = after.ru_stime - before.ru_stime
            rounds.append((system, system + after.ru_utime - before.ru_utime))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        told[name] = [*(statistics.median(column) for column in zip(*rounds, strict=True)), peak]
    return told


def main() -> None:
    if len(sys.argv) > 1:
        return print(json.dumps(measure(sys.argv[1])))
    print(describe_environment(torch.device("cpu")) | {"seed": 0})
    told: dict[str, list[dict[str, list[float]]]] = {way: [] for way in WAYS}
    for _ in range(PROCESSES):
        for way in WAYS:
            said = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True).stdout
            told[way].append(json.loads(said))
    print(f"{'':28s}{WAYS[0]:>24s}{WAYS[1]:>24s}")
    print(f"{'':28s}{'system s   all s   MiB':>24s}{'system s   all s   MiB':>24s}   given back/kept")
    for name in told[WAYS[0]][0]:
        line, all_of_it = f"{name:28s}", []
        for way in WAYS:
            system, every, peak = (
                statistics.median(column) for column in zip(*(x[name] for x in told[way]), strict=True)
            )
            line += f"{system:10.3f} {every:7.3f} {peak:5.0f}"
            all_of_it.append(every)
        print(f"{line}   {all_of_it[0] / all_of_it[1]:.2f}")


if __name__ == "__main__":
    main()
