"""Search how to sample with a given number of forward passes, one setting after another (`unmask tune`).

A trial is the Frechet distance of some samples to the real training images. All trials draw the same noise, so small
differences show. The network that judges the trials is not the one whose figures are reported, and neither are the
images, so that the choice does not flatter them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unmask.decoding.sampling import Guidance, ListedCounts, Order, Sampling
from unmask.evaluation.sweeping import SweepBench
from unmask.evaluation.tuning import RIVALS
from unmask.method.models.partition_config import PartitionConfig
from unmask.method.ramps import Interval, LinearRamp
from unmask.method.sampling.priorities import Confidence, Halton
from unmask.storage.config import load_json, to_json, write_json

NOISES = (0.0, 1.0, 2.0, 4.5, 9.0)
SCALES = (1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0)
WARMTHS = ((0.8, 0.8), (0.9, 0.9), (1.0, 1.0), (1.1, 1.1), (1.2, 0.8), (1.1, 0.9), (1.0, 0.8), (0.9, 1.1))
"""Temperatures of the first and the last pass, with even steps between."""
TRIALS = "trials.json"


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What may be tried: counts that were found for the order Halton, and what the model can take."""

    counts: tuple[int, ...]
    grid: tuple[int, ...]
    guided: bool
    any_order: bool

    def list_axes(self) -> list[Callable[[Sampling], Iterator[Sampling]]]:
        """Return, for each setting, what lists the ways to sample that differ from one only there."""
        guidance = [self.change_guidance] if self.guided else []
        return [*guidance, self.change_temperature, self.change_order, self.change_schedule]

    def change_guidance(self, base: Sampling) -> Iterator[Sampling]:
        """Yield other scales, constant and rising."""
        kinds: tuple[Callable[[float], Guidance], ...] = (Interval, LinearRamp)
        yield replace(base, scale=Interval(1.0))
        yield from (replace(base, scale=kind(scale)) for scale in SCALES for kind in kinds)

    def change_temperature(self, base: Sampling) -> Iterator[Sampling]:
        """Yield other temperatures, constant and changing evenly over the passes."""
        for first, last in WARMTHS:
            share = [i / max(1, base.steps - 1) for i in range(base.steps)]
            even = tuple(round(first + (last - first) * r, 4) for r in share)
            yield replace(base, temperature=first if first == last else even)

    def change_order(self, base: Sampling) -> Iterator[Sampling]:
        """Yield other unmasking orders; for a partition model only the one that it is fast in."""
        orders: list[Order] = [Halton(self.grid)]
        orders += [Confidence(noise) for noise in NOISES] if self.any_order else []
        yield from (replace(base, priority=order) for order in orders)

    def change_schedule(self, base: Sampling) -> Iterator[Sampling]:
        """Yield other counts."""
        yield from (replace(base, schedule=schedule) for schedule in (ListedCounts(self.counts), *RIVALS.values()))


class TrialLog:
    """The finished trials in a file, all of the same model, images, network, samples and seed."""

    def __init__(self, path: Path, facts: dict[str, object], *, write: bool):
        self.path, self.facts, self.write = path, facts, write
        found = load_json(path) if path.is_file() else None
        self.trials: list[list[object]] = []
        if isinstance(found, dict) and found.get("facts") == facts:
            self.trials = found["trials"]

    def find(self, sampling: Sampling) -> float | None:
        """Return the distance of a finished trial."""
        key = to_json(sampling)
        return next((float(str(distance)) for done, distance in self.trials if done == key), None)

    def add(self, sampling: Sampling, distance: float) -> None:
        """Keep a trial, on the disk too if this process writes."""
        self.trials.append([to_json(sampling), distance])
        if self.write:
            write_json(self.path, {"facts": self.facts, "trials": self.trials})


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A way to sample and its distance; `best` is the least so far."""

    number: int
    sampling: Sampling
    distance: float
    best: float


def search_sampling(
    measure: Callable[[Sampling], float],
    starts: Sequence[Sampling],
    space: SearchSpace,
    log: TrialLog,
    *,
    trials: int,
) -> Iterator[Trial]:
    """Yield trials: the starts, then one setting after another from the best so far, until a round changes nothing.

    Args:
        measure: Returns the distance of a way to sample; the same on all ranks.
        starts: Ways to sample to begin with.
        space: What may be tried.
        log: Keeps the finished trials, which are not made again.
        trials: Most trials.
    """
    seen: list[Sampling] = []
    best: Trial | None = None

    def try_all(candidates: Sequence[Sampling]) -> Iterator[Trial]:
        nonlocal best
        for sampling in candidates:
            if sampling in seen or len(seen) >= trials:
                continue
            seen.append(sampling)
            distance = log.find(sampling)
            if distance is None:
                distance = measure(sampling)
                log.add(sampling, distance)
            least = distance if best is None else min(best.distance, distance)
            trial = Trial(number=len(seen), sampling=sampling, distance=distance, best=least)
            best = trial if best is None or distance < best.distance else best
            yield trial

    yield from try_all(starts)
    before = None
    while best is not None and best.sampling != before and len(seen) < trials:
        before = best.sampling
        for change in space.list_axes():
            yield from try_all(list(change(best.sampling)))


def make_space(bench: SweepBench, counts: Sequence[int]) -> SearchSpace:
    """Return what may be tried for a model."""
    pipeline = bench.pipeline
    return SearchSpace(
        counts=tuple(counts),
        grid=pipeline.model.grid,
        guided=pipeline.num_classes > 0,
        any_order=not isinstance(bench.experiment.recipe.model, PartitionConfig),
    )
