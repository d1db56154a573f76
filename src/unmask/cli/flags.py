"""Flags that several commands share, and what they mean."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from unmask.cli.flag_types import show_default
from unmask.cli.parsing import catch_disk_errors
from unmask.decoding.choices import ORDER_CHOICES, PRESET_CHOICES, SAMPLER_CHOICES, SCHEDULE_CHOICES
from unmask.runtime.choices import WeightType as WeightType
from unmask.runtime.output import print_line
from unmask.runtime.progress import show_progress
from unmask.runtime.torchrun import is_main_process

if TYPE_CHECKING:
    import torch

    from unmask.data.fingerprint import DataPolicy
    from unmask.data.sources.folders import Folder
    from unmask.decoding.sampling import Sampling
    from unmask.metrics.embedders import ClassifierFeatures, Features
    from unmask.published.opening import OpenedModel
    from unmask.recipes.spec import ModelSpec, TextModelSpec
    from unmask.runtime.distributed import World

Device = Literal["auto", "cpu", "cuda", "mps"]
MODELS_OWN = "the model's own"
CELL_CHOICES = "{any, all, 0 to 1}"


def choose_say(here: "World") -> Callable[[str], None] | None:
    """Return what prints lines on the data, by the main process only."""
    return say_on_stderr if here.is_main else None


def say_on_stderr(line: str) -> None:
    """Print a line on the data to stderr, so that stdout holds the result alone."""
    print_line(line, sys.stderr)


def choose_device(name: str) -> str | None:
    """Return the name of a device for `world`; None picks one."""
    return None if name == "auto" else name


def check_device(name: str, dtype: WeightType = "auto") -> None:
    """Raise ConfigError, before a download or other work, if there is no such device here, or it lacks this type."""
    from unmask.runtime.devices import pick_device
    from unmask.runtime.int8 import split_dtype

    split_dtype(find_dtype(dtype), pick_device(name))


def find_dtype(name: WeightType) -> "torch.dtype | None":
    """Return the number type of this name; None for auto."""
    import torch

    return {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[name]


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """What may be replaced."""

    overwrite: bool = False
    """Replace files that unmask did not make; otherwise the command refuses before it starts."""


@dataclass(frozen=True, kw_only=True)
class WeightsFlags:
    """Where the files of a published model are."""

    weights: Annotated[tuple[Path, ...], show_default("download them")] = ()
    """Files of a published model, or folders that hold them."""
    offline: bool = False
    """Use the cache alone, and ask no server."""

    def open(self, name: str | Path, here: "World | None" = None) -> "OpenedModel":
        """Find the model of this name, and read its configuration."""
        from unmask.published.opening import open_model
        from unmask.storage.cache import find_cache_dir

        is_main = is_main_process() if here is None else here.is_main
        with catch_disk_errors(find_cache_dir()):
            say = say_on_stderr if is_main else None
            return open_model(name, weights=self.weights, offline=self.offline, world=here, say=say)


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """What to do about the data of an earlier command."""

    accept_data: bool = False
    """Continue although the data changed since the run began; the run keeps a record."""
    verify_data: bool = False
    """Compare all bytes of all images, not eight samples of 1 KiB per file of a large dataset."""

    @property
    def policy(self) -> "DataPolicy":
        """The flags as the experiments take them."""
        from unmask.data.fingerprint import DataPolicy

        return DataPolicy(accept=self.accept_data, verify=self.verify_data)


@dataclass(frozen=True, kw_only=True)
class MeasuredFlags(WeightsFlags, DataFlags):
    """What a model is measured against."""

    data: Annotated[str | None, tyro.conf.arg(metavar="DIR"), show_default("the run's own data")] = None
    """Needed for other models: a token dataset; or, for a model of pixels, images, digits, mnist or cifar10."""
    train: Annotated[str | None, tyro.conf.arg(name="data.train", metavar="DIR"), show_default("by its name")] = None
    """Folder of images that a classifier learns from, inside --data or elsewhere."""
    test: Annotated[str | None, tyro.conf.arg(name="data.test", metavar="DIR"), show_default("by its name")] = None
    """Folder of images to hold out, inside --data or elsewhere."""

    @property
    def source(self) -> "str | Folder | None":
        """What to measure against, as `evaluate` takes it."""
        return choose_folder_sets(self.data, self.train, self.test)


def choose_folder_sets(data: str | None, train: str | None, test: str | None) -> "str | Folder | None":
    """Return `data`, or the folder of images with these sets if any is named."""
    if train is None and test is None:
        return data
    from unmask.data.sources.folders import Folder

    return Folder(path=data or "", train=train, test=test)


def fetch_model(opened: "OpenedModel", here: "World | None" = None) -> Path:
    """Return the folder of a model's weights, with a progress bar while it is downloaded and converted."""
    from unmask.storage.cache import find_cache_dir

    with catch_disk_errors(find_cache_dir()), show_progress(shown=here is None or here.is_main) as progress:
        return opened.fetch(progress, here)


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How to sample. Unset flags default to the model's own sampling."""

    preset: Annotated[str | None, tyro.conf.arg(metavar=PRESET_CHOICES), show_default("none")] = None
    """Sample as published, or by our own rule (ours-8, ours-16); other flags change it."""
    steps: Annotated[int | None, show_default(MODELS_OWN)] = None
    """Forward passes, from 1 to 100,000; more than the tokens of a sample do not help."""
    order: Annotated[str | None, tyro.conf.arg(metavar=ORDER_CHOICES), show_default(MODELS_OWN)] = None
    """Which tokens are revealed first."""
    noise: Annotated[float | None, show_default(MODELS_OWN)] = None
    """Factor of the Gumbel noise on log-confidence, at least 0, for the order confidence; it falls to 0."""
    schedule: Annotated[str | None, tyro.conf.arg(metavar=SCHEDULE_CHOICES), show_default(MODELS_OWN)] = None
    """Fraction still masked over time; or the counts of other code: valeoai-v1-cosine and so on, halton-maskgit."""
    temperature: Annotated[float | None, show_default(MODELS_OWN)] = None
    """Divisor of the logits: below 1 sharper, 0 greedy. valeoai's multiplies them: its 1.3 is our 0.77."""
    guidance: Annotated[float | None, tyro.conf.arg(aliases=["--scale"]), show_default(MODELS_OWN)] = None
    """Guidance scale s: null + s (conditional - null); 1 is none. Papers that write w mean s - 1. A ramp ends at s."""
    ramp: Annotated[Literal["constant", "linear", "cosine"] | None, show_default(MODELS_OWN)] = None
    """How guidance rises to its scale while sampling."""
    sampler: Annotated[str | None, tyro.conf.arg(metavar=SAMPLER_CHOICES), show_default(MODELS_OWN)] = None
    """How tokens are revealed: some may mask tokens again, entropy-bound and threshold choose how many."""
    block: Annotated[int | None, show_default(MODELS_OWN)] = None
    """Tokens per block: sample from left to right, block by block; 0 is one block."""
    top_k: Annotated[int | None, show_default(MODELS_OWN)] = None
    """Sample from this many most likely tokens only."""
    top_p: Annotated[float | None, show_default(MODELS_OWN)] = None
    """Sample from the most likely tokens with this total probability only, in (0, 1]."""


def choose_sampling(flags: SamplingFlags, spec: "ModelSpec | TextModelSpec") -> "Sampling":
    """Return the model's own sampling, or a published one, with the given flags put in; say if it is dear."""
    from unmask.decoding.settings import change_sampling
    from unmask.method.models.partition_config import PartitionConfig
    from unmask.recipes.spec import collect_presets

    sampling = change_sampling(spec.sampling, spec.grid, collect_settings(flags), collect_presets(spec))
    if isinstance(spec.model, PartitionConfig) and getattr(sampling.priority, "needs_logits", True):
        print(
            "this order needs the logits of all places in each step; a partition model computes fewer for an order "
            "that is known in advance: halton, random or raster",
            file=sys.stderr,
        )
    return sampling


def collect_settings(flags: SamplingFlags) -> dict[str, Any]:
    """Return the given flags as sampling settings."""
    return {name: value for name, value in asdict(flags).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    """Which network measures."""

    features: Annotated[str, tyro.conf.arg(metavar="{classifier, inception, dinov2, KIND=PATH}")] = "classifier"
    """Feature extractor; KIND=PATH gives the weights of inception or dinov2."""
    classifier: Annotated[Path | None, show_default("train one, kept in the run")] = None
    """A folder that unmask train-features made."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""

    def open(self, here: "World") -> "tuple[Features | None, ClassifierFeatures | None]":
        """Return the feature extractor, None for the classifier itself, and the classifier, None for the run's own."""
        from unmask.evaluation.networks import open_networks

        return open_networks(self.features, self.classifier, here)


@dataclass(frozen=True, kw_only=True)
class ReferenceFlags(NetworkFlags):
    """Which network measures, and where the features of the real images are kept."""

    reference: Annotated[Path | None, show_default("a file in the run")] = None
    """The file that keeps the features of the real images."""
