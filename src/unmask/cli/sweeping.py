"""`unmask sweep`: ways to sample a run side by side, in one table."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unmask.cli.networks import ReferenceFlags, open_networks
from unmask.cli.parsing import disk_errors, parse, positional, value_errors
from unmask.cli.published import MEASURABLE, MeasuredFlags, measured
from unmask.decoding.names import look_up, orders, schedules
from unmask.decoding.sampling import Order, Reveal, Sampling
from unmask.errors import ConfigError
from unmask.evaluation import sweep_table, sweeping
from unmask.evaluation.sweeping import Plan, Setting
from unmask.method.sampling.priorities import Confidence
from unmask.pipelines.image import Pipeline
from unmask.runtime.distributed import World, join_world
from unmask.runtime.progress import show_progress


@dataclass(frozen=True, kw_only=True)
class SweepFlags:
    network: Annotated[ReferenceFlags, tyro.conf.arg(name="")] = field(default_factory=ReferenceFlags)
    published: Annotated[MeasuredFlags, tyro.conf.arg(name="")] = field(default_factory=MeasuredFlags)
    samples: int = 5000
    """Fresh samples behind each row."""
    tune: int = 1000
    """Samples, of another seed, by which each setting's temperature is chosen; 0 gives each temperature a row."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 49)
    orders: tuple[str, ...] = ("confidence", "confidence-without-noise", "random", "halton")
    """Also margin, entropy, max-logit and raster."""
    schedules: tuple[str, ...] = ()
    """As unmask sample --schedule has them; the run's own by default."""
    noises: tuple[float, ...] = ()
    """Factors of the Gumbel noise, for the order confidence; the run's own by default, or 4.5."""
    scales: Annotated[tuple[float, ...], tyro.conf.arg(aliases=["--scale"])] = ()
    """Guidance: null + scale (conditional - null), 1 is none; the run's own by default."""
    ramp: Literal["constant", "linear", "cosine"] | None = None
    """How guidance rises to its scale while decoding: constant, unless the scale is the run's own."""
    temperatures: tuple[float, ...] = (0.6, 0.8, 0.9, 1.0)
    """One of them is chosen for each setting."""
    seed: int = 0
    out: Path | None = None
    """The folder for the table and its plots; RUN/sweep by default, where a published model's RUN is runs/NAME."""


def sweep(arguments: list[str]) -> None:
    """compare orders, schedules, steps, noises and guidance in one table with plots; the same again continues it"""
    name, rest = positional(arguments, f"sweep RUN, where RUN is {MEASURABLE}")
    flags = parse(SweepFlags, rest, f"sweep {name}")
    if flags.out is not None and (flags.out.suffix in (".md", ".csv") or flags.out.is_file()):
        raise ConfigError(f"--out {flags.out}: give a folder, for sweep.md, sweep.csv and the plots")
    device = None if flags.network.device == "auto" else flags.network.device
    with value_errors(), join_world(device) as here:
        run = measured(name, flags.published, flags.out, here)
        plan = planned(flags, Pipeline.from_pretrained(run, device="cpu"), name)
        _table(flags, plan, run, flags.out or run / "sweep", here)


def _table(flags: SweepFlags, plan: Plan, run: Path, out: Path, here: World) -> None:
    with disk_errors(out), show_progress(shown=here.is_main) as progress:
        features, judge = open_networks(flags.network, here)
        rows = sweeping.sweep(
            run,
            plan,
            out,
            world=here,
            features=features,
            judge=judge,
            reference=flags.network.reference,
            progress=progress,
        )
        for place, row in enumerate(rows):
            progress("rows", place + 1, len(plan.choices()) + 3)  # floor, limit, and the best again
            if here.is_main:
                print("\n".join([*(() if place else sweep_table.HEAD), sweep_table.line(row)]), flush=True)
        if here.is_main:
            plots = "".join(f", {path.name}" for path in sorted(out.glob("*.png")))
            print(f"\nwrote into {out}: sweep.md, sweep.csv{plots}")


def planned(flags: SweepFlags, pipeline: Pipeline, name: str) -> Plan:
    """What the flags ask for, refused here, before minutes of work, if it cannot be."""
    if not pipeline.num_classes and flags.network.features == "classifier" and flags.network.classifier is None:
        raise ConfigError(
            f"{name} has no classes: give --features inception or dinov2, or --classifier DIR, to measure in"
        )
    if not pipeline.num_classes and (flags.scales or flags.ramp):
        raise ConfigError(f"{name} has no classes, so there is nothing to guide towards: leave --scales and --ramp out")
    if flags.noises and "confidence" not in flags.orders:
        raise ConfigError(f"--noises {flags.noises[0]} is for --orders confidence, which is not among them")
    settings = tuple(dict.fromkeys(_settings(flags, pipeline)))
    for setting in settings:
        setting.sampling.ratios(pipeline.model.length)
        pipeline.predict(pipeline.labels(1), setting.sampling)
    return Plan(
        settings=settings,
        temperatures=tuple(dict.fromkeys(flags.temperatures)),
        samples=flags.samples,
        tune=flags.tune,
        seed=flags.seed,
    )


def _settings(flags: SweepFlags, pipeline: Pipeline) -> Iterator[Setting]:
    for (order, priority), (schedule, shape), steps, scale in product(
        _priorities(flags, pipeline), _schedules(flags, pipeline), flags.steps, _scales(flags, pipeline.sampling)
    ):
        sampling = replace(
            pipeline.sampling, steps=steps, schedule=shape, priority=priority, scale=scale, temperature=1.0
        )
        yield Setting(order=order, schedule=schedule, sampling=sampling)


def _priorities(flags: SweepFlags, pipeline: Pipeline) -> Iterator[tuple[str, Order]]:
    """Orders by name; confidence once for each noise."""
    table, own = orders(pipeline.model.grid), pipeline.sampling.priority
    usual = own if isinstance(own, Confidence) else Confidence()
    for name in flags.orders:
        if name == "confidence":
            yield from ((name, Confidence(noise)) for noise in flags.noises or (usual.noise,))
        else:
            yield name, look_up(table, name, "order")


def _schedules(flags: SweepFlags, pipeline: Pipeline) -> list[tuple[str, Reveal]]:
    table = schedules(pipeline.model.length)
    if flags.schedules:
        return [(name, look_up(table, name, "schedule")) for name in flags.schedules]
    own = pipeline.sampling.schedule
    names = [name for name, shape in table.items() if shape == own]  # the last is the one that most call it by
    return [(names[-1] if names else str(own), own)]


def _scales(flags: SweepFlags, own: Sampling) -> list[sweep_table.Ramp]:
    if not (flags.scales or flags.ramp):
        return [own.scale]
    ramp = sweep_table.RAMPS[flags.ramp or "constant"]
    return [ramp(scale) for scale in flags.scales or (own.scale.scale,)]
