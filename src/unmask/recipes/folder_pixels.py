"""Your own pictures in one command: a folder, with one sub-folder per class or none, as small grey images of pixels.

    unmask train folder-pixels --data DIR

The hardware and time are those of the `mnist` recipe; what to expect depends on the pictures.
16x16 in 2x2 patches of 4 grey levels, 64 tokens of 256. Pictures that cannot be read are named, the others all used.
"""

from unmask.data.sources.choice import Folder
from unmask.method.models.transformer import TransformerConfig
from unmask.recipes import mnist
from unmask.recipes.schema import Recipe
from unmask.tokenizers.pixels import Pixels


def recipe() -> Recipe:
    return Recipe(
        data=Folder(path="", size=16, channels=1),
        tokenizer=Pixels(size=(16, 16), patch=2, levels=4),
        model=TransformerConfig(dim=128, depth=4, heads=4),
        training=mnist.recipe().training,
        classifier=mnist.recipe().classifier,
    )
