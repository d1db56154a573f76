"""The whole method on one page: train on a toy language by masking, generate by unmasking. CPU, about 15 seconds.

    python examples/minimal.py

A word of the language is a 4 x 4 grid of the letters A..H with mirror symmetry, left to right and top to bottom: 4
letters are free, the other 12 are their mirror images. Each cell alone may hold any letter, so filling all 16 cells
at once is right with probability 8^-12. Filling some cells, looking at them, and filling more can be right every time.
That is the whole idea of masked generation:

    a function predict(tokens, t) -> logits; training masks tokens, sampling unmasks them.
"""

import torch

from unmask.method.guidance import guided
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.objectives import MaskGIT
from unmask.method.rand import Rand, seeded
from unmask.method.sampling.decode import decode
from unmask.method.sampling.priorities import Confidence, Random
from unmask.method.schedules import Cosine, ratios

GRID, LETTERS = (4, 4), "ABCDEFGH"
MASK = len(LETTERS)  # one past the last letter: the model can read it, but has no logit for it


def draw_words(rand: Rand) -> torch.Tensor:
    """Draw words of the language as flat tokens: a quarter of free letters and its mirror images."""
    quarter = (rand("words", 2, 2) * len(LETTERS)).long()
    half = torch.cat([quarter, quarter.flip(2)], dim=2)
    return torch.cat([half, half.flip(1)], dim=1).flatten(1)


def is_word(tokens: torch.Tensor) -> torch.Tensor:
    """Return for each row of `tokens` whether it is a word."""
    grid = tokens.unflatten(1, GRID)
    return ((grid == grid.flip(1)) & (grid == grid.flip(2))).flatten(1).all(dim=1)


def show(canvases: list[torch.Tensor]) -> None:
    """Print canvases side by side, with "·" for masked tokens."""
    for row in range(GRID[0]):
        print("  " + "    ".join(" ".join((LETTERS + "·")[i] for i in c.unflatten(0, GRID)[row]) for c in canvases))


# 1. Training: mask a random share of the tokens, predict them, follow the gradient.
torch.manual_seed(0)  # layers draw their first weights from torch's generator; all other noise is from `rand`
model = MaskedTransformer(TransformerConfig(dim=64, depth=2, heads=4), len(LETTERS), GRID)
objective = MaskGIT(schedule=Cosine())
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
print(f"Training {sum(p.numel() for p in model.parameters()):,} weights. A blind guess costs log 8 = 2.079 nats.")
for step in range(300):
    rand = seeded(0, num_rows=64).at(step)
    loss = objective(model, draw_words(rand), None, mask_id=MASK, rand=rand)
    optimizer.zero_grad()
    (loss.total / loss.count).backward()
    optimizer.step()
    if step == 0 or (step + 1) % 100 == 0:
        print(f"  step {step + 1:3d}  loss {(loss.total / loss.count).item():.3f} nats per masked token")

# 2. Sampling: start fully masked; each step samples every masked token and reveals some of them.
predict = guided(model.eval(), None)  # without classes this only turns the model into predict(tokens, t)
blank = torch.full((1000, model.length), MASK)
counts = (1, 2, 4, 8, 16)
print("\nHow many of 1,000 samples are words? One step samples all cells blindly; more steps see the earlier cells.")
print(f"  {'steps':16s}" + "".join(f"{steps:8d}" for steps in counts))
for name, priority in (("random order", Random()), ("surest first", Confidence())):
    shares = []
    for steps in counts:
        plan = ratios(Cosine(), steps)  # the share still masked after each step
        *_, last = decode(predict, blank, plan, mask_id=MASK, rand=seeded(1, 1000), priority=priority)
        shares.append(is_word(last.tokens).float().mean().item())
    print(f"  {name:16s}" + "".join(f"{share:8.1%}" for share in shares))

# 3. The same loop, step by step: `decode` is a generator of states.
print("\nOne canvas, filled in 8 steps:")
show([s.tokens[0] for s in decode(predict, blank[:1], ratios(Cosine(), 8), mask_id=MASK, rand=seeded(2, 1))])

# 4. Inpainting is the same call on a canvas that is partly known. Known tokens never change.
whole = draw_words(seeded(3, num_rows=1))
mask = torch.tensor([[0, 0, 0, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
*_, last = decode(predict, torch.where(mask, MASK, whole), ratios(Cosine(), 12), mask_id=MASK, rand=seeded(4, 1))
print("\nA word, a mask, and the inpainted word: the rim follows from known letters, the centre is free.")
show([whole[0], torch.where(mask, MASK, whole)[0], last.tokens[0]])
kept = torch.equal(last.tokens[~mask], whole[~mask])
print(f"  known tokens kept: {kept}; a word again: {bool(is_word(last.tokens))}")
