"""Objectives: against loops and closed forms, what the model may see, and sums that no cut of the batch can change."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unmask.method.cross_entropy import CrossEntropy
from unmask.method.guidance import NULL
from unmask.method.masking import ABSENT, mask_bernoulli, mask_exact, split_complementary, stratify_times
from unmask.method.objectives import Corruption, Loss, MaskedDiffusion, MaskGIT
from unmask.method.rand import Rand, seeded
from unmask.method.schedules import Arccos, Cosine, Exp, Log, Power, Sigmoid, compute_likelihood_weight
from unmask.storage.config import dump_json, from_json

K, LENGTH, CLASSES = 6, 9, 3


class Toy(nn.Module):
    """Logits from the token, its position, the row's mean and its class, in any float type. Records its inputs."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(0)
        self.token = nn.Parameter(torch.randn(K + 1, 8, generator=gen).to(dtype))
        self.place = nn.Parameter(torch.randn(LENGTH, 8, generator=gen).to(dtype))
        self.group = nn.Parameter(torch.randn(CLASSES + 1, 8, generator=gen).to(dtype))
        self.out = nn.Parameter(torch.randn(8, K, generator=gen).to(dtype))
        self.seen: list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]] = []

    def forward(self, tokens, condition, at):
        self.seen.append((tokens, condition, at))
        x = self.token[tokens] + self.place
        x = x + x.mean(1, keepdim=True)
        if condition is not None:
            x = x + self.group[condition][:, None]
        return (x.tanh() @ self.out)[at]


def uniform(tokens, condition, at):
    return torch.zeros(int(at.sum()), K)


def clean(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, K, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def labels(rows: int) -> torch.Tensor:
    return torch.arange(rows) % CLASSES


def run(objective: MaskGIT, model, rows: int = 8, seed: int = 0, condition=None) -> Loss:
    return objective(model, clean(rows), condition, mask_id=K, rand=seeded(seed, rows))


@pytest.mark.parametrize("options", [
    {}, {"label_smoothing": 0.3}, {"visible_weight": 0.5}, {"visible_weight": 1.0, "label_smoothing": 0.1},
    {"independent": True}, {"complementary": True}, {"stratified": False}, {"schedule": Cosine()},
])  # fmt: skip
def test_a_uniform_model_scores_log_k(options):
    loss = run(MaskGIT(**options), uniform)
    assert (loss.total / loss.count).item() == pytest.approx(math.log(K), rel=1e-6)


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=30, deadline=None)
def test_the_loss_equals_a_loop_over_positions(seed, visible_weight, smoothing):
    tokens, model = clean(3, seed), Toy()
    objective = MaskGIT(visible_weight=visible_weight, label_smoothing=smoothing)
    loss = objective(model, tokens, None, mask_id=K, rand=seeded(seed, 3))
    mask = model.seen[-1][0] == K
    logits = model(torch.where(mask, K, tokens), None, torch.ones_like(mask)).view(3, LENGTH, K).detach().double()
    total = count = 0.0
    for row in range(3):
        for i in range(LENGTH):
            weight = 1.0 if mask[row, i] else visible_weight
            log_p = logits[row, i].log_softmax(-1)
            hard, soft = -log_p[tokens[row, i]].item(), -log_p.mean().item()
            total += weight * ((1 - smoothing) * hard + smoothing * soft)
            count += weight
    assert loss.total.item() == pytest.approx(total, rel=1e-5)
    assert loss.count.item() == pytest.approx(count, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_visible_weight_one_is_plain_cross_entropy(smoothing):
    tokens, model, rand = clean(4), Toy(), seeded(0, 4)
    every = MaskGIT(visible_weight=1.0, label_smoothing=smoothing)
    loss = every(model, tokens, None, mask_id=K, rand=rand)
    mask = model.seen[-1][0] == K
    logits = model(torch.where(mask, K, tokens), None, torch.ones_like(mask))
    want = F.cross_entropy(logits, tokens.flatten(), label_smoothing=smoothing)
    torch.testing.assert_close(loss.total / loss.count, want)
    masked_only = MaskGIT(label_smoothing=smoothing)(model, tokens, None, mask_id=K, rand=rand)
    torch.testing.assert_close(
        masked_only.total / masked_only.count,
        F.cross_entropy(logits[mask.flatten()], tokens[mask], label_smoothing=smoothing),
    )


def test_logits_are_asked_only_where_they_count():
    model = Toy()
    run(MaskGIT(), model)
    seen, _, at = model.seen[-1]
    assert torch.equal(at, seen == K)
    run(MaskGIT(visible_weight=0.1), model)
    assert model.seen[-1][2].all()


@pytest.mark.parametrize("options", [{}, {"complementary": True}, {"independent": True}, {"visible_weight": 0.5}])
def test_masked_values_never_reach_the_model(options):
    """Whatever stands at the masked positions, the input is the same; and elsewhere it is the clean data."""
    objective, model, tokens = MaskGIT(**options), Toy(), clean(6)
    objective(model, tokens, None, mask_id=K, rand=seeded(3, 6))
    seen = model.seen[-1][0]
    masks = (seen == K).view(-1, 6, LENGTH)
    assert masks.any(-1).all()
    for part, mask in zip(seen.view(-1, 6, LENGTH), masks, strict=True):
        assert torch.equal(part[~mask], tokens[~mask])
        other = torch.where(mask, (tokens + 1 + clean(6, 9) % (K - 1)) % K, tokens)
        assert (other[mask] != tokens[mask]).all()
        objective(model, other, None, mask_id=K, rand=seeded(3, 6))
        again = model.seen[-1][0].view(-1, 6, LENGTH)
        assert any(torch.equal(part, half) for half in again)


def test_the_clean_tokens_are_not_changed():
    tokens, condition = clean(5), labels(5)
    kept = tokens.clone(), condition.clone()
    MaskGIT(complementary=True, drop=0.5)(Toy(), tokens, condition, mask_id=K, rand=seeded(0, 5))
    assert torch.equal(tokens, kept[0])
    assert torch.equal(condition, kept[1])


def test_the_mask_is_the_documented_one():
    model, rand = Toy(), seeded(7, 16)
    u = rand("mask", LENGTH)
    even = stratify_times(rand("time"), rand.rows, 16)
    cases = [
        (MaskGIT(), mask_exact(Cosine()(even), u)),
        (MaskGIT(schedule=Arccos()), mask_exact(Arccos()(even), u)),
        (MaskGIT(stratified=False), mask_exact(Cosine()(rand("time")), u)),
        (MaskGIT(independent=True), mask_bernoulli(Cosine()(even), u)),
        (MaskGIT(complementary=True), torch.cat(split_complementary(mask_exact(Cosine()(even), u), u))),
    ]
    for objective, mask in cases:
        objective(model, clean(16), None, mask_id=K, rand=rand)
        assert torch.equal(model.seen[-1][0] == K, mask), objective


@pytest.mark.parametrize("options", [
    {"schedule": Power(3.0)}, {"visible_weight": 0.1}, {"label_smoothing": 0.1}, {"drop": 1.0}, {"independent": True},
    {"stratified": False}, {"complementary": True},
])  # fmt: skip
def test_every_option_changes_the_loss(options):
    """A field that nothing reads would be a knob without a wire."""
    plain = run(MaskGIT(), Toy(), rows=32, condition=labels(32))
    other = run(MaskGIT(**options), Toy(), rows=32, condition=labels(32))
    assert abs((plain.total / plain.count - other.total / other.count).item()) > 1e-4


def test_share_of_dropped_conditions():
    rows, model = 20_000, Toy()
    MaskGIT(drop=0.1)(model, clean(rows), labels(rows), mask_id=K, rand=seeded(0, rows))
    condition = model.seen[-1][1]
    dropped = condition == NULL
    assert dropped.double().mean().item() == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / rows))
    assert torch.equal(condition[~dropped], labels(rows)[~dropped])
    share = [dropped[labels(rows) == c].double().mean().item() for c in range(CLASSES)]
    assert share == pytest.approx([0.1] * CLASSES, abs=0.02)


def test_dropping_has_nothing_to_do_with_the_mask():
    """Noise shared with the time or the mask would show the unconditional twin only some of the ratios."""
    rows, model = 20_000, Toy()
    MaskGIT(drop=0.3, stratified=False)(model, clean(rows), labels(rows), mask_id=K, rand=seeded(0, rows))
    tokens, condition, _ = model.seen[-1]
    masked, dropped = (tokens == K).double(), condition == NULL
    gap = masked[dropped].mean(0) - masked[~dropped].mean(0)
    assert gap.abs().max().item() < 0.04
    assert abs(masked[dropped].mean(1).std() - masked[~dropped].mean(1).std()).item() < 0.02


def test_no_drop_all_drop_and_no_condition():
    model = Toy()
    run(MaskGIT(drop=0.0), model, condition=labels(8))
    assert torch.equal(model.seen[-1][1], labels(8))
    run(MaskGIT(drop=1.0), model, condition=labels(8))
    assert model.seen[-1][1].tolist() == [NULL] * 8
    run(MaskGIT(drop=1.0), model)
    assert model.seen[-1][1] is None
    run(MaskGIT(drop=0.5, complementary=True), model, condition=labels(8))
    first, second = model.seen[-1][1].chunk(2)
    assert torch.equal(first, second), "a row and its complement share their condition"


@given(st.integers(0, 500), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_complementary_counts_every_token_once(seed, rows):
    model = Toy()
    loss = MaskGIT(complementary=True)(model, clean(rows), None, mask_id=K, rand=seeded(seed, rows))
    assert loss.count.item() == rows * LENGTH
    targets = model.seen[-1][2].view(2, rows, LENGTH)
    assert (targets.sum(0) == 1).all()
    assert targets.any(-1).all()


# -- sums that no cut can change ---------------------------------------------------------------------------------------


def in_parts(objective: MaskGIT, model: Toy, sizes: list[int], rows: int = 12) -> list[Loss]:
    """The same global batch, cut into micro-batches of these sizes."""
    losses = []
    for part in torch.arange(rows).split(sizes):
        rand = Rand(5, part, rows)
        losses.append(objective(model, clean(rows)[part], labels(rows)[part], mask_id=K, rand=rand))
    return losses


CUTS = [[12], [4, 4, 4], [1] * 12, [7, 5], [1, 10, 1]]
OBJECTIVES = [
    MaskGIT(), MaskGIT(visible_weight=0.1, label_smoothing=0.1, drop=0.5), MaskGIT(complementary=True),
    MaskGIT(independent=True, schedule=Cosine()), MaskGIT(stratified=False),
]  # fmt: skip


@pytest.mark.parametrize("sizes", CUTS, ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=range(len(OBJECTIVES)))
def test_micro_batches_add_up_and_so_do_their_gradients(objective, sizes):
    whole, parts = Toy(), Toy()
    (one,) = in_parts(objective, whole, [12])
    many = in_parts(objective, parts, sizes)
    total, count = sum(x.total for x in many), sum(x.count for x in many)
    assert count.item() == pytest.approx(one.count.item(), rel=1e-6)
    assert total.item() == pytest.approx(one.total.item(), rel=1e-6)
    (one.total / one.count).backward()
    for loss in many:
        (loss.total / count.item()).backward()
    for name, p in whole.named_parameters():
        torch.testing.assert_close(parts.get_parameter(name).grad, p.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("sizes", CUTS[1:], ids=str)
def test_float64_models_add_up_to_the_last_digits(sizes):
    whole, parts = Toy(torch.float64), Toy(torch.float64)
    (one,) = in_parts(MaskGIT(), whole, [12])
    many = in_parts(MaskGIT(), parts, sizes)
    total, count = sum(x.total for x in many), sum(x.count for x in many)
    assert total.dtype == torch.float64
    assert (total / count).item() == pytest.approx((one.total / one.count).item(), rel=1e-12)


def test_a_mean_of_means_is_something_else():
    """The negative control: averaging the micro-batches' own averages weighs their tokens unequally."""
    (one,) = in_parts(MaskGIT(), Toy(), [12])
    many = in_parts(MaskGIT(), Toy(), [1, 10, 1])
    wrong = sum(x.total / x.count for x in many) / len(many)
    assert abs((wrong - one.total / one.count).item()) > 1e-3


def test_half_precision_logits_are_summed_in_single():
    def half(tokens, condition, at):
        return Toy()(tokens, condition, at).bfloat16()

    loss = run(MaskGIT(), half)
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(run(MaskGIT(), Toy()).total.item(), rel=0.02)


@pytest.mark.parametrize("field", ["visible_weight", "label_smoothing", "drop"])
@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_shares_outside_the_unit_interval_are_refused(field, bad):
    with pytest.raises(ValueError, match=field):
        MaskGIT(**{field: bad})


# -- masked diffusion --------------------------------------------------------------------------------------------------

SMALL = 3  # tokens a row, so that every order can be gone through


class Pairs(nn.Module):
    """Logits of each place from the tokens at the others; small enough to enumerate."""

    def __init__(self) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(1)
        self.table = nn.Parameter(torch.randn(SMALL, K, SMALL, K + 1, generator=gen, dtype=torch.float64))

    def forward(self, tokens, condition, at):
        seen = F.one_hot(tokens.clamp(min=0), K + 1).double() * (tokens != ABSENT)[..., None]
        return torch.einsum("bmj,ikmj->bik", seen, self.table)[at]


def mean_over_orders(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """-log p of all rows together, a token at a time, averaged over all orders."""
    orders = list(itertools.permutations(range(tokens.shape[1])))
    total = torch.zeros((), dtype=torch.float64)
    for order in orders:
        for i, place in enumerate(order):
            visible = tokens.clone()
            visible[:, list(order[i:])] = K
            at = torch.zeros_like(tokens, dtype=torch.bool)
            at[:, place] = True
            total = total + F.cross_entropy(model(visible, None, at), tokens[:, place], reduction="sum")
    return total / len(orders)


@pytest.mark.parametrize("schedule", [Power(), Cosine(), Arccos(), Power(2.0), Log(16), Sigmoid()], ids=repr)
def test_masked_diffusion_is_the_bound_and_so_is_its_gradient(schedule):
    """Averaged over many draws, loss and gradient are those of the mean over all orders, whatever the schedule."""
    model = Pairs()
    tokens = torch.randint(0, K, (2, SMALL), generator=torch.Generator().manual_seed(2))
    want = mean_over_orders(model, tokens)
    (want_gradient,) = torch.autograd.grad(want, model.table)
    copies, repeats = 2000, 12
    values, gradients = [], []
    for seed in range(repeats):
        loss = MaskedDiffusion(schedule=schedule)(
            model, tokens.repeat(copies, 1), None, mask_id=K, rand=seeded(seed, 2 * copies)
        )
        assert loss.count == 2 * copies * SMALL
        values.append(loss.total.detach() / copies)
        gradients.append(torch.autograd.grad(loss.total / copies, model.table)[0])
    for got, aim in [(torch.stack(values), want), (torch.stack(gradients), want_gradient)]:
        error = got.std(0) / repeats**0.5
        assert ((got.mean(0) - aim).abs() <= 6 * error + 1e-9).all()


def test_the_weight_of_x_transformers_is_not_the_bound():
    """g'/(1 - g), its default, makes the loss negative: less likely is then better. The sign alone does not mend it."""
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    g = Power()(t)
    theirs = torch.autograd.grad(g.sum(), t)[0] / (1 - g)
    ours = compute_likelihood_weight(Power(), t)
    assert (theirs < 0).all()
    assert (ours > 0).all()
    assert theirs.abs().argmax() == 0, "theirs is largest where all is masked"
    assert ours.argmax() == 2, "the bound's where little is"
    tokens, rows = clean(4000), 4000
    rand = seeded(0, rows)
    mine = MaskedDiffusion()(uniform, tokens, None, mask_id=K, rand=rand)
    assert (mine.total / mine.count).item() == pytest.approx(math.log(K), rel=0.05)
    t = stratify_times(rand("time"), rand.rows, rows)
    masked = (rand("mask", LENGTH) < 1 - t[:, None]).sum(1)
    wrong = (-(masked * -1 / t)).sum() * math.log(K) / tokens.numel()
    assert wrong.item() != pytest.approx(math.log(K), rel=0.5)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_no_objective_looks_at_absent_places(seed):
    rows = 6
    tokens, lengths = clean(rows, seed), torch.arange(rows) + 2
    short = tokens.masked_fill(torch.arange(LENGTH) >= lengths[:, None], ABSENT)

    def spy(visible, condition, at):
        assert not (at & (short == ABSENT)).any()
        assert ((visible == ABSENT) == (short == ABSENT)).all()
        return torch.zeros(int(at.sum()), K)

    for objective in (MaskGIT(), MaskGIT(visible_weight=0.5), MaskGIT(independent=True), MaskedDiffusion()):
        loss = objective(spy, short, None, mask_id=K, rand=seeded(seed, rows))
        assert loss.total.isfinite()
    assert loss.count == lengths.sum()


def test_masked_diffusion_drops_conditions_and_refuses_bad_shares():
    model = Toy()
    MaskedDiffusion(drop=1.0)(model, clean(8), labels(8), mask_id=K, rand=seeded(0, 8))
    assert (model.seen[-1][1] == NULL).all()
    MaskedDiffusion(drop=0.0)(model, clean(8), labels(8), mask_id=K, rand=seeded(0, 8))
    assert torch.equal(model.seen[-1][1], labels(8))
    with pytest.raises(ValueError, match=r"drop=2\.0"):
        MaskedDiffusion(drop=2.0)


# -- corruption --------------------------------------------------------------------------------------------------------


def shown(corruption: Corruption, rows: int, length: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """What stands at the masked places, and what was there: rows of token 0, every other place masked."""
    tokens = torch.zeros(rows, length, dtype=torch.long)
    mask = torch.arange(length).expand(rows, length) % 2 == 0
    visible = corruption(tokens, mask, mask_id=K, rand=seeded(4, rows))
    assert torch.equal(visible[~mask], tokens[~mask])
    return visible[mask].view(rows, -1), tokens


def chi_square(seen: torch.Tensor, share: list[float]) -> float:
    counts = torch.bincount(seen.flatten(), minlength=K + 1).double()
    want = torch.tensor(share, dtype=torch.float64) * seen.numel()
    return ((counts - want) ** 2 / want).sum().item()


@pytest.mark.parametrize(("keep", "random"), [(0.15, 0.1), (0.1, 0.3), (0.5, 0.5)])
def test_corruption_has_exactly_the_stated_shares(keep, random):
    """Token 0 is kept with `keep` or drawn by chance; 1..K-1 are drawn; the mask stands for the rest, never drawn."""
    seen, _ = shown(Corruption(keep=keep, random=random), 5000)
    if keep + random == 1:
        assert (seen != K).all(), "what is drawn at random is never the mask id"
        seen = torch.cat([seen, torch.full((1000, 20), K)])
        keep, random = keep * 5 / 6, random * 5 / 6
    share = [keep + random / K, *[random / K] * (K - 1), 1 - keep - random]
    assert chi_square(seen, share) < 30, "6 degrees of freedom: exceeded once in 25,000"
    assert chi_square(seen, [share[0] + 0.01, *share[1:-1], share[-1] - 0.01]) > 30, "a hundredth off would be seen"


def test_coins_are_what_x_transformers_does():
    """7.5 % kept, 4.3 % random, 88 % masked on average: not the stated shares; both, one or neither in a row."""
    rows = 20_000
    seen, _ = shown(Corruption(coins=True), rows)
    both, alone = 0.1 * 0.85**2, 0.1
    random = (both + alone) / 4
    assert random == pytest.approx(0.043, abs=5e-4)
    wrong = (seen != K) & (seen != 0)
    assert wrong.double().mean().item() == pytest.approx(random * (K - 1) / K, abs=0.002)
    assert (seen == K).double().mean().item() == pytest.approx(1 - 0.075 - random, abs=0.004)
    untouched = (seen == K).all(1).double().mean().item()
    law = [(0.0, 0.0), (0.15, 0.0), (0.0, alone), (0.15, both)]
    assert untouched == pytest.approx(sum((1 - a - b) ** 20 for a, b in law) / 4, abs=0.015)
    assert chi_square(seen, [0.15 + 0.1 / K, *[0.1 / K] * (K - 1), 0.75]) > 1000


@pytest.mark.parametrize("objective", [
    MaskGIT(corruption=Corruption()), MaskGIT(corruption=Corruption(), complementary=True),
    MaskGIT(corruption=Corruption(coins=True), visible_weight=0.3), MaskedDiffusion(corruption=Corruption()),
], ids=range(4))  # fmt: skip
def test_every_masked_token_is_a_target_whatever_stands_there(objective):
    rows = 50
    model, plain = Toy(), Toy()
    loss = objective(model, clean(rows), None, mask_id=K, rand=seeded(3, rows))
    other = dataclasses.replace(objective, corruption=None)(plain, clean(rows), None, mask_id=K, rand=seeded(3, rows))
    (seen, _, at), (bare, _, wanted) = model.seen[-1], plain.seen[-1]
    assert torch.equal(at, wanted), "the same places are asked for"
    assert torch.equal(seen[bare != K], bare[bare != K]), "visible tokens stay"
    assert loss.count == other.count
    assert abs(loss.total - other.total) > 1e-3
    changed = seen[bare == K] != K
    assert 0 < changed.double().mean().item() < 0.4


def test_absent_places_stay_absent():
    tokens = clean(30).masked_fill(torch.arange(LENGTH) >= 5, ABSENT)
    batch = MaskGIT(corruption=Corruption(keep=0.5, random=0.5)).mask_batch(tokens, None, mask_id=K, rand=seeded(0, 30))
    assert torch.equal(batch.visible == ABSENT, tokens == ABSENT)
    assert (batch.visible != K).all()


@pytest.mark.parametrize("bad", [{"keep": -0.1}, {"random": -0.1}, {"keep": 0.6, "random": 0.5}, {"keep": math.nan}])
def test_impossible_shares_are_refused(bad):
    with pytest.raises(ValueError, match="shares"):
        Corruption(**bad)


@pytest.mark.parametrize("objective", [
    MaskGIT(), MaskGIT(corruption=Corruption(coins=True), self_condition=0.75),
    MaskedDiffusion(corruption=Corruption(), self_condition=0.5), MaskedDiffusion(),
], ids=range(4))  # fmt: skip
def test_objectives_are_data(objective):
    assert from_json(type(objective), json.loads(dump_json(objective))) == objective


@pytest.mark.parametrize("sizes", CUTS[1:], ids=str)
@pytest.mark.parametrize("coins", [False, True])
def test_corruption_does_not_depend_on_the_cut(sizes, coins):
    objective = MaskGIT(corruption=Corruption(coins=coins), complementary=True)
    (one,) = in_parts(objective, Toy(), [12])
    many = in_parts(objective, Toy(), sizes)
    assert sum(x.total for x in many).item() == pytest.approx(one.total.item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_our_cross_entropy_is_the_librarys_with_its_gradient(smoothing, dtype):
    gen = torch.Generator().manual_seed(0)
    logits = (torch.randn(7, 33, generator=gen, dtype=dtype) * 20).requires_grad_()
    target, weight = torch.randint(0, 33, (7,), generator=gen), torch.rand(7, generator=gen, dtype=dtype)
    ours = CrossEntropy.apply(logits, target, smoothing)
    want = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(ours, want)
    gradients = [torch.autograd.grad((nats * weight).sum(), logits)[0] for nats in (ours, want)]
    torch.testing.assert_close(*gradients)
    assert torch.autograd.gradcheck(
        lambda x: CrossEntropy.apply(x, target, smoothing), logits.detach().double().requires_grad_()
    )


def test_our_cross_entropy_takes_ruled_out_tokens_and_no_rows():
    logits = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    nats = CrossEntropy.apply(logits, torch.tensor([2]), 0.0)
    nats.sum().backward()
    assert nats.item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert logits.grad.isfinite().all()
    empty = torch.zeros(0, 3, requires_grad=True)
    CrossEntropy.apply(empty, torch.zeros(0, dtype=torch.long), 0.0).sum().backward()
    assert empty.grad.shape == (0, 3)


def test_a_schedule_that_jumps_is_no_bound():
    with pytest.raises(ValueError, match="jumps at t = 0"):
        MaskedDiffusion(schedule=Exp(8))
