"""Tune how a model samples with few forward passes, and keep what was found as its presets (`unmask tune`)."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from unmask.data.fingerprint import STRICT, DataPolicy
from unmask.data.pictures import hash_pictures
from unmask.data.sources.folders import Folder
from unmask.decoding.names import RAMPS
from unmask.decoding.sampling import ListedCounts, Sampling
from unmask.errors import ConfigError
from unmask.evaluation.measuring import open_subject
from unmask.evaluation.plans import TuneChoices
from unmask.evaluation.runs import OpenedRun, open_run
from unmask.evaluation.searching import TRIALS, Trial, TrialLog, make_space, search_sampling
from unmask.evaluation.sweeping import (
    SweepBench,
    choose_networks,
    measure_setting,
    measure_to_training,
    open_bench,
)
from unmask.evaluation.tuning import (
    COSTS,
    FOUND,
    RIVALS,
    CountsScore,
    find_order,
    format_counts,
    make_preset,
    score_counts,
    split_held_out,
    tune_counts,
)
from unmask.figures.images import plot_curves
from unmask.metrics.in_domain import prepare_classifier_features
from unmask.published.opening import OpenedModel, open_model
from unmask.published.tuned import hash_model, write_presets
from unmask.recipes.spec import ModelSpec, NamedSampling, TextModelSpec
from unmask.runtime.distributed import World, broadcast_text, join_world
from unmask.runtime.progress import Progress
from unmask.runtime.provenance import describe_environment
from unmask.storage.files import write_text
from unmask.storage.layout import CLASSIFIER
from unmask.storage.lock import lock
from unmask.storage.outputs import check_results

TUNE_FILES = ("tune.md", "counts.png", "frontier.png", COSTS)
"""The files of a tuning, besides the trials of each number of passes."""


@dataclass(frozen=True, kw_only=True)
class FrontierRow:
    """A way to sample with its figures; `forwards` counts a guided pass as two."""

    name: str
    sampling: Sampling
    forwards: int
    milliseconds: float
    figures: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TunedModel:
    """What was found: the presets, the folder of the model that has them, and the folder of the report."""

    presets: list[NamedSampling]
    folder: Path
    report: Path


def tune(
    run: str | Path,
    choices: TuneChoices | None = None,
    out: str | Path | None = None,
    *,
    data: str | Folder | None = None,
    overwrite: bool = False,
    device: str = "auto",
    accept_data: bool = False,
    verify_data: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Sampling]:
    """Find the best way to sample with few forward passes, as `unmask tune` does; the same call again resumes it.

    Args:
        run: A run of images or text, an export, a published model or hf-hub:OWNER/NAME.
        choices: What to tune, and how much work to put into it.
        out: The folder for tune.md, its plots, and what is kept to resume; RUN/tune by default.
        data: For a model that is no run: the data to measure against, as in `evaluate`.
        overwrite: Replace files in `out` that unmask did not make.
        device: "auto", "cuda" or "cpu".
        accept_data: Tune a run although its data changed since it was trained.
        verify_data: Compare all bytes of all images, also of those that are read on demand.
        progress: Called with (what, done, total).
        say: Called with lines on what is found.

    Returns:
        The presets by their names, such as "tuned-4"; `preset="tuned-4"` samples with one.

    Examples:
        >>> few = unmask.TuneChoices(passes=(2,), rows=100, trials=0)
        >>> presets = unmask.tune("runs/demo", few)
        >>> sum(presets["tuned-2"].schedule.counts)  # the 16 tokens of a digit
        16
    """
    check_results(None if out is None else Path(out), TUNE_FILES, overwrite=overwrite)
    with join_world(None if device == "auto" else device) as here:
        opened = open_model(run, world=here)
        opened.fetch(progress, here)
        tuned = tune_model(
            opened,
            choices or TuneChoices(),
            here,
            data=data,
            out=None if out is None else Path(out),
            policy=DataPolicy(accept=accept_data, verify=verify_data),
            progress=progress,
            say=say if here.is_main else None,
        )
    return {preset.name: preset.sampling for preset in tuned.presets}


def tune_model(
    opened: OpenedModel,
    choices: TuneChoices,
    here: World,
    *,
    data: str | Folder | None = None,
    out: Path | None = None,
    policy: DataPolicy = STRICT,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> TunedModel:
    """Tune, write tune.md with its plots, and add the presets to the model.

    What is finished is kept, so the same call goes on where an earlier one was stopped.

    Raises:
        ConfigError: The order is not known in advance, there are too few held-out rows, or passes exceed the tokens.
    """
    tell = say or (lambda line: None)
    if not isinstance(opened.config, ModelSpec | TextModelSpec):
        raise ConfigError(f"{opened.name} is a tokenizer: give a model of images or text")
    grid, length = opened.config.grid, opened.config.length
    order = find_order(choices.order, grid)
    subject, own, _, folder = open_subject(opened, here, data, None, policy, say)
    rows, place = split_held_out(len(subject.rows), choices.rows), out or folder / "tune"
    if here.is_main:
        place.mkdir(parents=True, exist_ok=True)
    with lock(place) if here.is_main else nullcontext():
        facts: dict[str, object] = {"weights": hash_model(folder), "order": str(order), "seed": choices.seed}
        tell(f"counts      {len(rows.choose):,} rows choose, {len(rows.score):,} others score")
        found = tune_counts(
            subject,
            order,
            choices.passes,
            rows,
            length,
            seed=choices.seed,
            world=here,
            kept=(place / COSTS, {**facts, "rows": len(rows.choose), "held_out": len(subject.rows)}),
            progress=progress,
        )
        scores = score_counts(subject, order, found, rows, length, own, seed=choices.seed, world=here)
        for line in describe_likelihoods(scores):
            tell(line)
        chosen = {passes: make_preset(own, order, counts) for passes, counts in found.items()}
        frontier: list[FrontierRow] = []
        if choices.trials and isinstance(opened.config, ModelSpec):
            run = open_run(opened, here, data=data, policy=policy, progress=progress)
            chosen = search_presets(run, choices, found, chosen, place, facts, here, progress, tell)
            frontier = measure_frontier(run, choices, chosen, here, progress, tell)
        presets = [NamedSampling(name=f"{FOUND}-{passes}", sampling=sampling) for passes, sampling in chosen.items()]
        if here.is_main:
            write_presets(presets, folder)
            write_report(scores, frontier, choices, place, here)
    return TunedModel(presets=presets, folder=folder, report=place)


def search_presets(
    run: OpenedRun,
    choices: TuneChoices,
    found: dict[int, list[int]],
    chosen: dict[int, Sampling],
    place: Path,
    facts: dict[str, object],
    here: World,
    progress: Progress | None,
    tell: Callable[[str], None],
) -> dict[int, Sampling]:
    """Return the best way to sample of each search."""
    bench = open_trial_bench(run, place, here, progress)
    facts = {
        **facts,
        "judge": bench.features.sha256,
        "pictures": hash_pictures(run.experiment.split.train),
        "samples": choices.samples,
    }
    best: dict[int, Sampling] = {}

    def measure(sampling: Sampling) -> float:
        # Rank 0 decides: figures of other hardware may differ in their last digit.
        return float(broadcast_text(repr(measure_to_training(bench, sampling, choices.samples, choices.seed)), here))

    for passes, counts in found.items():
        log = TrialLog(place / f"{passes}-{TRIALS}", facts, write=here.is_main)
        own = replace(chosen[passes], schedule=run.pipeline.sampling.schedule, priority=run.pipeline.sampling.priority)
        starts, least = (chosen[passes], own.fit_to(run.pipeline.model.grid)), float("inf")
        for trial in search_sampling(measure, starts, make_space(bench, counts), log, trials=choices.trials):
            if trial.distance < least:
                least, best[passes] = trial.distance, trial.sampling
                tell(describe_trial(passes, trial))
    return best


def open_trial_bench(run: OpenedRun, place: Path, here: World, progress: Progress | None) -> SweepBench:
    """Return a bench whose classifier is not the one of the report: it is trained from other first weights."""
    config = run.experiment.recipe.classifier
    config = replace(config, seed=config.seed + 1)
    pictures = run.experiment.read_pictures("train")
    judge = prepare_classifier_features(pictures, config, place / CLASSIFIER, here, progress)
    return open_bench(run, judge, None, "shares", here, reference=place, progress=progress)


def measure_frontier(
    run: OpenedRun,
    choices: TuneChoices,
    chosen: dict[int, Sampling],
    here: World,
    progress: Progress | None,
    tell: Callable[[str], None],
) -> list[FrontierRow]:
    """Measure what was found, and the model's own way to sample, on fresh samples against held-out images."""
    features, judge = choose_networks(run, None, None, here, progress)
    bench = open_bench(run, features, judge, "shares", here, progress=progress)
    own = run.pipeline.sampling.fit_to(run.pipeline.model.grid)
    warmth = own.temperature[0] if isinstance(own.temperature, tuple) else own.temperature
    budgets = sorted({*chosen, own.steps})
    ways = {f"own, {steps} passes": replace(own, steps=steps, temperature=warmth) for steps in budgets}
    ways |= {f"{FOUND}-{passes}": sampling for passes, sampling in chosen.items()}
    rows = []
    for name, sampling in ways.items():
        figures = measure_setting(bench, sampling, choices.measured, choices.seed + 1)
        start, num = time.process_time(), 32
        run.pipeline.sample_range(0, num, run.pipeline.cycle_labels(num), seed=0, sampling=sampling)
        rows.append(
            FrontierRow(
                name=name,
                sampling=sampling,
                forwards=sampling.steps * (1 if sampling.unguided or not run.pipeline.num_classes else 2),
                milliseconds=1000 * (time.process_time() - start) / num,
                figures=figures,
            )
        )
        tell(f"{name:16s}  Frechet distance {figures['frechet']:.3f}")
    return rows


def describe_likelihoods(scores: Sequence[CountsScore]) -> list[str]:
    """Return a line for the terminal on each number of passes."""
    lines = []
    for passes in dict.fromkeys(score.passes for score in scores):
        nats = {score.schedule: score.nats for score in scores if score.passes == passes}
        others = ", ".join(f"{name} {nats[name]:.4f}" for name in ("cosine", "uniform", "own"))
        lines.append(f"{passes:3d} passes  {nats[FOUND]:.4f} nats per token; {others}")
    return lines


def describe_trial(passes: int, trial: Trial) -> str:
    """Return a line for the terminal on the best trial so far."""
    return f"{passes:3d} passes  trial {trial.number}: {trial.distance:.3f} with {describe_sampling(trial.sampling)}"


def describe_sampling(sampling: Sampling) -> str:
    """Return the order, schedule, temperature and guidance in a few words."""
    warmth = sampling.temperature
    heat = f"{warmth[0]:g} to {warmth[-1]:g}" if isinstance(warmth, tuple) else f"{warmth:g}"
    order = type(sampling.priority).__name__ + (
        f" {noise:g}" if (noise := getattr(sampling.priority, "noise", None)) is not None else ""
    )
    names = {FOUND: sampling.schedule} if isinstance(sampling.schedule, ListedCounts) else RIVALS
    schedule = next((name for name, shape in names.items() if shape == sampling.schedule), str(sampling.schedule))
    ramp = next((name for name, kind in RAMPS.items() if sampling.scale == kind(sampling.scale.scale)), "")
    rises = f"{ramp} to " if ramp != "constant" else ""
    guidance = "none" if sampling.unguided else f"{rises}{sampling.scale.scale:g}"
    return f"{order}, {schedule}, temperature {heat}, guidance {guidance}"


def write_report(
    scores: Sequence[CountsScore], frontier: Sequence[FrontierRow], choices: TuneChoices, place: Path, here: World
) -> None:
    """Write tune.md and its plots into the folder `place`."""
    made = describe_environment(here.device)
    said = f"Exact likelihood of held-out rows in the order {choices.order}."
    lines = ["## Counts", "", said, "", *format_counts(scores)]
    lines += ["", "![nats by passes](counts.png)", ""]
    names = list(dict.fromkeys(score.schedule for score in scores))
    plot_curves(
        {
            name: ([s.passes for s in scores if s.schedule == name], [s.nats for s in scores if s.schedule == name])
            for name in names
        },
        place / "counts.png",
        xlabel="passes",
        ylabel="nats per token",
        title="Exact likelihood of held-out data",
        logx=True,
    )
    if frontier:
        lines += format_frontier(frontier, choices)
        series = {
            kind: ([row.forwards for row in rows], [row.figures["frechet"] for row in rows])
            for kind, rows in (
                ("own", [row for row in frontier if not row.name.startswith(FOUND)]),
                (FOUND, [row for row in frontier if row.name.startswith(FOUND)]),
            )
        }
        plot_curves(
            series,
            place / "frontier.png",
            xlabel="forward passes of the network",
            ylabel="Frechet distance",
            title="Quality by cost",
            logx=True,
        )
    lines += ["", f"`{made['command']}`, commit {made['commit']}, {made['hardware']}."]
    write_text("\n".join(lines) + "\n", place / "tune.md")


def format_frontier(frontier: Sequence[FrontierRow], choices: TuneChoices) -> list[str]:
    """Return the table of the figures in Markdown."""
    lines = [
        "## Samples",
        "",
        f"{choices.measured:,} samples of seed {choices.seed + 1} against held-out images, by the classifier of the "
        "run. A guided pass counts as two forward passes.",
        "",
        "| name | forward passes | CPU ms per image | Frechet distance | recall | class accuracy | how |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in frontier:
        cells = [f"{row.figures[key]:{form}}" if key in row.figures else "–" for key, form in SHOWN]
        how = describe_sampling(row.sampling)
        lines.append(f"| {row.name} | {row.forwards} | {row.milliseconds:.1f} | {' | '.join(cells)} | {how} |")
    return [*lines, "", "![quality by cost](frontier.png)"]


SHOWN = (("frechet", ".3f"), ("recall", ".3f"), ("class_accuracy", ".1%"))
"""Figures of the table, and their form."""
