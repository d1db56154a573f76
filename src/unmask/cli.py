"""The command line: `unmask <command> ...`. Each command reads its flags, calls one function, and says what it made.

Errors a user can act on are one line and an exit code: 2 wrong flag or field, 3 data, 4 checkpoint or run folder,
5 non-finite loss, 6 disk, 85 stopped by a signal after saving.
"""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from unmask.errors import CheckpointError, ConfigError, DiskError, UnmaskError

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(arguments)
    except UnmaskError as error:
        print(f"unmask: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise ConfigError(f"no command {name}{_nearest(name, COMMANDS)}")
    COMMANDS[name](rest)


def _usage() -> str:
    lines = ["usage: unmask COMMAND ...   (unmask COMMAND --help tells the flags of each)", ""]
    return "\n".join(lines + [f"  {name:9s} {(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items()])


def _nearest(name: str, known: Sequence[str] | dict) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), 1)
    return f": did you mean {near[0]}?" if near else f": there are {', '.join(known)}"


def parse(kind: type[T], arguments: list[str], command: str, default: T | None = None) -> T:
    """tyro's parser, with its error box folded into one line. Scalars are flags; what a field *is* stays the recipe's."""
    errors = io.StringIO()
    settings = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=arguments, prog=f"unmask {command}", default=default, config=settings)  # type: ignore[call-overload]
    except SystemExit as stop:
        if not stop.code:
            raise
    raise ConfigError(_one_line(errors.getvalue()) + f" (flags: unmask {command} --help)")


def _one_line(box: str) -> str:
    """The sentence in tyro's box, and the flag it suggests."""
    rows = [line.strip("│ ").strip() for line in box.splitlines() if "│" in line]
    rule = next((i for i, row in enumerate(rows) if set(row) == {"─"}), len(rows))
    near = next((re.match(r"(--\S+)", row) for row in rows[rule:] if row.startswith("--")), None)
    return " ".join(rows[:rule]) + (f": did you mean {near.group(1)}?" if near and "Perhaps" in box else "")


# -- training ----------------------------------------------------------------------------------------------------------


def train(arguments: list[str]) -> None:
    """train a recipe (a name, a .py file, or a run's config.json); the same command again continues it"""
    from unmask import recipes

    name, rest = _positional(arguments, f"train RECIPE: one of {', '.join(recipes.names())}, a .py file or a config.json")
    recipe = recipes.load(name)

    @dataclass(frozen=True, kw_only=True)
    class TrainFlags:
        recipe: Annotated[recipes.Recipe, tyro.conf.arg(name="")]
        run: Path = Path("runs") / Path(name).stem
        """The run folder: checkpoints, config.json, metrics.jsonl, samples, model.safetensors."""
        resume: Literal["auto", "never"] = "auto"
        """Continue the newest checkpoint in the run folder, or refuse a folder that has one."""
        device: str | None = None
        """cpu or cuda; by default cuda where there is one."""
        dry_run: bool = False
        """Print the resolved configuration and the sizes, and stop."""

    rest = ["--data.path" if word == "--data" else re.sub(r"^--data=", "--data.path=", word) for word in rest]
    flags = parse(TrainFlags, rest, f"train {name}", TrainFlags(recipe=recipe))
    _train(flags.recipe, flags.run, flags.resume, flags.device, flags.dry_run)


def _train(recipe: "Recipe", run: Path, resume: str, device: str | None, dry_run: bool) -> None:  # type: ignore[name-defined]  # noqa: F821
    from unmask.config import dump_json
    from unmask.experiment import build, prepare
    from unmask.experiment import run as run_experiment
    from unmask.training.distributed import world

    if dry_run:
        experiment = prepare(recipe)
        model = build(experiment)
        print(dump_json(experiment.recipe))
        print(f"parameters {sum(p.numel() for p in model.parameters()):,}, grid {model.grid}, vocabulary {model.vocab_size}")
        print(f"training images {len(experiment.train):,}, held out {len(experiment.test):,}")
        print(f"tokens per step {recipe.training.batch_size * model.length:,}")
        return
    if resume == "never" and (run / "checkpoints").exists():
        raise CheckpointError(f"{run} already holds a run: give another --run, or leave --resume at auto to continue it")
    with world(device) as here, disk_errors(run):
        experiment = run_experiment(recipe, run, here)
        if here.is_main:
            for bad in experiment.split.bad:
                print(f"left out {bad}", file=sys.stderr)
            print(f"wrote {run / 'model.safetensors'}; next: unmask evaluate {run}   or   unmask sample {run}")


def demo(arguments: list[str]) -> None:
    """learn real handwritten digits in about three minutes, draw some, repair some, and measure how good they are"""
    from unmask import recipes

    @dataclass(frozen=True, kw_only=True)
    class DemoFlags:
        run: Path = Path("runs/demo")
        steps: int = recipes.load("digits").training.steps
        """Training steps; fewer for a quick look."""
        classifier_steps: int = recipes.load("digits").classifier.steps
        samples: int = 1500
        """How many digits to generate for the figures of report.json."""
        seed: int = 0

    flags = parse(DemoFlags, arguments, "demo")
    recipe = recipes.load("digits")
    every = max(1, flags.steps // 5)
    training = replace(recipe.training, steps=flags.steps, seed=flags.seed, evaluate_every=every, save_every=every)
    recipe = replace(recipe, training=training, classifier=replace(recipe.classifier, steps=flags.classifier_steps))
    _train(recipe, flags.run, "auto", None, False)
    _evaluate(flags.run, flags.samples, flags.seed, None)
    print(
        "\nTry next:\n"
        f"  unmask sample {flags.run} --labels 3 --num 20 --steps 4      twenty threes in four steps\n"
        f"  unmask sample {flags.run} --order halton --gif halton.gif    another order, as an animation\n"
        f"  unmask sweep {flags.run} --samples 1000                      which order and how many steps are best?\n"
        "  unmask schedule --shape cosine --tokens 256 --steps 8        how many tokens each step reveals\n"
        "  examples/minimal.py                                          the whole method on one page"
    )


# -- sampling and measuring --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """Anything not given is as the recipe has it."""

    steps: int | None = None
    """Forward passes."""
    order: str | None = None
    """Who is revealed first: confidence, halton, random, margin, entropy, max-logit or raster."""
    noise: float | None = None
    """Factor of the Gumbel noise on log-confidence, for the confidence order; it falls to 0."""
    schedule: str | None = None
    """Fraction still masked over time: cosine, arccos, linear, square, cubic or root."""
    temperature: float | None = None
    """Logits are divided by it: below 1 sharper, 0 greedy."""
    scale: float | None = None
    """Guidance: null + scale (conditional - null); 1 is none. Papers that write w mean scale - 1."""
    top_k: int | None = None
    top_p: float | None = None

    def applied(self, pipeline: "Pipeline") -> "Sampling":  # type: ignore[name-defined]  # noqa: F821
        """The pipeline's default sampling with what was given."""
        from unmask.guidance import Interval
        from unmask.sampling.priorities import Confidence

        changes: dict[str, object] = {
            name: value
            for name in ("steps", "temperature", "top_k", "top_p")
            if (value := getattr(self, name)) is not None
        }
        if self.order is not None:
            changes["priority"] = _named(orders(pipeline.model.grid), self.order, "order")
        if self.noise is not None:
            if self.order not in (None, "confidence"):
                raise ConfigError(f"--noise is for --order confidence; the {self.order} order has none")
            changes["priority"] = Confidence(self.noise)
        if self.schedule is not None:
            changes["schedule"] = _named(shapes(), self.schedule, "schedule")
        if self.scale is not None:
            changes["scale"] = Interval(self.scale)
        return replace(pipeline.sampling, **changes)  # type: ignore[arg-type]


def _named(table: dict[str, T], name: str, what: str) -> T:
    if name not in table:
        raise ConfigError(f"no {what} {name}{_nearest(name, table)}")
    return table[name]


def orders(grid: tuple[int, ...]) -> dict[str, object]:
    """What `--order` may say."""
    from unmask.sampling.priorities import Confidence, Entropy, Halton, Margin, MaxLogit, Random, Raster

    return {
        "confidence": Confidence(),
        "halton": Halton(grid),
        "random": Random(),
        "margin": Margin(),
        "entropy": Entropy(),
        "max-logit": MaxLogit(),
        "raster": Raster(),
    }


def shapes(tokens: int = 2) -> dict[str, Callable]:
    """What `--schedule` and `--shape` may say; log and exp depend on the number of tokens."""
    from unmask.schedules import Arccos, Cosine, Exp, Log, Power, Sigmoid

    powers = {"uniform": 1, "linear": 1, "pow2": 2, "square": 2, "pow3": 3, "cubic": 3, "pow0.5": 0.5, "root": 0.5}
    named: dict[str, Callable] = {name: Power(exponent) for name, exponent in powers.items()}
    return {"cosine": Cosine(), "arccos": Arccos(), **named, "log": Log(max(2, tokens)), "exp": Exp(max(2, tokens)), "sigmoid": Sigmoid()}


def sample(arguments: list[str]) -> None:
    """generate images from a run or an export"""

    @dataclass(frozen=True, kw_only=True)
    class SampleFlags:
        sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
        out: Path = Path("samples.png")
        num: int = 100
        labels: tuple[int, ...] = ()
        """Class ids, repeated in turn until there are `num`; by default all classes."""
        columns: int = 10
        seed: int = 0
        gif: Path | None = None
        """Also animate the decoding of the first 30, as .gif or .webp."""

    import torch

    from unmask import figures
    from unmask.pipeline import Pipeline

    name, rest = _positional(arguments, "sample RUN: a run folder or an export")
    flags = parse(SampleFlags, rest, "sample RUN")
    pipeline = Pipeline.from_pretrained(name)
    sampling = flags.sampling.applied(pipeline)
    if flags.num < 1:
        raise ConfigError(f"--num {flags.num}: at least 1")
    labels = pipeline.labels(flags.num)
    if flags.labels:
        labels = torch.tensor(flags.labels)[torch.arange(flags.num) % len(flags.labels)].to(pipeline.device)
    with value_errors(), disk_errors(flags.out.parent):
        images = pipeline.generate(labels, num=flags.num, seed=flags.seed, sampling=sampling)
        scale = max(1, 56 // images.shape[-1])
        figures.write(figures.grid(images, flags.columns, scale=scale), flags.out)
        print(f"wrote {flags.out}")
        if flags.gif is not None:
            figures.animate(frames(pipeline, sampling, labels, flags.seed, scale), flags.gif)
            print(f"wrote {flags.gif}")


def frames(pipeline: "Pipeline", sampling: "Sampling", labels: "Tensor | None", seed: int, scale: int) -> list:  # type: ignore[name-defined]  # noqa: F821
    """The decoding of up to 30 samples as pictures."""
    from unmask.figures import decode_frames

    num = 30 if labels is None else min(30, len(labels))
    states = pipeline.states(pipeline.blank(num), None if labels is None else labels[:num], seed=seed, sampling=sampling)
    tokens = [s.tokens.cpu() for s in states]
    masked = [t == pipeline.model.mask_id for t in tokens]
    return decode_frames(tokens, masked, pipeline.tokenizer.decode, pipeline.tokenizer.grid, 10, scale=scale)


def evaluate(arguments: list[str]) -> None:
    """measure a run (class accuracy, Frechet distance, copies) into report.json, and draw its pictures"""

    @dataclass(frozen=True, kw_only=True)
    class EvaluateFlags:
        sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
        samples: int = 1500
        seed: int = 0

    name, rest = _positional(arguments, "evaluate RUN: a run folder")
    flags = parse(EvaluateFlags, rest, "evaluate RUN")
    _evaluate(Path(name), flags.samples, flags.seed, flags.sampling)


def _evaluate(run: Path, num: int, seed: int, flags: SamplingFlags | None) -> None:
    from unmask.evaluate import report
    from unmask.pipeline import Pipeline

    sampling = None if flags is None else flags.applied(Pipeline.from_pretrained(run))
    with value_errors(), disk_errors(run):
        numbers = report(run, num=num, seed=seed, sampling=sampling)
    print(json.dumps(numbers, indent=2))
    print("\nwrote")
    for file, what in PICTURES.items():
        print(f"  {run / file!s:28s} {what}")


PICTURES = {
    "model.safetensors": "the averaged weights, with config.json all that is needed to sample",
    "checkpoints/": "to continue the training",
    "config.json": "the resolved recipe",
    "metrics.jsonl": "the training curve, one JSON object per line",
    "samples.png": "a grid of samples, one class per row",
    "decode.gif": "the canvas filling in",
    "order.png": "which cell was revealed when",
    "inpaint.png": "held-out images: original, hole, repaired",
    "loss.png": "the loss",
    "report.json": "the figures above",
}


def sweep(arguments: list[str]) -> None:
    """compare orders and numbers of steps, each at its best temperature; prints a Markdown table"""

    @dataclass(frozen=True, kw_only=True)
    class SweepFlags:
        samples: int = 5000
        """Fresh samples behind each figure."""
        tune: int = 1000
        """Samples, of another seed, by which each setting's temperature is chosen."""
        steps: tuple[int, ...] = (1, 2, 4, 8, 16, 49)
        orders: tuple[str, ...] = ("confidence", "confidence-without-noise", "random", "halton")
        temperatures: tuple[float, ...] = (0.6, 0.8, 0.9, 1.0)
        scale: float = 1.0
        seed: int = 0
        out: Path | None = None
        """Also write the table to this file."""

    from unmask.evaluate import sweep as run_sweep
    from unmask.guidance import Interval
    from unmask.pipeline import Pipeline
    from unmask.sampling.priorities import Confidence

    name, rest = _positional(arguments, "sweep RUN: a run folder")
    flags = parse(SweepFlags, rest, "sweep RUN")
    pipeline = Pipeline.from_pretrained(name)
    table = {**orders(pipeline.model.grid), "confidence-without-noise": Confidence(0.0)}
    base = replace(pipeline.sampling, scale=Interval(flags.scale))
    settings = [(order, replace(base, priority=_named(table, order, "order"))) for order in flags.orders]
    lines = ["| order | steps | best temperature | class accuracy | Frechet distance |", "| --- | ---: | ---: | ---: | ---: |"]
    print("\n".join(lines), flush=True)
    with value_errors(), disk_errors(Path(name)):
        for row in run_sweep(
            Path(name), num=flags.samples, tune=flags.tune, seed=flags.seed, steps=flags.steps, orders=settings, temperatures=flags.temperatures
        ):
            lines.append(f"| {row.order} | {row.steps} | {row.temperature} | {100 * row.class_accuracy:.2f} % | {row.frechet:.3f} |")
            print(lines[-1], flush=True)
        if flags.out is not None:
            flags.out.write_text("\n".join(lines) + "\n")


def export(arguments: list[str]) -> None:
    """write model.safetensors and config.json of a run to a folder of their own"""

    @dataclass(frozen=True, kw_only=True)
    class ExportFlags:
        out: Path

    from unmask.experiment import export as write_export

    name, rest = _positional(arguments, "export RUN: a run folder")
    flags = parse(ExportFlags, rest, "export RUN")
    with disk_errors(flags.out):
        write_export(Path(name), flags.out)
    print(f"wrote {flags.out}: Pipeline.from_pretrained({str(flags.out)!r}) or unmask sample {flags.out}")


# -- schedules ---------------------------------------------------------------------------------------------------------


def schedule(arguments: list[str]) -> None:
    """print how many tokens each step reveals, as each code base of the field counts them"""

    @dataclass(frozen=True, kw_only=True)
    class ScheduleFlags:
        style: str = "google"
        """google, valeoai-v1, halton, halton-confidence, x-transformers, muse, nanofm, llada or 4m."""
        shape: str | None = None
        """uniform, linear, pow2, square, pow3, pow0.5, root, cosine, arccos, log, exp or sigmoid; cosine by default."""
        tokens: int = 256
        steps: int = 8
        json: bool = False
        """Only the list, as JSON."""

    flags = parse(ScheduleFlags, arguments, "schedule")
    with value_errors():
        counts = _counts(flags.style, flags.shape, flags.tokens, flags.steps)
    if flags.json:
        print(json.dumps(counts))
        return
    print(f"{flags.style} {flags.shape or ''}: {flags.tokens} tokens in {flags.steps} steps".replace(" :", ":"))
    known = 0
    for step, count in enumerate(counts, 1):
        known += count
        bar = "█" * round(48 * count / max(counts))
        print(f"{step:4d}  {count:5d}  {100 * known / flags.tokens:5.1f} %  {bar}")


def _counts(style: str, shape: str | None, tokens: int, steps: int) -> list[int]:
    from unmask import schedules

    shaped = {
        "google": schedules.google,
        "valeoai-v1": schedules.valeoai_v1,
        "halton-confidence": schedules.halton_confidence,
        "x-transformers": schedules.x_transformers,
        "muse": schedules.muse,
    }
    fixed = {
        "halton": (schedules.halton, "arccos"),
        "nanofm": (schedules.nanofm, "constant"),
        "llada": (schedules.llada, "linear"),
        "4m": (schedules.fourm, "cosine"),
    }
    if style in fixed:
        count, only = fixed[style]
        if shape not in (None, only):
            raise ConfigError(f"--style {style} has one shape, {only}: leave --shape out")
        return count(tokens, steps)
    build = _named({**shaped, **dict.fromkeys(fixed, schedules.google)}, style, "style")
    return build(tokens, steps, _named(shapes(tokens), shape or "cosine", "shape"))


# -- shared ------------------------------------------------------------------------------------------------------------


def _positional(arguments: list[str], usage: str) -> tuple[str, list[str]]:
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: unmask {usage}; then flags, told by --help after it")
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"usage: unmask {usage}")
    return arguments[0], arguments[1:]


@contextlib.contextmanager
def value_errors() -> Iterator[None]:
    """The method raises ValueError for numbers it cannot use; here they came from a flag."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """A full, read-only or missing disk in one line."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{error.filename or where}: {error.strerror or error}; checkpoints already written are kept") from error


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "sweep": sweep,
    "schedule": schedule,
    "export": export,
}
