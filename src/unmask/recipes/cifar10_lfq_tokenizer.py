"""Train the `cifar10-tokenizer` recipe with lookup-free bits (LFQ) instead of finite scalars, for comparison.

    unmask train-tokenizer cifar10-lfq-tokenizer --data DIR

Runs on a CPU laptop: about as long as cifar10-tokenizer.
"""

from dataclasses import replace

from unmask.recipes import cifar10_tokenizer
from unmask.recipes.schema import TokenizerRecipe
from unmask.tokenizers.configs import LFQ


def recipe() -> TokenizerRecipe:
    base = cifar10_tokenizer.recipe()
    return replace(base, tokenizer=replace(base.tokenizer, quantizer=LFQ(bits=11)))
