"""Many samples to figures one can trust: each beside what as many real pictures get, and what the tokenizer allows.

Every figure is measured in the features of a named network with a hash, against held-out real pictures. `_floor` is the
same figure for as many real training pictures, and `_limit` for those after the tokenizer has had them: no generator
over these tokens can be expected to do better. The work is split over ranks, with results equal to one process.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from unmask.data.holes import make_masks
from unmask.data.pictures import spread
from unmask.data.shards.tokenizing import SplitName
from unmask.data.tokens import TokenSet
from unmask.decoding.sampling import Sampling
from unmask.errors import CheckpointError, ConfigError
from unmask.evaluation.class_shares import (
    ClassShares,
    choose_baseline,
    choose_labels,
    count_class_shares,
    describe_shares,
    describe_unmeasured,
)
from unmask.evaluation.gallery import draw_pictures
from unmask.evaluation.reference import Reference, check_judge, embed_real, gather_rows, list_unread, open_reference
from unmask.evaluation.runs import OpenedRun
from unmask.experiments.images import Experiment
from unmask.method.guidance import Condition
from unmask.method.rand import to_double
from unmask.metrics.classes import compute_inception_score
from unmask.metrics.embedders import ClassifierFeatures, Features
from unmask.metrics.frechet import compute_frechet_distance, compute_frechet_infinity, fit_gaussian
from unmask.metrics.in_domain import prepare_classifier_features
from unmask.metrics.kernel import compute_kernel_distance
from unmask.metrics.manifold import compute_prdc
from unmask.metrics.neighbours import compare_with_training_set
from unmask.pipelines.image import Pipeline
from unmask.pipelines.rules import LabelRule
from unmask.runtime.distributed import World
from unmask.runtime.progress import Progress
from unmask.runtime.provenance import describe_environment
from unmask.storage.config import write_json
from unmask.storage.layout import CHECKPOINTS, CLASSIFIER, METRICS, MODEL, REPORT
from unmask.storage.lock import remove_killed_writes
from unmask.storage.outputs import check_writable
from unmask.tokenizers.pixels import Pixels
from unmask.training.curve import has_curve_changed, read_metrics
from unmask.training.runfolder import list_checkpoints, read_meta

Bank = Float64[Tensor, "n d"]
"""Features, a row per picture."""
BankMeasure = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b d"]]


def sample_banks(
    pipeline: Pipeline,
    num: int,
    measures: Sequence[tuple[int, BankMeasure]],
    world: World,
    *,
    seed: int,
    sampling: Sampling,
    labels: Condition = None,
    progress: Progress | None = None,
) -> list[Bank]:
    """Return the features by each (dim, measure) of samples 0 to num - 1, sampled once and never all in memory.

    `labels` are their classes; by default all classes in turn.
    """
    if not measures:
        return []

    def compute(block: slice) -> Tensor:
        part = None if labels is None else labels[block]
        images = pipeline.sample_range(block.start, block.stop, part, seed=seed, sampling=sampling).to(world.device)
        return torch.cat([to_double(measure_bank(images)) for _, measure_bank in measures], dim=1)

    dims = [dim for dim, _ in measures]
    return list(gather_rows(num, sum(dims), compute, world, progress).split(dims, dim=1))


def rebuild_bank(
    experiment: Experiment,
    pipeline: Pipeline,
    features: Features,
    part: SplitName,
    index: Int[Tensor, "n"],
    world: World,
) -> Bank:
    """Return the features of real images after the tokenizer has encoded and decoded them."""
    pictures, tokenizer = experiment.read_pictures(part), pipeline.tokenizer

    def compute(block: slice) -> Tensor:
        images, _ = pictures.read_rows(index[block], world.device)
        return features(tokenizer.decode(tokenizer.encode(images)))

    return gather_rows(len(index), features.dim, compute, world)


def measure_bank(bank: Bank, features: Features, real: Reference) -> tuple[dict[str, float], dict[str, str]]:
    """Compute every metric that needs no labels; return them, and the ones left out with what they would need."""
    fit = fit_gaussian(real.test)
    figures = {"frechet": compute_frechet_distance(fit_gaussian(bank), fit)}
    more: dict[str, Callable[[], dict[str, float]]] = {
        "frechet_infinity": lambda: {"frechet_infinity": compute_frechet_infinity(bank, fit)},
        "kid": lambda: dict(zip(("kid", "kid_deviation"), compute_kernel_distance(real.test, bank), strict=True)),
        "precision, recall, density, coverage": lambda: compute_prdc(real.test, bank),
    }
    if features.num_classes is not None:
        names = ("inception_score", "inception_score_deviation")
        more["inception_score"] = lambda: dict(
            zip(names, compute_inception_score(features.classify(bank)), strict=True)
        )
    left_out: dict[str, str] = {}
    fewest = min(len(bank), len(real.test))
    if fewest <= features.dim:
        left_out["a trustworthy frechet"] = f"{fewest} images in {features.dim} dimensions; take more than these"
    for name, compute in more.items():
        try:
            figures |= compute()
        except ConfigError as error:  # too few samples: the message says how many it takes
            left_out[name] = str(error)
    return figures, left_out


def decode_pixels(experiment: Experiment) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Training and held-out pictures as the tokenizer shows them, for tokens that lie in memory."""
    train, test, tokenizer = experiment.train, experiment.test, experiment.recipe.tokenizer
    assert isinstance(train, TokenSet)
    assert isinstance(test, TokenSet)
    assert isinstance(tokenizer, Pixels)
    return tokenizer.decode(train.tokens).flatten(1), tokenizer.decode(test.tokens).flatten(1)


def measure_accuracy(judge: ClassifierFeatures, bank: Bank, labels: Int[Tensor, "n"]) -> float:
    """Return the share of images whose likeliest class is their own; `bank` holds features of the classifier."""
    return float((judge.classify(bank).argmax(1) == labels.to(bank.device)).cpu().double().mean())


def measure_run(
    run: OpenedRun,
    *,
    num: int,
    seed: int,
    world: World,
    sampling: Sampling | None = None,
    features: Features | None = None,
    judge: ClassifierFeatures | None = None,
    reference: Path | None = None,
    labels: LabelRule = "shares",
    progress: Progress | None = None,
) -> dict[str, object]:
    """Generate `num` images, measure them, draw the run's pictures, and write and return `report.json`.

    Their classes come in the shares of the held-out images, or with `labels` "balanced" equally often.

    Without `features` they are the judge's own, and the judge is trained once and kept in the run. Without classes and
    features there is nothing to measure in: the report then holds what needs none.
    """
    folder, experiment, pipeline = run.folder, run.experiment, run.pipeline
    check_writable(folder)
    curve = read_curve(folder)
    facts = describe_environment(
        world.device
    )  # of the code as it is now: the checkout may change in the minutes of work below
    sampling = sampling or pipeline.sampling
    if judge is None and experiment.classes:
        path = folder / CLASSIFIER
        judge = prepare_classifier_features(
            experiment.read_pictures("train"), experiment.recipe.classifier, path, world, progress
        )
    check_judge(judge, experiment.classes)
    features = features or judge
    numbers: dict[str, object] = {}
    networks = [network for network in dict.fromkeys((features, judge)) if network is not None]
    measures: list[tuple[int, BankMeasure]] = [(network.dim, network) for network in networks]
    exact = isinstance(experiment.train, TokenSet)  # small pictures, made of their tokens: copies are equal pixels
    if exact:
        measures.append((experiment.read_pictures("test").dim, lambda images: images.flatten(1)))
    real = None if features is None else open_reference(experiment, features, reference or folder, world, progress)
    shares = count_class_shares(experiment, pipeline, real, labels)
    ids = choose_labels(shares, pipeline, num)
    banks = sample_banks(pipeline, num, measures, world, seed=seed, sampling=sampling, labels=ids, progress=progress)
    if features is None or real is None:
        reason = "without classes there is no classifier to measure in: give --features inception or dinov2"
        numbers["left_out"] = {"distances": reason}
    else:
        numbers |= compare_to_real(experiment, pipeline, features, real, banks[0], world, shares)
        if not exact:
            numbers["nearest_train"] = compare_with_training_set(banks[0], real.train, real.test)
    if exact:
        numbers["nearest_train"] = compare_with_training_set(banks[-1].float().cpu(), *decode_pixels(experiment))
    if judge is not None and ids is not None:
        own = banks[networks.index(judge)]
        numbers |= measure_classes(experiment, pipeline, judge, own, ids, world, sampling, seed)
    if shares is not None and ids is not None:
        numbers |= report_shares(shares, ids, labels, numbers)
    numbers |= {
        **curve,
        "num_parameters": sum(p.numel() for p in pipeline.model.parameters()),
        "steps": sampling.steps,
        "sampling": str(sampling),
        "num_samples": num,
        "seed": seed,
        "weights": str(next(pipeline.model.parameters()).dtype),
        **({"revision": run.revision} if run.revision else {}),
        **facts,
    }
    if world.is_main:
        remove_killed_writes(folder)
        write_json(folder / REPORT, numbers)
        draw_pictures(folder, experiment, pipeline, sampling, seed)
    return numbers


def compare_to_real(
    experiment: Experiment,
    pipeline: Pipeline,
    features: Features,
    real: Reference,
    bank: Bank,
    world: World,
    shares: ClassShares | None = None,
) -> dict[str, object]:
    """Measure the samples, as many real training images (the baseline), and these through the tokenizer (the bound).

    The training images have the class shares of the samples, so that a perfect model reaches the baseline.
    """
    index = choose_baseline(shares, len(real.train), len(bank))
    chosen = real.train_index[index]
    rebuilt = rebuild_bank(experiment, pipeline, features, "train", chosen, world)
    again = rebuild_bank(experiment, pipeline, features, "test", real.test_index, world)
    figures, left_out = measure_bank(bank, features, real)
    numbers: dict[str, object] = {
        **figures,
        "frechet_train": compute_frechet_distance(fit_gaussian(bank), fit_gaussian(real.train)),
        **{
            f"{name}_floor": x for name, x in measure_bank(real.train[index.to(bank.device)], features, real)[0].items()
        },
        **{f"{name}_limit": x for name, x in measure_bank(rebuilt, features, real)[0].items()},
        "frechet_tokenizer": compute_frechet_distance(fit_gaussian(again), fit_gaussian(real.test)),
        "features": str(real.key.features),
        "num_reference": len(real.test),
        "num_floor": len(index),
    }
    bad = [
        *list_unread(experiment.read_pictures("train"), real.train_index),
        *list_unread(experiment.read_pictures("test"), real.test_index),
    ]
    numbers |= {"unreadable": [str(one) for one in bad]} if bad else {}
    return numbers | ({"left_out": left_out} if left_out else {})


def measure_classes(
    experiment: Experiment,
    pipeline: Pipeline,
    judge: ClassifierFeatures,
    bank: Bank,
    labels: Int[Tensor, "n"],
    world: World,
    sampling: Sampling,
    seed: int,
) -> dict[str, object]:
    """Class accuracy of samples, of real held-out images, and of those after a hole in them was filled."""
    pictures, truth = experiment.read_pictures("test"), experiment.split.test.labels
    assert truth is not None
    real, every = embed_real(pictures, judge, spread(len(pictures)), world)
    figures: dict[str, object] = {
        "class_accuracy": measure_accuracy(judge, bank, labels),
        "classifier_test_accuracy": measure_accuracy(judge, real, truth[every]),
        "judge": judge.sha256,
    }
    if len(pipeline.tokenizer.grid) != 2:
        return figures  # a token without a place repairs nothing
    some = every[spread(len(every), 300)]
    images, _ = pictures.read_rows(some, world.device)
    hole = make_masks(len(images), *images.shape[2:]).to(images.device)
    repaired = pipeline.fill(images, hole, truth[some], seed=seed, sampling=sampling)
    return figures | {"inpaint_class_accuracy": measure_accuracy(judge, judge(repaired), truth[some])}


def report_shares(
    shares: ClassShares, labels: Int[Tensor, "n"], rule: LabelRule, numbers: Mapping[str, object]
) -> dict[str, object]:
    """Return what a report says about the classes of samples and pictures, `left_out` completed."""
    found: dict[str, object] = {"labels": rule}
    if (said := describe_shares(shares, labels)) is not None:
        found["class_shares"] = said
    if shares.unmeasured:
        others = numbers.get("left_out")
        more = {"classes": describe_unmeasured(shares.unmeasured)}
        found["left_out"] = {**(others if isinstance(others, dict) else {}), **more}
    return found


def has_changed_since_saved(run: Path) -> bool:
    """Return whether the curve of a run is not what its newest checkpoint recorded."""
    for newest in list_checkpoints(run / CHECKPOINTS)[:1]:
        with suppress(CheckpointError):  # damaged: the training names it
            return has_curve_changed(run / METRICS, read_meta(newest).get("curve", {}))
    return False


def read_curve(run: Path, name: str = "validation_loss") -> dict[str, object]:
    """Return where a training ended: the metric of that name, seconds and steps; and a note on what is damaged or gone.

    Return {} for an export, which has no curve, and for a model trained elsewhere, to which `runs.link_weights` links.
    Raises CheckpointError if the training did not get to a validation.
    """
    path = run / METRICS
    if (run / MODEL).is_symlink() or not path.is_file():
        is_lost = (run / CHECKPOINTS).is_dir() and not path.is_file()
        return {"curve_note": f"{path} is missing: restore it to have the end of the training here"} if is_lost else {}
    notes: list[str] = []
    rows = read_metrics(path, report=notes.append)
    if has_changed_since_saved(run):
        notes.append(f"{path} is not as the training left it: a part of the curve is missing or was changed")
    values = [row[name] for row in rows if name in row]
    if not values:
        raise CheckpointError(f"{path} tells of no validation: give the folder of a run that was trained to its end")
    end: dict[str, object] = {"train_seconds": rows[-1]["seconds"], "train_steps": rows[-1]["step"]}
    return {name: values[-1], **end, **({"curve_note": notes[0]} if notes else {})}
