"""A recipe of text made to run: corpus to tokenizer to shards of tokens, and what its training shows."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from unmask.data.shards.dataset import META
from unmask.data.sources.choice import settled
from unmask.data.text.shards import TEXT_TOKENIZER, TextMeta, TextSet, open_text, write_text
from unmask.data.text.sources import TextFile
from unmask.errors import CheckpointError, ConfigError
from unmask.experiments.validation import validation
from unmask.method.models.transformer import MaskedTransformer
from unmask.pipelines.text import TextPipeline
from unmask.recipes.reading import read_recipe
from unmask.recipes.schema import TextRecipe
from unmask.runtime.distributed import World, autocast, unwrap
from unmask.runtime.progress import Progress
from unmask.storage.config import to_json, write_json
from unmask.storage.weights import write_weights
from unmask.tokenizers.text import TextTokenizer, build_tokenizer
from unmask.training.loop import Evaluator

TOKENS = "tokens"
"""The folder of a run that holds its text as tokens."""


@dataclass(frozen=True, kw_only=True)
class TextExperiment:
    """A recipe of text with its shards open; `weights` is the tokenizer's file there."""

    recipe: TextRecipe
    train: TextSet
    test: TextSet
    meta: TextMeta
    tokenizer: TextTokenizer
    weights: Path
    kept: str = TEXT_TOKENIZER

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def grid(self) -> tuple[int, ...]:
        return self.tokenizer.grid

    def evaluators(self, model: nn.Module, folder: Path, world: World) -> list[Evaluator]:
        """Loss and accuracy on held-out text, and a sample."""
        core: MaskedTransformer = unwrap(model)  # type: ignore[assignment]
        precision = self.recipe.training.precision
        pipeline = TextPipeline(core, self.tokenizer, self.recipe.sampling, opens=self.recipe.opens)

        def write() -> list[tuple[str, str]]:
            with autocast(precision, world):
                return [("sample", pipeline.generate(num=1)[0])]

        return [validation(self.recipe.objective, precision, self.test, model, world), write]


def prepare(recipe: TextRecipe, shards: Path, progress: Progress | None = None) -> TextExperiment:
    """Tokenize the corpus into the folder `shards`, or open what is there; ConfigError where things do not fit.

    `data.path` may itself be such a folder: its tokenizer then is the recipe's, and nothing is written.
    """
    source = settled(recipe.data)
    if isinstance(source, TextFile):
        if not recipe.data.path:  # type: ignore[union-attr]
            raise ConfigError("which text? Give --data FILE, a folder of .txt files, or one of tokens made before")
        if (Path(source.path) / META).is_file():
            return _opened(recipe, Path(source.path))
    tokenizer = build_tokenizer(recipe.tokenizer, lambda: source.documents("train"))
    write_text(source, tokenizer, shards, progress)
    return _opened(recipe, shards)


def reopened(recipe: TextRecipe, run: Path) -> TextExperiment:
    """The experiment of a finished run, from the tokens in its folder if they are there: the text is not needed."""
    shards = run / TOKENS
    ready = _opened(recipe, shards) if (shards / META).is_file() else prepare(recipe, shards)
    for name in ("tokenizer_sha256", "documents", "text_sha256"):
        there, here = getattr(recipe, name), getattr(ready.recipe, name)
        if there not in (None, here):
            raise CheckpointError(f"{ready.weights.parent} holds other tokens than {run} was trained on: restore them")
    return ready


def export(run: Path, out: Path) -> None:
    """Copy what `TextPipeline.from_pretrained` needs, after loading it once to see that it is whole."""
    pipeline = TextPipeline.from_pretrained(run, device="cpu", dtype=torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    write_weights(dict(pipeline.model.named_parameters()), out / "model.safetensors")
    (out / TEXT_TOKENIZER).write_bytes(pipeline.tokenizer.to_bytes())
    write_json(out / "config.json", to_json(read_recipe(run / "config.json", TextRecipe)))


def _opened(recipe: TextRecipe, shards: Path) -> TextExperiment:
    meta, train, test, tokenizer = open_text(shards, recipe.tokenizer.context, recipe.packing)
    if test is None:
        raise ConfigError(f"{shards} holds no text to validate on: raise --data.held-out, or give --data.test FILE")
    return TextExperiment(
        recipe=replace(
            recipe, documents=meta.train.documents, text_sha256=meta.train.sha256, tokenizer_sha256=meta.tokenizer
        ),
        train=train,
        test=test,
        meta=meta,
        tokenizer=tokenizer,
        weights=shards / TEXT_TOKENIZER,
    )
