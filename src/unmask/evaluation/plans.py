"""What a sweep compares, by names and numbers, and the plan that follows for a model."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from unmask.decoding.choices import ORDER_CHOICES, SCHEDULE_CHOICES
from unmask.errors import ConfigError, look_up
from unmask.pipelines.rules import LabelRule

if TYPE_CHECKING:
    from unmask.decoding.sampling import Guidance, Order, Reveal, Sampling
    from unmask.evaluation.sweeping import SweepPlan, SweepSetting
    from unmask.recipes.spec import ModelSpec

OWN = "(default: the model's own)"


@dataclass(frozen=True, kw_only=True)
class SweepChoices:
    """Ways to sample to compare: the product of all that several are given of."""

    samples: int = 5000
    """Fresh samples behind each row of the table."""
    tune: int = 1000
    """Samples, of another seed, that choose the temperature of a setting; 0 gives each temperature a row."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 49)
    """Numbers of forward passes."""
    orders: Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{ORDER_CHOICES} ...")] = (
        "confidence",
        "confidence-without-noise",
        "random",
        "halton",
    )
    """Unmasking orders: which tokens are revealed first."""
    schedules: Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{SCHEDULE_CHOICES} ...", help_behavior_hint=OWN)] = ()
    """Fractions still masked over time, as for unmask sample."""
    noises: Annotated[tuple[float, ...], tyro.conf.arg(help_behavior_hint="(default: the model's own, or 4.5)")] = ()
    """Factors of the Gumbel noise, for the order confidence."""
    scales: Annotated[tuple[float, ...], tyro.conf.arg(aliases=["--scale"], help_behavior_hint=OWN)] = ()
    """Guidance scales s: null + s (conditional - null); 1 is none. A ramp ends at s."""
    ramp: Annotated[
        Literal["constant", "linear", "cosine"] | None,
        tyro.conf.arg(help_behavior_hint=OWN),
    ] = None
    """How guidance rises to its scale while decoding."""
    temperatures: tuple[float, ...] = (0.6, 0.8, 0.9, 1.0)
    """Divisors of the logits; each setting takes its best one. valeoai's multiplies them: its 1.3 is our 0.77."""
    seed: int = 0
    """Seed of the samples."""
    labels: LabelRule = "shares"
    """Sample each class as often as it is held out (shares), or all equally often (balanced)."""


@dataclass(frozen=True, kw_only=True)
class TuneChoices:
    """What to tune, and how much work to put into it."""

    passes: tuple[int, ...] = (4, 8)
    """Numbers of forward passes; each gets a preset."""
    order: Annotated[str, tyro.conf.arg(metavar="{halton, random, raster}")] = "halton"
    """Unmasking order whose counts are chosen; it must be known in advance."""
    rows: int = 1000
    """Held-out rows that choose the counts, and as many that score them; at least 100."""
    trials: int = 40
    """Most ways to sample that are tried for each number of passes, for images; 0 tunes the counts alone."""
    samples: int = 1000
    """Samples of each trial, judged against training images."""
    measured: int = 5000
    """Fresh samples behind the figures that are reported, against held-out images."""
    seed: int = 0
    """Seed of the trials; the figures reported have the next one."""

    def __post_init__(self) -> None:
        if not self.passes or self.trials < 0 or min(self.samples, self.measured) < 2:
            raise ConfigError(
                f"passes {self.passes}, trials {self.trials}, samples {self.samples}, measured {self.measured}: give "
                "one number of passes or more, 0 trials or more, and 2 samples or more, to have a covariance"
            )


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
    from unmask.decoding.rules import AnnealedConfidence
    from unmask.evaluation.sweeping import SweepSetting

    sampling = spec.sampling.fit_to(spec.grid)
    for (order, priority), (schedule, shape), steps, scale in product(
        _list_orders(choices, spec), _list_schedules(choices, spec), choices.steps, _list_scales(choices, sampling)
    ):
        changed = replace(sampling, steps=steps, schedule=shape, priority=priority, scale=scale, temperature=1.0)
        has_rule = changed.annealing is not None or isinstance(priority, AnnealedConfidence)
        yield SweepSetting(order=f"{order} (annealed)" if has_rule else order, schedule=schedule, sampling=changed)


def _list_orders(choices: SweepChoices, spec: "ModelSpec") -> "Iterator[tuple[str, Order]]":
    """Yield orders by name; confidence once for each noise."""
    from unmask.decoding.names import list_orders
    from unmask.decoding.rules import AnnealedConfidence
    from unmask.method.sampling.priorities import Confidence

    table, own = list_orders(spec.grid), spec.sampling.priority
    usual = own if isinstance(own, Confidence | AnnealedConfidence) else Confidence()
    for name in choices.orders:
        if name == "confidence":
            yield from ((name, replace(usual, noise=noise)) for noise in choices.noises or (usual.noise,))
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


def _list_scales(choices: SweepChoices, own: "Sampling") -> "list[Guidance]":
    from unmask.decoding.settings import change_guidance

    return [change_guidance(own.scale, choices.ramp, scale) for scale in choices.scales or (None,)]
