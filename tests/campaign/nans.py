"""NaN in weights, data, loss or gradients, in one process or on one of two ranks: the run stops before the step."""

import os
import random
from collections.abc import Callable, Iterator

import torch
from children import Ending, run_child
from digests import digest_folder, list_differences
from kills import finish
from ranks import read_codes, run_ranks, run_ranks_whole
from tallies import Campaign, Result, lose, survive
from works import COMMANDS, LEAVES, NEEDS, Work

from unmask.cli import main
from unmask.data.tokens import Batches
from unmask.method.objectives import Loss, MaskedDiffusion, MaskGIT

STEPS = 8
OBJECTIVES = {"train": MaskGIT, "train-text": MaskedDiffusion}


ANY_ROW = -1


def poison(command: str, place: str, step: int, row: int) -> None:
    """Put a NaN into one row of one step of this process's training, or into all rows that it works on."""
    if place == "data":
        _poison_data(step, row)
        return
    kind = OBJECTIVES[command]
    real = kind.__call__

    def call(self, model, tokens, condition, *, mask_id, rand):
        hit = rand.step == step and (row == ANY_ROW or bool((rand.rows == row).any()))
        if hit and place == "weights":
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] = torch.nan
        loss = real(self, model, tokens, condition, mask_id=mask_id, rand=rand)
        if hit and place == "loss":
            return Loss(loss.total * torch.nan, loss.count)
        if hit and place == "gradients" and loss.total.requires_grad:
            loss.total.register_hook(lambda gradient: gradient * torch.nan)
        return loss

    kind.__call__ = call


def _poison_data(step: int, row: int) -> None:
    real = Batches.__call__

    def call(self, at, rows):
        images, labels = real(self, at, rows)
        if at == step and images.is_floating_point():
            images = torch.where((rows == row)[:, None, None, None], torch.nan, images)
        return images, labels

    Batches.__call__ = call


CASES = (("train", "loss"), ("train", "gradients"), ("train", "weights"), ("train-tokenizer", "data"),
         ("train-text", "loss"), ("train-text", "gradients"), ("train-text", "weights"))  # fmt: skip


def inject(work: Work, count: int, seed: int) -> Iterator[Result]:
    """Poison one process."""
    for turn in range(count):
        command, place = CASES[turn % len(CASES)]
        dice = random.Random(f"{seed}-nan-{turn}")
        step, row = dice.randrange(STEPS), dice.randrange(8)
        work.run_whole(command)
        folder = work.lay_out(NEEDS[command])

        def task(command=command, place=place, step=step, row=row) -> None:
            poison(command, place, step, row)
            main(list(COMMANDS[command]))

        ending = run_child(task, folder)
        what = f"NaN in {place} of {command}, step {step}, row {row}"
        yield judge(ending, place, finish(work, command, folder), what)
        work.remove(folder)


def judge(ending: Ending, place: str, wrong: str, what: str) -> Result:
    """Say whether it stopped with exit code 5 and a name, and the same command then ends as if nothing had been."""
    if ending.code == 0:
        return Result("silent", "went on", f"{what}: went on, then {wrong or 'the same bytes'}")
    if ending.code != 5 or not ending.is_one_line:
        return lose("wrong exit", f"{what}: code {ending.code}: {ending.last_line}")
    if wrong:
        return lose("other bytes", f"{what}: then {wrong}")
    return survive(f"{place}: exit code 5, then the same bytes")


def inject_on_one_rank(work: Work, count: int, seed: int) -> Iterator[Result]:
    """Poison the second of two ranks; both must stop."""
    for turn in range(count):
        command, place = CASES[turn % 3]
        dice = random.Random(f"{seed}-nan-ranks-{turn}")
        step = dice.randrange(STEPS)
        wanted, _ = run_ranks_whole(work, command)
        folder = work.lay_out(NEEDS[command])
        ending = run_ranks(COMMANDS[command], folder, before=_poison_rank(command, place, step))
        codes = read_codes(folder)
        what = f"NaN in {place} of {command} on the second rank, step {step}: codes {codes}"
        named = "nan" in ending.text.lower() or "finite" in ending.text
        if "Traceback" in ending.text or 5 not in codes or 0 in codes:
            yield lose("wrong exit", f"{what}: {ending.last_line}")
            continue
        again = run_ranks(COMMANDS[command], folder)
        wrong = list_differences(digest_folder(folder / LEAVES[command]), wanted) if not again.code else again.last_line
        if wrong or not named:
            yield lose("other bytes" if wrong else "not named", f"{what}: {wrong or ending.last_line}")
        else:
            yield survive(f"{place}: exit code 5, then the same bytes")
        work.remove(folder)


def _poison_rank(command: str, place: str, step: int) -> Callable[[], None]:
    def act() -> None:
        if os.environ["RANK"] == "1":
            poison(command, place, step, ANY_ROW)

    return act


CAMPAIGNS = [
    Campaign("nan-one", "NaN in weights, data, loss and gradients of one process", 140, inject, 7),
    Campaign("nan-ranks", "NaN in weights, loss and gradients of the second of two ranks", 12, inject_on_one_rank, 3),
]
