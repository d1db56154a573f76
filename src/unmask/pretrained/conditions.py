"""placeholder until the merge"""

from pathlib import Path
from typing import Any

from unmask.errors import ConfigError
from unmask.pretrained.amused import Amused, UVit2D
from unmask.pretrained.clip import read_clip, write_clip
from unmask.pretrained.google import check_null
from unmask.pretrained.prompts import Prompted, load_text_reader


def takes_prompts(config: Any) -> bool:
    return isinstance(config, Amused)


def attach_prompts(model: Any, folder: Path, prompts: Any, size: tuple[int, int]) -> Any:
    if isinstance(model, UVit2D) != bool(prompts):
        needed = "draws from texts: give prompts" if not prompts else "knows classes and no texts: give labels"
        raise ConfigError(f"the model {folder.name} {needed}")
    if not isinstance(model, UVit2D):
        return model
    reader = load_text_reader(folder)
    texts, empty = (reader(list(x), size) for x in (prompts, [""]))
    return Prompted(model, texts, empty)


def read_extras(config: Any, folder: Path) -> Any:
    return read_clip(folder) if isinstance(config, Amused) else None


def write_extras(extras: Any, folder: Path) -> None:
    if extras is not None:
        write_clip(extras, folder)


def check_guidance(config: Any, *, labelled: bool, guided: bool) -> None:
    check_null(config, labelled=labelled, guided=guided)
