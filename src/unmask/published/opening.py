"""Find a model by its name: a run, an export, a published model, or hf-hub:OWNER/NAME.

The one place that resolves names. `open_model` reads the configuration once and no weights. `fetch` gives the folder
with the weights; it downloads and converts a published model at its first use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from unmask.errors import CheckpointError, ConfigError
from unmask.pretrained.networks import LearnedConfig, LoneTokenizer
from unmask.published.catalogue import MODELS
from unmask.published.files import Note
from unmask.published.hub import download_model, is_on_hub, read_revision
from unmask.published.names import MODEL_NAMES
from unmask.published.store import fetch_published
from unmask.published.tuned import add_presets
from unmask.recipes.reading import AnyConfig, has_config, read_config
from unmask.recipes.schema import Recipe, TextRecipe, TokenizerRecipe
from unmask.recipes.spec import ModelSpec, TextModelSpec
from unmask.runtime.distributed import World, barrier
from unmask.runtime.progress import Progress
from unmask.storage.files import escape_line
from unmask.storage.layout import CONFIG, MODEL, TOKENIZER
from unmask.storage.manifest import verify_recorded
from unmask.tokenizers.pixels import Pixels


@dataclass(kw_only=True)
class OpenedModel:
    """A model whose name is resolved and whose configuration is read; its weights are not.

    `config` is a spec, a recipe (of a run) or a lone tokenizer. `folder` is None until a published model is fetched.
    `revision` is the commit of a model of the Hub. `say` is called with a line for the user.
    """

    name: str
    config: AnyConfig
    folder: Path | None
    weights: Sequence[str | Path] = ()
    offline: bool = False
    revision: str | None = None
    say: Note | None = None

    @property
    def is_run(self) -> bool:
        """Whether its data and training are known: it is a run, or an export made by an early version."""
        return isinstance(self.config, Recipe | TextRecipe | TokenizerRecipe)

    @property
    def is_text(self) -> bool:
        """Whether it is a text model."""
        return isinstance(self.config, TextModelSpec)

    def require_image_spec(self) -> ModelSpec:
        """Return the spec of an image model (of a run: its recipe); ConfigError if it is something else."""
        if isinstance(self.config, ModelSpec):
            return self.config
        if isinstance(self.config, TextModelSpec):
            raise ConfigError(f"{self.name} is a text model: use unmask generate, infill, score or evaluate-text")
        raise ConfigError(f"{self.name} is a tokenizer, not an image model: use unmask tokenize or evaluate-tokenizer")

    def require_text_spec(self, instead: str) -> TextModelSpec:
        """Return the spec of a text model; else ConfigError suggests the command `instead`."""
        if isinstance(self.config, TextModelSpec):
            return self.config
        if not isinstance(self.config, ModelSpec):
            raise ConfigError(
                f"{self.name} is a tokenizer, not a text model: use unmask tokenize or evaluate-tokenizer"
            )
        raise ConfigError(f"{self.name} makes images and no text: use unmask {instead}")

    def require_tokenizer(self) -> LearnedConfig:
        """Return the configuration of its learned image tokenizer; ConfigError if it has none."""
        if isinstance(self.config, TextModelSpec):
            raise ConfigError(
                f"{self.name} is a text model, without an image tokenizer: use unmask tokenize-text RECIPE"
            )
        if isinstance(self.config.tokenizer, Pixels):
            raise ConfigError(
                f"{self.name} has no tokenizer to run, as its tokens are pixels: use unmask sample or evaluate"
            )
        return self.config.tokenizer

    def find_tokenizer_weights(self) -> Path:
        """Return the weight file of its learned tokenizer, after `fetch`."""
        alone = isinstance(self.config, TokenizerRecipe | LoneTokenizer)
        return self.fetch() / (MODEL if alone else TOKENIZER)

    def fetch(self, progress: Progress | None = None, world: World | None = None) -> Path:
        """Return the folder of its weights. A published model is downloaded and converted at its first use.

        Under several processes (`world`) the main one does the work, and the others wait.
        Raises CheckpointError, ConfigError or DiskError.
        """
        if self.folder is None:
            waits = world is not None and not world.is_main
            if world is not None and waits:
                barrier(world)
            weights = () if waits else self.weights
            self.folder = fetch_published(
                self.name, weights=weights, offline=self.offline, progress=progress, say=None if waits else self.say
            )
            if world is not None and not waits:
                barrier(world)
        return self.folder


def open_model(
    name: str | Path,
    *,
    weights: Sequence[str | Path] = (),
    offline: bool = False,
    world: World | None = None,
    say: Note | None = None,
) -> OpenedModel:
    """Resolve a name and read its configuration.

    Args:
        name: The folder of a run or an export, a published model, or hf-hub:OWNER/NAME[@REVISION].
        weights: Published files, or folders that hold them, to use instead of a download.
        offline: Use what is in the cache, and ask no server.
        world: The processes of torchrun: the main one downloads, and the others wait.
        say: Called with a line on the revision of a model of the Hub, and on each file whose SHA-256 is pinned at its
            first download.

    Raises:
        CheckpointError: There is no such model, or it cannot be downloaded.
        ConfigError: Its configuration is wrong, or `weights` are given for a model that has its own.
    """
    if not isinstance(name, str | Path) or not str(name):
        raise ConfigError(f"{name!r} is no name of a model: give {MODEL_NAMES}")
    if is_published(name):
        model = MODELS[str(name)]
        return OpenedModel(name=str(name), config=model.spec, folder=None, weights=weights, offline=offline, say=say)
    if is_on_hub(name):
        if weights:
            raise ConfigError(f"{name} is on the hub with its weights: --weights is for a published model")
        if world is not None and not world.is_main:
            barrier(world)
            folder = download_model(str(name), offline=True)
        else:
            folder = download_model(str(name), offline=offline)
            if world is not None:
                barrier(world)
    else:
        folder = _find_folder(Path(name), weights)
    if not has_config(folder):
        raise CheckpointError(f"{escape_line(str(folder))}: no {CONFIG} there; give {MODEL_NAMES}")
    verify_recorded(folder, CONFIG)
    revision = read_revision(folder) if is_on_hub(name) else None
    config = add_presets(read_config(folder / CONFIG), folder, say)
    opened = OpenedModel(name=str(name), config=config, folder=folder, revision=revision)
    if say is not None and revision is not None and not opened.name.endswith(revision):
        say(f"{name} is revision {revision}; {opened.name.partition('@')[0]}@{revision} pins it")
    return opened


def is_published(name: str | Path) -> bool:
    """Return whether `name` is a published model, and not a folder of that name."""
    return str(name) in MODELS and not has_config(Path(name))


def _find_folder(path: Path, weights: Sequence[str | Path]) -> Path:
    if not path.exists() and len(path.parts) == 1:
        near = get_close_matches(str(path), MODELS, 1)
        hint = f"did you mean the published {near[0]}?" if near else "unmask models lists the published ones"
        raise CheckpointError(f"{escape_line(str(path))}: no such run, and no published model: {hint}")
    if not path.exists() and path.parent.is_dir():
        near = get_close_matches(path.name, [each.parent.name for each in path.parent.glob(f"*/{CONFIG}")], 1)
        if near:
            raise CheckpointError(f"{escape_line(str(path))}: no such folder: did you mean {path.parent / near[0]}?")
    if weights:
        raise ConfigError(f"{path} is a folder with its own weights: --weights is for a published model")
    return path
