"""Train TinyStories like the nanoMaskGIT exercise: GPT-2's tokens in 50,304 rows, dim 512, depth 8, 1,000 M tokens.

    unmask train tinystories-gpu --tokenizer.file GPT2_FOLDER
    unmask generate runs/tinystories-gpu --prompt "Once upon a time"

Runs on one GPU: not run yet.

The stories come from the Hugging Face Hub (extra `data`).
"""

from unmask.data.text.sources import HubText
from unmask.decoding.sampling import Sampling
from unmask.method.models.configs import TransformerConfig
from unmask.method.objectives import MaskedDiffusion
from unmask.method.sampling.priorities import Halton
from unmask.method.schedules import Power
from unmask.recipes.schema import TextRecipe
from unmask.tokenizers.text import BPE
from unmask.training.configs import AdamW, CosineDecay, Muon, TrainConfig


def recipe() -> TextRecipe:
    return TextRecipe(
        data=HubText(name="roneneldan/TinyStories"),
        tokenizer=BPE(file="gpt2", rows=50_304, context=256),
        model=TransformerConfig(dim=512, depth=8, heads=8),
        objective=MaskedDiffusion(schedule=Power()),
        training=TrainConfig(
            steps=7630,  # of 512 x 256 tokens each: 1,000 M
            batch_size=512,
            accumulate=4,
            optimizer=Muon(learning_rate=3e-3, rest=AdamW(learning_rate=1e-3)),
            learning_rate=CosineDecay(warmup=200),
            evaluate_every=500,
            save_every=500,
        ),
        sampling=Sampling(steps=256, schedule=Power(), priority=Halton((256,))),
    )
