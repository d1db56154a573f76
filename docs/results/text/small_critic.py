"""A small character model with a token critic as an extra head: one of the variants in docs/results/text.md.

unmask train docs/results/text/small_critic.py --data tinyshakespeare.txt --out runs/small-critic
"""

from dataclasses import replace

from unmask.decoding.sampling import FromCritic
from unmask.method.critic import WithCritic
from unmask.method.objectives import MaskedDiffusion
from unmask.recipes.reading import find_recipe
from unmask.recipes.schema import TextRecipe


def recipe() -> TextRecipe:
    base = find_recipe("shakespeare", TextRecipe)
    return replace(
        base,
        tokenizer=replace(base.tokenizer, context=64),
        model=replace(base.model, dim=128, depth=4, critic="head"),
        objective=WithCritic(generator=MaskedDiffusion()),
        training=replace(base.training, steps=1000, batch_size=64),
        sampling=replace(base.sampling, steps=16, priority=FromCritic(), remask=True),
    )
