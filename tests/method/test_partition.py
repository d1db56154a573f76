"""Partition models: no token reaches a logit that must not see it, and asking for few places changes no answer."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unmask.data.sources.choice import Digits
from unmask.method.guidance import guided
from unmask.method.likelihood import compute_exact_nll
from unmask.method.masking import ABSENT
from unmask.method.models.configs import TransformerConfig
from unmask.method.models.partition import PADDED_TOKENS, PADDING, gather_places, group_rows
from unmask.method.models.partition_config import PartitionConfig
from unmask.method.partitioning import Partition
from unmask.method.ramps import LinearRamp
from unmask.method.rand import Rand, seeded
from unmask.method.sampling.decode import decode
from unmask.method.sampling.priorities import Confidence, Entropy, Halton, Random, Raster
from unmask.method.schedules import Cosine, Power, ratios
from unmask.recipes.schema import Recipe
from unmask.tokenizers.pixels import Pixels

K = 12
OPTIONS = {
    "plain": {},
    "classes": {"num_classes": 3},
    "prefix": {"num_classes": 3, "prefix": True, "registers": 2},
    "not rotary": {"rotary": False},
    "plain parts": {"gated": False, "qk_norm": False},
    "padded": {"padded": True},
}
GRIDS = [(10,), (2, 5), (1, 2, 5)]
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def build(options, grid=(2, 5), vocab_size=K, seed=0):
    """A network with random weights, the zero ones too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PartitionConfig(dim=24, heads=2, **options).build(vocab_size, grid)
        for p in model.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.3)
    return model.eval()


def draw(rows, length=10, seed=1):
    gen = torch.Generator().manual_seed(seed)
    share = torch.linspace(0, 1, rows)[:, None]
    return torch.randint(0, K, (rows, length), generator=gen), torch.rand(rows, length, generator=gen) < share


def classes(options, rows):
    return torch.arange(rows) % 4 - 1 if "num_classes" in options else None


# -- who sees what -----------------------------------------------------------------------------------------------------


@every_option
@pytest.mark.parametrize("grid", GRIDS)
def test_a_logit_depends_on_the_other_group_and_on_nothing_else(options, grid):
    model = build(options, grid)
    tokens = torch.arange(10)[None]  # each token once, so that the gradient of its embedding names it
    groups = torch.tensor([[1, 0, 0, 1, 1, 0, 1, 0, 0, 0]], dtype=torch.bool)
    logits = model(tokens, classes(options, 1), groups=groups)
    for place in range(10):
        (gradient,) = torch.autograd.grad(logits[0, place].square().sum(), model.embedding.weight, retain_graph=True)
        seen = gradient.abs().sum(1)[:10] > 0
        assert torch.equal(seen, groups[0] != groups[0, place])


@every_option
def test_a_group_with_nothing_opposite_depends_on_no_token(options):
    model = build(options)
    tokens, whole = draw(1)[0], torch.ones(1, 10, dtype=torch.bool)
    logits = model(tokens, classes(options, 1), groups=whole)
    (gradient,) = torch.autograd.grad(logits.square().sum(), model.embedding.weight)
    assert not gradient.any()


@every_option
@pytest.mark.parametrize("grid", GRIDS)
def test_training_and_sampling_give_the_same_logits(options, grid):
    model, rows = build(options, grid), 7
    tokens, groups = draw(rows)
    c = classes(options, rows)
    with torch.no_grad():
        trained = model(tokens, c, groups=groups)
        first = model(torch.where(groups, K, tokens), c)
        second = model(torch.where(groups, tokens, K), c)
    torch.testing.assert_close(torch.where(groups[..., None], first, second), trained, atol=2e-5, rtol=2e-5)


def test_tokens_that_are_absent_are_seen_by_none():
    model = build({"padded": True})
    tokens, groups = draw(5)
    tokens[:, 7:] = ABSENT
    other = tokens.clone()
    with torch.no_grad():
        logits = model(tokens, groups=groups)
        masked = model(torch.where(groups & (tokens != ABSENT), K, tokens))
        short = model(torch.where(groups, K, other).masked_fill(tokens == ABSENT, ABSENT))
    torch.testing.assert_close(masked, short)
    asked = groups & (tokens != ABSENT)
    torch.testing.assert_close(masked[asked], logits[asked], atol=2e-5, rtol=2e-5)


# -- asking for places -------------------------------------------------------------------------------------------------


@every_option
def test_few_places_get_the_answers_of_all(options):
    model, rows = build(options), 6
    tokens, masked = draw(rows)
    canvas, c = torch.where(masked, K, tokens), classes(options, rows)
    some = masked & (torch.rand(masked.shape, generator=torch.Generator().manual_seed(3)) < 0.5)
    with torch.no_grad():
        every = model(canvas, c)
        torch.testing.assert_close(model(canvas, c, some), every[some], atol=2e-5, rtol=2e-5)
    assert not every[~masked].any()


@every_option
def test_a_row_does_not_depend_on_its_batch(options):
    model, rows = build(options), 6
    tokens, masked = draw(rows)
    canvas, c = torch.where(masked, K, tokens), classes(options, rows)
    with torch.no_grad():
        together = model(canvas, c)
        alone = [model(canvas[i : i + 1], None if c is None else c[i : i + 1]) for i in range(rows)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("known", [True, False])
def test_an_empty_canvas_and_a_full_one_are_answered(known):
    model = build({})
    canvas = draw(2)[0] if known else torch.full((2, 10), K)
    with torch.no_grad():
        logits = model(canvas)
        assert logits.shape == (2, 10, K)
        assert logits.any().item() != known
        assert model(canvas, None, torch.zeros(2, 10, dtype=torch.bool)).shape == (0, K)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=40))
def test_rows_are_split_so_that_padding_is_cheap(numbers):
    known, asked = (torch.tensor([n[i] for n in numbers], dtype=torch.long) for i in (0, 1))
    parts = list(group_rows(known, asked))
    rows = [row for part in parts for row in part.tolist()]
    assert sorted(rows) == [i for i, (_, a) in enumerate(numbers) if a]
    for part in parts:
        for count in (known[part], asked[part]):
            assert int(count.max()) * len(part) <= PADDING * int(count.sum()) + PADDED_TOKENS * len(part)


def test_rows_of_equal_numbers_are_one_batch():
    assert len(list(group_rows(torch.full((64,), 10), torch.full((64,), 39)))) == 1


@given(st.integers(0, 4), st.integers(1, 9), st.integers(0, 99))
def test_places_are_listed_in_order(rows, length, seed):
    chosen = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 0.5
    place, real = gather_places(chosen)
    for row in range(rows):
        assert place[row][real[row]].tolist() == chosen[row].nonzero()[:, 0].tolist()


# -- samplers ----------------------------------------------------------------------------------------------------------

ORDERS = [Halton((2, 5)), Random(), Raster(), Confidence(), Entropy()]


@pytest.mark.parametrize("order", ORDERS, ids=repr)
@pytest.mark.parametrize("scale", [1.0, LinearRamp(scale=3.0)], ids=str)
def test_an_order_known_before_gives_the_tokens_of_the_full_logits(order, scale):
    model = build({"num_classes": 3})
    canvas = torch.where(draw(5)[1], K, draw(5)[0])
    asked = []

    def count(tokens, condition, at=None):
        asked.append(int((tokens == K).sum() if at is None else at.sum()))
        return model(tokens, condition, at)

    def sample(network):
        predict = guided(network, torch.tensor([0, 1, 2, 0, 1]), scale=scale)
        rand = seeded(3, 5)
        return [s.tokens for s in decode(predict, canvas, ratios(Cosine(), 4), mask_id=K, rand=rand, priority=order)]

    full = sample(count)  # a function says nothing of places
    everything = sum(asked)
    count.takes_places = True  # type: ignore[attr-defined]
    asked.clear()
    placed = sample(count)
    assert all(torch.equal(a, b) for a, b in zip(full, placed, strict=True))
    fixed = isinstance(order, Halton | Random | Raster)
    assert sum(asked) < everything if fixed else sum(asked) <= everything
    if fixed and scale == 1.0:
        assert sum(asked) == int((canvas == K).sum())


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("order", [Halton((4,)), Entropy()], ids=repr)
def test_the_probabilities_of_all_sequences_sum_to_one(order, steps):
    model = build({}, (4,), vocab_size=3)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    predict = guided(model, None)
    nats = compute_exact_nll(predict, every, ratios(Power(), steps), mask_id=3, rand=seeded(0, len(every)),
                             priority=order)  # fmt: skip
    assert (-nats.sum(1)).exp().sum().item() == pytest.approx(1, abs=1e-5)


# -- the objective -----------------------------------------------------------------------------------------------------


class Chosen(Rand):
    """Noise that makes a chosen first group."""

    def __call__(self, stream, *shape):
        size = len(CHOICE[0])
        if stream == "time":
            return torch.tensor([(len(CHOICE[1]) + 0.5) / (size + 1)], dtype=torch.float64)
        u = torch.tensor([[0.1 if i in CHOICE[1] else 0.9 for i in range(size)]], dtype=torch.float64)
        return u if stream == "mask" else torch.zeros(1, *shape, dtype=torch.float64)


CHOICE: list = [(), ()]


def test_the_mean_of_the_likelihood_form_is_the_mean_over_all_orders():
    """Over every size and every subset, against one token at a time in every order, by enumeration."""
    length = 4
    model, tokens = build({}, (length,), vocab_size=5), torch.tensor([[2, 0, 4, 1]])
    objective, total = Partition(likelihood=True, drop=0.0), 0.0
    rand = Chosen(0, torch.zeros(1, dtype=torch.long), 1)
    with torch.no_grad():
        for size in range(length + 1):
            subsets = list(itertools.combinations(range(length), size))
            for subset in subsets:
                CHOICE[:] = [range(length), subset]
                loss = objective(model, tokens, None, mask_id=5, rand=rand)
                total += loss.total.item() / (length + 1) / len(subsets)
        expected, orders = 0.0, list(itertools.permutations(range(length)))
        for order in orders:
            canvas = torch.full_like(tokens, 5)
            for place in order:
                expected -= model(canvas)[0, place].log_softmax(-1)[tokens[0, place]].item() / len(orders)
                canvas[0, place] = tokens[0, place]
    assert total == pytest.approx(expected, rel=1e-5)
    assert loss.count == length


def test_every_token_is_a_target_once_and_groups_differ_by_row():
    seen = []

    def model(tokens, condition, at, *, groups):
        seen.append((at, groups))
        return torch.zeros(int(at.sum()), K)

    tokens = draw(64)[0]
    loss = Partition()(model, tokens, None, mask_id=K, rand=seeded(0, 64))
    at, groups = seen[0]
    assert at.all()
    assert loss.total / loss.count == pytest.approx(torch.tensor(float(K)).log().item(), rel=1e-5)
    assert set(groups.sum(1).tolist()) == set(range(1, 11))  # stratified: every size comes


def test_parts_that_do_not_fit_are_refused():
    recipe = Recipe(data=Digits(), tokenizer=Pixels(size=(8, 8), patch=2, levels=4), model=PartitionConfig(),
                    objective=Partition())  # fmt: skip
    with pytest.raises(ValueError, match="Partition trains a PartitionConfig, not TransformerConfig"):
        replace(recipe, model=TransformerConfig())
    with pytest.raises(ValueError, match="no token that is known"):
        replace(recipe, sampling=replace(recipe.sampling, remask=True))
    with pytest.raises(ValueError, match="smoothed loss is no likelihood"):
        Partition(likelihood=True, label_smoothing=0.1)
    with pytest.raises(ValueError, match="decoder_depth=0"):
        PartitionConfig(decoder_depth=0)
