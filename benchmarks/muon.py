"""Muon's share of a training step, per CPU recipe, against `torch.optim.Muon`. One thread, interleaved, CPU time.

OMP_NUM_THREADS=1 python benchmarks/muon.py
"""

import statistics
import time

import torch
from torch import nn

from unmask.method.objectives import MaskGIT
from unmask.method.rand import Rand
from unmask.recipes.reading import load_recipe
from unmask.recipes.schema import Recipe, TextRecipe
from unmask.runtime.distributed import World, autocast
from unmask.runtime.kernels import choose_dtype
from unmask.runtime.provenance import describe_environment
from unmask.training.ema import Ema
from unmask.training.optim import Muon, MuonOptimizer

ROUNDS = 5
HERE = World(0, 1, torch.device("cpu"))
SHAPES = {"digits": (256, (4, 4)), "mnist": (16, (7, 7)), "cifar10": (2048, (8, 8)), "shakespeare": (65, (256,)),
          "tinystories": (4096, (256,))}  # fmt: skip
"""Vocabulary and grid of each CPU recipe that trains with Muon."""


def seconds_of(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(name: str) -> str:
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe | TextRecipe)
    vocab_size, grid = SHAPES[name]
    torch.manual_seed(0)
    model = recipe.model.build(vocab_size, grid)
    assert isinstance(model, nn.Module)
    config = recipe.training
    assert isinstance(config.optimizer, Muon)
    muon, rest = config.optimizer.build(model)
    assert isinstance(muon, MuonOptimizer)
    group = muon.param_groups[0]
    torchs = torch.optim.Muon(group["params"], lr=group["lr"], momentum=0.95, weight_decay=group["weight_decay"],
                              adjust_lr_fn="match_rms_adamw")  # fmt: skip
    rows = min(config.batch_size, 64)  # a part of the batch, scaled up: what is measured is a share
    tokens = torch.randint(vocab_size, (rows, model.length))
    objective = recipe.objective if not isinstance(recipe, TextRecipe) else MaskGIT()

    parameters, ema = list(model.parameters()), Ema(model, config.ema)

    def learn() -> None:
        with autocast("auto", HERE):
            loss = objective(model, tokens, None, mask_id=vocab_size, rand=Rand(0, torch.arange(rows), rows, 0))
        (loss.total / loss.count).backward()
        nn.utils.clip_grad_norm_(parameters, config.clip)
        rest.step()
        ema.update(0)

    times = []
    for _ in range(ROUNDS + 1):
        learned = seconds_of(learn) * config.batch_size / rows
        times.append((learned, seconds_of(muon.step), seconds_of(torchs.step)))
        model.zero_grad()
    network, ours, theirs = (statistics.median(column) for column in zip(*times[1:], strict=True))
    share = ours / (network + ours)
    return f"{name:12s} {network:9.3f} {ours:9.3f} {theirs:9.3f} {theirs / ours:9.2f} {share:8.1%}"


def main() -> None:
    torch.set_num_threads(1)
    print(describe_environment(torch.device("cpu")), "orthogonalizes in", choose_dtype(torch.device("cpu")))
    print("recipe       the rest s  Muon s   torch s torch/Muon    share   (CPU seconds a step, medians)")
    for name in SHAPES:
        print(measure(name), flush=True)


if __name__ == "__main__":
    main()
