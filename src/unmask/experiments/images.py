"""A recipe of images made to run: data to tokens, validation, and the export at the end."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from unmask.data.augment import PictureSet
from unmask.data.fingerprint import (
    STRICT,
    DataFingerprint,
    DataPolicy,
    compute_fingerprint,
    describe_unverified,
    raise_if_changed,
)
from unmask.data.pictures import Pictures, Split
from unmask.data.shards.tokenizing import SplitName
from unmask.data.sources.choice import Codes, PictureSource
from unmask.data.sources.description import describe_images
from unmask.data.summary import describe_split
from unmask.data.tokens import Tokens, TokenSet, Unlabelled
from unmask.errors import ConfigError, DataError
from unmask.experiments.coded import open_coded
from unmask.experiments.validation import sample_evaluator, validate_generator
from unmask.method.models.configs import TransformerConfig
from unmask.method.models.partition_config import PartitionConfig
from unmask.pipelines.image import Pipeline
from unmask.pretrained.conditions import takes_prompts
from unmask.recipes.schema import MeasuredModel, Recipe
from unmask.runtime.distributed import World, unwrap
from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line
from unmask.storage.layout import TOKENIZER
from unmask.tokenizers.base import open_tokenizer
from unmask.tokenizers.pixels import Pixels
from unmask.training.loop import Evaluator

Fitted = TypeVar("Fitted", bound=Recipe | MeasuredModel)


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[Fitted]):
    """A recipe with its data open, its open numbers filled in, and its images as tokens.

    `weights` is the file of a learned tokenizer. `loaded` holds the pictures, if they had to be read for the tokens;
    `counted` says how many there were to train on and held out when a token dataset was made of them, and `images` is
    their fingerprint. `fingerprint` is that of what is trained on. `policy` says what to do if either changed.
    `say` is called with lines on the pictures when they are first used.
    """

    recipe: Fitted
    train: Tokens
    test: Tokens
    source: PictureSource
    classes: tuple[str, ...]
    weights: Path | None = None
    loaded: Split | None = None
    counted: tuple[int, int] = (0, 0)
    images: DataFingerprint | None = None
    fingerprint: DataFingerprint | None = None
    policy: DataPolicy = STRICT
    say: Callable[[str], None] | None = None
    kept: str = TOKENIZER

    @property
    def vocab_size(self) -> int:
        return self.recipe.tokenizer.vocab_size

    @property
    def grid(self) -> tuple[int, ...]:
        return self.recipe.tokenizer.grid

    def make_evaluators(self, model: nn.Module, folder: Path, world: World) -> list[Evaluator]:
        """Return evaluators of loss and accuracy on held-out images, and of a grid of samples."""
        tokenizer = open_tokenizer(self.recipe.tokenizer, folder / TOKENIZER)
        if isinstance(tokenizer, nn.Module):
            tokenizer = tokenizer.to(world.device)
        pipeline = Pipeline(unwrap(model), tokenizer, self.recipe.sampling)  # type: ignore[arg-type]
        pipeline.empty_classes = self.recipe.empty_classes
        assert isinstance(self.recipe, Recipe)
        training = self.recipe.training
        return [
            validate_generator(self.recipe.objective, training.precision, self.test, model, world),
            sample_evaluator(pipeline, training.precision, world),
        ]

    @cached_property
    def split(self) -> Split:
        """The images behind the tokens; DataError if their source no longer has the images that were tokenized."""
        split = self._open_split() if self.loaded is None else self.loaded
        if self.say is not None:
            unverified = [] if self.loaded else describe_unverified(self.images, self.policy, recorded=False)
            for line in [*describe_split(split), *(f"note: {note}" for note in unverified)]:
                self.say(line)
        return split

    def _open_split(self) -> Split:
        split = self.source.load()
        if self.images is not None:
            now = compute_fingerprint(split, verify=self.policy.verify)
            what = f"the images of {describe_place(self.source)} changed since they were tokenized"
            advice = ("restore them, tokenize them again", "measure against them knowingly")
            raise_if_changed(self.images, now, self.policy, what, *advice)
            return split
        here = (len(split.train), len(split.test), tuple(split.train.classes))
        if here != (*self.counted, self.classes):
            raise DataError(
                f"{self.source}: {here[0]} + {here[1]} pictures of {len(here[2])} classes now, {self.counted[0]} + "
                f"{self.counted[1]} of {len(self.classes)} when they were tokenized, so other ones would be held out: "
                "restore the source, or tokenize it again"
            )
        return split

    def read_pictures(self, part: SplitName) -> PictureSet:
        """Return the images of a part, cut to the tokenizer's size."""
        pictures = self.split.train if part == "train" else self.split.test
        return PictureSet(pictures=pictures, size=self.recipe.tokenizer.size, flip=False)


def describe_place(source: PictureSource) -> str:
    """Return the place of a source, for a message."""
    return escape_line(str(getattr(source, "path", None) or getattr(source, "name", None) or type(source).__name__))


def prepare_images(
    recipe: Fitted,
    progress: Progress | None = None,
    policy: DataPolicy = STRICT,
) -> Experiment[Fitted]:
    """Read the data, tokenize it, and fill in what follows from it; ConfigError where data and recipe do not fit.

    The data decides the number of classes and channels, the tokenizer the grid of a Halton order, and codes the
    tokenizer.
    """
    source = recipe.data
    if isinstance(source, Codes):
        return _prepare_codes(recipe, source, policy)
    tokenizer = recipe.tokenizer
    if not isinstance(tokenizer, Pixels):
        raise ConfigError(
            "this recipe trains on a token dataset: run unmask train-tokenizer, then unmask tokenize, and give its "
            "folder as --data (in Python data=Codes(path=...)); with --init, that may also be a folder of images"
        )
    split = source.load(progress)
    if not len(split.test):
        raise ConfigError("no image is held out, but validation needs some: raise --data.held-out")
    channels, height, width = split.train.shape
    if (channels, height, width) != (recipe.tokenizer.channels, *recipe.tokenizer.size):
        raise ConfigError(
            f"the images are {channels} x {height} x {width} but the tokenizer takes {recipe.tokenizer.channels} x "
            f"{recipe.tokenizer.size[0]} x {recipe.tokenizer.size[1]}: set --tokenizer.size and --tokenizer.channels"
        )
    fingerprint = compute_fingerprint(split, verify=policy.verify)
    recipe = fit_to_data(recipe, split.train.classes, fingerprint.train.counts)
    recipe = fill_training_data(recipe, describe_images(source, len(split.train), recipe.classes))
    train, test = (encode_pictures(part, tokenizer, recipe.conditional) for part in (split.train, split.test))
    return Experiment(
        recipe=recipe,
        train=train,
        test=test,
        source=source,
        classes=split.train.classes,
        loaded=split,
        fingerprint=fingerprint,
        policy=policy,
    )


def _prepare_codes(recipe: Fitted, data: Codes, policy: DataPolicy) -> Experiment[Fitted]:
    if not data.path:
        raise ConfigError(
            "which data? Give --data DIR, codes that unmask tokenize made, or with --init a folder of pictures"
        )
    if data.train or data.test:
        raise ConfigError(f"{data.path} is a token dataset, whose sets are its own: leave out --data.train and .test")
    coded = open_coded(data.path)
    classes = coded.meta.classes
    train, test = (part if recipe.conditional else Unlabelled(part) for part in (coded.train, coded.test))
    recipe = replace(recipe, tokenizer=coded.tokenizer, tokenizer_sha256=coded.meta.tokenizer)
    recipe = fit_to_data(recipe, classes, coded.tokens.train.counts)
    return Experiment(
        recipe=fill_training_data(recipe, describe_images(coded.source, coded.counted[0], recipe.classes)),
        train=train,
        test=test,
        source=coded.source,
        classes=classes,
        weights=coded.weights,
        counted=coded.counted,
        images=coded.images,
        fingerprint=coded.tokens,
        policy=policy,
    )


def fit_to_data(recipe: Fitted, classes: tuple[str, ...], counts: tuple[int, ...] = ()) -> Fitted:
    """Return the recipe with the numbers that the data and the tokenizer decide.

    `counts` says how many training images each class has, if that is known.
    """
    if takes_prompts(recipe.model):
        raise ConfigError(
            "this model generates images from texts, and such a model cannot be trained here: take a recipe of classes"
        )
    if not isinstance(recipe.model, TransformerConfig | PartitionConfig) and not (recipe.conditional and classes):
        raise ConfigError("a published network needs classes, and there are no classes here: sort the pictures by them")
    empty = tuple(i for i, count in enumerate(counts[: len(classes)]) if not count)
    return replace(
        recipe,
        sampling=recipe.sampling.fit_to(recipe.tokenizer.grid),
        classes=tuple(classes) if recipe.conditional else (),
        empty_classes=empty if recipe.conditional else (),
        model=replace(recipe.model, num_classes=len(classes) if recipe.conditional else 0),
        classifier=replace(recipe.classifier, channels=recipe.tokenizer.channels, num_classes=max(2, len(classes))),
    )


def fill_training_data(recipe: Fitted, sentence: str) -> Fitted:
    """Return a recipe with the sentence on its data; a model that was trained elsewhere keeps its own."""
    return replace(recipe, trained_on=sentence) if isinstance(recipe, Recipe) else recipe


def check_classes(classes: tuple[str, ...], asked: int | None, where: str) -> None:
    """ConfigError if there are others than the `asked` number of classes, where one was asked for."""
    if asked is not None and len(classes) != asked:
        raise ConfigError(f"{where} has {len(classes) or 'no'} classes, and --num-classes says {asked}: correct one")


def encode_pictures(images: Pictures, tokenizer: Pixels, labelled: bool) -> TokenSet:
    """Encode all images as tokens, a few thousand at a time, with their classes if asked for."""
    parts = torch.arange(len(images)).split(4096)
    tokens = torch.cat([tokenizer.encode(images.read_float(index)) for index in parts])
    return TokenSet(tokens=tokens, condition=images.labels if labelled else None)
