"""Train a tokenizer on your own photos of any size: one sub-folder per class or none; 64x64 colour as 8x8 = 64 tokens.

    unmask train-tokenizer folder-tokenizer --data DIR
    unmask evaluate-tokenizer runs/folder-tokenizer

Runs on a CPU laptop: about 1.5 hours on two cores, four times as long as cifar10-tokenizer.

Photos are resized and cropped to 72x72, and training sees random 64x64 crops of them. For 256x256 photos as 16x16
tokens, on a GPU:

    --data.size 288 --tokenizer.size 256 256 --tokenizer.multipliers 1 1 2 4

Without classes there is no perceptual term, unless you write a recipe that names the files of LPIPS.
"""

from dataclasses import replace

from unmask.data.sources.choice import Folder
from unmask.recipes import cifar10_tokenizer
from unmask.recipes.schema import TokenizerRecipe


def recipe() -> TokenizerRecipe:
    base = cifar10_tokenizer.recipe()
    return replace(
        base,
        data=Folder(path="", size=72),
        tokenizer=replace(base.tokenizer, size=(64, 64), multipliers=(1, 2, 4)),
    )
