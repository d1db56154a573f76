"""Peak memory of a training step at GPT-2's vocabulary: logits at the masked positions only, against all positions.

OMP_NUM_THREADS=1 python benchmarks/loss_memory.py

Each variant runs in a process of its own, and its peak resident memory is taken before and after the step.
"""

import resource
import subprocess
import sys

import torch
import torch.nn.functional as F

from unmask.method.masking import mask_exact
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.objectives import MaskedDiffusion
from unmask.method.rand import seeded
from unmask.runtime.provenance import describe_environment

VOCAB, ROWS, LENGTH = 50_304, 16, 256


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # MiB, on Linux


def everywhere(model, tokens, condition, *, mask_id, rand):
    """The same loss as most code bases write it: all logits first, then what is masked."""
    mask = mask_exact(rand("time"), rand("mask", tokens.shape[1]))
    logits = model(torch.where(mask, mask_id, tokens), condition)
    nats = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)
    return (nats * mask).sum() / mask.sum()


def step(which: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MaskedTransformer(TransformerConfig(dim=128, depth=2, heads=2), VOCAB, (LENGTH,))
    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH))
    before, rand = peak(), seeded(0, ROWS)
    if which == "masked":
        loss = MaskedDiffusion()(model, tokens, None, mask_id=VOCAB, rand=rand)
        (loss.total / loss.count).backward()
    elif which == "all":
        everywhere(model, tokens, None, mask_id=VOCAB, rand=rand).backward()
    print(peak() - before)


def main() -> None:
    if len(sys.argv) > 1:
        return step(sys.argv[1])
    print(describe_environment(torch.device("cpu")))
    found = {
        which: float(
            subprocess.run([sys.executable, __file__, which], capture_output=True, text=True, check=True).stdout
        )
        for which in ("masked", "all")
    }
    for which, size in found.items():
        print(f"{which:8s} {size:8.0f} MiB above the model")
    print(f"ratio    {found['masked'] / found['all']:8.2f}")


if __name__ == "__main__":
    main()
