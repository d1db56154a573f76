"""The models that a page offers, and the one of them that is in memory."""

import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unmask.errors import CheckpointError, UnmaskError
from unmask.pipelines.image import Pipeline
from unmask.pipelines.load import load_pipeline
from unmask.pipelines.text import TextPipeline
from unmask.pretrained.conditions import takes_prompts
from unmask.published.catalogue import MODELS
from unmask.published.opening import open_model
from unmask.recipes.reading import read_config
from unmask.recipes.spec import ModelSpec, TextModelSpec
from unmask.runtime.devices import pick_device
from unmask.runtime.progress import Progress
from unmask.runtime.shortage import check_memory
from unmask.storage.layout import CONFIG, MODEL, TOKENIZER

Kind = Literal["image", "text"]
DEPTH = 3
"""How many folders below a root a run may lie."""


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A model that the page offers."""

    name: str
    """What `open_model` takes."""
    title: str
    """What the page shows."""
    kind: Kind
    """Whether it makes images or texts."""


def list_choices(named: Sequence[str] = (), root: Path = Path("runs"), *, published: bool = True) -> list[ModelChoice]:
    """Return the models to choose from: those that were named, every run and export below `root`, the published ones.

    Raises:
        UnmaskError: A named model is not there, or is neither an image model nor a text model.
    """
    found = {name: _describe_named(name) for name in named}
    for folder in _find_folders(root):
        name = folder.as_posix()
        kind = _read_kind(folder)
        if kind is not None and name not in found:
            found[name] = ModelChoice(name=name, title=name, kind=kind)
    if published:
        for name, model in MODELS.items():
            found.setdefault(name, ModelChoice(name=name, title=f"{name} (published: {model.about})", kind="image"))
    return list(found.values())


def _describe_named(name: str) -> ModelChoice:
    opened = open_model(name)
    spec = opened.require_text_spec("sample") if opened.is_text else opened.require_image_spec()
    return ModelChoice(name=name, title=name, kind="text" if isinstance(spec, TextModelSpec) else "image")


def _find_folders(root: Path) -> list[Path]:
    """Return the folders below `root` with a configuration and weights, the newest weights first."""
    patterns = ["/".join(["*"] * depth + [MODEL]) for depth in range(1, DEPTH + 1)]
    weights = [file for pattern in patterns for file in root.glob(pattern) if (file.parent / CONFIG).is_file()]
    return [file.parent for file in sorted(weights, key=lambda file: -file.stat().st_mtime)]


def _read_kind(folder: Path) -> Kind | None:
    """Return what a folder's model makes; None for a tokenizer or a classifier, or a damaged folder."""
    try:
        config = read_config(folder / CONFIG)
    except UnmaskError:
        return None
    if isinstance(config, TextModelSpec):
        return "text"
    return "image" if isinstance(config, ModelSpec) else None


class Holder:
    """Keep one model in memory, for one job at a time."""

    def __init__(self, *, device: str = "auto", offline: bool = False):
        self.device, self.offline = device, offline
        self._key: tuple[str, int] | None = None
        self._pipeline: Pipeline | TextPipeline | None = None
        self._busy = threading.Lock()

    @contextmanager
    def use(self, name: str, progress: Progress | None = None) -> Iterator[Pipeline | TextPipeline]:
        """Yield the model of this name, loaded if another one is in memory; other jobs wait until the block ends.

        The model that was in memory is freed first. A model whose weights changed on the disk is loaded again.

        Args:
            name: What `open_model` takes.
            progress: Called with (what, done, total) during a download; it may raise to stop it.

        Raises:
            CheckpointError: There is no such model, or it is damaged.
            ShortageError: Its weights do not fit into memory.
        """
        with self._busy:
            yield self._open(name, progress)

    def _open(self, name: str, progress: Progress | None) -> Pipeline | TextPipeline:
        opened = open_model(name, offline=self.offline)
        if opened.folder is None and self._key is not None and self._key[0] == name and self._pipeline is not None:
            return self._pipeline  # a published model, whose files do not change
        folder = opened.fetch(progress)
        if not (folder / MODEL).is_file():
            raise CheckpointError(f"{name}: its weights are not there: choose another model")
        key = (name, (folder / MODEL).stat().st_mtime_ns)
        if key != self._key or self._pipeline is None:
            self.free()
            size = sum(file.stat().st_size for file in (folder / MODEL, folder / TOKENIZER) if file.is_file())
            check_memory(size, pick_device(self.device), f"close other programs, or choose a smaller model than {name}")
            prompts = ("",) if isinstance(opened.config, ModelSpec) and takes_prompts(opened.config.model) else ()
            self._pipeline = load_pipeline(opened, device=self.device, prompts=prompts)
            self._key = key
        return self._pipeline

    def free(self) -> None:
        """Drop the model that is in memory."""
        self._key = self._pipeline = None
        gc.collect()

    def free_if_idle(self) -> None:
        """Drop the model, unless a job uses it."""
        if self._busy.acquire(blocking=False):
            try:
                self.free()
            finally:
                self._busy.release()

    @property
    def held(self) -> str | None:
        """The name of the model in memory."""
        return self._key[0] if self._key else None
