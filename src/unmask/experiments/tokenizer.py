"""A tokenizer's recipe made to run: pictures, networks, training, and what the result is worth."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from unmask.data.augment import PictureSet
from unmask.data.fingerprint import STRICT, DataFingerprint, DataPolicy, compute_fingerprint
from unmask.data.pictures import Split
from unmask.data.tokens import Batches
from unmask.errors import CheckpointError, ConfigError
from unmask.experiments.base import claim_run, describe_run
from unmask.experiments.opening import describe_opening
from unmask.experiments.preflight import check_ranks
from unmask.experiments.resuming import has_finished, keep_shuffle
from unmask.figures.images import choose_scale, draw_triptych
from unmask.metrics.configs import ClassifierConfig
from unmask.metrics.features import Classifier
from unmask.metrics.in_domain import prepare_classifier_features
from unmask.recipes.reading import read_config
from unmask.recipes.schema import TokenizerRecipe
from unmask.runtime.distributed import World, autocast, barrier, distribute, resolve_strategy, sum_over_ranks, unwrap
from unmask.runtime.progress import Progress, show_progress
from unmask.storage.layout import CHECKPOINTS, CONFIG, MODEL
from unmask.storage.lock import lock
from unmask.storage.manifest import begin_files, record_files
from unmask.storage.weights import write_weights
from unmask.tokenizers.base import open_tokenizer
from unmask.tokenizers.configs import LpipsFiles
from unmask.tokenizers.losses import Stages
from unmask.tokenizers.vqgan import Autoencoder
from unmask.training.loop import Evaluator
from unmask.training.tokenizer_loop import Networks, train_autoencoder

VALIDATION_IMAGES = 2048
PERCEPTUAL = "perceptual.safetensors"
"""In a run: the classifier whose features the reconstructions are to share."""


@dataclass(frozen=True, kw_only=True)
class TokenizerExperiment:
    """A tokenizer's recipe with its pictures."""

    recipe: TokenizerRecipe
    split: Split
    train: PictureSet
    test: PictureSet
    fingerprint: DataFingerprint
    policy: DataPolicy = STRICT


def prepare_tokenizer(
    recipe: TokenizerRecipe,
    progress: Progress | None = None,
    policy: DataPolicy = STRICT,
) -> TokenizerExperiment:
    """Open the pictures; ConfigError where they and the tokenizer do not fit. Classes and channels follow the data."""
    split = recipe.data.load(progress)
    if not len(split.test):
        raise ConfigError("no image is held out, but validation needs some: raise --data.held-out")
    channels = split.train.shape[0]
    if channels != recipe.tokenizer.channels:
        raise ConfigError(f"the images have {channels} channels: set --tokenizer.channels {channels}")
    perceptual = recipe.perceptual
    if isinstance(perceptual, ClassifierConfig):
        classes = len(split.train.classes)
        perceptual = replace(perceptual, channels=channels, num_classes=classes) if classes > 1 else None
    if isinstance(perceptual, LpipsFiles):
        perceptual.check()
    size = recipe.tokenizer.size
    return TokenizerExperiment(
        recipe=replace(
            recipe,
            perceptual=perceptual,
            classifier=replace(recipe.classifier, channels=channels, num_classes=max(2, len(split.train.classes))),
        ),
        split=split,
        train=PictureSet(pictures=split.train, size=size, flip=recipe.flip),
        test=PictureSet(pictures=split.test, size=size),
        fingerprint=compute_fingerprint(split, verify=policy.verify),
        policy=policy,
    )


def build_networks(recipe: TokenizerRecipe) -> tuple[Autoencoder, nn.Sequential]:
    """Build the tokenizer and its discriminator with their initial weights, functions of training.seed."""
    with torch.random.fork_rng(devices=[]):  # layers draw their initial weights from the global generator
        torch.manual_seed(recipe.training.seed)
        model = recipe.tokenizer.build()
        return model, recipe.loss.discriminator.build(recipe.tokenizer.channels)


def run_tokenizer(experiment: TokenizerExperiment, folder: Path, world: World) -> None:
    """Train in `folder`, from its newest checkpoint on, and leave config.json and model.safetensors there."""
    check_ranks(experiment.recipe, experiment.fingerprint, world)
    if world.is_main:
        with lock(folder):
            notes = claim_run(experiment.recipe, folder, experiment.fingerprint, experiment.policy)
            _run(experiment, folder, world, notes)
    else:
        _run(experiment, folder, world, [])


def _run(experiment: TokenizerExperiment, folder: Path, world: World, notes: list[str]) -> None:
    recipe, training = experiment.recipe, experiment.recipe.training
    with show_progress(shown=world.is_main) as progress:
        stages = open_perceptual(experiment, folder, world, progress)
    strategy = resolve_strategy(training.strategy, world)
    model, discriminator = (
        distribute(x.to(memory_format=torch.channels_last), strategy, world)  # type: ignore[call-overload]
        for x in build_networks(recipe)
    )
    shuffle = keep_shuffle(folder / CHECKPOINTS, len(experiment.train))
    batches = Batches(experiment.train, training.batch_size, training.seed, world.device, shuffle=shuffle)
    if not has_finished(folder / CHECKPOINTS, training.steps):
        core: Autoencoder = unwrap(model)  # type: ignore[assignment]
        opening = describe_opening(
            recipe,
            folder,
            world,
            networks={"tokenizer": core, "discriminator": unwrap(discriminator)},
            num_rows=(len(experiment.train), len(experiment.test)),
            length=math.prod(core.grid),
            vocab_size=core.vocab_size,
        )
        notes = [*opening, *notes]
    ema = train_autoencoder(
        Networks(model, discriminator, stages),
        recipe.loss,
        batches,
        training,
        folder,
        world=world,
        evaluators=[validate_tokenizer(experiment, unwrap(model), world)],  # type: ignore[arg-type]
        notes=notes,
        meta=describe_run(recipe, experiment.fingerprint, world, shuffle),
    )
    if world.is_main:
        begin_files(folder, [MODEL], finished=[CONFIG])
        write_weights(ema.average, folder / MODEL)
        record_files(folder, [CONFIG, MODEL])
    barrier(world)


def open_perceptual(
    experiment: TokenizerExperiment, folder: Path, world: World, progress: Progress | None = None
) -> Stages | None:
    """Return the frozen network of the perceptual term: published, or a classifier trained once and kept in the run."""
    config = experiment.recipe.perceptual
    if config is None:
        return None
    if isinstance(config, LpipsFiles):
        return config.load().to(world.device)
    if experiment.train.pictures.labels is None:
        return None
    return split_stages(
        prepare_classifier_features(experiment.train, config, folder / PERCEPTUAL, world, progress).classifier
    )


def split_stages(classifier: Classifier) -> Stages:
    """Return a function: the maps of each stage of a frozen classifier, each cell scaled to length 1 as in LPIPS."""
    classifier.requires_grad_(False).eval()

    def stages(images: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        maps, x = [], images
        for stage in classifier.trunk:
            x = stage(x)
            maps.append(F.normalize(x.float(), dim=1, eps=1e-6))
        return maps

    return stages


def validate_tokenizer(experiment: TokenizerExperiment, model: Autoencoder, world: World) -> Evaluator:
    """Return an evaluator of mean absolute error and PSNR on held-out images, with a row of reconstructions."""
    num = min(len(experiment.test), VALIDATION_IMAGES)
    chosen = torch.arange(num) * len(experiment.test) // num

    def likeness(index: Int[Tensor, "b"]) -> tuple[Tensor, Tensor]:
        images, _ = experiment.test.read_rows(index, world.device)
        with autocast(experiment.recipe.training.precision, world):
            made = model(images)[0]
        return images, made.float().clamp(-1, 1)

    def parts() -> Iterator[Tensor]:
        yield from chosen[world.rank :: world.size].split(128)

    def evaluate() -> Iterable[tuple[str, float | Image.Image]]:
        sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        for index in parts():
            images, made = likeness(index)
            error = (images - made).flatten(1)
            decibel = -10 * (error.square().mean(1) / 4).log10()
            sums += torch.stack([error.abs().mean(1).sum(), decibel.sum(), sums.new_tensor(len(index))]).double()
        total, decibels, count = sum_over_ranks(sums, world).tolist()
        yield "validation_pixel", total / count
        yield "validation_psnr", decibels / count
        yield "reconstructions", draw_reconstructions(*likeness(chosen[:12]))

    return evaluate


def draw_reconstructions(images: Float[Tensor, "n c h w"], made: Float[Tensor, "n c h w"]) -> Image.Image:
    """Pictures above their reconstructions."""
    return draw_triptych([images.cpu(), made.cpu()], ["picture", "tokens"], scale=choose_scale(images))


def open_tokenizer_run(folder: Path) -> tuple[TokenizerRecipe, Autoencoder]:
    """Open a trained tokenizer and its recipe; CheckpointError or ConfigError names what is missing."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: no config.json there; give the folder of a trained tokenizer")
    recipe = read_config(folder / CONFIG, TokenizerRecipe)
    model = open_tokenizer(recipe.tokenizer, folder / MODEL)
    assert isinstance(model, Autoencoder)
    return recipe, model
