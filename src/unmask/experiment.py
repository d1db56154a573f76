"""A recipe made to run: data to tokens, model, validation, training, and the export at the end."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.coded import open_coded
from unmask.config import differences, to_json, write_json
from unmask.data.augment import PictureSet
from unmask.data.images import Progress
from unmask.data.pictures import Pictures, Split
from unmask.data.sources import Codes, Source, settled
from unmask.data.tokenizing import Part
from unmask.data.tokens import Batches, Tokens, TokenSet, Unlabelled
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.finetune import start_from
from unmask.models.transformer import MaskedTransformer
from unmask.pipeline import TOKENIZER, Pipeline
from unmask.provenance import environment
from unmask.recipes import Recipe, Sampling, TokenizerRecipe, read_recipe
from unmask.sampling.priorities import Halton
from unmask.tokenizers.pixels import Pixels
from unmask.tokenizers.vqgan import VQGAN, Autoencoder, open_tokenizer
from unmask.training.checkpoint import clean, lock
from unmask.training.distributed import (
    World,
    barrier,
    distribute,
    resolve,
    unwrapped,
    whole,
)
from unmask.training.loop import TrainConfig, train
from unmask.validation import samples, validation
from unmask.weights import write_weights

FREQUENCY_ROWS = 1 << 17


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A recipe with its data open, its open numbers filled in, and its images as tokens.

    `weights` is the file of a learned tokenizer. `loaded` holds the pictures, if they had to be read for the tokens;
    `counted` says how many there were to train on and held out, when codes were made of them.
    """

    recipe: Recipe
    train: Tokens
    test: Tokens
    source: Source
    classes: tuple[str, ...]
    weights: Path | None = None
    loaded: Split | None = None
    counted: tuple[int, int] = (0, 0)

    @cached_property
    def split(self) -> Split:
        """The pictures behind the tokens; DataError if their source has others now than were tokenized."""
        if self.loaded is not None:
            return self.loaded
        split = self.source.load()
        here = (len(split.train), len(split.test), tuple(split.train.classes))
        if here != (*self.counted, self.classes):
            raise DataError(
                f"{self.source}: {here[0]} + {here[1]} pictures of {len(here[2])} classes now, {self.counted[0]} + "
                f"{self.counted[1]} of {len(self.classes)} when they were tokenized, so other ones would be held out: "
                "restore the source, or tokenize it again"
            )
        return split

    def real(self, part: Part) -> PictureSet:
        """The pictures of a part, cut to the tokenizer's size."""
        pictures = self.split.train if part == "train" else self.split.test
        return PictureSet(pictures=pictures, size=self.recipe.tokenizer.size, flip=False)


def prepare(recipe: Recipe, progress: Progress | None = None) -> Experiment:
    """Read the data, tokenize it, and fill in what follows from it; ConfigError where data and recipe do not fit.

    The data decides the number of classes and channels, the tokenizer the grid of a Halton order, and codes the
    tokenizer.
    """
    source = recipe.data
    if isinstance(source, Codes):
        return _prepare_codes(recipe, source)
    tokenizer = recipe.tokenizer
    if isinstance(tokenizer, VQGAN):
        raise ConfigError(
            "this recipe trains on codes: unmask train-tokenizer, then unmask tokenize, then unmask train --data CODES"
        )
    split = source.load(progress)
    if not len(split.test):
        raise ConfigError("no image is held out, but validation needs some: raise --data.held-out")
    channels, height, width = split.train.shape
    if (channels, height, width) != (recipe.tokenizer.channels, *recipe.tokenizer.size):
        raise ConfigError(
            f"the images are {channels} x {height} x {width} but the tokenizer takes {recipe.tokenizer.channels} x "
            f"{recipe.tokenizer.size[0]} x {recipe.tokenizer.size[1]}: set --tokenizer.size and --tokenizer.channels"
        )
    recipe = _fitted(recipe, split.train.classes)
    train, test = (tokenize(part, tokenizer, recipe.conditional) for part in (split.train, split.test))
    return Experiment(
        recipe=recipe,
        train=train,
        test=test,
        source=source,
        classes=split.train.classes,
        loaded=split,
    )


def _prepare_codes(recipe: Recipe, data: Codes) -> Experiment:
    if not data.path:
        raise ConfigError("which codes? Give --data DIR, a folder that unmask tokenize made")
    coded = open_coded(data.path)
    classes = coded.meta.classes
    train, test = (part if recipe.conditional else Unlabelled(part) for part in (coded.train, coded.test))
    return Experiment(
        recipe=_fitted(replace(recipe, tokenizer=coded.tokenizer, tokenizer_sha256=coded.meta.tokenizer), classes),
        train=train,
        test=test,
        source=coded.source,
        classes=classes,
        weights=coded.weights,
        counted=coded.counted,
    )


def _fitted(recipe: Recipe, classes: tuple[str, ...]) -> Recipe:
    """With the numbers that the data and the tokenizer decide."""
    sampling = recipe.sampling
    if isinstance(sampling.priority, Halton):
        sampling = replace(sampling, priority=Halton(recipe.tokenizer.grid))
    return replace(
        recipe,
        sampling=sampling,
        classes=tuple(classes) if recipe.conditional else (),
        model=replace(recipe.model, num_classes=len(classes) if recipe.conditional else 0),
        classifier=replace(recipe.classifier, channels=recipe.tokenizer.channels, num_classes=max(2, len(classes))),
    )


def tokenize(images: Pictures, tokenizer: Pixels, labelled: bool) -> TokenSet:
    """All images as tokens, a few thousand at a time, with their classes if asked for."""
    parts = torch.arange(len(images)).split(4096)
    tokens = torch.cat([tokenizer.encode(images.as_float(index)) for index in parts])
    return TokenSet(tokens=tokens, condition=images.labels if labelled else None)


def build(experiment: Experiment) -> MaskedTransformer:
    """The model with its initial weights, a function of training.seed."""
    recipe = experiment.recipe
    with torch.random.fork_rng(devices=[]):  # layers draw their initial weights from the global generator
        torch.manual_seed(recipe.training.seed)
        model = MaskedTransformer(recipe.model, recipe.tokenizer.vocab_size, recipe.tokenizer.grid)
    if recipe.unigram:
        model.set_unigram(frequencies(experiment))
    return model


def frequencies(experiment: Experiment) -> Float[Tensor, "k"]:
    """How often each token occurs in the training set, or in some hundred thousand rows spread over a larger one."""
    num, vocab_size = len(experiment.train), experiment.recipe.tokenizer.vocab_size
    counts = torch.zeros(vocab_size, dtype=torch.long)
    for index in torch.arange(0, num, -(-num // FREQUENCY_ROWS)).split(4096):
        tokens, _ = experiment.train.rows(index, torch.device("cpu"))
        counts += tokens.flatten().bincount(minlength=vocab_size)
    return counts.float()


def expected_first_loss(experiment: Experiment) -> float:
    """The cross-entropy, in nats, of the head's initial distribution with the data: log K, or the unigram entropy."""
    counts = frequencies(experiment).double()
    smoothing, k = experiment.recipe.objective.label_smoothing, len(counts)
    log_q = (
        ((counts + 1) / (counts + 1).sum()).log() if experiment.recipe.unigram else -torch.full_like(counts, k).log()
    )
    target = (1 - smoothing) * counts / counts.sum() + smoothing / k
    return float(-(target * log_q).sum())


def run(experiment: Experiment, folder: Path, world: World) -> None:
    """Train in `folder`, from its newest checkpoint on, and leave config.json and model.safetensors there.

    Raises the errors of `train`, and CheckpointError if the folder is in use or holds another experiment.
    """
    core, notes = begin(experiment, folder)
    if world.is_main:
        with lock(folder):
            claim(experiment.recipe, folder)
            _keep_tokenizer(experiment, folder)
            _run(experiment, core, notes, folder, world)
    else:
        _run(experiment, core, notes, folder, world)


def begin(experiment: Experiment, folder: Path) -> tuple[MaskedTransformer, list[str]]:
    """The model to train, and what to say of the run it starts from, which is not read once there are checkpoints."""
    core, init = build(experiment), experiment.recipe.init
    if init is None or any((folder / "checkpoints").glob("step-*")):
        return core, []
    theirs = Path(init) / TOKENIZER
    if experiment.weights is not None and theirs.exists() and theirs.read_bytes() != experiment.weights.read_bytes():
        raise ConfigError(f"--init {init} was trained on codes of another tokenizer: its tokens mean other things")
    return core, [f"starting from {init}", *start_from(core, Path(init))]


def _run(experiment: Experiment, core: MaskedTransformer, notes: list[str], folder: Path, world: World) -> None:
    recipe = experiment.recipe
    barrier(world)
    training = recipe.training
    model = distribute(core, resolve(training.strategy, world), world)
    tokenizer = open_tokenizer(recipe.tokenizer, folder / TOKENIZER)
    if isinstance(tokenizer, Autoencoder):
        tokenizer = tokenizer.to(world.device)
    pipeline = Pipeline(unwrapped(model), tokenizer, recipe.sampling)  # type: ignore[arg-type]
    ema = train(
        model,
        recipe.objective,
        Batches(experiment.train, training.batch_size, training.seed, world.device),
        training,
        folder,
        world=world,
        evaluators=[validation(recipe, experiment.test, model, world), samples(pipeline, training.precision, world)],
        expected_loss=math.nan if recipe.init else expected_first_loss(experiment),
        notes=notes,
        meta={"recipe": to_json(recipe), "environment": environment(world.device)},
    )
    weights = {name: whole(average).cpu().contiguous() for name, average in ema.average.items()}
    if world.is_main:
        write_weights(weights, folder / "model.safetensors")
    barrier(world)


def _keep_tokenizer(experiment: Experiment, folder: Path) -> None:
    """Copy a learned tokenizer into the run, which then needs the codes no more; CheckpointError if it has another."""
    if experiment.weights is None:
        return
    path, body = folder / TOKENIZER, experiment.weights.read_bytes()
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_bytes(body)
        part.replace(path)
    elif path.read_bytes() != body:
        raise CheckpointError(f"{folder} was trained on codes of another tokenizer: give another --out")


def claim(recipe: Recipe | TokenizerRecipe, folder: Path) -> None:
    """Write config.json, or check that the one there is of the same experiment."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    clean(folder / "checkpoints")
    path = folder / "config.json"
    if path.exists():
        changed = differences(_lasting(read_recipe(path, type(recipe))), _lasting(recipe))
        if changed:
            raise CheckpointError(
                f"{folder} holds another experiment ({changed[0]}): give another --out, or delete the folder"
            )
    write_json(path, to_json(recipe))


def _lasting(recipe: Recipe | TokenizerRecipe) -> Recipe | TokenizerRecipe:
    """The recipe without what a continued run may change: how it is computed, watched, sampled and judged."""
    plain = TrainConfig()
    free = ("accumulate", "precision", "strategy", "log_every", "evaluate_every", "save_every", "keep", "tracker")
    training = replace(recipe.training, **{name: getattr(plain, name) for name in free})
    data = settled(recipe.data)  # the same place may be written in two ways
    if isinstance(recipe, TokenizerRecipe):
        assert not isinstance(data, Codes)
        return replace(recipe, data=data, training=training, classifier=TokenizerRecipe.classifier)
    return replace(recipe, data=data, training=training, sampling=Sampling(), classifier=Recipe.classifier, classes=())


def export(run: Path, out: Path) -> None:
    """Copy what `Pipeline.from_pretrained` needs, after loading it once to see that it is whole."""
    recipe = read_recipe(run / "config.json", Recipe)
    pipeline = Pipeline.from_pretrained(run, device="cpu", dtype=torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    write_weights(dict(pipeline.model.named_parameters()), out / "model.safetensors")
    if isinstance(pipeline.tokenizer, Autoencoder):
        write_weights(dict(pipeline.tokenizer.named_parameters()), out / TOKENIZER)
    write_json(out / "config.json", to_json(recipe))
