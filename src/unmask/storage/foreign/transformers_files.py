"""Show transformers no more of a folder than weights and plain numbers.

transformers runs no code of a folder. But its config.json may name an attention kernel, which transformers fetches from
the Hub and runs, whatever its caller asks for; and an adapter_config.json may name other weights. So a loader gets a
folder of links to the files that it needs, and a config.json without such entries.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from unmask.errors import ConfigError
from unmask.storage.config import load_json, write_json
from unmask.storage.layout import CONFIG

_REMOVED = re.compile(r"_.*|.*implementation|auto_map|quantization_config|use_kernels|kernel_config|(torch_)?dtype")
"""Entries of config.json that may name code or packages, and the type, which the caller chooses."""


@contextmanager
def link_plain_files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder with links to the files of `folder` that match `names`, and a config.json of plain data.

    Raises:
        ConfigError: config.json is no JSON object.
    """
    with tempfile.TemporaryDirectory(prefix="unmask-plain-") as place:
        own = Path(place)
        for file in sorted({file for name in names for file in folder.glob(name) if file.is_file()}):
            if file.name == CONFIG:
                write_json(own / CONFIG, _read_plain(file))
            else:
                _link(file.resolve(), own / file.name)
        yield own


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Keep transformers from printing bars, and tables of tensors that do not fit."""
    from transformers.utils import logging

    before, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if had_bars:
            logging.enable_progress_bar()


def list_transformers_errors() -> tuple[type[Exception], ...]:
    """Return what `link_plain_files` and transformers may raise, which differs between versions of the latter."""
    from huggingface_hub import errors

    strict = getattr(errors, "StrictDataclassError", OSError)  # not in older versions
    return (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, ImportError, RuntimeError,
            ConfigError, SafetensorError, strict)  # fmt: skip


def _read_plain(file: Path) -> Any:
    data = load_json(file)
    if not isinstance(data, dict):
        raise ConfigError(f"{file} must hold a JSON object")
    return _remove_names(data)


def _remove_names(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _remove_names(value) for key, value in data.items() if not _REMOVED.fullmatch(key)}
    return [_remove_names(value) for value in data] if isinstance(data, list) else data


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file)
    except OSError:  # Windows wants a privilege for links
        shutil.copyfile(file, link)
