"""Check the folder of an export before anything is loaded or written."""

import contextlib
from pathlib import Path

from unmask.data.shards.tokenizing import PLAN
from unmask.data.sources.folder_parts import check_no_pictures
from unmask.errors import CheckpointError, ConfigError
from unmask.pretrained.conditions import EXTRA_FILES
from unmask.recipes.reading import has_config, read_config
from unmask.recipes.schema import MeasuredModel, Recipe, TextRecipe, TokenizerRecipe
from unmask.recipes.spec import ModelSpec, TextModelSpec
from unmask.storage.files import escape_line
from unmask.storage.layout import CHECKPOINTS, CONFIG, FOLDER_MANIFEST, MODEL, README, TEXT_TOKENIZER, TOKENIZER
from unmask.storage.manifest import list_unchanged
from unmask.storage.outputs import check_folder

EXPORT_FILES = (MODEL, TOKENIZER, TEXT_TOKENIZER, *EXTRA_FILES, README, CONFIG)
"""All files that an export may hold, besides its manifest."""


def check_export(out: Path, source: Path | None, *, overwrite: bool = False) -> None:
    """Refuse to export a model over a run, over itself, or over files that unmask did not make.

    Args:
        out: The folder to write.
        source: The folder of the model.
        overwrite: Replace files that unmask did not make. A run and the model itself are never replaced.

    Raises:
        CheckpointError: `out` is a run, or the results of an evaluation.
        ConfigError: Files there would be replaced.
        DiskError: `out` cannot be written.
    """
    shown = escape_line(str(out))
    if source is not None and out.exists() and source.exists() and out.samefile(source):
        raise CheckpointError(f"{shown} is the model itself: give another --out")
    there = None
    if has_config(out):
        with contextlib.suppress(CheckpointError, ConfigError):  # of another program: the names below tell
            there = read_config(out / CONFIG)
    is_run = isinstance(there, Recipe | TextRecipe | TokenizerRecipe | MeasuredModel)
    if is_run or (out / CHECKPOINTS).exists():
        raise CheckpointError(f"{shown} is a run, whose weights an export would replace: give another --out")
    if (out / PLAN).exists():
        raise CheckpointError(f"{shown} is a token dataset: give another --out")
    names = [*EXPORT_FILES, FOLDER_MANIFEST]
    if (out / FOLDER_MANIFEST).exists():
        try:
            ours = {*list_unchanged(out), FOLDER_MANIFEST}
        except CheckpointError:
            ours = set()
    else:
        ours = _list_earlier(out) if isinstance(there, ModelSpec | TextModelSpec) else set()
    check_folder(out, names, ours=ours, overwrite=overwrite)
    check_no_pictures(out, overwrite=overwrite)


def _list_earlier(out: Path) -> set[str]:
    """Return the files of an export without a manifest, as earlier versions made it."""
    card = out / README
    is_ours = card.is_file() and "library_name: unmask" in card.read_text(encoding="utf-8", errors="replace")
    return {*EXPORT_FILES} - (set() if is_ours else {README})
