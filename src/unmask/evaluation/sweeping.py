"""Ways to sample side by side in one table, as Table 4 and Figure 2 of the PyTorch reproduction of MaskGIT (arXiv
2310.14400): the product of orders, schedules, numbers of steps, noises, guidance scales and temperatures.

A finished row is on the disk before the next begins, in `sweep.csv`, and the same sweep again only makes what is
missing. The best row flatters itself, being the best of many: it is measured once more, with a seed no row has seen.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from unmask.data.pictures import hash_pictures
from unmask.decoding.names import RAMPS
from unmask.decoding.rules import AnnealedConfidence
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.evaluation.class_shares import (
    ClassShares,
    choose_baseline,
    choose_labels,
    count_class_shares,
    describe_shares,
    describe_unmeasured,
)
from unmask.evaluation.images import measure_accuracy, measure_bank, rebuild_bank, sample_banks
from unmask.evaluation.reference import Reference, gather_rows, open_reference
from unmask.evaluation.runs import OpenedRun
from unmask.evaluation.sweep_table import SweepRow, SweepTable, draw_sweep, format_number, format_page
from unmask.experiments.images import Experiment
from unmask.method.rand import to_double
from unmask.method.sampling.priorities import Confidence
from unmask.metrics.embedders import ClassifierFeatures, Features
from unmask.metrics.frechet import compute_frechet_distance, fit_gaussian
from unmask.metrics.in_domain import prepare_classifier_features
from unmask.pipelines.image import Pipeline
from unmask.pipelines.labels import share_out_labels
from unmask.pipelines.rules import LabelRule
from unmask.runtime.distributed import World, barrier, broadcast_text
from unmask.runtime.progress import Progress
from unmask.runtime.provenance import describe_environment
from unmask.storage.files import hash_file, write_text
from unmask.storage.layout import CLASSIFIER, MODEL
from unmask.storage.lock import lock


@dataclass(frozen=True, kw_only=True)
class SweepSetting:
    """A way to sample, with the names that its order and its schedule go by; its temperature is left to the plan."""

    order: str
    schedule: str
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What to compare, on `samples` samples of `seed` for each row.

    Of several temperatures each setting gets the one that is best for it on `tune` samples of the next seed, against
    the real *training* pictures, so that the choice does not flatter the figures; with tune = 0 each has its own row.
    """

    settings: tuple[SweepSetting, ...]
    temperatures: tuple[float, ...]
    samples: int = 5000
    tune: int = 1000
    seed: int = 0
    labels: LabelRule = "shares"

    def __post_init__(self) -> None:
        if not (self.settings and self.temperatures):
            raise ConfigError(
                f"{len(self.settings)} settings, {len(self.temperatures)} temperatures: 1 of each or more"
            )
        if self.samples < 2 or self.tune < 0 or self.tune == 1:
            raise ConfigError(
                f"samples {self.samples}, tune {self.tune}: 2 or more, to have a covariance; tune 0 makes no choice"
            )
        for setting in self.settings:
            for temperature in self.temperatures:
                replace(setting.sampling, temperature=temperature)  # refuses what cannot be, before minutes of work

    @property
    def tuned(self) -> bool:
        """Whether there is a temperature to choose."""
        return self.tune > 0 and len(self.temperatures) > 1

    def list_choices(self) -> list[tuple[SweepSetting, tuple[float, ...]]]:
        """Return a setting and its candidate temperatures for each row, in the order of the table."""
        sets = [self.temperatures] if self.tuned else [(temperature,) for temperature in self.temperatures]
        return list(dict.fromkeys((setting, candidates) for setting in self.settings for candidates in sets))


@dataclass(frozen=True, kw_only=True)
class SweepBench:
    """What every row is measured with."""

    experiment: Experiment
    pipeline: Pipeline
    features: Features
    judge: ClassifierFeatures | None
    real: Reference
    world: World
    shares: ClassShares | None = None
    rule: LabelRule = "shares"
    progress: Progress | None = None


def sweep_run(
    run: OpenedRun,
    plan: SweepPlan,
    out: Path,
    *,
    world: World,
    features: Features | None = None,
    judge: ClassifierFeatures | None = None,
    reference: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[SweepRow]:
    """Yield a row for the real-data baseline, for the tokenizer bound, for each setting, and for the best one again.

    Writes `sweep.csv`, `sweep.md` and, where numbers vary, plots into `out`. ConfigError if the table there belongs to
    other weights, features or images. Without `features`, the classifier's are used, by default the run's own.
    """
    folder, experiment, pipeline = run.folder, run.experiment, run.pipeline
    features, judge = choose_networks(run, features, judge, world, progress)
    if world.is_main:
        out.mkdir(parents=True, exist_ok=True)
    with lock(out) if world.is_main else nullcontext():
        rounded = "" if run.dtype is None else f"{str(run.dtype).removeprefix('torch.')} of "
        origin = {
            "weights": rounded + hash_file(folder / MODEL),
            "features": features.sha256,
            "judge": judge.sha256 if judge else "",
            "pictures": hash_pictures(experiment.split.train, experiment.split.test),
            "labels": plan.labels if pipeline.num_classes else "",
        }
        made = describe_environment(world.device)
        table = SweepTable(out / "sweep.csv", origin, str(made["commit"]))
        barrier(world)  # all ranks have read the same rows before the first is added
        if world.is_main:
            table.begin()
        bench = open_bench(run, features, judge, plan.labels, world, reference=reference, progress=progress)
        rows: list[SweepRow] = []
        for row in _rows(bench, plan, table):
            rows.append(row)
            if world.is_main:
                write_text(format_page(rows, write_caption(bench, plan), made), out / "sweep.md")
            yield row
        if world.is_main:
            draw_sweep(rows, out)


def choose_networks(
    run: OpenedRun,
    features: Features | None,
    judge: ClassifierFeatures | None,
    world: World,
    progress: Progress | None = None,
) -> tuple[Features, ClassifierFeatures | None]:
    """Return the network that measures, and the classifier that tells the classes of samples apart, if they have any.

    What is not given is the run's own classifier, trained if needed. ConfigError if there are no classes for one.
    """
    experiment = run.experiment
    if judge is None and experiment.classes:
        pictures, path = experiment.read_pictures("train"), run.folder / CLASSIFIER
        judge = prepare_classifier_features(pictures, experiment.recipe.classifier, path, world, progress)
    features = features or judge
    if features is None:
        raise ConfigError(f"{run.folder} has no classes to train a classifier on: give --features inception or dinov2")
    return features, judge if run.pipeline.num_classes else None


def open_bench(
    run: OpenedRun,
    features: Features,
    judge: ClassifierFeatures | None,
    rule: LabelRule,
    world: World,
    *,
    reference: Path | None = None,
    progress: Progress | None = None,
) -> SweepBench:
    """Return what ways to sample are measured with, after computing the features of the real images."""
    real = open_reference(run.experiment, features, reference or run.folder, world, progress)
    return SweepBench(
        experiment=run.experiment,
        pipeline=run.pipeline,
        features=features,
        judge=judge,
        real=real,
        world=world,
        shares=count_class_shares(run.experiment, run.pipeline, real, rule),
        rule=rule,
        progress=progress,
    )


def _rows(bench: SweepBench, plan: SweepPlan, table: SweepTable) -> Iterator[SweepRow]:
    """Yield the rows in the table's order; compute those that are missing."""
    world, choices = bench.world, plan.list_choices()

    def row(cells: dict[str, str], compute: Callable[[], dict[str, float]]) -> SweepRow:
        if (figures := table.find(cells)) is None:
            figures = table.add(cells, compute(), write=world.is_main)
        return SweepRow(cells=cells, figures=figures)

    yield row(describe_row("floor", plan), lambda: measure_floor(bench, plan.samples))
    yield row(describe_row("limit", plan), lambda: measure_limit(bench, plan.samples))
    rows = []
    for setting, candidates in choices:

        def compute(setting: SweepSetting = setting, candidates: Sequence[float] = candidates) -> dict[str, float]:
            temperature = choose_temperature(bench, setting.sampling, candidates, plan.tune, plan.seed + 1)
            return measure_at(bench, setting.sampling, temperature, plan.samples, plan.seed)

        rows.append(row(describe_row("setting", plan, setting, candidates, plan.seed), compute))
        yield rows[-1]
    # Rank 0 decides: figures of other hardware may differ in their last digit, and two ranks must not draw two things.
    best = int(broadcast_text(str(min(range(len(rows)), key=lambda i: rows[i].figures["frechet"])), world))
    setting, temperature = choices[best][0], rows[best].figures["temperature"]
    cells = describe_row("again", plan, setting, (temperature,), plan.seed + 2)
    yield row(cells, lambda: measure_at(bench, setting.sampling, temperature, plan.samples, plan.seed + 2))


def describe_row(
    kind: str,
    plan: SweepPlan,
    setting: SweepSetting | None = None,
    temperatures: Sequence[float] = (),
    seed: int | None = None,
) -> dict[str, str]:
    """Return as text what a row's metrics depend on, besides weights and features; blank if nothing is sampled."""
    cells = dict.fromkeys(("order", "schedule", "steps", "noise", "scale", "ramp", "top_k", "top_p"), "")
    if setting is not None:
        s = setting.sampling
        ramp = next((name for name, shape in RAMPS.items() if s.scale == shape(s.scale.scale)), str(s.scale))
        cells = {
            "order": setting.order,
            "schedule": setting.schedule,
            "steps": format_number(s.steps),
            "noise": format_number(s.priority.noise) if isinstance(s.priority, Confidence | AnnealedConfidence) else "",
            "scale": format_number(s.scale.scale),
            "ramp": ramp,
            "top_k": format_number(s.top_k),
            "top_p": format_number(s.top_p),
        }
    return {
        "kind": kind,
        **cells,
        "temperatures": " ".join(map(format_number, temperatures)),
        "tune": format_number(plan.tune if len(temperatures) > 1 else 0),
        "samples": format_number(plan.samples),
        "seed": format_number(seed),
    }


def measure_floor(bench: SweepBench, num: int) -> dict[str, float]:
    """Measure as many real training images: samples cannot be expected to do better."""
    index = choose_baseline(bench.shares, len(bench.real.train), num)
    return measure_bank(bench.real.train[index.to(bench.real.train.device)], bench.features, bench.real)[0]


def measure_limit(bench: SweepBench, num: int) -> dict[str, float]:
    """Measure as many real training images after the tokenizer: the best that its tokens allow."""
    index = bench.real.train_index[choose_baseline(bench.shares, len(bench.real.train), num)]
    bank = rebuild_bank(bench.experiment, bench.pipeline, bench.features, "train", index, bench.world)
    return measure_bank(bank, bench.features, bench.real)[0]


def choose_temperature(
    bench: SweepBench, sampling: Sampling, temperatures: Sequence[float], num: int, seed: int
) -> float:
    """Return the temperature whose `num` samples are nearest to the real training images, in their class shares."""
    if len(temperatures) == 1:
        return temperatures[0]
    distances = [
        measure_to_training(bench, replace(sampling, temperature=temperature), num, seed)
        for temperature in temperatures
    ]
    return temperatures[int(broadcast_text(str(distances.index(min(distances))), bench.world))]


def measure_to_training(bench: SweepBench, sampling: Sampling, num: int, seed: int) -> float:
    """Return the Frechet distance of `num` samples to the real training images, in their class shares."""
    measures = [(bench.features.dim, bench.features)]
    labels = None if bench.shares is None else bench.shares.choose_tuned_labels(num, bench.rule)
    (bank,) = sample_banks(
        bench.pipeline, num, measures, bench.world, seed=seed, sampling=sampling, labels=labels,
        progress=bench.progress,
    )  # fmt: skip
    return compute_frechet_distance(fit_gaussian(bank), fit_gaussian(bench.real.train))


def measure_setting(bench: SweepBench, sampling: Sampling, num: int, seed: int) -> dict[str, float]:
    """Compute all metrics of one way to sample, on samples number 0 to num - 1 of a seed."""
    networks = [network for network in dict.fromkeys((bench.features, bench.judge)) if network is not None]
    measures = [(network.dim, network) for network in networks]
    labels = choose_labels(bench.shares, bench.pipeline, num)
    banks = sample_banks(
        bench.pipeline, num, measures, bench.world, seed=seed, sampling=sampling, labels=labels,
        progress=bench.progress,
    )  # fmt: skip
    figures = measure_bank(banks[0], bench.features, bench.real)[0]
    if bench.judge is not None and labels is not None:
        figures["class_accuracy"] = measure_accuracy(bench.judge, banks[-1], labels)
    return figures | measure_reveal_times(bench.pipeline, sampling, seed, bench.world, shares=bench.shares)


def measure_at(bench: SweepBench, sampling: Sampling, temperature: float, num: int, seed: int) -> dict[str, float]:
    """Compute all metrics of a way to sample at this temperature, which is one of them."""
    cooled = replace(sampling, temperature=temperature)
    return {"temperature": temperature, **measure_setting(bench, cooled, num, seed)}


def measure_reveal_times(
    pipeline: Pipeline, sampling: Sampling, seed: int, world: World, num: int = 200, shares: ClassShares | None = None
) -> dict[str, float]:
    """Return the mean times t in (0, 1] of revealing the rim of the grid ("border") and the rest ("inside").

    A grid that is all rim has no "inside".
    """
    every = choose_labels(shares, pipeline, num)

    def compute(block: slice) -> Tensor:
        canvas = pipeline.make_canvas(block.stop - block.start)
        labels = None if every is None else every[block].to(canvas.device)
        states = pipeline.stream_states(canvas, labels, seed=seed, first=block.start, sampling=sampling)
        when = to_double(torch.zeros(canvas.shape, device=canvas.device))
        for state in states:
            when += to_double(state.revealed) * state.t
        return when.to(world.device)

    mean = gather_rows(num, pipeline.model.length, compute, world).mean(0)
    inner = torch.zeros(pipeline.tokenizer.grid, dtype=torch.bool, device=mean.device)
    inner[tuple(slice(1, -1) for _ in pipeline.tokenizer.grid)] = True
    parts = {"border": mean[~inner.flatten()], "inside": mean[inner.flatten()]}
    return {name: float(times.mean()) for name, times in parts.items() if len(times)}


def write_caption(bench: SweepBench, plan: SweepPlan) -> str:
    """Return what the metrics of the table were measured on."""
    lines = [
        f"Each row: {plan.samples:,} samples of seed {plan.seed}, against {len(bench.real.test):,} held-out images, "
        f"in the features of {bench.real.key.features}."
    ]
    num = len(choose_baseline(bench.shares, len(bench.real.train), plan.samples))
    if num < plan.samples:
        lines.append(f"Floor and limit are of {num:,} training pictures.")
    if bench.shares is not None:
        if (said := describe_shares(bench.shares, share_out_labels(bench.shares.weights, plan.samples))) is not None:
            lines.append(f"The shares of classes differ: {said}.")
        if bench.shares.unmeasured:
            lines.append(f"Left out: {describe_unmeasured(bench.shares.unmeasured)}.")
    if bench.real.num_unread:
        lines.append(f"{bench.real.num_unread:,} images could not be read and are left out.")
    if plan.tuned:
        lines.append(
            f"Its temperature is the best of {', '.join(map(format_number, plan.temperatures))}, by {plan.tune:,} "
            f"samples of seed {plan.seed + 1} against training images."
        )
    return " ".join([*lines, f"The fresh seed is {plan.seed + 2}."])
