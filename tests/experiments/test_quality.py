"""Samples after a short training are good: what shows faults that no loss or shape does, in the dtypes of users."""

from dataclasses import dataclass

import pytest
import torch

from unmask.cli import main
from unmask.evaluation.images import measure_accuracy, sample_banks
from unmask.evaluation.reference import Reference, open_reference
from unmask.evaluation.runs import open_run
from unmask.metrics.embedders import ClassifierFeatures
from unmask.metrics.frechet import compute_frechet_distance, fit_gaussian
from unmask.metrics.in_domain import prepare_classifier_features
from unmask.pipelines.image import Pipeline
from unmask.runtime.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
STEPS = 400  # of the demo's 1,000: half a minute on one core
SAMPLES = 1500


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the samples of a trained run, in two dtypes, are measured with; `truth` are the classes of real pictures."""

    judge: ClassifierFeatures
    real: Reference
    truth: torch.Tensor
    pipelines: dict[torch.dtype, Pipeline]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality") / "run"
    steps = [f"--training.{name}={STEPS}" for name in ("steps", "evaluate-every", "save-every")]
    main(["train", "digits", "--out", str(folder), *steps, "--classifier.steps", "200", "--device", "cpu"])
    experiment = open_run(folder, ALONE).experiment
    path = folder / "classifier.safetensors"
    judge = prepare_classifier_features(experiment.read_pictures("train"), experiment.recipe.classifier, path, ALONE)
    return Bench(
        judge=judge,
        real=open_reference(experiment, judge, folder, ALONE),
        truth=experiment.split.test.labels,
        pipelines={
            dtype: Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)
            for dtype in (torch.bfloat16, torch.float32)
        },
    )


@pytest.fixture(scope="module")
def banks(bench):
    """The features of the same samples in either dtype."""
    measures = [(bench.judge.dim, bench.judge)]
    # Of its own, as the tests' check of types hides from decode's decorator that it decorates a generator.
    with torch.no_grad():
        return {
            dtype: sample_banks(pipeline, SAMPLES, measures, ALONE, seed=0, sampling=pipeline.sampling)[0]
            for dtype, pipeline in bench.pipelines.items()
        }


def accuracy(bench, banks, dtype):
    return measure_accuracy(bench.judge, banks[dtype], bench.pipelines[dtype].cycle_labels(SAMPLES))


def test_the_judge_knows_real_digits(bench):
    assert measure_accuracy(bench.judge, bench.real.test, bench.truth) > 0.98


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_samples_are_of_their_class_and_near_to_real_ones(bench, banks, dtype):
    """As trained here 98 %, and a distance of the floor's size; a norm with bfloat16's epsilon: 14 % and 27 floors."""
    assert accuracy(bench, banks, dtype) > 0.95
    test = fit_gaussian(bench.real.test)
    floor = compute_frechet_distance(fit_gaussian(bench.real.train), test)
    assert compute_frechet_distance(fit_gaussian(banks[dtype]), test) < 3 * floor


def test_bfloat16_samples_as_well_as_float32(bench, banks):
    """They are other samples, as one rounded token changes all that follow; but neither is better."""
    assert not torch.equal(*banks.values())
    assert abs(accuracy(bench, banks, torch.bfloat16) - accuracy(bench, banks, torch.float32)) < 0.02
