"""Starting from another run: what fits is carried over bit for bit, positions as bicubic resizing has them."""

import pytest
import torch
import torch.nn.functional as F

from unmask.data.sources.choice import Digits
from unmask.errors import CheckpointError
from unmask.experiments.finetune import load_compatible, resize_positions, start_from
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.pretrained.valeoai import ValeoaiMaskGIT
from unmask.published.opening import open_model
from unmask.recipes.reading import write_config
from unmask.recipes.schema import Recipe
from unmask.storage.weights import write_weights
from unmask.tokenizers.pixels import Pixels

K = 6


def model(seed, grid=(4, 6), vocab_size=K, **changes):
    """Every parameter random, so that none agrees by chance."""
    config = TransformerConfig(**{"dim": 16, "depth": 2, "heads": 2, "num_classes": 5, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = MaskedTransformer(config, vocab_size, grid)
        for p in made.parameters():
            torch.nn.init.normal_(p)
    return made.eval()


def weights_of(made):
    return {n: p.detach().clone() for n, p in made.named_parameters()}


def differing(a, b):
    return {name for name in a if not torch.equal(a[name], b[name])}


# -- what is carried over ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"prefix": True}, {"num_classes": 0}, {"absolute": False, "registers": 1}])
def test_the_same_model_is_copied_and_nothing_is_said(changes):
    there, here = model(0, **changes), model(1, **changes)
    assert differing(weights_of(there), weights_of(here)) == set(weights_of(there))
    assert load_compatible(here, weights_of(there), there.grid) == []
    assert not differing(weights_of(there), weights_of(here))


def test_another_grid_resizes_the_positions_of_a_critic_too():
    there, here = model(0, critic="separate"), model(1, grid=(8, 12), critic="separate")
    given = weights_of(there)
    assert load_compatible(here, given, there.grid) == ["positions of a grid of 4x6 resized to 8x12"]
    torch.testing.assert_close(
        here.critic.position, resize_positions(given["critic.position"], (4, 6), (8, 12)), rtol=0, atol=0
    )


def test_another_grid_resizes_the_biases_of_a_published_network():
    config = ValeoaiMaskGIT(dim=16, depth=1, heads=2, mlp_dim=32, num_classes=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        there, here = config.build(7, (4, 6)), config.build(7, (8, 12))
        torch.nn.init.normal_(there.cell_bias)
    notes = load_compatible(here, weights_of(there), there.grid)
    assert notes == ["positions and biases of a grid of 4x6 resized to 8x12"]
    torch.testing.assert_close(here.cell_bias, resize_positions(there.cell_bias, (4, 6), (8, 12)), rtol=0, atol=0)


def test_another_grid_resizes_the_positions_alone():
    there, here = model(0), model(1, grid=(8, 12))
    given = weights_of(there)
    before = {n: p.clone() for n, p in given.items()}
    assert load_compatible(here, given, there.grid) == ["positions of a grid of 4x6 resized to 8x12"]
    assert not differing(before, given)
    after = weights_of(here)
    assert {n for n in given if given[n].shape != after[n].shape or not torch.equal(given[n], after[n])} == {"position"}
    picture = given["position"].T.reshape(1, 16, 4, 6)
    wanted = F.interpolate(picture, (8, 12), mode="bicubic", align_corners=False, antialias=True)[0].flatten(1).T
    torch.testing.assert_close(after["position"], wanted)


def test_a_grid_of_as_many_cells_is_another_grid_too():
    there, here = model(0, grid=(4, 6)), model(1, grid=(6, 4))
    assert load_compatible(here, weights_of(there), there.grid) == ["positions of a grid of 4x6 resized to 6x4"]
    assert not torch.equal(here.position, there.position)


def test_without_learned_positions_any_grid_will_do():
    there, here = (model(i, grid=g, absolute=False, registers=1) for i, g in enumerate([(4, 6), (8, 8)]))
    assert load_compatible(here, weights_of(there), there.grid) == []
    assert not differing(weights_of(there), weights_of(here))


@pytest.mark.parametrize("prefix", [True, False])
def test_other_classes_start_anew_but_for_no_class(prefix):
    there, here = model(0, prefix=prefix), model(1, prefix=prefix, num_classes=9)
    own = here.classes.table.weight.detach().clone()
    assert load_compatible(here, weights_of(there), there.grid) == [
        "new class table of 9 classes, 5 there; the rest loaded"
    ]
    assert torch.equal(here.classes.table.weight[0], there.classes.table.weight[0])
    assert torch.equal(here.classes.table.weight[1:], own[1:])
    tokens = torch.randint(0, K + 1, (3, 24), generator=torch.Generator().manual_seed(0))
    assert torch.equal(here(tokens), there(tokens)), "without a class they are the same model"


def test_a_class_in_front_can_be_added_and_left_out():
    plain, conditional = model(0, num_classes=0), model(1, prefix=True)
    own = conditional.classes.table.weight.detach().clone()
    assert load_compatible(conditional, weights_of(plain), plain.grid) == [
        "new class table of 5 classes, 0 there; the rest loaded"
    ]
    assert torch.equal(conditional.classes.table.weight, own)
    plain, conditional = model(0, num_classes=0), model(1, prefix=True)
    notes = load_compatible(plain, weights_of(conditional), plain.grid)
    assert notes == ["the table of 5 classes left out"]
    assert torch.equal(plain.head.weight, conditional.head.weight)


# -- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [((12,), (30,)), ((12,), (5,)), ((3, 4), (3, 9)), ((2, 3, 4), (4, 3, 8))])
def test_a_constant_stays_constant_on_grids_of_any_number_of_axes(old, new):
    row = torch.tensor([[1.0, -2.0, 0.5]])
    resized = resize_positions(row.expand(torch.Size(old).numel(), 3), old, new)
    torch.testing.assert_close(resized, row.expand(torch.Size(new).numel(), 3))


def test_a_slope_stays_a_slope_along_its_own_axis():
    """Away from the border cubic resizing is exact for straight lines: cell i of 2n lies at (i + 1/2) / 2 - 1/2."""
    planes, rows, columns = torch.meshgrid(*(torch.arange(6.0) for _ in range(3)), indexing="ij")
    position = torch.stack([planes, rows, columns], dim=-1).flatten(0, 2)
    resized = resize_positions(position, (6, 6, 6), (6, 12, 6)).view(6, 12, 6, 3)
    inner = resized[:, 4:8]
    torch.testing.assert_close(inner[0, :, 0, 1], (torch.arange(4.0, 8.0) + 0.5) / 2 - 0.5)
    torch.testing.assert_close(inner[:, 0, 0, 0], torch.arange(6.0))
    torch.testing.assert_close(inner[0, 0, :, 2], torch.arange(6.0))


@pytest.mark.parametrize("new", [(4, 3), (18, 16), (5, 20)])
def test_two_axes_are_the_bicubic_filter_of_pictures_also_where_they_shrink(new):
    noise = torch.randn(1, 5, 9, 8, generator=torch.Generator().manual_seed(0))
    found = resize_positions(noise[0].flatten(1).T, (9, 8), new)
    wanted = F.interpolate(noise, new, mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(found, wanted[0].flatten(1).T)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "says"), [
    ({"dim": 32}, r"k_norm\.weight, \(8,\) there and \(16,\) here"),
    ({"dim": 32, "num_classes": 9}, "k_norm"),
    ({"depth": 3, "num_classes": 9}, r"blocks\.2\..*missing there"),
    ({"depth": 3}, r"blocks\.2\..*missing there"),
    ({"depth": 1}, r"blocks\.1\..*missing here"),
    ({"gated": False}, "mlp"),
    ({"num_classes": 0}, "modulation"),
    ({"vocab_size": 7}, r"embedding\.weight|head"),
    ({"absolute": False, "registers": 1}, r"position"),
])  # fmt: skip
def test_another_architecture_is_refused_by_name_before_anything_is_written(changes, says):
    there, here = model(0), model(1, **changes)
    before = weights_of(here)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_compatible(here, weights_of(there), there.grid)
    assert "\n" not in str(caught.value)
    assert not differing(before, weights_of(here))


@pytest.mark.parametrize(("grid", "there"), [((24,), (4, 6)), ((2, 3, 4), (4, 6)), ((8, 8), (5, 5))])
def test_positions_of_other_axes_are_refused(grid, there):
    with pytest.raises(CheckpointError, match="24 learned positions"):
        load_compatible(model(1, grid=grid), weights_of(model(0)), there)


# -- from a run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """What a finished run leaves, of a model on 4x4 cells with 10 classes."""
    tokenizer = Pixels(size=(8, 8), patch=2, levels=2)
    recipe = Recipe(
        data=Digits(), tokenizer=tokenizer, model=TransformerConfig(dim=16, depth=1, heads=2, num_classes=10)
    )
    made = model(0, (4, 4), tokenizer.vocab_size, depth=1, num_classes=10)
    write_config(recipe, tmp_path)
    write_weights(dict(made.named_parameters()), tmp_path / "model.safetensors")
    return tmp_path, made


def test_a_run_is_read_with_its_own_grid_and_classes(run):
    folder, there = run
    before = torch.get_rng_state()
    here = model(1, (8, 8), 16, depth=1, num_classes=3)
    notes = start_from(here, open_model(folder))
    assert notes == [
        "positions of a grid of 4x4 resized to 8x8",
        "new class table of 3 classes, 10 there; the rest loaded",
    ]
    assert torch.equal(here.head.weight, there.head.weight)
    torch.testing.assert_close(here.position, resize_positions(there.position, (4, 4), (8, 8)))
    assert torch.equal(before, torch.get_rng_state())


def test_folders_without_a_run_are_named(run, tmp_path):
    folder, _ = run
    with pytest.raises(CheckpointError, match=r"nowhere: no config\.json"):
        start_from(model(1), open_model(tmp_path / "nowhere"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        start_from(model(1, (4, 4), 16, depth=1), open_model(folder))
