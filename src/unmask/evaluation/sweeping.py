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

from unmask.data.pictures import digest
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.evaluation.images import class_accuracy, measure, opened, rebuilt_bank, sample_banks
from unmask.evaluation.reference import Reference, gather, open_reference
from unmask.evaluation.sweep_table import RAMPS, Row, Table, draw, number, page
from unmask.experiments.images import Experiment
from unmask.method.sampling.priorities import Confidence
from unmask.metrics.embedders import ClassifierFeatures, Features
from unmask.metrics.frechet import fit_gaussian, frechet_distance
from unmask.metrics.in_domain import in_domain
from unmask.pipelines.image import Pipeline
from unmask.runtime.distributed import World, barrier, broadcast_text
from unmask.runtime.progress import Progress
from unmask.runtime.provenance import describe_environment
from unmask.storage.files import sha256_of, write_text
from unmask.storage.lock import lock


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A way to sample, with the names that its order and its schedule go by; its temperature is left to the plan."""

    order: str
    schedule: str
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare, on `samples` samples of `seed` for each row.

    Of several temperatures each setting gets the one that is best for it on `tune` samples of the next seed, against
    the real *training* pictures, so that the choice does not flatter the figures; with tune = 0 each has its own row.
    """

    settings: tuple[Setting, ...]
    temperatures: tuple[float, ...]
    samples: int = 5000
    tune: int = 1000
    seed: int = 0

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

    def choices(self) -> list[tuple[Setting, tuple[float, ...]]]:
        """A setting and its candidate temperatures for each row, in the order of the table."""
        sets = [self.temperatures] if self.tuned else [(temperature,) for temperature in self.temperatures]
        return list(dict.fromkeys((setting, candidates) for setting in self.settings for candidates in sets))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every row is measured with."""

    experiment: Experiment
    pipeline: Pipeline
    features: Features
    judge: ClassifierFeatures | None
    real: Reference
    world: World
    progress: Progress | None = None


def sweep(
    run: Path,
    plan: Plan,
    out: Path,
    *,
    world: World,
    features: Features | None = None,
    judge: ClassifierFeatures | None = None,
    reference: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[Row]:
    """A row for as many real pictures, for these through the tokenizer, for each setting, and for the best once more.

    Writes `sweep.csv`, `sweep.md` and, where numbers were swept over, plots into `out`. ConfigError if the table there
    is of other weights, features or pictures. Without `features` they are the judge's, by default the run's own.
    """
    experiment, pipeline = opened(run, world)
    if judge is None and experiment.classes:
        path = run / "classifier.safetensors"
        judge = in_domain(experiment.real("train"), experiment.recipe.classifier, path, world, progress)
    features = features or judge
    if features is None:
        raise ConfigError(f"{run} has no classes to train a classifier on: give --features inception or dinov2")
    judge = judge if pipeline.num_classes else None
    if world.is_main:
        out.mkdir(parents=True, exist_ok=True)
    with lock(out) if world.is_main else nullcontext():
        origin = {
            "weights": sha256_of(run / "model.safetensors"),
            "features": features.sha256,
            "judge": judge.sha256 if judge else "",
            "pictures": digest(experiment.split.train, experiment.split.test),
        }
        made = describe_environment(world.device)
        table = Table(out / "sweep.csv", origin, str(made["commit"]))
        barrier(world)  # all ranks have read the same rows before the first is added
        if world.is_main:
            table.begin()
        real = open_reference(experiment, features, reference or run, world, progress)
        bench = Bench(
            experiment=experiment,
            pipeline=pipeline,
            features=features,
            judge=judge,
            real=real,
            world=world,
            progress=progress,
        )
        rows: list[Row] = []
        for row in _rows(bench, plan, table):
            rows.append(row)
            if world.is_main:
                write_text(page(rows, caption(bench, plan), made), out / "sweep.md")
            yield row
        if world.is_main:
            draw(rows, out)


def _rows(bench: Bench, plan: Plan, table: Table) -> Iterator[Row]:
    """The rows in the table's order, each computed unless it is there."""
    world, choices = bench.world, plan.choices()

    def row(cells: dict[str, str], compute: Callable[[], dict[str, float]]) -> Row:
        if (figures := table.find(cells)) is None:
            figures = table.add(cells, compute(), write=world.is_main)
        return Row(cells=cells, figures=figures)

    yield row(cells_of("floor", plan), lambda: floor(bench, plan.samples))
    yield row(cells_of("limit", plan), lambda: limit(bench, plan.samples))
    rows = []
    for setting, candidates in choices:

        def compute(setting: Setting = setting, candidates: Sequence[float] = candidates) -> dict[str, float]:
            temperature = best_temperature(bench, setting.sampling, candidates, plan.tune, plan.seed + 1)
            return measured(bench, setting.sampling, temperature, plan.samples, plan.seed)

        rows.append(row(cells_of("setting", plan, setting, candidates, plan.seed), compute))
        yield rows[-1]
    # Rank 0 decides: figures of other hardware may differ in their last digit, and two ranks must not draw two things.
    best = int(broadcast_text(str(min(range(len(rows)), key=lambda i: rows[i].figures["frechet"])), world))
    setting, temperature = choices[best][0], rows[best].figures["temperature"]
    cells = cells_of("again", plan, setting, (temperature,), plan.seed + 2)
    yield row(cells, lambda: measured(bench, setting.sampling, temperature, plan.samples, plan.seed + 2))


def cells_of(
    kind: str,
    plan: Plan,
    setting: Setting | None = None,
    temperatures: Sequence[float] = (),
    seed: int | None = None,
) -> dict[str, str]:
    """All that a row's figures depend on, apart from weights and features, as text; blank where nothing is sampled."""
    cells = dict.fromkeys(("order", "schedule", "steps", "noise", "scale", "ramp", "top_k", "top_p"), "")
    if setting is not None:
        s = setting.sampling
        ramp = next((name for name, shape in RAMPS.items() if s.scale == shape(s.scale.scale)), str(s.scale))
        cells = {
            "order": setting.order,
            "schedule": setting.schedule,
            "steps": number(s.steps),
            "noise": number(s.priority.noise) if isinstance(s.priority, Confidence) else "",
            "scale": number(s.scale.scale),
            "ramp": ramp,
            "top_k": number(s.top_k),
            "top_p": number(s.top_p),
        }
    return {
        "kind": kind,
        **cells,
        "temperatures": " ".join(map(number, temperatures)),
        "tune": number(plan.tune if len(temperatures) > 1 else 0),
        "samples": number(plan.samples),
        "seed": number(seed),
    }


def floor(bench: Bench, num: int) -> dict[str, float]:
    """The figures of as many real training pictures: samples cannot be expected to do better."""
    return measure(bench.real.train[_some(bench, num).to(bench.real.train.device)], bench.features, bench.real)[0]


def limit(bench: Bench, num: int) -> dict[str, float]:
    """The figures of as many real training pictures after the tokenizer: the best that its tokens allow."""
    index = bench.real.train_index[_some(bench, num)]
    bank = rebuilt_bank(bench.experiment, bench.pipeline, bench.features, "train", index, bench.world)
    return measure(bank, bench.features, bench.real)[0]


def _some(bench: Bench, num: int) -> Tensor:
    return torch.randperm(len(bench.real.train), generator=torch.Generator().manual_seed(0))[:num]


def best_temperature(bench: Bench, sampling: Sampling, temperatures: Sequence[float], num: int, seed: int) -> float:
    """The one whose `num` samples are nearest to the real training pictures."""
    if len(temperatures) == 1:
        return temperatures[0]
    train = fit_gaussian(bench.real.train)
    measures = [(bench.features.dim, bench.features)]

    def distance(temperature: float) -> float:
        cooled = replace(sampling, temperature=temperature)
        (bank,) = sample_banks(
            bench.pipeline, num, measures, bench.world, seed=seed, sampling=cooled, progress=bench.progress
        )
        return frechet_distance(fit_gaussian(bank), train)

    distances = [distance(temperature) for temperature in temperatures]
    return temperatures[int(broadcast_text(str(distances.index(min(distances))), bench.world))]


def measured(bench: Bench, sampling: Sampling, temperature: float, num: int, seed: int) -> dict[str, float]:
    """All figures of one way to sample, on samples number 0 to num - 1 of a seed."""
    sampling = replace(sampling, temperature=temperature)
    networks = [network for network in dict.fromkeys((bench.features, bench.judge)) if network is not None]
    measures = [(network.dim, network) for network in networks]
    banks = sample_banks(
        bench.pipeline, num, measures, bench.world, seed=seed, sampling=sampling, progress=bench.progress
    )
    figures = {"temperature": temperature, **measure(banks[0], bench.features, bench.real)[0]}
    labels = bench.pipeline.labels(num)
    if bench.judge is not None and labels is not None:
        figures["class_accuracy"] = class_accuracy(bench.judge, banks[-1], labels)
    return figures | reveal_times(bench.pipeline, sampling, seed, bench.world)


def reveal_times(pipeline: Pipeline, sampling: Sampling, seed: int, world: World, num: int = 200) -> dict[str, float]:
    """The mean times t, in (0, 1], at which tokens on the rim of the grid appear ("border"), and all others ("inside").

    A grid that is all rim has no "inside".
    """
    every = pipeline.labels(num)

    def compute(block: slice) -> Tensor:
        canvas = pipeline.blank(block.stop - block.start)
        labels = None if every is None else every[block]
        states = pipeline.states(canvas, labels, seed=seed, first=block.start, sampling=sampling)
        when = torch.zeros(canvas.shape, dtype=torch.float64, device=canvas.device)
        for state in states:
            when += state.revealed.double() * state.t
        return when.to(world.device)

    mean = gather(num, pipeline.model.length, compute, world).mean(0)
    inner = torch.zeros(pipeline.tokenizer.grid, dtype=torch.bool, device=mean.device)
    inner[tuple(slice(1, -1) for _ in pipeline.tokenizer.grid)] = True
    parts = {"border": mean[~inner.flatten()], "inside": mean[inner.flatten()]}
    return {name: float(times.mean()) for name, times in parts.items() if len(times)}


def caption(bench: Bench, plan: Plan) -> str:
    """What the figures of the table are of."""
    lines = [
        f"Each row: {plan.samples:,} samples of seed {plan.seed}, against {len(bench.real.test):,} held-out pictures, "
        f"in the features of {bench.real.key.features}."
    ]
    if plan.samples > len(bench.real.train):
        lines.append(f"Floor and limit are of all {len(bench.real.train):,} training pictures.")
    if bench.real.num_unread:
        lines.append(f"{bench.real.num_unread:,} pictures could not be read and are left out.")
    if plan.tuned:
        lines.append(
            f"Its temperature is the best of {', '.join(map(number, plan.temperatures))}, by {plan.tune:,} samples of "
            f"seed {plan.seed + 1} against training pictures."
        )
    return " ".join([*lines, f"The fresh seed is {plan.seed + 2}."])
