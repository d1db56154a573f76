"""Train on your own photos as tokens: one class per sub-folder, or no classes.

    unmask train-tokenizer folder-tokenizer --data DIR
    unmask tokenize runs/folder-tokenizer --crops 2
    unmask train folder --data codes/folder-tokenizer
    unmask evaluate runs/folder

Runs on a CPU laptop: as long as cifar10, less than 2 hours on two cores, plus its tokenizer.

Model and training are those of the `cifar10` recipe. The result depends on the photos. With fewer than a few
thousand, expect copies of the training photos (`nearest_train` in report.json shows them).
"""

from dataclasses import replace

from unmask.recipes import cifar10, folder_tokenizer
from unmask.recipes.schema import Recipe


def recipe() -> Recipe:
    return replace(cifar10.recipe(), tokenizer=folder_tokenizer.recipe().tokenizer)
