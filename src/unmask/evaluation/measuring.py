"""Measure from Python: what `unmask evaluate`, `sweep` and `score` do, as functions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from unmask.data.fingerprint import STRICT, DataPolicy
from unmask.data.sources.folders import Folder
from unmask.decoding.names import list_orders
from unmask.decoding.sampling import Sampling
from unmask.decoding.settings import SamplingSettings, change_sampling
from unmask.errors import ConfigError, look_up
from unmask.evaluation.earlier import check_report
from unmask.evaluation.gallery import PICTURE_FILES
from unmask.evaluation.images import measure_run
from unmask.evaluation.networks import open_networks
from unmask.evaluation.plans import SweepChoices, plan_sweep
from unmask.evaluation.runs import open_run, shorten_name
from unmask.evaluation.scoring import (
    SCORE_FILES,
    OrderScore,
    ScoredSubject,
    describe_dtype,
    score_subject,
    write_scores,
)
from unmask.evaluation.sweep_table import COLUMNS, SWEEP_FILES, SweepRow
from unmask.evaluation.sweeping import sweep_run
from unmask.experiments.text import reopen_text
from unmask.method.guidance import Condition, Predict, guided
from unmask.method.ramps import Interval
from unmask.pipelines.rules import LabelRule
from unmask.pipelines.text import TextPipeline
from unmask.pretrained.conditions import check_guidance
from unmask.published.opening import OpenedModel, open_model
from unmask.recipes.reading import has_config
from unmask.recipes.schema import TextRecipe
from unmask.recipes.spec import ModelSpec, collect_presets
from unmask.runtime.distributed import World, join_world
from unmask.runtime.progress import Progress
from unmask.storage.layout import CLASSIFIER, MODEL, REPORT, TOKENIZER
from unmask.storage.outputs import check_folder, check_results

REPORT_FILES = (REPORT, MODEL, TOKENIZER, CLASSIFIER, *PICTURE_FILES)
"""The files that an evaluation writes into a folder of its own."""


def evaluate(
    run: str | Path,
    *,
    samples: int = 1500,
    seed: int = 0,
    features: str = "classifier",
    classifier: str | Path | None = None,
    reference: str | Path | None = None,
    labels: LabelRule = "shares",
    data: str | Folder | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    accept_data: bool = False,
    verify_data: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **settings: Unpack[SamplingSettings],
) -> dict[str, object]:
    """Generate images and measure them, as `unmask evaluate` does; writes report.json and the pictures of the run.

    Args:
        run: A run, an export, a published model or hf-hub:OWNER/NAME.
        samples: How many images to generate and measure.
        seed: The seed of the samples.
        features: "classifier", "inception" or "dinov2"; the latter two may be kind=PATH of their weights.
        classifier: A folder that unmask train-features made; by default one is trained and kept in the run.
        reference: The file that keeps the features of the real images; by default in the run.
        labels: "shares" samples each class as often as it is held out, "balanced" all classes equally often.
        data: For a model that is no run: what to measure it against, as `unmask evaluate --data` takes it; or a
            `Folder`, whose size and channels the model decides.
        out: For a model that is no run: the folder for the results; runs/NAME by default.
        overwrite: Replace files in `out` that unmask did not make, and a report on more samples.
        device: "auto", "cuda" or "cpu".
        accept_data: Measure a run although its data changed since it was trained.
        verify_data: Compare all bytes of all images, also of those that are read on demand.
        progress: Called with (what, done, total).
        say: Called with lines on the images that are measured against.
        settings: How to sample, as in `Pipeline.generate`.

    Returns:
        The metrics, as in report.json.

    Examples:
        >>> report = unmask.evaluate("runs/demo", samples=20, steps=2)
        >>> report["num_samples"]
        20
    """
    with join_world(None if device == "auto" else device) as here:
        opened = open_model(run, world=here)
        sampling = check_sampling(opened.require_image_spec(), settings)
        return evaluate_opened(
            opened,
            here,
            samples=samples,
            seed=seed,
            sampling=sampling,
            features=features,
            classifier=classifier,
            reference=None if reference is None else Path(reference),
            labels=labels,
            data=data,
            out=None if out is None else Path(out),
            policy=DataPolicy(accept=accept_data, verify=verify_data),
            overwrite=overwrite,
            progress=progress,
            say=say if here.is_main else None,
        )


def evaluate_opened(
    opened: OpenedModel,
    here: World,
    *,
    samples: int,
    seed: int,
    sampling: Sampling,
    features: str = "classifier",
    classifier: str | Path | None = None,
    reference: Path | None = None,
    labels: LabelRule = "shares",
    data: str | Folder | None = None,
    out: Path | None = None,
    policy: DataPolicy = STRICT,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, object]:
    """Measure a model whose configuration is read; see `evaluate`."""
    if here.is_main and out is not None and not has_config(out):
        check_folder(out, REPORT_FILES, overwrite=overwrite)
    if samples < 2:
        raise ConfigError(f"--samples {samples}: at least 2, to have a covariance")
    path, advice = find_report(opened, out), "" if opened.is_run else "or give another --out"
    check_report(path, "num_samples", samples, "--samples", overwrite=overwrite, advice=advice)
    extractor, judge = open_networks(features, classifier, here)
    return measure_run(
        open_run(opened, here, data=data, out=out, policy=policy, progress=progress, say=say),
        num=samples,
        seed=seed,
        world=here,
        sampling=sampling,
        features=extractor,
        judge=judge,
        reference=reference,
        labels=labels,
        progress=progress,
    )


def find_report(opened: OpenedModel, out: Path | None) -> Path:
    """Return the file that an evaluation of a model writes; see `runs.choose_folder`."""
    folder = opened.folder if opened.is_run else None
    return (folder or out or Path("runs") / shorten_name(opened.name)) / REPORT


def check_sampling(spec: ModelSpec, settings: Any) -> Sampling:
    """Return the model's sampling with these settings; ConfigError, before weights are read, if it cannot be."""
    sampling = change_sampling(spec.sampling, spec.grid, settings, collect_presets(spec))
    has_classes = getattr(spec.model, "num_classes", 1) > 0
    check_guidance(spec.model, labelled=has_classes, guided=has_classes and not sampling.unguided)
    return sampling


def sweep(
    run: str | Path,
    choices: SweepChoices,
    out: str | Path | None = None,
    *,
    features: str = "classifier",
    classifier: str | Path | None = None,
    reference: str | Path | None = None,
    data: str | Folder | None = None,
    overwrite: bool = False,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    accept_data: bool = False,
    verify_data: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> list[SweepRow]:
    """Compare ways to sample in one table with plots, as `unmask sweep` does; the same call again resumes it.

    Args:
        run: A run, an export, a published model or hf-hub:OWNER/NAME.
        choices: What to compare.
        out: The folder for sweep.md, sweep.csv and the plots; RUN/sweep by default.
        features: "classifier", "inception" or "dinov2"; the latter two may be kind=PATH of their weights.
        classifier: A folder that unmask train-features made; by default one is trained and kept in the run.
        reference: The file that keeps the features of the real images; by default in the run.
        data: For a model that is no run: what to measure it against, as in `evaluate`.
        overwrite: Replace files in `out` that unmask did not make.
        device: "auto", "cuda" or "cpu".
        dtype: The type of the weights in memory, as in `unmask.load`.
        accept_data: Measure a run although its data changed since it was trained.
        verify_data: Compare all bytes of all images, also of those that are read on demand.
        progress: Called with (what, done, total).
        say: Called with lines on the images that are measured against.

    Returns:
        The rows: the real-data baseline, the tokenizer bound, each setting, and the best one with a fresh seed.

    Examples:
        >>> choices = unmask.SweepChoices(samples=8, tune=0, steps=(2,), orders=("halton",), temperatures=(1.0,))
        >>> len(unmask.sweep("runs/demo", choices))
        4
    """
    check_results(None if out is None else Path(out), SWEEP_FILES, signs=COLUMNS, overwrite=overwrite)
    with join_world(None if device == "auto" else device) as here:
        opened = open_model(run, world=here)
        plan = plan_sweep(opened.require_image_spec(), choices, opened.name)
        extractor, judge = open_networks(features, classifier, here)
        policy, place = DataPolicy(accept=accept_data, verify=verify_data), None if out is None else Path(out)
        said = say if here.is_main else None
        subject = open_run(opened, here, data=data, out=place, dtype=dtype, policy=policy, progress=progress, say=said)
        folder = subject.folder / "sweep" if out is None else Path(out)
        return list(
            sweep_run(
                subject,
                plan,
                folder,
                world=here,
                features=extractor,
                judge=judge,
                reference=None if reference is None else Path(reference),
                progress=progress,
            )
        )


def score(
    run: str | Path,
    *,
    orders: Sequence[str] = ("halton", "margin-repulsion", "margin", "entropy", "confidence-without-noise", "raster"),
    steps: Sequence[int] = (1, 4, 16, 64),
    schedule: str | None = None,
    rows: int = 256,
    passes: int = 16,
    seed: int = 0,
    data: str | Folder | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    accept_data: bool = False,
    verify_data: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[OrderScore]:
    """Rank unmasking orders by the exact likelihood of held-out data, as `unmask score` does.

    Args:
        run: A run of images or text, an export, a published model or hf-hub:OWNER/NAME.
        orders: Names of orders; the others are compared with the first.
        steps: Numbers of forward passes.
        schedule: The schedule; by default the run's own.
        rows: Held-out rows, spread over all there are.
        passes: Masks of each row behind the likelihood bound.
        seed: The seed of the masks.
        data: For a model that is no run: the data to score, as in `evaluate`.
        out: The folder for score.md, score.csv and the plot; RUN/score by default.
        overwrite: Replace files in `out` that unmask did not make.
        device: "auto", "cuda" or "cpu".
        dtype: The type of the weights in memory, as in `unmask.load`; by default float32.
        accept_data: Score a run although its data changed since it was trained.
        verify_data: Compare all bytes of all images, also of those that are read on demand.
        say: Called with lines on the data that is scored.

    Returns:
        The bound, then a score for each order and number of steps.

    Examples:
        >>> scores = unmask.score("runs/demo", orders=["halton"], steps=[4], rows=4, passes=1)
        >>> [score.order for score in scores]
        ['bound', 'halton']
    """
    check_results(None if out is None else Path(out), SCORE_FILES, overwrite=overwrite)
    with join_world(None if device == "auto" else device) as here:
        opened = open_model(run, world=here)
        subject, sampling, grid, folder = open_subject(
            opened,
            here,
            data,
            None if out is None else Path(out),
            DataPolicy(accept=accept_data, verify=verify_data),
            say if here.is_main else None,
            dtype,
        )
        if schedule is not None:
            sampling = Sampling(schedule=change_sampling(Sampling(), grid, {"schedule": schedule}).schedule)
        chosen = [(order, look_up(list_orders(grid), order, "order")) for order in dict.fromkeys(orders)]
        scores = list(score_subject(subject, chosen, sampling, steps, num=rows, passes=passes, seed=seed, world=here))
        if here.is_main:
            facts: dict[str, object] = {"rows": min(rows, len(subject.rows)), "passes": passes, "seed": seed}
            facts |= describe_dtype(dtype)
            write_scores(scores, subject.units, folder / "score" if out is None else Path(out), facts, here)
    return scores


def open_subject(
    opened: OpenedModel,
    here: World,
    data: str | Folder | None = None,
    out: Path | None = None,
    policy: DataPolicy = STRICT,
    say: Callable[[str], None] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[ScoredSubject, Sampling, tuple[int, ...], Path]:
    """Open a model of images or text to score; return it, its sampling, its grid and the folder for the results.

    `dtype` is the type of the weights in memory; by default float32.
    """
    dtype = dtype or torch.float32
    if isinstance(opened.config, TextRecipe):
        return _open_text_subject(opened, opened.config, here, dtype)
    if opened.is_text:
        raise ConfigError(f"{opened.name} is a text model without its data: give the run that trained it")
    run = open_run(opened, here, data=data, out=out, dtype=dtype, policy=policy, say=say)
    pipeline = run.pipeline

    def predict(condition: Condition) -> Predict:
        return pipeline.predict(condition, replace(pipeline.sampling, scale=Interval(1.0)))

    def plain(condition: Condition) -> Predict:
        return guided(pipeline.model, condition)

    rows, mask_id = run.experiment.test, pipeline.model.mask_id
    subject = ScoredSubject(predict=predict, plain=plain, rows=rows, mask_id=mask_id)
    return subject, pipeline.sampling, pipeline.model.grid, run.folder


def _open_text_subject(
    opened: OpenedModel, recipe: TextRecipe, here: World, dtype: torch.dtype
) -> tuple[ScoredSubject, Sampling, tuple[int, ...], Path]:
    folder = opened.fetch()
    ready = reopen_text(recipe, folder)
    pipeline = TextPipeline.from_pretrained(folder, device=str(here.device), dtype=dtype, spec=recipe)
    held_out = ready.meta.test
    subject = ScoredSubject(
        predict=lambda condition: pipeline.predict(),
        plain=lambda condition: pipeline.predict(remember=False),
        rows=ready.test,
        mask_id=pipeline.model.mask_id,
        units=(("bits per character", held_out.characters / held_out.tokens),),
    )
    return subject, pipeline.sampling, pipeline.model.grid, folder
