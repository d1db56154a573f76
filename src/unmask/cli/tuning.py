"""`unmask tune`: find the best way to sample with few forward passes, and keep it as a preset of the model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from unmask.cli.flag_types import show_default
from unmask.cli.flags import Device, MeasuredFlags, OutputFlags, choose_device, choose_say, fetch_model
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.evaluation.plans import TuneChoices
from unmask.published.names import MODEL_NAMES
from unmask.runtime.progress import show_progress
from unmask.storage.outputs import check_results


@dataclass(frozen=True, kw_only=True)
class TuneFlags(TuneChoices, OutputFlags):
    """What to tune."""

    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    published: Annotated[MeasuredFlags, tyro.conf.arg(name="")] = field(default_factory=MeasuredFlags)
    out: Annotated[Path | None, show_default("RUN/tune, or runs/NAME/tune of a published model")] = None
    """Folder for the report, its plots, and what is kept to resume."""


def run_tune(arguments: list[str]) -> None:
    """Run `unmask tune`."""
    name, rest = split_positional(arguments, f"tune MODEL, where MODEL is {MODEL_NAMES}")
    flags = parse(TuneFlags, rest, f"tune {name}")
    from unmask.evaluation.tuned_model import TUNE_FILES, tune_model
    from unmask.recipes.spec import ModelSpec
    from unmask.runtime.distributed import join_world

    check_results(flags.out, TUNE_FILES, overwrite=flags.overwrite)
    with catch_value_errors(), join_world(choose_device(flags.device)) as here:
        opened = flags.published.open(name, here)
        fetch_model(opened, here)
        measured = flags.published
        with catch_disk_errors(flags.out or Path("runs")), show_progress(shown=here.is_main) as progress:
            tuned = tune_model(
                opened,
                flags,
                here,
                data=measured.source,
                out=flags.out,
                policy=measured.policy,
                progress=progress,
                say=choose_say(here),
            )
        if here.is_main:
            command = "sample" if isinstance(opened.config, ModelSpec) else "generate"
            print(f"\nwrote into {tuned.report}: tune.md with its plots, and what a second call goes on from")
            for preset in tuned.presets:
                print(f"unmask {command} {tuned.folder} --preset {preset.name}")
