"""Train on your own images in one command, as small grey images: a folder with one sub-folder per class, or no classes.

    unmask train folder-pixels --data DIR

Runs on a CPU laptop: about as long as mnist.

The result depends on the images. They become 16x16 pixels in 2x2 patches of 4 grey levels, 64 tokens of 256. Unreadable
images are listed, and all others are used.
"""

from unmask.data.sources.choice import Folder
from unmask.method.models.configs import TransformerConfig
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
