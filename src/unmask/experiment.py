"""A recipe made to run: data to tokens, model, validation, training, and the export at the end."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from unmask import __version__
from unmask.config import differences, read_json, to_json, write_json
from unmask.coded import open_coded
from unmask.data.augment import PictureSet
from unmask.data.images import Progress
from unmask.data.pictures import Pictures, Split
from unmask.data.sources import Codes, Source, settled
from unmask.data.tokenizing import Part
from unmask.data.tokens import Batches, Tokens, TokenSet, Unlabelled
from unmask.errors import CheckpointError, ConfigError
from unmask.figures import grid
from unmask.masking import mask_exact
from unmask.models.transformer import MaskedTransformer
from unmask.pipeline import TOKENIZER, Pipeline
from unmask.rand import Rand
from unmask.recipes import Recipe, Sampling, TokenizerRecipe, read_recipe
from unmask.sampling.priorities import Halton
from unmask.tokenizers.pixels import Pixels
from unmask.tokenizers.vqgan import VQGAN, Autoencoder, open_tokenizer
from unmask.training.checkpoint import clean, lock
from unmask.training.distributed import (
    Precision,
    World,
    autocast,
    barrier,
    distribute,
    resolve,
    sum_over_ranks,
    unwrapped,
    whole,
)
from unmask.training.loop import Evaluator, TrainConfig, train
from unmask.weights import write_weights

VALIDATION_BATCH = 512
VALIDATION_IMAGES = 2048
FREQUENCY_ROWS = 1 << 17
ACCURACY_RATIOS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A recipe with its data open, its open numbers filled in, and its images as tokens.

    `weights` is the file of a learned tokenizer. `loaded` holds the pictures, if they had to be read for the tokens.
    """

    recipe: Recipe
    train: Tokens
    test: Tokens
    source: Source
    classes: tuple[str, ...]
    weights: Path | None = None
    loaded: Split | None = None

    @cached_property
    def split(self) -> Split:
        """The pictures behind the tokens, as their source has them."""
        return self.loaded or self.source.load()

    def real(self, part: Part) -> PictureSet:
        """The pictures of a part, cut to the tokenizer's size."""
        pictures = self.split.train if part == "train" else self.split.test
        return PictureSet(pictures=pictures, size=self.recipe.tokenizer.size, flip=False)


def prepare(recipe: Recipe, progress: Progress | None = None) -> Experiment:
    """Read the data, tokenize it, and fill in what follows from it; ConfigError where data and recipe do not fit.

    The data decides the number of classes and channels, the tokenizer the grid of a Halton order, and codes the
    tokenizer.
    """
    if isinstance(recipe.data, Codes):
        return _prepare_codes(recipe, recipe.data)
    if isinstance(recipe.tokenizer, VQGAN):
        raise ConfigError(
            "this recipe trains on codes: unmask train-tokenizer, then unmask tokenize, then unmask train --data CODES"
        )
    split = recipe.data.load(progress)
    if not len(split.test):
        raise ConfigError("no image is held out, but validation needs some: raise --data.held-out")
    channels, height, width = split.train.shape
    if (channels, height, width) != (recipe.tokenizer.channels, *recipe.tokenizer.size):
        raise ConfigError(
            f"the images are {channels} x {height} x {width} but the tokenizer takes {recipe.tokenizer.channels} x "
            f"{recipe.tokenizer.size[0]} x {recipe.tokenizer.size[1]}: set --tokenizer.size and --tokenizer.channels"
        )
    recipe = _fitted(recipe, split.train.classes)
    train, test = (tokenize(part, recipe.tokenizer, recipe.conditional) for part in (split.train, split.test))  # type: ignore[arg-type]
    return Experiment(
        recipe=recipe,
        train=train,
        test=test,
        source=recipe.data,
        classes=split.train.classes,
        loaded=split,  # type: ignore[arg-type]
    )


def _prepare_codes(recipe: Recipe, data: Codes) -> Experiment:
    if not data.path:
        raise ConfigError("which codes? Give --data DIR, a folder that unmask tokenize made")
    coded = open_coded(data.path)
    classes = coded.meta.classes
    train, test = (part if recipe.conditional else Unlabelled(part) for part in (coded.train, coded.test))
    return Experiment(
        recipe=_fitted(replace(recipe, tokenizer=coded.tokenizer), classes),
        train=train,
        test=test,
        source=coded.source,
        classes=classes,
        weights=coded.weights,
    )


def _fitted(recipe: Recipe, classes: tuple[str, ...]) -> Recipe:
    """With the numbers that the data and the tokenizer decide."""
    sampling = recipe.sampling
    if isinstance(sampling.priority, Halton):
        sampling = replace(sampling, priority=Halton(recipe.tokenizer.grid))
    return replace(
        recipe,
        sampling=sampling,
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
    recipe = experiment.recipe
    if world.is_main:
        with lock(folder):
            claim(recipe, folder)
            _keep_tokenizer(experiment, folder)
            _run(experiment, folder, world)
    else:
        _run(experiment, folder, world)


def _run(experiment: Experiment, folder: Path, world: World) -> None:
    recipe = experiment.recipe
    barrier(world)
    training = recipe.training
    model = distribute(build(experiment), resolve(training.strategy, world), world)
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
        evaluators=[validation(experiment, model, world), samples(pipeline, training.precision, world)],
        expected_loss=expected_first_loss(experiment),
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
    return replace(recipe, data=data, training=training, sampling=Sampling(), classifier=Recipe.classifier)


def validation(experiment: Experiment, model: nn.Module, world: World) -> Evaluator:
    """Loss on held-out images and accuracy at fixed mask ratios, with the same noise every time, split over ranks."""
    recipe, data = experiment.recipe, experiment.test
    num = min(len(data), VALIDATION_IMAGES)
    chosen = torch.arange(num) * len(data) // num
    objective = replace(recipe.objective, drop=0.0)
    mask_id: int = unwrapped(model).mask_id  # type: ignore[assignment]

    def parts() -> Iterator[Tensor]:
        # As many parts on each rank: sharded models need all ranks in every forward.
        each = -(-num // (VALIDATION_BATCH * world.size))
        yield from chosen.tensor_split(each * world.size)[world.rank :: world.size]

    def scores(index: Int[Tensor, "b"]) -> list[Tensor]:
        tokens, condition = data.rows(index, world.device)
        rand = Rand(1, index.to(world.device), len(data))
        loss = objective(model, tokens, condition, mask_id=mask_id, rand=rand)
        row = [loss.total, loss.count]
        for ratio in ACCURACY_RATIOS:
            mask = mask_exact(
                torch.full((len(tokens),), ratio, dtype=torch.float64, device=world.device),
                rand("mask", tokens.shape[1]),
            )
            right = model(torch.where(mask, mask_id, tokens), condition, mask).argmax(-1) == tokens[mask]
            row += [right.sum(), mask.sum()]
        return row

    def evaluate() -> Iterable[tuple[str, float]]:
        sums = torch.zeros(2 + 2 * len(ACCURACY_RATIOS), dtype=torch.float64, device=world.device)
        for index in parts():
            with autocast(recipe.training.precision, world):
                sums += torch.stack([x.double() for x in scores(index)])
        totals = sum_over_ranks(sums, world).tolist()
        yield "validation_loss", totals[0] / totals[1]
        for i, ratio in enumerate(ACCURACY_RATIOS):
            yield f"accuracy_masked_{round(100 * ratio)}", totals[2 + 2 * i] / totals[3 + 2 * i]

    return evaluate


def samples(pipeline: Pipeline, precision: Precision, world: World, num: int = 50) -> Evaluator:
    """A grid of samples, always of the same seed, so that one sees them improve."""

    def evaluate() -> Iterable[tuple[str, Image.Image]]:
        with autocast(precision, world):
            images = pipeline.generate(num=num)
        yield "samples", grid(images, columns=10)

    return evaluate


def commit() -> str:
    """The git commit of this code, "+" appended if it was changed since; or the package's version."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", str(here)], cwd=here, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return f"unmask {__version__}"
    return head.stdout.strip() + ("+" if changed.returncode else "")


def environment(device: torch.device) -> dict[str, str | int]:
    """What a figure must be quoted with, and what bitwise repetition depends on."""
    on_cpu = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    return {
        "command": " ".join([Path(sys.argv[0]).name.replace("__main__.py", "unmask"), *sys.argv[1:]]),
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else str(on_cpu),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def export(run: Path, out: Path) -> None:
    """Copy what `Pipeline.from_pretrained` needs, after loading it once to see that it is whole."""
    recipe = read_json(run / "config.json", Recipe)
    pipeline = Pipeline.from_pretrained(run, device="cpu", dtype=torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    write_weights(dict(pipeline.model.named_parameters()), out / "model.safetensors")
    if isinstance(pipeline.tokenizer, Autoencoder):
        write_weights(dict(pipeline.tokenizer.named_parameters()), out / TOKENIZER)
    write_json(out / "config.json", to_json(recipe))
