"""What a sweep compares, by names and numbers, and the plan that follows for a model."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from unmask.errors import ConfigError, look_up
from unmask.pipelines.rules import LabelRule

if TYPE_CHECKING:
    from unmask.decoding.sampling import Order, Reveal, Sampling
    from unmask.evaluation.sweep_table import ScaleRamp
    from unmask.evaluation.sweeping import SweepPlan, SweepSetting
    from unmask.recipes.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class SweepChoices:
    """Ways to sample to compare: the product of all that several are given of."""

    samples: int = 5000
    """Fresh samples behind each row."""
    tune: int = 1000
    """Samples, of another seed, by which the temperature of each setting is chosen; 0 gives each temperature a row."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 49)
    """Numbers of forward passes."""
    orders: tuple[str, ...] = ("confidence", "confidence-without-noise", "random", "halton")
    """Unmasking orders; also margin, entropy, max-logit and raster."""
    schedules: tuple[str, ...] = ()
    """Schedules, as unmask sample --schedule takes them; the run's own by default."""
    noises: tuple[float, ...] = ()
    """Factors of the Gumbel noise, for the order confidence; the run's own by default, or 4.5."""
    scales: Annotated[tuple[float, ...], tyro.conf.arg(aliases=["--scale"])] = ()
    """Guidance scales: null + scale (conditional - null), 1 is none; the run's own by default."""
    ramp: Literal["constant", "linear", "cosine"] | None = None
    """How guidance rises to its scale while decoding: constant, unless the scale is the run's own."""
    temperatures: tuple[float, ...] = (0.6, 0.8, 0.9, 1.0)
    """One of them is chosen for each setting."""
    seed: int = 0
    """The seed of the samples."""
    labels: LabelRule = "shares"
    """shares samples each class as often as it is held out, balanced all classes equally often."""


def plan_sweep(spec: "ModelSpec", choices: SweepChoices, name: str) -> "SweepPlan":
    """Return what to compare; ConfigError or ValueError, before any work, if it cannot be."""
    from unmask.evaluation.sweeping import SweepPlan
    from unmask.pretrained.conditions import check_guidance

    num_classes = getattr(spec.model, "num_classes", 0)
    if not num_classes and (choices.scales or choices.ramp):
        raise ConfigError(f"{name} has no classes, so there is nothing to guide towards: leave --scales and --ramp out")
    if not num_classes and choices.labels == "balanced":
        raise ConfigError(f"--labels balanced: {name} has no classes; leave it out")
    if choices.noises and "confidence" not in choices.orders:
        raise ConfigError(f"--noises {choices.noises[0]} is for --orders confidence, which is not among them")
    settings = tuple(dict.fromkeys(_list_settings(choices, spec)))
    for setting in settings:
        setting.sampling.ratios(spec.length)
        guided = num_classes > 0 and not setting.sampling.unguided
        check_guidance(spec.model, labelled=num_classes > 0, guided=guided)
    return SweepPlan(
        settings=settings,
        temperatures=tuple(dict.fromkeys(choices.temperatures)),
        samples=choices.samples,
        tune=choices.tune,
        seed=choices.seed,
        labels=choices.labels,
    )


def _list_settings(choices: SweepChoices, spec: "ModelSpec") -> "Iterator[SweepSetting]":
    from unmask.evaluation.sweeping import SweepSetting

    sampling = spec.sampling.fit_to(spec.grid)
    for (order, priority), (schedule, shape), steps, scale in product(
        _list_orders(choices, spec), _list_schedules(choices, spec), choices.steps, _list_scales(choices, sampling)
    ):
        changed = replace(sampling, steps=steps, schedule=shape, priority=priority, scale=scale, temperature=1.0)
        yield SweepSetting(order=order, schedule=schedule, sampling=changed)


def _list_orders(choices: SweepChoices, spec: "ModelSpec") -> "Iterator[tuple[str, Order]]":
    """Yield orders by name; confidence once for each noise."""
    from unmask.decoding.names import list_orders
    from unmask.method.sampling.priorities import Confidence

    table, own = list_orders(spec.grid), spec.sampling.priority
    usual = own if isinstance(own, Confidence) else Confidence()
    for name in choices.orders:
        if name == "confidence":
            yield from ((name, Confidence(noise)) for noise in choices.noises or (usual.noise,))
        else:
            yield name, look_up(table, name, "order")


def _list_schedules(choices: SweepChoices, spec: "ModelSpec") -> "list[tuple[str, Reveal]]":
    from unmask.decoding.names import list_schedules

    table = list_schedules(spec.length)
    if choices.schedules:
        return [(name, look_up(table, name, "schedule")) for name in choices.schedules]
    own = spec.sampling.schedule
    names = [name for name, shape in table.items() if shape == own]  # the last is the most common name
    return [(names[-1] if names else str(own), own)]


def _list_scales(choices: SweepChoices, own: "Sampling") -> "list[ScaleRamp]":
    from unmask.evaluation.sweep_table import RAMPS

    if not (choices.scales or choices.ramp):
        return [own.scale]
    ramp = RAMPS[choices.ramp or "constant"]
    return [ramp(scale) for scale in choices.scales or (own.scale.scale,)]
