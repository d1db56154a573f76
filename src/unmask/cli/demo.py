"""`unmask demo`: the whole method on real digits, in a few minutes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from unmask.cli.flag_types import show_default
from unmask.cli.flags import Device, OutputFlags, check_device, choose_device
from unmask.cli.parsing import catch_value_errors, parse
from unmask.storage.layout import REPORT


@dataclass(frozen=True, kw_only=True)
class DemoFlags(OutputFlags):
    out: Path = Path("runs/demo")
    """Run directory: checkpoints, config.json, metrics.jsonl, report.json, pictures, model.safetensors."""
    steps: Annotated[int | None, show_default("1000, as the recipe digits")] = None
    """Training steps; fewer for a quick look."""
    classifier_steps: Annotated[int | None, show_default("300, as the recipe digits")] = None
    """Training steps of the classifier that measures the samples."""
    samples: int = 1500
    """Number of digits to generate for the metrics of report.json."""
    seed: int = 0
    """Seed of the training and of the samples."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""


def run_demo(arguments: list[str]) -> None:
    """Run `unmask demo`."""
    flags = parse(DemoFlags, arguments, "demo")
    from unmask.cli.sampling import EvaluateFlags, print_report
    from unmask.cli.training import TrainFlags, train_from
    from unmask.evaluation.earlier import check_report
    from unmask.experiments.training import check_run
    from unmask.published.opening import open_model
    from unmask.recipes import Recipe, reading
    from unmask.runtime.distributed import join_world

    recipe = reading.find_recipe("digits", Recipe)
    steps = recipe.training.steps if flags.steps is None else flags.steps
    judge = recipe.classifier.steps if flags.classifier_steps is None else flags.classifier_steps
    every = max(1, steps // 5)
    with catch_value_errors():
        training = replace(recipe.training, steps=steps, seed=flags.seed, evaluate_every=every, save_every=every)
        classifier = replace(recipe.classifier, steps=judge)
    recipe = replace(recipe, training=training, classifier=classifier)
    check_device(flags.device)
    check_run(flags.out, recipe, overwrite=flags.overwrite)
    check_report(flags.out / REPORT, "num_samples", flags.samples, "--samples", overwrite=flags.overwrite)
    flagged = TrainFlags(recipe=recipe, out=flags.out, overwrite=flags.overwrite, device=flags.device)
    train_from(flagged, notes=["recipe      digits"])
    with join_world(choose_device(flags.device)) as here:
        opened = open_model(flags.out)
        measure = EvaluateFlags(samples=flags.samples, seed=flags.seed, overwrite=flags.overwrite)
        print_report(opened, here, measure, opened.require_image_spec().sampling)
    print(suggest_next(flags.out))


def suggest_next(run: Path | str) -> str:
    """Return commands to try after the demo, and what each shows, in two columns."""
    lines = {
        f"unmask sample {run} --labels 3 --num 20 --steps 4": "twenty threes in four steps",
        f"unmask sample {run} --order halton --gif halton.gif": "another order, as an animation",
        f"unmask sweep {run} --samples 1500 --steps 1 4 16": "which order, and how many steps?",
        "unmask schedule --shape cosine --tokens 256 --steps 8": "how many tokens each step reveals",
        "python examples/minimal.py": "the whole method on one page",
    }
    width = max(map(len, lines))
    return "\n".join(["", "try next", *(f"  {line:<{width}}   {what}" for line, what in lines.items())])
