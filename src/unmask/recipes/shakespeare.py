"""Train Tiny Shakespeare by characters: one text of 1.1 million characters, in rows of 256.

    unmask train shakespeare --data tinyshakespeare.txt
    unmask generate runs/shakespeare --prompt "ROMEO:"
    unmask score runs/shakespeare

Runs on a CPU laptop: 50 minutes on two cores with bfloat16 instructions.

docs/results/text.md is the source of the unmasking order.
"""

from unmask.data.text.sources import TextFile
from unmask.decoding.sampling import Sampling
from unmask.method.models.configs import TransformerConfig
from unmask.method.objectives import MaskedDiffusion
from unmask.method.sampling.priorities import Halton
from unmask.method.schedules import Power
from unmask.recipes.schema import TextRecipe
from unmask.tokenizers.text import Characters
from unmask.training.configs import AdamW, Muon, TrainConfig, WarmupStableDecay


def recipe() -> TextRecipe:
    return TextRecipe(
        data=TextFile(path=""),
        tokenizer=Characters(context=256),
        model=TransformerConfig(dim=256, depth=6, heads=4),
        objective=MaskedDiffusion(schedule=Power()),
        training=TrainConfig(
            steps=4000,
            batch_size=32,
            optimizer=Muon(learning_rate=4e-3, rest=AdamW(learning_rate=1e-3)),
            learning_rate=WarmupStableDecay(warmup=200, decay=0.4),
            evaluate_every=500,
            save_every=250,
        ),
        sampling=Sampling(steps=64, schedule=Power(), priority=Halton((256,))),
    )
