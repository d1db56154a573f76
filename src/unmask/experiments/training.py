"""Train from Python: what `unmask train`, `train-tokenizer` and `tokenize` do, as functions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from unmask.data.fingerprint import STRICT, DataPolicy, match_arrangement
from unmask.data.pictures import Split
from unmask.data.shards.dataset import META, Meta
from unmask.data.shards.tokenizing import CENTER, FLIP, PLAN, View
from unmask.data.sources.choice import Codes, PictureSource
from unmask.data.sources.folder_parts import check_no_pictures
from unmask.data.summary import describe_split
from unmask.errors import CheckpointError, ConfigError
from unmask.experiments import images as image_experiment
from unmask.experiments import text as text_experiment
from unmask.experiments import tokenizer as tokenizer_experiment
from unmask.experiments.base import run_experiment
from unmask.experiments.coded import make_codes
from unmask.experiments.finetune import adopt_network, find_start
from unmask.experiments.from_pictures import (
    CODES,
    GivenImages,
    has_given_images,
    open_given,
    tokenize_given,
    use_tokenized,
)
from unmask.experiments.preflight import check_room
from unmask.metrics.configs import ClassifierConfig
from unmask.published.opening import OpenedModel, open_model
from unmask.recipes.reading import KIND_TITLES, has_config, read_config
from unmask.recipes.schema import AnyRecipe, Recipe, TextRecipe, TokenizerRecipe
from unmask.runtime.distributed import World, barrier, join_world
from unmask.runtime.progress import show_progress
from unmask.storage.layout import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    FOLDER_MANIFEST,
    METRICS,
    MODEL,
    REPORT,
    TEXT_TOKENIZER,
    TOKENIZER,
)
from unmask.storage.outputs import check_folder
from unmask.tokenizers.base import open_tokenizer
from unmask.training.runfolder import has_checkpoint

RUN_FILES = (CONFIG, MODEL, TOKENIZER, TEXT_TOKENIZER, METRICS, DATA, FOLDER_MANIFEST, REPORT, CHECKPOINTS, "samples",
             tokenizer_experiment.PERCEPTUAL)  # fmt: skip
"""What a training writes into its run directory."""
TOKENIZER_FOLDER = "tokenizer"
"""In a token dataset: the tokenizer that made it."""
Say = Callable[[str], None]
"""Called with each line for the person who watches."""
AnyTrained = TypeVar("AnyTrained", bound=Recipe | TextRecipe | TokenizerRecipe)


def train(
    recipe: Recipe | TextRecipe,
    out: str | Path,
    *,
    resume: Literal["auto", "never"] = "auto",
    overwrite: bool = False,
    device: str = "auto",
    weights: Sequence[str | Path] = (),
    offline: bool = False,
    accept_data: bool = False,
    verify_data: bool = False,
    say: Say | None = None,
) -> Path:
    """Train a recipe in the run directory `out`, as `unmask train` does; the same call again resumes it.

    Args:
        recipe: As `unmask.recipe(NAME)` returns it; change fields with dataclasses.replace.
        out: The run directory: checkpoints, config.json, metrics.jsonl, samples and, at the end, model.safetensors.
        resume: "auto" continues from the newest checkpoint; "never" refuses a folder that has one.
        overwrite: Replace files in `out` that unmask did not make. Another run is never replaced.
        device: "auto", "cuda" or "cpu".
        weights: For a recipe that starts from a published model: its files, to use instead of a download.
        offline: Ask no server for that model.
        accept_data: Continue a run although its data changed; the run keeps a record of it.
        verify_data: Compare all bytes of all images, also of those that are read on demand.
        say: Called with lines on the data, on what is done and on files that were left out; by default dropped.

    Returns:
        The run directory.

    Raises:
        ConfigError, DataError, CheckpointError, NonFiniteError, Preempted, DiskError: See `unmask.errors`.

    Examples:
        >>> from dataclasses import replace
        >>> recipe = unmask.recipe("digits")
        >>> short = replace(recipe, training=replace(recipe.training, steps=2))
        >>> run = unmask.train(short, "runs/short")
    """
    run, say = Path(out), say or _ignore
    check_resume(run, resume)
    check_run(run, recipe, overwrite=overwrite)
    start = find_start(recipe, run, weights=weights, offline=offline, say=say)
    if isinstance(recipe, Recipe):
        recipe, notes = adopt_network(recipe, start)
        for note in notes:
            say(note)
    with join_world(None if device == "auto" else device) as here:
        policy = DataPolicy(accept=accept_data, verify=verify_data)
        run_recipe(recipe, run, here, start=start, policy=policy, overwrite=overwrite, say=say)
    return run


def run_recipe(
    recipe: Recipe | TextRecipe,
    run: Path,
    here: World,
    *,
    start: OpenedModel | None = None,
    num_classes: int | None = None,
    policy: DataPolicy = STRICT,
    overwrite: bool = False,
    say: Say,
) -> None:
    """Prepare the data of a recipe and train it; the main process downloads and caches first."""
    recipe = keep_arrangement(recipe, run)
    check_room(recipe, run, here)
    if here.is_main:
        fetch_start(recipe, run, here, start, num_classes, policy, say)
    if isinstance(recipe, Recipe) and has_given_images(recipe):
        recipe = use_tokenized(recipe, run)
    for turn in (True, False):
        if here.is_main == turn:
            ready = prepare_data(
                recipe, run, num_classes=num_classes, policy=policy, overwrite=overwrite, shown=here.is_main, say=say
            )
        barrier(here)
    run_experiment(ready, run, here, start)


def keep_arrangement(recipe: AnyTrained, run: Path) -> AnyTrained:
    """Return the recipe with its images in the order that a run of an early version began with."""
    there = read_config(run / CONFIG) if has_config(run) else None
    earlier = there.data if isinstance(there, Recipe | TextRecipe | TokenizerRecipe) else None
    return replace(recipe, data=match_arrangement(recipe.data, earlier))  # type: ignore[arg-type]


def prepare_data(
    recipe: Recipe | TextRecipe,
    into: Path,
    *,
    num_classes: int | None = None,
    policy: DataPolicy = STRICT,
    overwrite: bool = False,
    shown: bool,
    say: Say,
) -> image_experiment.Experiment | text_experiment.TextExperiment:
    """Read the data, say what was taken, and name every file that was left out.

    Text becomes tokens in the folder `into`.
    """
    with show_progress(shown=shown) as progress:
        if isinstance(recipe, TextRecipe):
            tokens = into / text_experiment.TEXT_TOKENS
            text = text_experiment.prepare_text(recipe, tokens, progress, policy, overwrite=overwrite)
            for note in text.notes if shown else ():
                say(note)
            return text
        ready = image_experiment.prepare_images(recipe, progress, policy)
    if shown and ready.loaded:
        say_split(ready.loaded, say)
    where = recipe.data.path if isinstance(recipe.data, Codes) else "the data"
    image_experiment.check_classes(ready.classes, num_classes, where)
    return ready


def fetch_start(
    recipe: Recipe | TextRecipe,
    run: Path,
    here: World,
    start: OpenedModel | None,
    num_classes: int | None,
    policy: DataPolicy,
    say: Say,
) -> None:
    """Fetch the model to start from, and tokenize given images with its tokenizer; a resumed run needs no model."""
    if start is None or isinstance(recipe, TextRecipe):
        return
    given = open_images(recipe, start, num_classes)
    if not has_checkpoint(run):
        with show_progress(shown=True) as progress:
            start.fetch(progress)
    if given is None:
        return
    check_token_folder(run / CODES)
    for line in describe_split(given.split):
        say(line)
    say(f"tokenizing {describe_given(given, run)}")
    with show_progress(shown=True) as progress:
        left_out = tokenize_given(given, run, here, policy, progress)
    for bad in left_out:
        say(f"left out {bad}")


def open_images(recipe: Recipe, start: OpenedModel | None, num_classes: int | None) -> GivenImages | None:
    """Open the images that were given in place of a token dataset, if any were."""
    if start is None or not has_given_images(recipe):
        return None
    with show_progress(shown=True) as progress:
        return open_given(recipe, start, num_classes, progress)


def describe_given(given: GivenImages, run: Path) -> str:
    """Return in words which images become tokens where."""
    num, classes = len(given.split.train) + len(given.split.test), len(given.recipe.classes)
    return (
        f"{num:,} images of {classes} classes in {given.source.path} with the tokenizer of {given.start.name} into "
        f"{run / CODES}"
    )


def check_resume(run: Path, resume: Literal["auto", "never"]) -> None:
    """CheckpointError for a run directory with checkpoints if it must not be resumed."""
    if resume == "never" and (run / CHECKPOINTS).exists():
        raise CheckpointError(f"{run} holds a run: give another --out, or let --resume auto continue it")


def check_run(run: Path, recipe: AnyRecipe, *, overwrite: bool = False) -> None:
    """Refuse, before the work, a run directory that holds something else.

    A folder with a config.json of ours is a run; `run_experiment` compares its recipe.

    Raises:
        CheckpointError: `run` holds a model of another kind.
        ConfigError: `run` holds files that unmask did not make, which the training would replace.
        DiskError: `run` cannot be written.
    """
    if has_config(run):
        there = read_config(run / CONFIG)
        if type(there) is not type(recipe):
            raise CheckpointError(f"{run} holds another model ({KIND_TITLES[type(there)][0]}): give another --out")
        return
    if (run / PLAN).exists():
        raise CheckpointError(f"{run} is a token dataset: give another --out")
    check_folder(run, RUN_FILES, overwrite=overwrite)
    check_no_pictures(run, overwrite=overwrite)


def check_token_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse, before the work, a folder that unmask tokenize did not begin and whose files it would replace."""
    if (folder / PLAN).exists():
        return
    if has_config(folder) or (folder / CHECKPOINTS).exists():
        raise CheckpointError(f"{folder} is a run or a model: give another --out")
    check_folder(folder, (META, TOKENIZER_FOLDER), overwrite=overwrite)
    check_no_pictures(folder, overwrite=overwrite)


def train_tokenizer(
    recipe: TokenizerRecipe,
    out: str | Path,
    *,
    resume: Literal["auto", "never"] = "auto",
    overwrite: bool = False,
    device: str = "auto",
    accept_data: bool = False,
    verify_data: bool = False,
    say: Say | None = None,
) -> Path:
    """Train an image tokenizer in the run directory `out`, as `unmask train-tokenizer` does.

    Arguments, return value and errors are those of `train`.
    """
    run, say = Path(out), say or _ignore
    check_resume(run, resume)
    check_run(run, recipe, overwrite=overwrite)
    recipe, policy = keep_arrangement(recipe, run), DataPolicy(accept=accept_data, verify=verify_data)
    with join_world(None if device == "auto" else device) as here:
        check_room(recipe, run, here)
        for turn in (True, False):
            if here.is_main == turn:
                ready = prepare_tokenizer_data(recipe, policy=policy, shown=here.is_main, say=say)
            barrier(here)
        first = ready.recipe.perceptual
        missing = not (run / tokenizer_experiment.PERCEPTUAL).exists()
        if here.is_main and isinstance(first, ClassifierConfig) and missing:
            say(f"first a classifier for the perceptual loss: {first.steps:,} steps (--perceptual.steps)")
        tokenizer_experiment.run_tokenizer(ready, run, here)
    return run


def prepare_tokenizer_data(
    recipe: TokenizerRecipe, *, policy: DataPolicy = STRICT, shown: bool, say: Say
) -> tokenizer_experiment.TokenizerExperiment:
    """Read the images of a tokenizer's recipe, say what was taken, and name every file that was left out."""
    with show_progress(shown=shown) as progress:
        ready = tokenizer_experiment.prepare_tokenizer(recipe, progress, policy)
    if shown:
        say_split(ready.split, say)
    return ready


def say_split(split: Split, say: Say) -> None:
    """Say what was taken of a dataset, and name every file that was left out."""
    for line in describe_split(split):
        say(line)
    for bad in split.bad:
        say(f"left out {bad}")


def tokenize(
    model: str | Path | OpenedModel,
    data: PictureSource,
    out: str | Path,
    *,
    flip: bool = True,
    crops: int = 0,
    processes: int = 1,
    batch: int = 64,
    shard_size: int = 4096,
    seed: int = 0,
    overwrite: bool = False,
    device: str = "auto",
    accept_data: bool = False,
    verify_data: bool = False,
    say: Say | None = None,
) -> Meta:
    """Turn images into a token dataset in `out`, as `unmask tokenize` does; the same call again resumes it.

    Args:
        model: The run of a tokenizer, or any model with a learned tokenizer, by its name.
        data: Where the images are, such as `Folder(path=...)` of `unmask.data.sources`.
        out: The folder of the token dataset; give it as `data=Codes(path=out)` to a recipe.
        flip: Also tokenize each mirror image.
        crops: Also tokenize this many random crops of each image.
        processes: Worker processes.
        batch: Images tokenized together.
        shard_size: Images per file.
        seed: Where the random crops lie.
        overwrite: Replace files in `out` that unmask did not make.
        device: "auto", "cuda" or "cpu".
        accept_data: Tokenize again what changed among the images since an earlier call.
        verify_data: Compare all bytes of all images, also of those that are read on demand.
        say: Called with lines on what was taken, and one for each image that was left out.

    Returns:
        What the dataset holds.
    """
    folder, say = Path(out), say or _ignore
    check_token_folder(folder, overwrite=overwrite)
    views = choose_views(flip, crops)
    with join_world(None if device == "auto" else device) as here, show_progress(shown=here.is_main) as progress:
        opened = model if isinstance(model, OpenedModel) else open_model(model, world=here, say=say)
        config = opened.require_tokenizer()
        opened.fetch(progress, here)
        meta, bad = make_codes(
            data,
            open_tokenizer(config, opened.find_tokenizer_weights()),  # type: ignore[arg-type]
            folder,
            views=views,
            shard_size=shard_size,
            seed=seed,
            batch=batch,
            processes=processes,
            world=here,
            progress=progress,
            policy=DataPolicy(accept=accept_data, verify=verify_data),
            say=say if here.is_main else None,
        )
    for one in bad:
        say(f"left out {one}")
    return meta


def choose_views(flip: bool, crops: int) -> tuple[View, ...]:
    """Return the views of each image: the centre, its mirror image, and random crops."""
    if crops < 0:
        raise ConfigError(f"--crops {crops}: at least 0")
    random = [View(name=f"crop{i}", random=True) for i in range(crops)]
    mirrored = [View(name=f"crop{i}-flip", random=True, flip=True) for i in range(crops) if flip]
    return (CENTER, *((FLIP,) if flip else ()), *random, *mirrored)


def _ignore(line: str) -> None:
    pass
