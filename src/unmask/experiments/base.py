"""Any recipe made to run: the model, the run folder, the training, and the weights it leaves."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.data.fingerprint import (
    STRICT,
    DataFingerprint,
    DataPolicy,
    Source,
    check_data,
    describe_unverified,
    forget_place,
    read_record,
    record_data,
)
from unmask.data.labels import list_names
from unmask.data.shuffle import Shuffle
from unmask.data.sources.choice import resolve_paths
from unmask.data.text.sources import FEW
from unmask.data.tokens import Batches, Tokens
from unmask.decoding.sampling import Sampling
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.experiments.finetune import start_from
from unmask.experiments.opening import describe_opening, describe_type
from unmask.experiments.preflight import check_ranks
from unmask.experiments.resuming import check_checkpoints, check_steps, has_finished, keep_shuffle
from unmask.method.critic import WithCritic
from unmask.method.masking import ABSENT
from unmask.method.models.configs import TransformerConfig
from unmask.method.models.partition import PartitionTransformer
from unmask.method.models.partition_config import PartitionConfig
from unmask.method.models.protocol import Generator
from unmask.method.models.transformer import MaskedTransformer
from unmask.method.objectives import MaskGIT
from unmask.method.partitioning import Partition
from unmask.pretrained.conditions import takes_prompts
from unmask.published.opening import OpenedModel
from unmask.recipes.reading import dump_config, read_config, write_config
from unmask.recipes.schema import AnyRecipe, Recipe, TextRecipe, TokenizerRecipe
from unmask.runtime.distributed import World, barrier, distribute, gather_full, resolve_strategy, unwrap
from unmask.runtime.kernels import compile_blocks
from unmask.runtime.provenance import describe_environment
from unmask.storage.config import list_differences
from unmask.storage.files import write_atomic
from unmask.storage.layout import CHECKPOINTS, CONFIG, MODEL
from unmask.storage.lock import lock
from unmask.storage.manifest import begin_files, record_files, update_record
from unmask.storage.weights import have_same_bytes, have_same_weights, write_weights
from unmask.training.configs import TrainConfig
from unmask.training.loop import Evaluator, train_model
from unmask.training.runfolder import has_checkpoint, remove_leftovers

FREQUENCY_ROWS = 1 << 17


@runtime_checkable
class Ready(Protocol):
    """What `run` trains on: a recipe with its data open, as rows of tokens.

    `weights` is the file of the tokenizer, which the run keeps under the name `kept`, if it needs one.
    """

    @property
    def recipe(self) -> Recipe | TextRecipe: ...
    @property
    def train(self) -> Tokens: ...
    @property
    def test(self) -> Tokens: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def grid(self) -> tuple[int, ...]: ...
    @property
    def weights(self) -> Path | None: ...
    @property
    def kept(self) -> str: ...
    @property
    def fingerprint(self) -> DataFingerprint | None: ...
    @property
    def policy(self) -> DataPolicy: ...

    def make_evaluators(self, model: nn.Module, folder: Path, world: World) -> list[Evaluator]:
        """Return what the training logs about itself; call it once the tokenizer is in the run directory."""


def build_model(experiment: Ready) -> Generator:
    """Build the model with its initial weights, a function of training.seed."""
    recipe = experiment.recipe
    with torch.random.fork_rng(devices=[]):  # layers draw their initial weights from the global generator
        torch.manual_seed(recipe.training.seed)
        assert not takes_prompts(recipe.model)  # `prepare` has refused it
        model = recipe.model.build(experiment.vocab_size, experiment.grid)
    if recipe.unigram and isinstance(model, MaskedTransformer | PartitionTransformer):
        model.set_unigram(count_frequencies(experiment))
    return model


def count_frequencies(experiment: Ready) -> Float[Tensor, "k"]:
    """Count each token in the training set, or in some hundred thousand rows spread over a larger one."""
    num, vocab_size = len(experiment.train), experiment.vocab_size
    counts = torch.zeros(vocab_size, dtype=torch.long)
    for index in torch.arange(0, num, -(-num // FREQUENCY_ROWS)).split(4096):
        tokens, _ = experiment.train.read_rows(index, torch.device("cpu"))
        counts += tokens[tokens != ABSENT].bincount(minlength=vocab_size)
    return counts.float()


def predict_first_loss(experiment: Ready) -> float:
    """Return the cross-entropy (nats) of the head's initial distribution and the data: log K, or the unigram entropy.

    NaN where it is unknown: for a training that starts from another model, or a published network.
    """
    if experiment.recipe.init or not isinstance(experiment.recipe.model, TransformerConfig | PartitionConfig):
        return math.nan
    counts = count_frequencies(experiment).double()
    objective, k, fooled = experiment.recipe.objective, len(counts), 0.0
    if isinstance(objective, WithCritic):
        fooled = objective.weight * math.log(2)  # the loss of a critic that knows nothing
        objective = objective.generator
    smoothing = objective.label_smoothing if isinstance(objective, MaskGIT | Partition) else 0.0
    log_q = (
        ((counts + 1) / (counts + 1).sum()).log() if experiment.recipe.unigram else -torch.full_like(counts, k).log()
    )
    target = (1 - smoothing) * counts / counts.sum() + smoothing / k
    return float(-(target * log_q).sum()) + fooled


def run_experiment(experiment: Ready, folder: Path, world: World, start: OpenedModel | None = None) -> None:
    """Train in `folder`, from its newest checkpoint on, and leave config.json and model.safetensors there.

    `start` is the model to start from, unless there is a checkpoint.
    Raises the errors of `train`, and CheckpointError if the folder is in use or holds another experiment.
    """
    check_ranks(experiment.recipe, experiment.fingerprint, world)
    core, notes = build_start(experiment, folder, start)
    if world.is_main:
        with lock(folder):
            notes += claim_run(experiment.recipe, folder, experiment.fingerprint, experiment.policy)
            _keep_tokenizer(experiment, folder)
            _run(experiment, core, notes, folder, world)
    else:
        _run(experiment, core, notes, folder, world)


def build_start(experiment: Ready, folder: Path, start: OpenedModel | None) -> tuple[Generator, list[str]]:
    """Build the model to train, with the weights of `start` unless a checkpoint has them; return it and what to say."""
    core = build_model(experiment)
    if start is None or has_checkpoint(folder):
        return core, []
    theirs = start.fetch() / experiment.kept
    if experiment.weights is not None and theirs.exists() and not have_same_weights(theirs, experiment.weights):
        raise ConfigError(f"--init {start.name} was trained with another tokenizer: its tokens mean other things")
    return core, [f"starting from {start.name}", *start_from(core, start)]


def _run(experiment: Ready, core: Generator, notes: list[str], folder: Path, world: World) -> None:
    recipe = experiment.recipe
    barrier(world)
    training = recipe.training
    model = distribute(core, resolve_strategy(training.strategy, world), world)  # type: ignore[arg-type]
    if training.compile:
        compile_blocks(unwrap(model))
    shuffle = keep_shuffle(folder / CHECKPOINTS, len(experiment.train))
    batches = Batches(experiment.train, training.batch_size, training.seed, world.device, shuffle=shuffle)
    if not has_finished(folder / CHECKPOINTS, training.steps):
        opening = describe_opening(
            recipe,
            folder,
            world,
            networks={"model": unwrap(model)},
            num_rows=(len(experiment.train), len(experiment.test)),
            length=core.length,
            vocab_size=core.vocab_size,
        )
        notes = [*opening, *notes]
    ema = train_model(
        model,
        recipe.objective,
        batches,
        training,
        folder,
        world=world,
        evaluators=experiment.make_evaluators(model, folder, world),
        expected_loss=predict_first_loss(experiment),
        notes=notes,
        meta=describe_run(recipe, experiment.fingerprint, world, shuffle),
    )
    weights = {name: gather_full(average).cpu().contiguous() for name, average in ema.average.items()}
    if world.is_main:
        others = [CONFIG, *([] if experiment.weights is None else [experiment.kept])]
        begin_files(folder, [MODEL], finished=others)
        write_weights(weights, folder / MODEL)
        record_files(folder, [MODEL, *others])
    barrier(world)


def _keep_tokenizer(experiment: Ready, folder: Path) -> None:
    """Copy the tokenizer into the run, which then needs its source no more; CheckpointError if it has another."""
    if experiment.weights is None:
        return
    path = folder / experiment.kept
    if not path.exists():
        with write_atomic(path) as part:
            shutil.copyfile(experiment.weights, part)
    elif not have_same_bytes(path, experiment.weights):
        raise CheckpointError(f"{folder} was trained with another tokenizer: give another --out")


def describe_run(recipe: AnyRecipe, data: DataFingerprint | None, world: World, shuffle: Shuffle) -> dict[str, object]:
    """Return what each checkpoint says of its run: recipe, data and their order, and where it was trained."""
    return {
        "recipe": dump_config(recipe),
        "environment": describe_environment(world.device),
        "shuffle": shuffle,
        "type": describe_type(recipe.training.precision, world.device),
        **({} if data is None else {"data": data.digest}),
    }


def claim_run(
    recipe: AnyRecipe,
    folder: Path,
    data: DataFingerprint | None = None,
    policy: DataPolicy = STRICT,
) -> list[str]:
    """Write config.json and data.json, or check that those there are of the same experiment on the same data.

    Returns:
        What to say: which changes of the data were accepted.

    Raises:
        CheckpointError: The folder holds another experiment.
        DataError: The data changed since the run began, and `policy` does not accept that.
    """
    notes: list[str] = []
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder / CHECKPOINTS)
    path = folder / CONFIG
    if path.exists():
        moved = data is not None and read_record(folder) is not None  # then data.json tells what the data is
        before = read_config(path, type(recipe))
        changed = _list_changes(before, recipe, moved=moved)
        if moved:  # what follows from the data is compared with it, below
            changed = [line for line in changed if ".num_classes " not in line]
        if changed:
            raise CheckpointError(f"{folder} holds another experiment ({changed[0]}): give another --out")
        if not moved and isinstance(before, Recipe) and isinstance(recipe, Recipe) and before.classes != recipe.classes:
            was, now = (list_names(one.classes) for one in (before, recipe))
            raise DataError(
                f"the classes of {folder} were {was} and are {now} now: restore them, or give another --out"
            )
        check_steps(before, recipe, folder)
    if data is not None:
        advice = f"restore it, give another --out (and --init {folder} to start from these weights)"
        accepted = check_data(folder, data, policy, advice, "continue knowingly")
        if accepted and has_finished(folder / CHECKPOINTS, recipe.training.steps):
            raise DataError(
                f"the data of {folder} changed: {accepted}; all {recipe.training.steps:,} steps are done, so nothing "
                "would be trained on it: give more --training.steps, or another --out"
            )
        notes += [f"the data changed, and this is accepted: {accepted}"] if accepted else []
    record = read_record(folder)
    if record is not None and data is not None and data.train.whole is not None:
        notes += describe_unverified(record.data, policy, recorded=True)
    if data is not None and record is not None and _may_mix_documents(recipe, record.data, data):
        notes.append(
            "the held-out documents may be ones that were trained on before: hold out a file with --data.test, or "
            "start anew with another --out"
        )
    known = [*([data] if data else []), *((record.data, *record.before) if record else [])]
    check_checkpoints(
        folder / CHECKPOINTS,
        type(recipe),
        lambda theirs: _list_changes(theirs, recipe, moved=record is not None),
        [one.digest for one in known],
        recipe.training.steps,
    )
    write_config(recipe, folder)  # first, as it tells whose folder this is if the process is killed here
    update_record(folder, CONFIG)
    if data is not None:
        record_data(folder, data)
    return notes


def _may_mix_documents(recipe: AnyRecipe, then: DataFingerprint, now: DataFingerprint) -> bool:
    """Return whether other text than before is held out by its position, which may have been trained on."""
    if not isinstance(recipe, TextRecipe) or recipe.data.test is not None or then.test.content == now.test.content:
        return False
    few = min(one.train.num + one.test.num for one in (then, now)) <= FEW  # then characters are held out
    return few or recipe.data.arrange == "position"


def _list_changes(before: AnyRecipe, now: AnyRecipe, *, moved: bool) -> list[str]:
    """Return in words what differs between two recipes and may not change under a run."""
    return list_differences(_drop_changeable(before, moved=moved), _drop_changeable(now, moved=moved))


def _drop_changeable(recipe: AnyRecipe, *, moved: bool = False) -> AnyRecipe:
    """Return the recipe without what a resumed run may change: how it computes, logs, samples and evaluates.

    With `moved` the place of the data may change too.
    """
    plain = TrainConfig()
    free = (
        "accumulate",
        "precision",
        "compile",
        "strategy",
        "log_every",
        "evaluate_every",
        "save_every",
        "keep",
        "tracker",
    )
    training = replace(recipe.training, **{name: getattr(plain, name) for name in ("steps", *free)})
    if isinstance(recipe, TokenizerRecipe):
        data = _find_place(recipe.data, moved)
        return replace(recipe, data=data, training=training, classifier=TokenizerRecipe.classifier)
    if isinstance(recipe, TextRecipe):
        text = recipe.data.forget_paths()  # its tokens are compared, so it may lie elsewhere
        plain_text = replace(recipe, data=text, training=training, sampling=Sampling(), trained_on=None)
        return replace(plain_text, documents=0, text_sha256=None) if moved else plain_text
    return replace(
        recipe,
        data=_find_place(recipe.data, moved),
        training=training,
        sampling=Sampling(),
        classifier=Recipe.classifier,
        classes=(),
        empty_classes=(),
        trained_on=None,
    )


def _find_place(source: Source, moved: bool) -> Source:
    """Return the source with an absolute path, since one place may be written in two ways; or without its place."""
    return forget_place(source) if moved else resolve_paths(source)  # type: ignore[type-var]
