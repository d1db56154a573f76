"""A training run small enough for tests, and, as a script, jobs that need processes of their own.

`python toy_run.py JOB FOLDER` imports torch once and forks: two ranks per strategy, or children that are killed.
What a job found is left in FOLDER as files for the test to read.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from unmask.data.images import Images
from unmask.data.sources.choice import Digits, Split
from unmask.data.tokens import Batches, TokenSet
from unmask.errors import NonFiniteError, Preempted
from unmask.experiments.images import Experiment
from unmask.experiments.validation import validate_generator
from unmask.method.models.partition import PartitionConfig, PartitionTransformer
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.objectives import Loss, MaskGIT
from unmask.method.partitioning import Partition
from unmask.recipes.schema import Recipe
from unmask.runtime.distributed import World, distribute, gather_full, get_local, join_world, unwrap
from unmask.storage.lock import lock
from unmask.tokenizers.pixels import Pixels
from unmask.training.ema import Ema
from unmask.training.loop import TrainConfig, train_model
from unmask.training.optim import AdamW, CosineDecay, Muon
from unmask.training.runfolder import remove_leftovers

ALONE = World(0, 1, torch.device("cpu"))
VOCABULARY, GRID, CLASSES, BATCH = 16, (2, 3), 3, 16
ADAMW, MUON = AdamW(learning_rate=3e-3), Muon(learning_rate=3e-3)


Network = TypeVar("Network", bound=nn.Module)


class Cut(Exception):
    """What `stopping` raises: an end of the process that the loop does not know of."""


def toy_model() -> MaskedTransformer:
    """All weights random, the head too: with a zero head the first gradients of the body are rounding noise."""
    config = TransformerConfig(dim=16, depth=2, heads=2, num_classes=CLASSES)
    return randomize(lambda: MaskedTransformer(config, VOCABULARY, GRID))


def randomize(build: Callable[[], Network]) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        for p in model.parameters():
            if p.ndim == 2 and not p.any():
                nn.init.normal_(p, std=0.1)
    return model


def toy_partition() -> PartitionTransformer:
    """As `toy_model`, for the objective `Partition`."""
    config = PartitionConfig(dim=16, encoder_depth=1, decoder_depth=1, heads=2, num_classes=CLASSES)
    return randomize(lambda: PartitionTransformer(config, VOCABULARY, GRID))


def toy_data(num: int = 37) -> TokenSet:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (num, 6), generator=generator)
    return TokenSet(tokens=tokens, condition=torch.randint(CLASSES, (num,), generator=generator))


def toy_config(**changes) -> TrainConfig:
    base = {"steps": 12, "batch_size": BATCH, "optimizer": ADAMW, "learning_rate": CosineDecay(warmup=3)}
    every = {"log_every": 1, "evaluate_every": 10**6, "save_every": 10**6}
    return TrainConfig(**{**base, **every, "precision": "fp32", **changes})


def toy_batches() -> Batches:
    return Batches(toy_data(), BATCH, 0, torch.device("cpu"))


def stopping(at: int, act: Callable[[], None]):
    """Batches that call `act` at one step, before it gives any rows."""
    inner = toy_batches()

    def batches(step, rows):
        if step == at:
            act()
        return inner(step, rows)

    return batches


def cut() -> None:
    raise Cut


def poisoned(step: int, row: int):
    """The MaskGIT objective, NaN for one row of one step."""

    def objective(model, tokens, condition, *, mask_id, rand):
        loss = MaskGIT()(model, tokens, condition, mask_id=mask_id, rand=rand)
        hit = rand.step == step and bool((rand.rows == row).any())
        return Loss(loss.total * torch.nan, loss.count) if hit else loss

    return objective


def mean_per_micro_batch(model, tokens, condition, *, mask_id, rand):
    """The wrong denominator: averages of averages."""
    loss = MaskGIT()(model, tokens, condition, mask_id=mask_id, rand=rand)
    return Loss(loss.total / loss.count, torch.ones_like(loss.count))


def toy_train(
    run: Path, config: TrainConfig, here: World = ALONE, *, batches=None, objective=None, evaluators=(), model=None
):
    """Train in `run` as the product does; returns (model, its average)."""
    model = distribute(model or toy_model(), config.strategy, here)
    run.mkdir(parents=True, exist_ok=True)
    batches = batches or toy_batches()
    ema = train_model(
        model, objective or MaskGIT(), batches, config, run, world=here, evaluators=[e(model) for e in evaluators]
    )
    return unwrap(model), ema


def toy_experiment(test: int = 21) -> Experiment:
    """The toy data as an experiment; `test` rows are held out."""
    picture = Images(pixels=torch.zeros(1, 1, 4, 6, dtype=torch.uint8), labels=None)
    tokenizer = Pixels(size=(4, 6), patch=2, levels=2)
    recipe = Recipe(data=Digits(), tokenizer=tokenizer, model=toy_model().config, training=toy_config())
    split = Split(train=picture, test=picture)
    return Experiment(
        recipe=recipe,
        train=toy_data(),
        test=toy_data(test),
        source=recipe.data,
        classes=split.train.classes,
        loaded=split,
    )


def toy_validation(here: World):
    """`validation` as a function of the model."""
    ready = toy_experiment()
    return lambda model: validate_generator(
        ready.recipe.objective, ready.recipe.training.precision, ready.test, model, here
    )


def job(name: str, folder: Path) -> Path:
    """Run one job of this file in a process of its own, at one thread; returns `folder`."""
    setting = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, name, folder], env=setting, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def state(run: Path, step: int) -> bytes:
    """Weights, average and optimizer state of an unsharded checkpoint."""
    return (run / f"checkpoints/step-{step:08d}/state.safetensors").read_bytes()


def metrics(run: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


# -- two ranks ---------------------------------------------------------------------------------------------------------


def fork(task: Callable[[], None]) -> int:
    """Run `task` in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        task()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def two_ranks(task: Callable[[World], None]) -> None:
    """Fork two ranks that are joined in a group and run `task`."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]

    def rank(number: int) -> None:
        settings = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in settings.items()}, MASTER_ADDR="127.0.0.1")
        torch.set_num_threads(1)
        with join_world("cpu") as here:
            task(here)

    children = [fork(lambda n=n: rank(n)) for n in range(2)]
    codes = [exit_code(child) for child in children]
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}")


def keep(folder: Path, name: str, here: World, model: nn.Module, ema) -> None:
    """Whole weights and averages as `<name>.safetensors`."""
    tensors = {f"model.{n}": gather_full(p.detach()) for n, p in model.named_parameters()}
    tensors |= {f"ema.{n}": gather_full(a) for n, a in ema.average.items()}
    if here.is_main:
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / f"{name}.safetensors")


def equal_runs(folder: Path, strategy: str, here: World) -> None:
    """50 steps at each accumulation, and a few with Muon and of a partition model."""
    for accumulate in (1, 2, 4):
        name = f"{strategy}-{accumulate}"
        config = toy_config(steps=50, accumulate=accumulate, strategy=strategy, evaluate_every=25)
        keep(folder, name, here, *toy_train(folder / name, config, here, evaluators=[toy_validation(here)]))
    config = toy_config(steps=10, optimizer=MUON, strategy=strategy)
    keep(folder, f"{strategy}-muon", here, *toy_train(folder / f"{strategy}-muon", config, here))
    name, config = f"{strategy}-partition", toy_config(steps=20, strategy=strategy, accumulate=2)
    keep(folder, name, here, *toy_train(folder / name, config, here, model=toy_partition(), objective=Partition()))


def handed_over(folder: Path, name: str, strategy: str, here: World, *, stop: int | None) -> None:
    """One half of a run that changes its number of processes at step 25 of 50."""
    config = toy_config(steps=50, strategy=strategy, save_every=25)
    if stop is None:
        keep(folder, name, here, *toy_train(folder / name, config, here))
        return
    try:
        toy_train(folder / name, config, here, batches=stopping(stop, cut))
    except Cut:
        return
    raise SystemExit("the run was not cut")


def blame_rank(run: Path, config: TrainConfig, here: World, damages_weights: bool) -> str:
    """NaN in one weight, or one average, of rank 1 only: what this rank raised."""
    model, real = toy_model(), Ema.update

    def damage(tensors) -> None:
        if here.rank == 1:
            with torch.no_grad():
                next(x for x in map(get_local, tensors) if x.numel()).flatten()[0] = torch.nan

    def update(self, step) -> None:
        real(self, step)
        if step == 1 and not damages_weights:
            damage(self.average.values())

    batches = stopping(3, lambda: damage(model.parameters())) if damages_weights else None
    Ema.update = update
    try:
        toy_train(run, config, here, model=model, batches=batches)
    except NonFiniteError as error:
        return str(error)
    finally:
        Ema.update = real
    return "trained to the end"


def faults(folder: Path, strategy: str, here: World) -> None:
    """NaN on rank 1 only, then SIGTERM to rank 1 only: what each rank raised goes to a file."""
    config = toy_config(strategy=strategy, save_every=2)
    model = toy_model()
    try:
        toy_train(folder / f"{strategy}-nan", config, here, objective=poisoned(3, 5), model=model)
    except NonFiniteError as error:
        (folder / f"{strategy}-nan-{here.rank}").write_text(str(error))
    weights = {n: gather_full(p.detach()).contiguous() for n, p in model.named_parameters()}
    save_file(weights, folder / f"{strategy}-nan-{here.rank}.safetensors")

    for name in ("weights", "averages"):
        found = blame_rank(folder / f"{strategy}-{name}", config, here, name == "weights")
        (folder / f"{strategy}-{name}-{here.rank}").write_text(found)

    ask = stopping(4, lambda: os.kill(os.getpid(), signal.SIGTERM)) if here.rank == 1 else toy_batches()
    try:
        toy_train(folder / f"{strategy}-term", toy_config(strategy=strategy), here, batches=ask)
    except Preempted as error:
        (folder / f"{strategy}-term-{here.rank}").write_text(str(error))


def strategies(folder: Path) -> None:
    """Everything that needs two ranks."""

    def ddp(here: World) -> None:
        equal_runs(folder, "ddp", here)
        faults(folder, "ddp", here)
        handed_over(folder, "ddp-to-none", "ddp", here, stop=25)

    def fsdp(here: World) -> None:
        equal_runs(folder, "fsdp", here)
        faults(folder, "fsdp", here)
        handed_over(folder, "fsdp-to-none", "fsdp", here, stop=25)
        handed_over(folder, "none-to-fsdp", "fsdp", here, stop=None)

    equal_runs(folder, "none", ALONE)
    for accumulate in (1, 4):
        name, config = f"wrong-{accumulate}", toy_config(steps=50, accumulate=accumulate)
        keep(folder, name, ALONE, *toy_train(folder / name, config, objective=mean_per_micro_batch))
    handed_over(folder, "none-to-fsdp", "none", ALONE, stop=25)
    two_ranks(ddp)
    two_ranks(fsdp)
    for name in ("ddp-to-none", "fsdp-to-none"):
        handed_over(folder, name, "none", ALONE, stop=None)


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def killed_at_sync(number: int) -> None:
    """Kill this process at its n-th fsync, which is in the middle of a save."""
    real, left = os.fsync, [number]

    def fsync(descriptor) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync


def locked_run(run: Path, syncs: int = 0) -> None:
    """One attempt at the run, silent, as `unmask train` makes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if syncs:
        killed_at_sync(syncs)
    with lock(run):
        remove_leftovers(run / "checkpoints")
        toy_train(run, toy_config(steps=40, save_every=2, optimizer=MUON))


def kills(folder: Path) -> None:
    """Kill 12 attempts, 6 at a random time and 6 inside a save; a run that ends is followed by a new one."""
    dice = random.Random(7)
    began = time.perf_counter()
    assert exit_code(fork(lambda: locked_run(folder / "whole"))) == 0
    whole_time = time.perf_counter() - began
    done, number, leftovers = 0, 0, 0
    while done < 12:
        run = folder / f"killed-{number}"
        inside = done % 2 == 1
        syncs = dice.randint(1, 24) if inside else 0
        child = fork(lambda run=run, syncs=syncs: locked_run(run, syncs))
        if not inside:
            time.sleep(dice.uniform(0.02, whole_time / 2))
            os.kill(child, signal.SIGKILL)
        code = exit_code(child)
        assert code in (0, -signal.SIGKILL), code
        done += code != 0
        leftovers += any(".tmp-" in p.name for p in run.glob("checkpoints/*"))
        number += code == 0
    assert exit_code(fork(lambda: locked_run(folder / f"killed-{number}"))) == 0
    (folder / "kills.json").write_text(json.dumps({"kills": done, "runs": number + 1, "leftovers": leftovers}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"strategies": strategies, "kills": kills}[sys.argv[1]](Path(sys.argv[2]))
