"""Sampling settings by names and numbers, as a flag or a keyword gives them: the one place that reads them.

`--order halton` on the command line and `pipe(order="halton")` in Python both come here.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from typing_extensions import TypedDict

from unmask.decoding.names import RAMPS, SAMPLERS, SAMPLINGS, list_orders, list_schedules
from unmask.decoding.rules import AnnealedConfidence, AnnealedLogit, DrawnLogit, StepConfidence, stretch
from unmask.decoding.sampling import Adaptive, Ancestral, FromCritic, Guidance, Order, Parallel, ReMDM, Sampling
from unmask.errors import ConfigError, check_type, look_up
from unmask.method.sampling.extra_priorities import Moment
from unmask.method.sampling.priorities import Confidence


class SamplingSettings(TypedDict, total=False):
    """What a call may change of a model's sampling; what is left out, or None, stays as the model has it."""

    preset: str | None
    """A published way to sample, such as "besnier-256-8", or one that `unmask tune` found, such as "tuned-4"."""
    steps: int | None
    """Forward passes."""
    order: str | None
    """Which tokens are revealed first, such as "confidence" or "halton"."""
    noise: float | None
    """Factor of the Gumbel noise on log-confidence, for the confidence and moment orders."""
    schedule: str | None
    """Fraction still masked over time, such as "cosine"."""
    temperature: float | None
    """Divides the logits: below 1 is sharper, 0 is greedy. valeoai's multiplies them: its 1.3 is our 0.77."""
    guidance: float | None
    """Guidance scale s: null + s (conditional - null); 1 is none. A ramp keeps its form and rises to s."""
    ramp: str | None
    """How guidance rises to its scale: "constant", "linear" or "cosine"."""
    sampler: str | None
    """The sampling algorithm, such as "parallel" or "entropy-bound"."""
    block: int | None
    """Tokens per block, from left to right."""
    top_k: int | None
    """Sample from this many of the likeliest tokens only."""
    top_p: float | None
    """Sample from the smallest set of tokens with this much probability only."""


_SETTING_TYPES = {name: get_args(hint)[0] for name, hint in get_type_hints(SamplingSettings).items()}


def change_sampling(
    base: Sampling, grid: tuple[int, ...], settings: Mapping[str, Any], own: Mapping[str, Sampling] | None = None
) -> Sampling:
    """Return `base` with these settings put in.

    Args:
        base: The model's own sampling, which `preset` replaces.
        grid: The canvas of the model, for orders and schedules that depend on it.
        settings: Of `SamplingSettings`; None counts as not given.
        own: Presets of the model itself, beside the published ones.

    Raises:
        ConfigError: An unknown setting or name (the nearest one is given), or a setting that nothing would read.
        ValueError: A number that sampling cannot use.
    """
    check_settings(settings)
    given = {name: value for name, value in settings.items() if value is not None}
    base = look_up({**SAMPLINGS, **(own or {})}, given["preset"], "preset") if "preset" in given else base
    base = base.fit_to(grid)
    changes: dict[str, Any] = {
        name: given[name] for name in ("steps", "temperature", "top_k", "top_p", "block") if name in given
    }
    if isinstance(base.temperature, tuple) and "steps" in given and "temperature" not in given:
        changes["temperature"] = stretch(base.temperature, given["steps"])
    if "sampler" in given:
        changes |= {"sampler": look_up(SAMPLERS, given["sampler"], "sampler"), "remask": given["sampler"] == "remask"}
    if isinstance(changes.get("sampler"), Adaptive) and "temperature" in given:
        changes["annealing"] = None  # of a preset; its number of steps is not known before
    _check_read(given, changes.get("sampler", base.sampler))
    priority = base.priority
    same = given.get("order") == "confidence" and isinstance(priority, Confidence | AnnealedConfidence)
    if "order" in given and not same:
        priority = look_up(list_orders(grid), given["order"], "order")
    if "noise" in given:
        priority = _change_noise(priority, given["noise"])
        if isinstance(priority, AnnealedLogit) and "temperature" not in given:
            changes["temperature"] = given["noise"]  # TiTok's one number
    if "schedule" in given:
        changes["schedule"] = look_up(list_schedules(math.prod(grid)), given["schedule"], "schedule")
    changes["scale"] = change_guidance(base.scale, given.get("ramp"), given.get("guidance"))
    return replace(base, priority=priority, **changes)


OTHER_NAMES = {"scale": "guidance", "cfg": "guidance", "cfg_scale": "guidance", "num_steps": "steps"}
"""What other code calls a setting."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """ConfigError for a setting that there is not, with the nearest name, or for a value of another type."""
    known = list(SamplingSettings.__annotations__)
    for name in settings:
        if name not in known:
            near = [OTHER_NAMES[name]] if name in OTHER_NAMES else get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"no setting {name}: {hint}")
        check_type(name, settings[name], _SETTING_TYPES[name])


def change_guidance(own: Guidance, ramp: str | None, scale: float | None) -> Guidance:
    """Return the guidance with another form, or another scale at the end of the same form."""
    kind = type(own) if ramp is None else look_up(RAMPS, ramp, "ramp")
    if scale is not None and scale < 0:
        raise ConfigError(f"guidance scale {scale:g}: give at least 0; 1 is no guidance")
    number = own.scale if scale is None else scale
    return replace(own, scale=number) if isinstance(own, kind) else kind(scale=number)


def _change_noise(priority: Order | FromCritic, noise: float) -> Order | FromCritic:
    """Return the same order with another factor of noise: of several factors, the first."""
    if isinstance(priority, StepConfidence | DrawnLogit) and priority.noises[0] > 0:
        return replace(priority, noises=tuple(noise * (factor / priority.noises[0]) for factor in priority.noises))
    if not isinstance(priority, Confidence | AnnealedConfidence | AnnealedLogit | Moment | FromCritic):
        raise ConfigError(f"--noise {noise} is for --order confidence or moment; this order has none")
    return replace(priority, noise=noise)


def _check_read(given: Mapping[str, Any], sampler: Parallel | Ancestral | ReMDM | Adaptive) -> None:
    """ConfigError for a setting that the chosen sampler would not read."""
    ordered, planned = isinstance(sampler, Parallel), not isinstance(sampler, Adaptive)
    for name, read in (("order", ordered), ("noise", ordered), ("schedule", planned)):
        if name in given and not read:
            kind = type(sampler).__name__
            raise ConfigError(f"--{name} {given[name]}: the sampler {kind} ignores it: add --sampler parallel")
