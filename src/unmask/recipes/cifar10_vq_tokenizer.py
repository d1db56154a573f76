"""Train the `cifar10-tokenizer` recipe with a learned codebook (VQ) instead of finite scalars, for comparison.

unmask train-tokenizer cifar10-vq-tokenizer --data DIR
"""

from dataclasses import replace

from unmask.recipes import cifar10_tokenizer
from unmask.recipes.schema import TokenizerRecipe
from unmask.tokenizers.quantizers import VQ


def recipe() -> TokenizerRecipe:
    base = cifar10_tokenizer.recipe()
    return replace(base, tokenizer=replace(base.tokenizer, quantizer=VQ(vocab_size=2048, dim=8)))
