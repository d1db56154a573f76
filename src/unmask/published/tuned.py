"""The ways to sample that `unmask tune` found for a model, in a file beside its weights.

The file names the weights by their SHA-256, so presets of other weights, such as those before a longer training, are
never taken for these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from unmask.recipes.spec import ModelSpec, NamedSampling, TextModelSpec
from unmask.storage.config import read_json, write_json
from unmask.storage.files import hash_file
from unmask.storage.layout import MODEL, TUNED
from unmask.storage.manifest import read_records

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class TunedPresets:
    """Presets, and the weights that they were found for."""

    weights: str
    """SHA-256 of the weight file, in hexadecimal."""
    presets: tuple[NamedSampling, ...]
    """Ways to sample."""


def add_presets(config: Config, folder: Path, say: Callable[[str], None] | None = None) -> Config:
    """Return the configuration of a model with the presets that were found for its weights.

    Presets for other weights are left out, and `say` is called with a line about them. ConfigError for a damaged file.
    """
    if not isinstance(config, ModelSpec | TextModelSpec) or not (folder / TUNED).is_file():
        return config
    found = read_json(folder / TUNED, TunedPresets)
    if found.weights != hash_model(folder):
        if say is not None:
            say(f"{folder / TUNED} is for other weights than those there now: run unmask tune again")
        return config
    names = {preset.name for preset in found.presets}
    kept = [preset for preset in config.presets if preset.name not in names]
    return replace(config, presets=(*kept, *found.presets))


def write_presets(presets: Sequence[NamedSampling], folder: Path) -> None:
    """Add presets to the file in `folder`; those of the same name, and those for other weights, are replaced.

    Raises:
        ConfigError: The file there is damaged.
        DiskError: It cannot be written.
    """
    weights, kept = hash_model(folder), []
    if (folder / TUNED).is_file():
        found, names = read_json(folder / TUNED, TunedPresets), {preset.name for preset in presets}
        if found.weights == weights:
            kept = [preset for preset in found.presets if preset.name not in names]
    write_json(folder / TUNED, TunedPresets(weights=weights, presets=(*kept, *presets)))


def hash_model(folder: Path) -> str:
    """Return the SHA-256 of the weights in `folder`, from its manifest if there is one."""
    record = (read_records(folder) or {}).get(MODEL)
    return hash_file(folder / MODEL) if record is None else record.sha256
