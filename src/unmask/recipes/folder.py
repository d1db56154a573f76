"""Your own photos, from codes: a class per sub-folder, or none.

    unmask train-tokenizer folder-tokenizer --data DIR
    unmask tokenize runs/folder-tokenizer --crops 2
    unmask train folder --data codes/folder-tokenizer
    unmask evaluate runs/folder

Model, training and time are those of the `cifar10` recipe. What to expect depends on the photos; below a few thousand,
expect the training photos back (report.json tells: nearest_train).
"""

from dataclasses import replace

from unmask.recipes import cifar10, folder_tokenizer
from unmask.recipes.schema import Recipe


def recipe() -> Recipe:
    return replace(cifar10.recipe(), tokenizer=folder_tokenizer.recipe().tokenizer)
