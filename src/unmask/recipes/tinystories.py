"""Train TinyStories in rows of 256 tokens, as in the nanoMaskGIT exercise but small: 4,096 tokens, 6.9 M parameters.

    unmask train tinystories --data stories.txt --data.test held-out.txt
    unmask generate runs/tinystories --prompt "Once upon a time"
    unmask infill runs/tinystories "The [MASK:12] dog ran to the [MASK:3]."

Runs on a CPU laptop: a little longer than shakespeare, an hour and more on two cores.

Stories stand between lines of <|endoftext|>. The byte-pair tokenizer is trained on them, unless
you give one with --tokenizer.file FILE --tokenizer.vocab-size 0.
"""

from unmask.data.text.sources import TextFile
from unmask.decoding.sampling import Sampling
from unmask.method.models.configs import TransformerConfig
from unmask.method.objectives import MaskedDiffusion
from unmask.method.sampling.priorities import Halton
from unmask.method.schedules import Power
from unmask.recipes.schema import TextRecipe
from unmask.tokenizers.text import BPE
from unmask.training.configs import AdamW, Muon, TrainConfig, WarmupStableDecay


def recipe() -> TextRecipe:
    return TextRecipe(
        data=TextFile(path="", separator="<|endoftext|>"),
        tokenizer=BPE(vocab_size=4096, context=256),
        model=TransformerConfig(dim=256, depth=6, heads=4),
        objective=MaskedDiffusion(schedule=Power()),
        training=TrainConfig(
            steps=5000,
            batch_size=32,
            optimizer=Muon(learning_rate=4e-3, rest=AdamW(learning_rate=1e-3)),
            learning_rate=WarmupStableDecay(warmup=200, decay=0.4),
            evaluate_every=500,
            save_every=250,
        ),
        sampling=Sampling(steps=64, schedule=Power(), priority=Halton((256,))),
    )
