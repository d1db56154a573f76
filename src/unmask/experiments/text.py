"""A recipe of text made to run: corpus to tokenizer to shards of tokens, and what its training shows."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from unmask.data.fingerprint import STRICT, DataFingerprint, DataPolicy, PartFingerprint
from unmask.data.shards.dataset import META
from unmask.data.sources.choice import resolve_paths
from unmask.data.sources.description import describe_texts
from unmask.data.text.rows import TextPart
from unmask.data.text.shards import (
    TextMeta,
    TextSet,
    check_text_folder,
    keep_text_arrangement,
    open_text_dataset,
    write_text_dataset,
)
from unmask.data.text.sources import TextFile
from unmask.errors import CheckpointError, ConfigError
from unmask.experiments.validation import validate_generator
from unmask.method.models.partition import PartitionTransformer
from unmask.method.models.transformer import MaskedTransformer
from unmask.pipelines.text import TextPipeline
from unmask.recipes.schema import TextRecipe
from unmask.runtime.distributed import World, autocast, unwrap
from unmask.runtime.progress import Progress
from unmask.storage.layout import TEXT_TOKENIZER
from unmask.tokenizers.text import TextTokenizer, build_tokenizer, open_text_tokenizer
from unmask.training.loop import Evaluator

TEXT_TOKENS = "tokens"
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
    fingerprint: DataFingerprint | None = None
    policy: DataPolicy = STRICT
    notes: tuple[str, ...] = ()
    """A line for each file that was left out, for the rows without a text, and for damaged tokens."""

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def grid(self) -> tuple[int, ...]:
        return self.tokenizer.grid

    def make_evaluators(self, model: nn.Module, folder: Path, world: World) -> list[Evaluator]:
        """Return evaluators of loss and accuracy on held-out text, and of a sample."""
        core: MaskedTransformer | PartitionTransformer = unwrap(model)  # type: ignore[assignment]
        precision = self.recipe.training.precision
        pipeline = TextPipeline(core, self.tokenizer, self.recipe.sampling, opens=self.recipe.opens)

        def write() -> list[tuple[str, str]]:
            with autocast(precision, world):
                return [("sample", pipeline.generate(num=1)[0])]

        return [validate_generator(self.recipe.objective, precision, self.test, model, world), write]


def prepare_text(
    recipe: TextRecipe,
    shards: Path,
    progress: Progress | None = None,
    policy: DataPolicy = STRICT,
    *,
    overwrite: bool = False,
) -> TextExperiment:
    """Tokenize the corpus into the folder `shards`, or open what is there; ConfigError where things do not fit.

    `data.path` may itself be such a folder: its tokenizer then is the recipe's, and nothing is written. A text that
    changed is tokenized by the tokenizer that is there, if `policy` accepts it. Files in `shards` that unmask did not
    make are refused unless `overwrite`.
    """
    source = resolve_paths(recipe.data)
    if isinstance(source, TextFile):
        if not recipe.data.path:  # type: ignore[union-attr]
            raise ConfigError("which text? Give --data FILE, a folder of texts, or one of tokens made before")
        if (Path(source.path) / META).is_file():
            return replace(_opened(recipe, Path(source.path)), policy=policy)
    check_text_folder(shards, overwrite=overwrite)
    source = keep_text_arrangement(source, shards)
    recipe = replace(recipe, data=replace(recipe.data, arrange=source.arrange))
    notes = [] if (shards / META).is_file() else [f"left out {line}" for line in source.list_left_out()]
    if policy.accept and (shards / META).is_file():
        tokenizer = open_text_tokenizer(shards / TEXT_TOKENIZER, recipe.tokenizer.context)
    else:
        tokenizer = build_tokenizer(recipe.tokenizer, lambda: source.read_documents("train"))
    write_text_dataset(source, tokenizer, shards, progress, notes.append, accept=policy.accept)
    return replace(_opened(recipe, shards, verify=False), notes=tuple(notes), policy=policy)


def reopen_text(recipe: TextRecipe, run: Path) -> TextExperiment:
    """Open the experiment of a finished run, from the tokens in its folder if there are any; text is not needed."""
    shards = run / TEXT_TOKENS
    ready = _opened(recipe, shards) if (shards / META).is_file() else prepare_text(recipe, shards)
    for name in ("tokenizer_sha256", "documents", "text_sha256"):
        there, here = getattr(recipe, name), getattr(ready.recipe, name)
        if there not in (None, here):
            raise CheckpointError(f"{ready.weights.parent} holds other tokens than {run} was trained on: restore them")
    return ready


def _opened(recipe: TextRecipe, shards: Path, *, verify: bool = True) -> TextExperiment:
    context = recipe.tokenizer.context
    meta, train, test, tokenizer = open_text_dataset(shards, context, recipe.packing, verify=verify)
    if test is None:
        raise ConfigError(f"{shards} holds no text to validate on: raise --data.held-out, or give --data.test FILE")
    return TextExperiment(
        recipe=replace(
            recipe,
            documents=meta.train.documents,
            text_sha256=meta.train.sha256,
            tokenizer_sha256=meta.tokenizer,
            trained_on=describe_texts(recipe.data, meta.train.documents, meta.train.tokens),
        ),
        train=train,
        test=test,
        meta=meta,
        tokenizer=tokenizer,
        weights=shards / TEXT_TOKENIZER,
        fingerprint=DataFingerprint(
            classes=(), train=_describe_part(meta.train), test=_describe_part(meta.test), unit="documents"
        ),
    )


def _describe_part(part: TextPart) -> PartFingerprint:
    return PartFingerprint(counts=(part.documents,), content=part.sha256)
