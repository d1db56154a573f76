"""A training that cannot end is refused before it reads its data."""

from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from unmask.errors import DiskError, ShortageError
from unmask.experiments.preflight import check_room, estimate_activations
from unmask.method.rand import Rand
from unmask.recipes.reading import find_recipe, list_recipes
from unmask.recipes.schema import TokenizerRecipe
from unmask.runtime.distributed import World, autocast

ALONE = World(0, 1, torch.device("cpu"))
DIGITS = find_recipe("digits")
NUM = sum(p.numel() for p in DIGITS.model.build(DIGITS.tokenizer.vocab_size, DIGITS.grid).parameters())
STATE = 4 * NUM * (2 + 1)  # weights, averages, and the one moment of Muon
Usage = namedtuple("Usage", "free")


def limit(monkeypatch, *, memory=1e15, disk=1e15):
    monkeypatch.setattr("unmask.runtime.shortage.measure_free_memory", lambda: memory)
    monkeypatch.setattr("unmask.runtime.shortage.shutil.disk_usage", lambda place: Usage(disk))


def test_too_little_memory_is_refused_with_the_numbers_and_the_remedy(monkeypatch, tmp_path):
    needed = STATE + max(4 * NUM, estimate_activations(DIGITS, ALONE)[1])
    limit(monkeypatch, memory=needed)
    check_room(DIGITS, tmp_path, ALONE)
    limit(monkeypatch, memory=needed - 1)
    with pytest.raises(ShortageError, match=rf"the model has {NUM:,} weights; lower the sizes under --model"):
        check_room(DIGITS, tmp_path, ALONE)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two processes share this machine
    limit(monkeypatch, memory=needed * 1.9)
    with pytest.raises(ShortageError):
        check_room(DIGITS, tmp_path, ALONE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_activations_are_estimated_within_a_factor_of_two_and_never_too_high(name, precision):
    recipe, kept = find_recipe(name), {}
    model = recipe.model.build(recipe.tokenizer.vocab_size, recipe.grid)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    recipe = replace(recipe, training=replace(recipe.training, batch_size=8, accumulate=2))
    rows, estimate = estimate_activations(recipe, ALONE)
    assert rows == 4
    tokens, rand = torch.zeros(rows, model.length, dtype=torch.int64), Rand(0, torch.arange(rows), rows)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), autocast(precision, ALONE):
        loss = recipe.objective(model, tokens, None, mask_id=model.mask_id, rand=rand)
    assert 0.5 * sum(kept.values()) < estimate < sum(kept.values()), loss


def test_no_estimate_is_made_of_tokenizers_and_of_tokens_before_they_are_read():
    for recipe in (find_recipe("cifar10-tokenizer", TokenizerRecipe), find_recipe("cifar10")):
        assert estimate_activations(recipe, ALONE)[1] == 0


def test_the_disk_must_hold_what_is_kept_and_one_more(monkeypatch, tmp_path):
    run = tmp_path / "not" / "there"
    needed = 3 * STATE + 4 * NUM
    limit(monkeypatch, disk=needed)
    check_room(DIGITS, run, ALONE)
    limit(monkeypatch, disk=needed - 1)
    with pytest.raises(DiskError, match=r"lower --training\.keep \(now 2\)$"):
        check_room(DIGITS, run, ALONE)
    (run / "checkpoints/step-00000001").mkdir(parents=True)  # this one has its place already
    check_room(DIGITS, run, ALONE)
    limit(monkeypatch, disk=0)
    steps = DIGITS.training.steps
    (run / f"checkpoints/step-{steps:08d}").mkdir()
    (run / "model.safetensors").touch()  # a finished run writes no checkpoint
    check_room(DIGITS, run, ALONE)
    longer = replace(DIGITS, training=replace(DIGITS.training, steps=steps + 1))  # but one whose steps grow does
    limit(monkeypatch, disk=STATE + 4 * NUM)
    check_room(longer, run, ALONE)
    limit(monkeypatch, disk=STATE + 4 * NUM - 1)
    with pytest.raises(DiskError):
        check_room(longer, run, ALONE)


@pytest.mark.parametrize(("steps", "every", "done", "copies"), [(4, 4, 0, 1), (5, 4, 0, 2), (8, 4, 4, 1), (8, 4, 8, 0)])
def test_the_disk_need_not_hold_more_than_the_saves_to_come(monkeypatch, tmp_path, steps, every, done, copies):
    recipe = replace(DIGITS, training=replace(DIGITS.training, steps=steps, save_every=every, keep=5))
    (tmp_path / f"checkpoints/step-{done:08d}").mkdir(parents=True)
    needed = copies * STATE + 4 * NUM
    limit(monkeypatch, disk=needed)
    check_room(recipe, tmp_path, ALONE)
    limit(monkeypatch, disk=needed - 1)
    with pytest.raises(DiskError):
        check_room(recipe, tmp_path, ALONE)


@pytest.mark.parametrize("name", [*list_recipes(), *list_recipes(TokenizerRecipe)])
def test_no_recipe_is_built_in_memory_or_refused_with_room(monkeypatch, tmp_path, name):
    limit(monkeypatch)
    check_room(find_recipe(name), tmp_path, ALONE)


def test_a_network_of_terabytes_is_refused_at_once(monkeypatch, tmp_path):
    limit(monkeypatch, memory=1e12)
    model = replace(DIGITS.model, dim=65_536, heads=16, depth=1024)
    with pytest.raises(ShortageError, match="GiB of memory"):
        check_room(replace(DIGITS, model=model), tmp_path, ALONE)
