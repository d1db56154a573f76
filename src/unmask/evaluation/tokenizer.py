"""What a tokenizer is worth: how near its reconstructions are, and how well it uses its codes."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from unmask.data.augment import PictureSet
from unmask.data.fingerprint import STRICT, DataPolicy, check_data, describe_unverified, read_record
from unmask.data.pictures import spread
from unmask.data.summary import describe_split
from unmask.evaluation.images import read_curve
from unmask.evaluation.reference import check_held_out, check_judge, gather_rows
from unmask.evaluation.runs import MEASURE_ADVICE
from unmask.experiments.tokenizer import draw_reconstructions, open_tokenizer_run, prepare_tokenizer
from unmask.figures.images import write_picture
from unmask.method.rand import to_double
from unmask.metrics.configs import ClassifierConfig
from unmask.metrics.embedders import ClassifierFeatures, Features, identify_features
from unmask.metrics.frechet import compute_frechet_distance, fit_gaussian
from unmask.metrics.in_domain import prepare_classifier_features
from unmask.metrics.reconstruction import compute_code_statistics, compute_psnr, compute_ssim
from unmask.pretrained.lone_tokenizer import LearnedModel
from unmask.runtime.distributed import World
from unmask.runtime.progress import Progress
from unmask.runtime.provenance import describe_environment
from unmask.storage.config import write_json
from unmask.storage.layout import CLASSIFIER, REPORT
from unmask.storage.lock import remove_killed_writes
from unmask.storage.outputs import check_writable
from unmask.storage.weights import hash_weights

TOKENIZER_FILES = (REPORT, "reconstructions.png", CLASSIFIER)
"""The files of `measure_tokenizer`."""


def measure_tokenizer_run(
    folder: Path,
    *,
    world: World,
    features: Features | None = None,
    num: int = 10_000,
    policy: DataPolicy = STRICT,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, object]:
    """Measure a trained tokenizer on its own pictures, into its run; `say` is called with lines on these."""
    check_writable(folder)
    recipe, model = open_tokenizer_run(folder)
    experiment = prepare_tokenizer(recipe, policy=policy)
    if say is not None:
        record = read_record(folder)
        unverified = describe_unverified(None if record is None else record.data, policy, recorded=False)
        for line in [*describe_split(experiment.split), *(f"note: {note}" for note in unverified)]:
            say(line)
    check_data(folder, experiment.fingerprint, policy, *MEASURE_ADVICE)
    known: dict[str, object] = {
        "quantizer": str(recipe.tokenizer.quantizer),
        "seed": recipe.training.seed,
        **read_curve(folder, "validation_psnr"),
    }
    return measure_tokenizer(
        model,
        (experiment.train, experiment.test),
        folder,
        world=world,
        classifier=experiment.recipe.classifier,
        features=features,
        num=num,
        known=known,
        progress=progress,
    )


def measure_tokenizer(
    model: LearnedModel,
    pictures: tuple[PictureSet, PictureSet],
    folder: Path,
    *,
    world: World,
    classifier: ClassifierConfig,
    features: Features | None = None,
    num: int = 10_000,
    known: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Measure a tokenizer on held-out images, and write `report.json` and `reconstructions.png`.

    `pictures` are the images to train on and those held out; `known` is added to the report. `rfid` is the Frechet
    distance of at most `num` held-out images to their reconstructions, in `features`, or else in a classifier trained
    on the others. PSNR is in dB, SSIM at most 1. Usage and perplexity describe the tokens of these images.
    """
    facts = describe_environment(world.device)  # before the work, as the checkout may change meanwhile
    model = model.to(world.device)
    train, test = pictures
    classes = train.pictures.classes
    if features is not None or len(classes) > 1:
        check_held_out(train.pictures, test.pictures)
    if features is None and len(classes) > 1:
        features = prepare_classifier_features(train, classifier, folder / CLASSIFIER, world, progress)
    index = spread(len(test), num)
    check_judge(features if isinstance(features, ClassifierFeatures) else None, classes)
    numbers = measure_reconstructions(model, test, index, features, world)
    numbers |= {
        "num_pictures": len(index),
        "tokenizer": hash_weights(model, model.config),
        **(known or {}),
        **facts,
    }
    if world.is_main:
        remove_killed_writes(folder)
        write_json(folder / REPORT, numbers)
        images, _ = test.read_rows(index[:12], world.device)
        write_picture(draw_reconstructions(images, model.decode(model.encode(images))), folder / "reconstructions.png")
    return numbers


def measure_reconstructions(
    model: LearnedModel, pictures: PictureSet, index: Int[Tensor, "n"], features: Features | None, world: World
) -> dict[str, object]:
    """Compute the metrics of the images with these indices, in blocks over the ranks."""
    dim = 0 if features is None else features.dim

    def compute(block: slice) -> Tensor:
        images, _ = pictures.read_rows(index[block], world.device)
        tokens = model.encode(images)
        made = model.decode(tokens)
        error = (images - made).abs().flatten(1).mean(1)
        columns = [compute_psnr(images, made)[:, None], compute_ssim(images, made)[:, None], error[:, None]]
        columns += [] if features is None else [features(images), features(made)]
        return torch.cat([*map(to_double, columns), to_double(tokens)], dim=1)

    length = math.prod(model.grid)
    rows = gather_rows(len(index), 3 + 2 * dim + length, compute, world)
    near, real, made, tokens = rows.split([3, dim, dim, length], dim=1)
    decibels, likeness, error = near.mean(0).tolist()
    numbers: dict[str, object] = {
        "psnr": decibels,
        "ssim": likeness,
        "mean_absolute_error": error,
        **compute_code_statistics(tokens.long().flatten().bincount(minlength=model.vocab_size)),
        "vocab_size": model.vocab_size,
        "tokens_per_image": length,
        "bits_per_image": length * math.log2(model.vocab_size),
        "num_parameters": sum(p.numel() for p in model.parameters()),
    }
    if features is None:
        return numbers | {"left_out": {"rfid": "without classes, give --features inception or --classifier DIR"}}
    distance = compute_frechet_distance(fit_gaussian(made), fit_gaussian(real))
    return numbers | {"rfid": distance, "features": str(identify_features(features))}
