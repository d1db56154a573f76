"""Which network measures: `--features` and `--classifier` of the evaluating commands, and `unmask train-features`."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from unmask.cli.flags import Device, OutputFlags, choose_device, choose_say
from unmask.cli.outcomes import describe_outcome, hash_if_there
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.cli.tokenizers import find_data_flag, list_sources
from unmask.data.sources.choice import Arrays, Folder, PictureSource
from unmask.errors import ConfigError, look_up
from unmask.metrics.configs import ClassifierConfig
from unmask.recipes import cifar10
from unmask.runtime.progress import show_progress
from unmask.runtime.provenance import describe_environment
from unmask.storage.config import write_json
from unmask.storage.layout import CLASSIFIER, REPORT
from unmask.storage.outputs import check_folder

PHOTOS = cifar10.recipe().classifier


@dataclass(frozen=True, kw_only=True)
class FeatureFlags(OutputFlags):
    data: PictureSource
    classifier: ClassifierConfig = PHOTOS
    out: Path
    """Folder for the classifier and its report."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""


def run_train_features(arguments: list[str]) -> None:
    """Run `unmask train-features`."""
    usage = "train-features SOURCE --data PATH --out DIR, where SOURCE is one of " + ", ".join(list_sources(32, 3))
    example = FeatureFlags(data=Folder(path=""), out=Path("runs/SOURCE-features"))
    name, rest = split_positional(arguments, usage)
    operand = name.partition(",")[0]  # for help, what SOURCE may be follows it
    sources = list_sources(32, 3)
    source = example.data if rest == ["--help"] and name not in sources else look_up(sources, name, "source")
    rest = [re.sub(r"^--data(?==|$)", find_data_flag(source), word) for word in rest]
    rest = [re.sub(r"^--seed(?==|$)", "--classifier.seed", word) for word in rest]
    flags = parse(
        FeatureFlags, rest, f"train-features {name}", FeatureFlags(data=source, out=Path(f"runs/{operand}-features"))
    )
    before = hash_if_there(flags.out / CLASSIFIER)
    if before is None:
        check_folder(flags.out, [REPORT], overwrite=flags.overwrite)
    import torch

    from unmask.data.augment import PictureSet
    from unmask.evaluation.reference import embed_real
    from unmask.experiments.training import say_split
    from unmask.metrics.in_domain import prepare_classifier_features
    from unmask.runtime.distributed import join_world

    with (
        catch_value_errors(),
        catch_disk_errors(flags.out),
        join_world(choose_device(flags.device)) as here,
        show_progress(shown=here.is_main) as progress,
    ):
        split = flags.data.load(progress)
        if (say := choose_say(here)) is not None:
            say_split(split, say)
        if isinstance(flags.data, Arrays) and not split.train.classes:
            raise ConfigError(f"{flags.data.path} holds no labels: a classifier needs them")
        channels, height, width = split.train.shape
        config = replace(flags.classifier, channels=channels, num_classes=max(2, len(split.train.classes)))
        train, test = (
            PictureSet(pictures=part, size=(height, width), flip=False) for part in (split.train, split.test)
        )
        features = prepare_classifier_features(train, config, flags.out / CLASSIFIER, here, progress)
        right = math.nan
        if split.test.labels is not None and len(split.test):
            bank, read = embed_real(test, features, torch.arange(len(test)), here)
            right = float((features.classify(bank).argmax(1).cpu() == split.test.labels[read]).double().mean())
        report = {
            "test_accuracy": right,
            "features": features.name,
            "sha256": features.sha256,
            **describe_environment(here.device),
        }
        if here.is_main:
            write_json(flags.out / REPORT, report)
            print(f"{right:.2%} of {len(test):,} held-out images are classified right")
            print(describe_outcome(flags.out / CLASSIFIER, before))
            print(f"next: unmask evaluate RUN --classifier {flags.out}")
