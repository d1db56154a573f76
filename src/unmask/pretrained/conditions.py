"""Handle what some families need beyond a class, so that no caller needs to know a family.

aMUSEd takes texts instead of classes, and its text encoder lies in the model's folder. Google's MaskGIT may lack NULL
("no class"). No module outside of this folder knows either of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from typing_extensions import TypeIs

from unmask.errors import ConfigError
from unmask.method.models.protocol import Generator
from unmask.pretrained.amused import UVit2D
from unmask.pretrained.clip import FILES, OPTIONAL_FILES, Clip, read_clip, require_transformers, write_clip
from unmask.pretrained.configs import Amused, GeneratorSizes, GoogleMaskGIT
from unmask.pretrained.prompts import Prompted, load_text_reader
from unmask.storage.manifest import verify_recorded

EXTRA_FILES = FILES
"""All files besides weights and config.json that some model folder holds, relative to that folder."""
OPTIONAL_EXTRA_FILES = OPTIONAL_FILES
"""Those that may be missing."""

C = TypeVar("C")


def takes_prompts(config: object) -> TypeIs[Amused]:
    """Return True if networks of this configuration generate images from texts, and False if from classes."""
    return isinstance(config, Amused)


def check_prompts_installed(config: object) -> None:
    """Raise ConfigError if networks of this configuration need a package that is not installed."""
    if takes_prompts(config):
        require_transformers()


def check_prompts(config: object, prompts: Sequence[str], name: str) -> None:
    """Raise ConfigError if the model `name` needs prompts and gets none, or takes none and gets some."""
    if takes_prompts(config) and not prompts:
        raise ConfigError(f"{name} generates images from texts: give prompts (on the command line: --prompt)")
    if prompts and not takes_prompts(config):
        raise ConfigError(f"{name} takes class labels, not texts: give labels (on the command line: --labels)")


def attach_prompts(model: nn.Module, folder: Path, prompts: Sequence[str], size: tuple[int, int]) -> Generator:
    """Return a network whose class i is prompt i, if the model takes prompts; return any other network unchanged.

    Args:
        model: A network of any family.
        folder: The model's folder, which holds the text encoder of a model that takes prompts.
        prompts: The texts; NULL ("no class") is the empty text.
        size: Height and width of the images in pixels.

    Raises:
        ConfigError: Prompts are missing, not wanted or too long, or transformers is not installed.
        CheckpointError: The folder holds no text encoder.
    """
    check_prompts(getattr(model, "config", None), prompts, f"the model {folder.name}")
    if not isinstance(model, UVit2D):
        return model  # type: ignore[return-value]
    for name in EXTRA_FILES:
        verify_recorded(folder, name)
    read = load_text_reader(folder)
    return Prompted(model, read(list(prompts), size), read([""], size))


def detach_prompts(network: Generator) -> nn.Module:
    """Return the module itself, without the prompts that `attach_prompts` added."""
    module = network.network if isinstance(network, Prompted) else network
    assert isinstance(module, nn.Module)
    return module


def read_extras(config: object, folder: Path) -> Clip | None:
    """Read what this family keeps beside its weights: aMUSEd's text encoder; None for all other families.

    Call it before you write anything, so that a damaged source leaves the target as it was. Raises CheckpointError.
    """
    if not takes_prompts(config):
        return None
    for name in EXTRA_FILES:
        verify_recorded(folder, name)
    return read_clip(folder)


def write_extras(extras: Clip | None, folder: Path) -> None:
    """Write what `read_extras` returned into another model folder, or nothing for None. Raises DiskError."""
    if extras is not None:
        write_clip(extras, folder)


def has_null_class(config: object) -> bool:
    """Return True if networks of this configuration accept NULL ("no class")."""
    return not isinstance(config, GeneratorSizes) or config.has_null_class


def check_guidance(config: object, *, labelled: bool, guided: bool) -> None:
    """Raise ConfigError if unlabelled images or guidance need NULL ("no class") and the network does not have it.

    The network checks ids itself, but on a CPU only.
    """
    if has_null_class(config):
        return
    if not labelled:
        raise ConfigError('this model was trained without "no class": give each image a label')
    if guided:
        raise ConfigError('this model was trained without "no class", which guidance needs: give --scale 1')


def add_null_class(config: C) -> C:
    """Return the configuration of the same network with NULL ("no class"), which training then teaches it."""
    if isinstance(config, GoogleMaskGIT):
        changed: Any = replace(config, null_class=True)
        return changed
    return config
