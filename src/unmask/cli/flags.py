"""Flags that several commands share, and what they mean."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from unmask.cli.parsing import catch_disk_errors
from unmask.runtime.progress import show_progress

if TYPE_CHECKING:
    from unmask.data.fingerprint import DataPolicy
    from unmask.decoding.sampling import Sampling
    from unmask.metrics.embedders import ClassifierFeatures, Features
    from unmask.published.opening import OpenedModel
    from unmask.recipes.spec import ModelSpec, TextModelSpec
    from unmask.runtime.distributed import World

Device = Literal["auto", "cpu", "cuda", "mps"]


def choose_say(here: "World") -> Callable[[str], None] | None:
    """Return what prints lines on the data, by the main process only."""
    return say_on_stderr if here.is_main else None


def say_on_stderr(line: str) -> None:
    """Print a line on the data to stderr, so that stdout holds the result alone."""
    print(line, file=sys.stderr, flush=True)


def choose_device(name: str) -> str | None:
    """Return the name of a device for `world`; None picks one."""
    return None if name == "auto" else name


def check_device(name: str) -> None:
    """Raise ConfigError, before a download or other work, if there is no such device here."""
    from unmask.runtime.devices import pick_device

    pick_device(name)


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """What may be replaced."""

    overwrite: bool = False
    """Replace files that unmask did not make, where the results go. Without it, the command refuses before the work."""


@dataclass(frozen=True, kw_only=True)
class WeightsFlags:
    """Where the files of a published model are."""

    weights: tuple[Path, ...] = ()
    """Published files, or folders that hold them, to use instead of a download. Needed once: a resumed training
    ignores them."""
    offline: bool = False
    """Use what is in the cache, and ask no server."""

    def open(self, name: str | Path, here: "World | None" = None) -> "OpenedModel":
        """Find the model of this name, and read its configuration."""
        from unmask.published.opening import open_model
        from unmask.storage.cache import find_cache_dir

        with catch_disk_errors(find_cache_dir()):
            opened = open_model(name, weights=self.weights, offline=self.offline, world=here, say=say_on_stderr)
        if opened.revision and not opened.name.endswith(opened.revision) and (here is None or here.is_main):
            pinned = f"{opened.name.split('@')[0]}@{opened.revision}"
            print(f"{opened.name} is revision {opened.revision}; {pinned} pins it", file=sys.stderr)
        return opened


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """What to do about the data of an earlier command."""

    accept_data: bool = False
    """Continue although the data changed since the run began; the run keeps a record of it."""
    verify_data: bool = False
    """Compare all bytes of all images, not only eight samples of 1 KiB of each file of a large set."""

    @property
    def policy(self) -> "DataPolicy":
        """The flags as the experiments take them."""
        from unmask.data.fingerprint import DataPolicy

        return DataPolicy(accept=self.accept_data, verify=self.verify_data)


@dataclass(frozen=True, kw_only=True)
class MeasuredFlags(WeightsFlags, DataFlags):
    """What a model is measured against."""

    data: str | None = None
    """For a published or exported model: the token dataset of images to measure against, made by unmask tokenize NAME;
    or, for a model of pixels, a folder of images, digits, mnist or cifar10."""


def fetch_model(opened: "OpenedModel", here: "World | None" = None) -> Path:
    """Return the folder of a model's weights, with a progress bar while it is downloaded and converted."""
    from unmask.storage.cache import find_cache_dir

    with catch_disk_errors(find_cache_dir()), show_progress(shown=here is None or here.is_main) as progress:
        return opened.fetch(progress, here)


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How to sample. Unset flags default to the model's own sampling."""

    preset: str | None = None
    """Sample as published, except for other flags: besnier-256-8, besnier-512-15, maskgit-256-8, maskgit-512-12,
    halton-tiny-256-32, halton-small-256-32, halton-base-256-32, halton-small-384-32, halton-base-384-32,
    halton-large-384-32, titok-l32-256-8, titok-b64-256-8, titok-s128-256-64; or by our own rule: ours-8, ours-16."""
    steps: int | None = None
    """Forward passes."""
    order: str | None = None
    """Which tokens are revealed first: confidence (-without-noise), halton, random, margin, margin-repulsion, entropy,
    max-logit, raster, moment or halton-rolled."""
    noise: float | None = None
    """Factor of the Gumbel noise on log-confidence, for the confidence order; it falls to 0."""
    schedule: str | None = None
    """Fraction still masked over time: cosine, arccos, linear, square, pow3, root, sigmoid, log or exp;
    or valeoai-v1-arccos and so on, the densities of the reproduction report; or halton-maskgit, that code's counts."""
    temperature: float | None = None
    """Logits are divided by it: below 1 sharper, 0 greedy."""
    guidance: Annotated[float | None, tyro.conf.arg(aliases=["--scale"])] = None
    """Guidance scale s: null + scale (conditional - null); 1 is none. Papers that write w mean scale - 1."""
    sampler: str | None = None
    """parallel, remask (revealed tokens may be masked again), ancestral, remdm-cap, remdm-rescale, remdm-confidence,
    entropy-bound or threshold (the model decides how many tokens a step reveals)."""
    block: int | None = None
    """Tokens per block: go from left to right, block by block."""
    top_k: int | None = None
    """Sample from this many of the likeliest tokens only."""
    top_p: float | None = None
    """Sample from the smallest set of tokens with this much probability only."""


def choose_sampling(flags: SamplingFlags, spec: "ModelSpec | TextModelSpec") -> "Sampling":
    """Return the model's own sampling, or a published one, with the given flags put in."""
    from unmask.decoding.settings import change_sampling

    return change_sampling(spec.sampling, spec.grid, collect_settings(flags))


def collect_settings(flags: SamplingFlags) -> dict[str, Any]:
    """Return the given flags as sampling settings."""
    return {name: value for name, value in asdict(flags).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    """Which network measures."""

    features: str = "classifier"
    """classifier, inception or dinov2; or, for the latter two, kind=PATH of their weights."""
    classifier: Path | None = None
    """A folder that unmask train-features made; by default a classifier is trained and kept in the run."""
    device: Device = "auto"
    """Where to compute."""

    def open(self, here: "World") -> "tuple[Features | None, ClassifierFeatures | None]":
        """Return the feature extractor, None for the classifier itself, and the classifier, None for the run's own."""
        from unmask.evaluation.networks import open_networks

        return open_networks(self.features, self.classifier, here)


@dataclass(frozen=True, kw_only=True)
class ReferenceFlags(NetworkFlags):
    """Which network measures, and where the features of the real images are kept."""

    reference: Path | None = None
    """The file that keeps the features of the real images; by default in the run."""
